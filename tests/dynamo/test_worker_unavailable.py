"""A worker that says it is unavailable, through the chat clients; it is kept out then: it has its own server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from servers.dynamo.install import ensure_dynamo
from servers.dynamo.server import FAULTS, DynamoServer

from tokentrue import Message, Session
from tokentrue.clients.making import make_client
from tokentrue.config import ClientConfig
from tokentrue.errors import EngineBusyError
from tokentrue.rendering.renderer import load_renderer
from tokentrue.turns import Response

pytestmark = pytest.mark.dynamo

UNAVAILABLE = 9009
MESSAGES, TOKENS = "openai_chat_completions", "openai_chat_completions_token"


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DynamoServer]:
    """One frontend, one fault worker, nobody else's."""
    with DynamoServer(ensure_dynamo(), tmp_path_factory.mktemp("unavailable")) as server:
        server.start_frontend()
        server.start_worker(FAULTS)
        server.wait_ready()
        yield server


def say(server: DynamoServer, client_type: str, session: Session, texts: list[str], last_seed: int) -> Response:
    """Says the texts one after the other, the last one with a seed, and gives the last response."""
    (worker,) = server.workers
    config = ClientConfig(
        client_type=client_type,
        renderer_transport="dynamo",
        api_base_url=server.frontends[0].url,
        max_retries=0,
        measure_logprobs=False,
    )

    async def run() -> Response:
        messages: list[Message] = []
        own = load_renderer(worker.model_folder) if client_type == TOKENS else None
        async with await make_client(config, own) as client:
            for number, text in enumerate(texts, start=1):
                messages.append(Message("user", text))
                args = {"max_tokens": 40, "seed": last_seed if number == len(texts) else 1}
                response = await client.get_response(messages, worker.kind.model_name, args, session=session)
                messages.append(response.message)
        return response

    return asyncio.run(run())


@pytest.mark.parametrize("client_type", [MESSAGES, TOKENS])
@pytest.mark.parametrize("turns", [1, 2])
def test_it_is_busy_and_retryable_for_as_long_as_it_is_kept_out_and_then_used_again(
    lonely, eventually, client_type, turns
) -> None:
    session = Session()
    with pytest.raises(EngineBusyError) as raised:
        say(lonely, client_type, session, ["hello", "go on"][:turns], UNAVAILABLE)
    assert raised.value.status == 503
    assert raised.value.retryable
    assert len(session.turns) == turns - 1, "nothing is committed"

    received = len(lonely.workers[0].requests())
    with pytest.raises(EngineBusyError) as raised:
        say(lonely, client_type, Session(), ["are you there?"], 1)
    assert raised.value.retryable
    assert len(lonely.workers[0].requests()) == received, "the frontend keeps it out"

    def answers() -> bool:
        try:
            return say(lonely, client_type, Session(), ["hello again"], 1).tokens is not None
        except EngineBusyError:
            return False

    eventually(answers, "the worker is used again")
