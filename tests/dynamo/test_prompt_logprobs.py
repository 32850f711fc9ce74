"""The log-probabilities of the prompt through a real frontend: by both chat clients and by both token routes."""

from __future__ import annotations

import asyncio

import pytest
from servers.dynamo.fault_worker import logprob_of

from tokentrue import Message, Session
from tokentrue.clients.making import make_client
from tokentrue.config import ClientConfig
from tokentrue.errors import EvidenceError
from tokentrue.generation import GenerateRequest
from tokentrue.rendering.renderer import load_renderer
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.vllm import VllmTransport
from tokentrue.turns import How, Response

pytestmark = pytest.mark.dynamo

ASKED = {"max_tokens": 20, "prompt_logprobs": 0}
PROMPT = (21, 22, 23, 24)


def expected(prompt_ids) -> tuple[float | None, ...]:
    """What the fault worker says of a prompt."""
    return (None, *(logprob_of(each) for each in list(prompt_ids)[1:]))


@pytest.mark.parametrize(
    ("client_type", "later"),
    [
        ("openai_chat_completions", How.ENGINE_RENDERED),
        ("openai_chat_completions_token", How.BRIDGED),
        ("renderer", How.BRIDGED),
    ],
)
def test_every_client_gives_one_value_for_each_id_of_each_prompt(dynamo, client_type, later) -> None:
    worker = dynamo.faults
    config = ClientConfig(
        client_type=client_type,
        renderer_transport="dynamo",
        api_base_url=dynamo.frontend.url,
        max_retries=0,
    )
    renderer = None if client_type == "openai_chat_completions" else load_renderer(worker.model_folder)

    async def run() -> list[Response]:
        session, messages, found = Session(), [], []
        async with await make_client(config, renderer) as client:
            for text in ("hello", "go on"):
                messages.append(Message("user", text))
                name = worker.kind.model_name
                found.append(await client.get_response(messages, name, ASKED, session=session))
                messages.append(found[-1].message)
        return found

    first, second = asyncio.run(run())
    assert second.turn.stitch.how is later
    for response in (first, second):
        assert response.prompt_logprobs == expected(response.tokens.prompt_ids)
    assert len(second.prompt_logprobs) > len(first.prompt_logprobs) > 1


@pytest.mark.parametrize("transport", [None, VllmTransport()], ids=["chat", "generate"])
def test_both_token_routes_give_them(dynamo, ask, run_with_engine, transport) -> None:
    request = GenerateRequest(dynamo.faults.kind.model_name, TokenIds(PROMPT), SamplingParams.from_args(ASKED))
    generation = run_with_engine(ask, lambda engine: engine.generate(request), transport)
    assert generation.prompt_logprobs == expected(PROMPT)


def test_a_worker_that_does_not_tell_them_is_found_out(dynamo, ask) -> None:
    with pytest.raises(EvidenceError, match="prompt_logprobs"):
        ask.generate(dynamo.embedded, PROMPT, **ASKED)
