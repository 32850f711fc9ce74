"""Both chat-shaped clients on a real frontend: what they send, what they keep, and every way it can fail."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from tokentrue import Message, Session
from tokentrue.clients.client import Client
from tokentrue.clients.making import make_client
from tokentrue.config import ClientConfig
from tokentrue.errors import (
    AbortedError,
    AlignmentError,
    EngineBusyError,
    EngineFailureError,
    EngineRequestError,
    EngineTimeoutError,
    EvidenceError,
    InvalidTokenIdError,
    MaxTokensTooLargeError,
    OverlongPromptError,
    TokentrueError,
    UnsupportedParameterError,
)
from tokentrue.generation import GenerateRequest
from tokentrue.rendering.renderer import Renderer, load_renderer
from tokentrue.sampling import SamplingParams
from tokentrue.sessions.samples import training_samples
from tokentrue.tokens import TokenIds
from tokentrue.turns import How, Junction, Response, Why

pytestmark = pytest.mark.dynamo

MESSAGES, TOKENS = "openai_chat_completions", "openai_chat_completions_token"
BOTH = pytest.mark.parametrize("client_type", [MESSAGES, TOKENS])

Talk = Callable[[Client], Awaitable[object]]


@pytest.fixture(scope="session")
def renderer(dynamo) -> Renderer:
    """Of the fault worker's own folder."""
    return load_renderer(dynamo.faults.model_folder)


@pytest.fixture
def talk(dynamo, renderer) -> Callable[..., object]:
    """Opens a client of one type, has a talk with it, closes it."""

    def run(client_type: str, about: Talk, *, url: str | None = None, **settings) -> object:
        config = ClientConfig(
            client_type=client_type,
            renderer_transport="dynamo",
            api_base_url=(url or dynamo.frontend.url) + "/v1",
            # Requests are counted here; measuring has tests of its own.
            **{"max_retries": 0, "timeout": 20.0, "measure_logprobs": False, **settings},
        )

        async def once() -> object:
            async with await make_client(config, renderer if client_type == TOKENS else None) as client:
                return await about(client)

        return asyncio.run(once())

    return run


def turns(dynamo, texts, *, session=None, worker=None, later=None, **sampling):
    """Says the texts one after the other, and gives the responses."""
    kept = session if session is not None else Session()

    async def about(client: Client) -> list[Response]:
        messages, found = [], []
        for number, text in enumerate(texts):
            messages.append(Message("user", text))
            chosen = later if later is not None and number else sampling
            model = (worker or dynamo.faults).kind.model_name
            response = await client.get_response(messages, model, {"max_tokens": 40, **chosen}, session=kept)
            messages.append(response.message)
            found.append(response)
        return found

    return about


def test_the_messages_client_gets_the_ids_that_the_worker_was_given_and_sampled(dynamo, talk) -> None:
    before = len(dynamo.faults.requests())
    session = Session()
    found = talk(MESSAGES, turns(dynamo, ["hello", "go on"], session=session))
    received = dynamo.faults.requests()[before:]
    for response, seen in zip(found, received, strict=True):
        assert not seen.token_in
        assert response.tokens.prompt_ids == list(seen.prompt_ids)
        assert response.turn.stitch.how is How.ENGINE_RENDERED
    assert [response.turn.stitch.why for response in found] == [Why.FIRST_TURN, Why.MESSAGES_ONLY]
    assert len(training_samples(session.turns)) == 2


def test_the_token_client_sends_messages_once_and_then_the_exact_ids(dynamo, talk) -> None:
    before, skipped = len(dynamo.faults.requests()), dynamo.frontend.token_in_count()
    session = Session()
    found = talk(TOKENS, turns(dynamo, ["hello", "go on", "and on"], session=session))
    received = dynamo.faults.requests()[before:]
    assert [seen.token_in for seen in received] == [False, True, True], "no further round trip reaches the worker"
    assert dynamo.frontend.token_in_count() - skipped == 2
    assert [response.turn.stitch.how for response in found] == [How.ENGINE_RENDERED, How.BRIDGED, How.BRIDGED]
    assert [response.turn.stitch.junction for response in found[1:]] == [Junction.EXACT] * 2
    for earlier, later, seen in zip(found, found[1:], received[1:], strict=False):
        assert later.tokens.prompt_ids.starts_with(earlier.tokens.all_ids())
        assert later.tokens.prompt_ids == list(seen.prompt_ids)
    (sample,) = training_samples(session.turns)
    assert sample.loss_mask.sum() == sum(len(response.tokens.completion_ids) for response in found)


def test_the_embedded_model_calls_its_tools_through_both_kinds_of_turn(dynamo, talk) -> None:
    """The frontend renders the first turn with the model's own template and the tools."""
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    embedded = load_renderer(dynamo.embedded.model_folder)
    config = ClientConfig(
        client_type=TOKENS,
        renderer_transport="dynamo",
        api_base_url=dynamo.frontend.url,
        max_retries=0,
        measure_logprobs=False,
    )

    async def about() -> list[Response]:
        session, found = Session(), []
        async with await make_client(config, embedded) as client:
            messages = [Message("user", "What is 2 plus 3?")]
            for _ in range(2):
                args = {"max_tokens": 60, "temperature": 0}
                model = dynamo.embedded.kind.model_name
                found.append(await client.get_response(messages, model, args, [tool], session=session))
                messages += [found[-1].message, Message("user", "And 4 plus 4?")]
        return found

    first, second = asyncio.run(about())
    # The frontend writes the keys of a tool in another order than the template's own `tojson`: its ids are kept.
    assert first.tokens.prompt_ids == list(dynamo.embedded.requests()[-2].prompt_ids)
    assert second.turn.stitch.how is How.BRIDGED
    assert second.tokens.prompt_ids.starts_with(first.tokens.all_ids())


def test_a_truncated_turn_is_extended_and_a_retry_repeats_its_ids(dynamo, talk) -> None:
    session = Session()

    async def about(client: Client) -> list[Response]:
        model, said = dynamo.faults.kind.model_name, [Message("user", "hello")]
        first = await client.get_response(said, model, {"max_tokens": 3}, session=session)
        more = [*said, first.message, Message("user", "on")]
        second = await client.get_response(more, model, {"max_tokens": 40}, session=session)
        again = await client.get_response(said, model, {"max_tokens": 40}, session=session)
        return [first, second, again]

    first, second, again = talk(TOKENS, about)
    assert second.turn.stitch.junction is Junction.CLOSE_ADDED
    assert second.tokens.prompt_ids.starts_with(first.tokens.all_ids())
    assert again.turn.stitch.why is Why.RETRY_SAME_PROMPT
    assert again.tokens.prompt_ids == first.tokens.prompt_ids


@pytest.mark.parametrize("length", [1, 5, 12])
def test_a_frontend_that_ignores_ids_is_found_out_and_messages_still_give_an_answer_without_tokens(
    dynamo, talk, renderer, length
) -> None:
    url, model = dynamo.forgetful.url, dynamo.faults.kind.model_name
    (found,) = talk(MESSAGES, turns(dynamo, ["hello"]), url=url)
    assert found.message.content
    assert (found.tokens, found.turn) == (None, None)
    assert "DYN_DISABLE_FRONTEND_NVEXT" in found.tokens_missing

    async def ids(client) -> object:
        route = await client.routes.chosen(model)
        asked = GenerateRequest(model, TokenIds(range(1, 1 + length)), SamplingParams(max_tokens=20))
        return await route.sample(asked, ())

    with pytest.raises(EvidenceError, match="DYN_DISABLE_FRONTEND_NVEXT"):
        talk(TOKENS, ids, url=url)


def test_a_turn_whose_ids_were_not_told_cannot_be_extended_and_says_so(dynamo, talk, caplog) -> None:
    counts = {}

    async def about(client) -> list[Response]:
        found = await turns(dynamo, ["hello", "go on"])(client)
        counts.update(client.fallbacks)
        return found

    with caplog.at_level(logging.WARNING, "tokentrue"):
        talk(TOKENS, about, url=dynamo.forgetful.url)
    assert counts == {Why.TOKENS_MISSING: 1}
    assert "tokens_missing" in caplog.text


@BOTH
@pytest.mark.parametrize("turn", [1, 2])
@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (9001, EngineRequestError),
        (9002, EngineRequestError),
        (9003, EngineRequestError),
        (9004, EngineFailureError),
        (9005, EngineFailureError),
        (9007, EngineBusyError),
        (9008, EngineBusyError),
        (9010, EngineFailureError),
        (9011, AbortedError),
        (9012, EngineRequestError),
        (9020, EngineFailureError),
        (9021, EngineFailureError),
        (9022, AbortedError),
        (9023, AlignmentError),
        (9025, AbortedError),
    ],
)
def test_every_fault_is_one_typed_error_on_first_and_later_turns(dynamo, talk, client_type, seed, expected, turn):
    session = Session()
    asked = {"session": session, "later": {"seed": seed}} if turn == 2 else {"session": session, "seed": seed}
    with pytest.raises(TokentrueError) as raised:
        talk(client_type, turns(dynamo, ["hello", "go on"][:turn], **asked))
    assert type(raised.value) is expected
    assert raised.value.retryable is (expected is EngineBusyError)
    assert len(session.turns) == turn - 1, "nothing is committed"


@BOTH
def test_a_worker_that_declares_itself_gone_is_busy(dynamo, talk, eventually, client_type) -> None:
    with pytest.raises(EngineBusyError):
        talk(client_type, turns(dynamo, ["hello"], worker=dynamo.mortal, seed=9006))

    def answers() -> bool:
        try:
            return bool(talk(client_type, turns(dynamo, ["hello"], worker=dynamo.mortal)))
        except EngineBusyError:
            return False

    eventually(answers, "the worker is used again")


@BOTH
def test_silence_is_a_timeout(dynamo, talk, client_type) -> None:
    with pytest.raises(EngineTimeoutError):
        talk(client_type, turns(dynamo, ["hello"], seed=9024), timeout=0.5)


@BOTH
@pytest.mark.parametrize("worker", ["faults", "chunky"])
def test_a_stop_string_gives_exactly_what_was_delivered(dynamo, talk, client_type, worker) -> None:
    """One id at a time the worker's own list is missing, five at a time it is too long."""
    served = getattr(dynamo, worker)
    found = talk(client_type, turns(dynamo, ["hello", "go on"], worker=served, stop=["ids"]))
    for response in found:
        assert len(response.tokens.completion_ids) == response.usage.completion_tokens
        assert "ids" not in (response.message.content or "")


@BOTH
def test_a_long_prompt_is_told_apart_from_a_large_max_tokens_which_may_be_clipped(
    dynamo, talk, client_type
) -> None:
    with pytest.raises(OverlongPromptError):
        talk(client_type, turns(dynamo, ["hello " * 3000], max_tokens=20))
    with pytest.raises(OverlongPromptError):
        talk(client_type, turns(dynamo, ["0 1 2 3 " * 450], max_tokens=2000))
    with pytest.raises(MaxTokensTooLargeError):
        talk(client_type, turns(dynamo, ["hello"], max_tokens=2040))
    with pytest.raises(MaxTokensTooLargeError):
        talk(client_type, turns(dynamo, ["hello", "on"], later={"max_tokens": 2020}))
    first, second = talk(client_type, turns(dynamo, ["hello", "on"], max_tokens=2040), clip_max_tokens=True)
    assert first.tokens is not None
    assert second.tokens is not None


@BOTH
def test_parameters_are_sent_where_they_belong_on_first_and_later_turns(dynamo, talk, client_type) -> None:
    before = len(dynamo.faults.requests())
    asked = {"priority": 5, "cache_salt": "v7", "frequency_penalty": 0.5}
    asked |= {"extra_body": {"nvext": {"extra_fields": ["timing"], "agent_hints": {"osl": 9}}}}
    talk(client_type, turns(dynamo, ["hello", "go on"], **asked))
    assert len(dynamo.faults.requests()) - before == 2, "neither was answered with a 400"
    with pytest.raises(UnsupportedParameterError, match="return_token_ids"):
        talk(client_type, turns(dynamo, ["hello"], return_token_ids=True))
    found = talk(client_type, turns(dynamo, ["hello"], return_token_ids=True), on_unsupported="warn")
    assert found[0].tokens is not None


def test_stop_ids_are_the_union_of_the_renderers_and_the_callers(dynamo, talk, renderer) -> None:
    word = renderer.tokenizer.encode(", ")[0]
    found = talk(TOKENS, turns(dynamo, ["hello", "go on"], later={"stop_token_ids": [word]}))
    assert found[1].tokens.completion_ids[-1] == word
    assert found[1].turn.stop_reason == word


def test_ids_outside_the_vocabulary_are_refused_before_anything_is_sent(dynamo, talk, renderer) -> None:
    before = len(dynamo.faults.requests())
    with pytest.raises(InvalidTokenIdError):
        talk(TOKENS, turns(dynamo, ["hello", "go on"], later={"stop_token_ids": [renderer.vocab_size]}))
    assert len(dynamo.faults.requests()) - before == 1
