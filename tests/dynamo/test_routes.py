"""Which of its two token routes a real frontend is asked by, as its worker's log shows."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from servers.plain_http import exchange

from tokentrue import Message, Session
from tokentrue.clients.making import make_client
from tokentrue.config import ClientConfig
from tokentrue.engines.dynamo import DynamoEngine
from tokentrue.engines.http import HttpEngine
from tokentrue.errors import EngineRequestError, RouteMissingError, UnknownModelError, UnsupportedParameterError
from tokentrue.generation import GenerateRequest
from tokentrue.rendering.renderer import load_renderer
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.dynamo import DynamoTransport
from tokentrue.transports.transport import HttpCall
from tokentrue.turns import How

pytestmark = pytest.mark.dynamo

PROMPT = [5, 10, 20, 30, 40]
GENERATE, CHAT = "vllm_tito", "nvext"


@pytest.fixture
def asked(dynamo):
    """One turn by an engine that chooses; gives it, and the routes by which the worker saw requests come."""

    def ask(frontend, worker, model=None, **sampling):
        before = len(worker.requests())

        async def once():
            async with DynamoEngine(HttpEngine(frontend.url, DynamoTransport(), max_retries=0)) as engine:
                params = SamplingParams.from_args({"max_tokens": 20, **sampling})
                request = GenerateRequest(model or worker.kind.model_name, TokenIds(PROMPT), params)
                return [await engine.generate(request) for _ in range(2)]

        found = asyncio.run(once())
        return found, [route_of(request) for request in worker.requests()[before:]]

    return ask


def route_of(request) -> str:
    return GENERATE if GENERATE in request.request["extra_args"] else CHAT


def test_the_token_route_is_taken_where_it_is_served(dynamo, asked) -> None:
    (one, two), routes = asked(dynamo.frontend, dynamo.faults)
    assert routes == [GENERATE, GENERATE]
    assert one.tokens.completion_ids == two.tokens.completion_ids
    assert one.tokens.prompt_ids == PROMPT


def test_the_chat_route_is_taken_where_it_is_not(dynamo, asked) -> None:
    (one, _), routes = asked(dynamo.chatty, dynamo.faults)
    assert routes == [CHAT, CHAT]
    assert one.prompt_ids_echoed


def test_both_routes_give_the_same_sample(dynamo, asked) -> None:
    (by_ids, _), _ = asked(dynamo.frontend, dynamo.faults)
    (by_chat, _), _ = asked(dynamo.chatty, dynamo.faults)
    assert by_ids.tokens.completion_ids == by_chat.tokens.completion_ids
    # One route writes a single-precision number in as many digits as that takes, the other in double's.
    ours, theirs = (np.array(each.tokens.completion_logprobs, dtype=np.float32) for each in (by_ids, by_chat))
    assert np.array_equal(ours, theirs)
    assert by_ids.finish_reason is by_chat.finish_reason


def test_a_model_whose_worker_takes_no_ids_goes_by_chat(dynamo, asked) -> None:
    """The frontend says that it does not know the model, on that route alone."""
    (one, _), routes = asked(dynamo.frontend, dynamo.wordy)
    assert routes == [CHAT, CHAT]
    assert one.prompt_ids_echoed


def test_a_model_that_nobody_serves_is_told_as_such(dynamo, asked) -> None:
    with pytest.raises(UnknownModelError):
        asked(dynamo.frontend, dynamo.faults, "nope")


@pytest.mark.parametrize(
    "sampling",
    [{"stop": ["HO"]}, {"nvext": {"agent_hints": {"osl": 9}}}, {"thinking_token_budget": 9, "store": True}],
)
def test_what_only_the_chat_route_can_do_goes_by_it(dynamo, asked, sampling) -> None:
    _, routes = asked(dynamo.frontend, dynamo.faults, **sampling)
    assert routes == [CHAT, CHAT]


def posted(frontend, worker, **asked) -> dict:
    """What the worker is given for a chat request that was not written by our codec."""
    body = {"model": worker.kind.model_name, "messages": [{"role": "user", "content": ""}], "max_tokens": 20}
    body |= {"nvext": {"token_data": PROMPT}, **asked}
    headers = {"content-type": "application/json"}
    call = HttpCall("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
    assert exchange(frontend.url, call).status == 200
    return worker.requests()[-1].request


def test_what_the_chat_route_takes_and_does_nothing_with_is_never_sent(dynamo, asked) -> None:
    """A bias reaches no worker, and no stop does where end-of-sequence is ignored: both with a 200."""
    assert not posted(dynamo.frontend, dynamo.faults, logit_bias={"7": 100})["sampling_options"].get("logit_bias")
    given = posted(dynamo.frontend, dynamo.faults, ignore_eos=True, stop=["HO"], stop_token_ids=[46])
    assert not given["stop_conditions"].get("stop")
    assert not given["stop_conditions"].get("stop_token_ids")
    for frontend in (dynamo.frontend, dynamo.chatty):
        with pytest.raises(UnsupportedParameterError, match="logit_bias"):
            asked(frontend, dynamo.faults, logit_bias={"7": 1.0})
    with pytest.raises(UnsupportedParameterError, match="ignore_eos"):
        asked(dynamo.chatty, dynamo.faults, ignore_eos=True, stop=["HO"])
    _, routes = asked(dynamo.frontend, dynamo.faults, ignore_eos=True, stop=["HO"])
    assert routes == [GENERATE, GENERATE]


def test_what_only_the_token_route_can_do_needs_it(dynamo, asked) -> None:
    _, routes = asked(dynamo.frontend, dynamo.faults, bad_words=["x"])
    assert routes == [GENERATE, GENERATE]
    with pytest.raises(UnsupportedParameterError, match="bad_words"):
        asked(dynamo.chatty, dynamo.faults, bad_words=["x"])


@pytest.mark.parametrize(
    ("client_type", "dynamo_route", "expected"),
    [
        ("renderer", "auto", [GENERATE, GENERATE]),
        ("renderer", "generate", [GENERATE, GENERATE]),
        ("renderer", "token_data", [CHAT, CHAT]),
        ("openai_chat_completions_token", "auto", [CHAT, CHAT]),
        ("openai_chat_completions_token", "generate", [CHAT, GENERATE]),
        ("openai_chat_completions_token", "token_data", [CHAT, CHAT]),
    ],
)
def test_the_route_that_is_configured(dynamo, client_type, dynamo_route, expected) -> None:
    before = len(dynamo.embedded.requests())

    async def main():
        config = ClientConfig(
            client_type=client_type,
            renderer_transport="dynamo",
            renderer="embedded",
            dynamo_route=dynamo_route,
            measure_logprobs=False,
            api_base_url=dynamo.frontend.url,
            max_retries=0,
        )
        session, messages, found = Session(), [], []
        async with await make_client(config) as client:
            for text in ("What is 12 plus 30?", "And what is 5 times 5?"):
                messages.append(Message("user", text))
                model = dynamo.embedded.kind.model_name
                found.append(await client.get_response(messages, model, {"max_tokens": 64}, session=session))
                messages.append(found[-1].message)
        return found

    found = asyncio.run(main())
    assert found[1].turn.stitch.how is How.BRIDGED
    assert [route_of(request) for request in dynamo.embedded.requests()[before:]] == expected


def test_a_forced_route_that_is_not_served_says_how_to_switch_it_on(dynamo) -> None:
    async def main():
        config = ClientConfig(
            client_type="renderer",
            renderer_transport="dynamo",
            renderer="embedded",
            dynamo_route="generate",
            api_base_url=dynamo.chatty.url,
            max_retries=0,
        )
        async with await make_client(config, load_renderer(dynamo.faults.model_folder)) as client:
            await client.get_response("hi", dynamo.faults.kind.model_name, {"max_tokens": 4})

    with pytest.raises(RouteMissingError, match="DYN_VLLM_ENABLE_INFERENCE_V1_GENERATE"):
        asyncio.run(main())


def test_a_failure_of_the_worker_is_no_reason_for_the_other_route(dynamo, asked) -> None:
    before = len(dynamo.faults.requests())
    with pytest.raises(EngineRequestError):
        asked(dynamo.frontend, dynamo.faults, seed=9001)
    assert len(dynamo.faults.requests()) - before == 1
