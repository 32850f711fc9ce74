"""The token client: exact ids from the second turn on, one probe per endpoint, and a named reason for the rest."""

from __future__ import annotations

import asyncio
import itertools
import logging

import pytest

from tokentrue import Message, Session
from tokentrue.errors import (
    EngineBusyError,
    EvidenceError,
    MaxTokensTooLargeError,
    OverlongPromptError,
    RouteMissingError,
    UnsupportedParameterError,
)
from tokentrue.generation import FinishReason
from tokentrue.sessions.samples import training_samples
from tokentrue.turns import How, Junction, Why

CHAT, TOKENS = "/v1/chat/completions", "/v1/chat/completions/tokens"
GENERATE, DERENDER, TOKENIZE = "/inference/v1/generate", "/v1/chat/completions/derender", "/tokenize"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
HELLO = Message("user", "Hello there, how are you?")
MORE = Message("user", "And what is two plus two?")


def talk(texts=("Hello there.", "And now?", "And then?"), session=None, later=None, tools=None, **sampling):
    """Says the texts in turn and gives the responses."""
    kept = session if session is not None else Session()

    async def about(client, _):
        messages, found = [], []
        for number, text in enumerate(texts):
            messages.append(text if isinstance(text, Message) else Message("user", text))
            args = {"max_tokens": 50, **(later if later is not None and number else sampling)}
            found.append(await client.get_response(messages, "m", args, tools, session=kept))
            messages.append(found[-1].message)
        return found

    return about


def with_server(about):
    """Also gives the server."""

    async def both(client, server):
        return await about(client, server), server

    return both


ROUTES = {
    "tokens": ({CHAT, TOKENS, GENERATE, DERENDER}, [TOKENS], [TOKENS]),
    "derender": ({CHAT, GENERATE, DERENDER}, [GENERATE, DERENDER], [TOKENS, GENERATE, DERENDER]),
    "local": ({CHAT, GENERATE}, [GENERATE], [TOKENS, GENERATE, DERENDER]),
}


@pytest.mark.parametrize("name", ROUTES)
def test_the_route_is_found_by_asking_once_and_every_route_gives_the_same_turns(world, name) -> None:
    routes, per_turn, probes = ROUTES[name]
    session = Session()
    says = ["Fine.", CALL, "Done."]
    about = with_server(talk(session=session, tools=[TOOL]))
    found, server = world.run(about, server={"routes": routes, "says": says})
    assert server.paths() == [CHAT, *per_turn, *per_turn]
    assert server.probes() == probes
    assert server.models_calls == 0, "a turn is one request to the token route, and what parses it"
    assert [response.turn.stitch.how for response in found] == [How.ENGINE_RENDERED, How.BRIDGED, How.BRIDGED]
    for earlier, later in itertools.pairwise(found):
        assert later.tokens.prompt_ids.starts_with(earlier.tokens.all_ids())
    assert [response.finish_reason for response in found] == [
        FinishReason.STOP,
        FinishReason.TOOL_CALLS,
        FinishReason.STOP,
    ]
    assert found[1].message.tool_calls[0].arguments == '{"a": 1}'
    (sample,) = training_samples(session.turns)
    assert sample.loss_mask.sum() == sum(len(response.tokens.completion_ids) for response in found)


def test_many_conversations_at_once_ask_for_the_route_once(world) -> None:
    async def about(client, server):
        await asyncio.gather(*(talk()(client, server) for _ in range(8)))
        return server

    server = world.run(about, server={"routes": {CHAT, GENERATE, DERENDER}})
    assert server.probes() == [TOKENS, GENERATE, DERENDER]


def test_a_failed_probe_is_raised_and_not_remembered(world) -> None:
    async def about(client, server):
        session = Session()
        first = await client.get_response([HELLO], "m", session=session)
        messages = [HELLO, first.message, MORE]
        server.answers = {TOKENS: [(503, {"error": {"message": "loading"}})]}
        with pytest.raises(EngineBusyError):
            await client.get_response(messages, "m", session=session)
        return await client.get_response(messages, "m", session=session)

    assert world.run(about, server={"routes": {CHAT, TOKENS}}).turn.stitch.how is How.BRIDGED


def test_a_route_that_disappears_is_an_error_once_and_asked_for_again(world) -> None:
    async def about(client, server):
        session = Session()
        said = [HELLO]
        for _ in range(2):
            found = await client.get_response(said, "m", session=session)
            said += [found.message, MORE]
        server.routes = {CHAT, GENERATE}
        with pytest.raises(RouteMissingError):
            await client.get_response(said, "m", session=session)
        return await client.get_response(said, "m", session=session), server

    found, server = world.run(about, server={"routes": {CHAT, TOKENS}})
    assert found.turn.stitch.how is How.BRIDGED
    assert server.paths()[-1] == GENERATE


@pytest.mark.parametrize("disabled", [False, True])
def test_without_a_token_route_every_turn_goes_by_messages_and_says_so(world, disabled, caplog) -> None:
    answers = {path: [(403, {"error": {"message": "Scale-out endpoints are disabled."}})] for path in (GENERATE,)}

    async def about(client, server):
        return await talk()(client, server), client.fallbacks, server

    with caplog.at_level(logging.WARNING, "tokentrue"):
        found, counts, server = world.run(about, server={"routes": {CHAT}, "answers": answers if disabled else {}})
    assert server.probes() == [TOKENS, GENERATE], "it was asked once"
    assert [response.turn.stitch.why for response in found] == [Why.FIRST_TURN, *[Why.NO_TOKEN_ROUTE] * 2]
    assert counts == {Why.NO_TOKEN_ROUTE: 2}
    assert caplog.text.count("no_token_route") == 2


def test_the_engines_tokenizer_makes_the_same_bridge_as_the_renderer(world) -> None:
    def given():
        says = ["<think>\nEasy.\n</think>\n\nOne.", CALL, "Three."]
        return {"routes": {CHAT, TOKENS, TOKENIZE}, "says": says}

    here = world.run(talk(tools=[TOOL]), server=given())
    there, server = world.run(with_server(talk(tools=[TOOL])), bridging_here=False, server=given())
    assert [r.tokens.prompt_ids for r in there] == [r.tokens.prompt_ids for r in here]
    assert [r.turn.stitch.how for r in there] == [How.ENGINE_RENDERED, How.BRIDGED, How.BRIDGED]
    asked = [TOKENIZE] * 3  # the conversation, with other sampled words, and with another question
    assert server.paths() == [CHAT, *asked, TOKENS, *asked, TOKENS]


def test_tokenize_gets_headers_tools_and_template_kwargs(world) -> None:
    async def about(client, server):
        session = Session(id="s-1")
        args = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
        state = {"X-Team": "t"}
        first = await client.get_response([HELLO], "m", args, [TOOL], session=session, headers=state)
        said = [HELLO, first.message, MORE]
        await client.get_response(said, "m", args, [TOOL], session=session, headers=state)
        return server

    server = world.run(
        about, server={"routes": {CHAT, TOKENS, TOKENIZE}}, bridging_here=False, data_parallel_rank=0
    )
    assert TOKENIZE in server.paths()
    for path, body, request in server.calls:
        if not body:
            continue
        assert request.headers["X-Session-ID"] == "s-1"
        assert request.headers["X-Team"] == "t"
        assert request.headers["X-data-parallel-rank"] == "0"
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
        assert body["tools"] == [TOOL], path


def test_template_kwargs_of_a_call_reach_the_local_bridge_and_not_the_bare_token_route(world) -> None:
    args = {"chat_template_kwargs": {"enable_thinking": False}, "tool_choice": "auto"}
    found, server = world.run(with_server(talk(**args)), server={"routes": {CHAT, GENERATE}})
    assert [r.turn.stitch.how for r in found] == [How.ENGINE_RENDERED, How.BRIDGED, How.BRIDGED]
    assert [
        body for path, body, _ in server.calls if path == GENERATE and "chat_template_kwargs" in str(body)
    ] == []


IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}


def second_turn(change, first=None):
    """A first turn, then one whose messages `change` makes: its response, and the client's counts."""

    async def about(client, server):
        session = Session()
        begun = await client.get_response([HELLO], "m", {"max_tokens": 50, **(first or {})}, session=session)
        messages = change([HELLO, begun.message, MORE])
        found = await client.get_response(messages, "m", session=session)
        return found, client.fallbacks

    return about


FALLBACKS = {
    "no shared prefix": (lambda m: [Message("user", "Other"), *m[1:]], Why.NO_SHARED_PREFIX, {}),
    "an assistant message that was not sampled": (
        lambda m: [*m, Message("assistant", "mine"), Message("user", "?")],
        Why.ASSISTANT_IN_NEW,
        {},
    ),
    "nothing new": (lambda m: m[:2], Why.NOTHING_NEW, {}),
}


@pytest.mark.parametrize("here", [True, False], ids=["renderer", "tokenize"])
@pytest.mark.parametrize("name", FALLBACKS)
def test_what_cannot_be_stitched_goes_by_messages_with_its_reason(world, name, here, caplog) -> None:
    change, why, settings = FALLBACKS[name]
    with caplog.at_level(logging.WARNING, "tokentrue"):
        found, counts = world.run(
            second_turn(change),
            server={"routes": {CHAT, TOKENS, TOKENIZE}},
            bridging_here=here,
            **settings,
        )
    assert found.turn.stitch.how is How.ENGINE_RENDERED
    assert found.turn.stitch.why is why
    assert found.turn.stitch.detail
    assert counts == {why: 1}
    assert why.value in caplog.text


def test_a_conversation_with_a_picture_goes_by_messages_without_a_warning(world, caplog) -> None:
    answer = {"choices": [{"message": {"content": "seen"}, "finish_reason": "stop"}], "usage": None}

    async def about(client, server):
        server.answers = {CHAT: [(200, answer)]}
        found = await client.get_response([IMAGE], "m", session=Session())
        return found, client.fallbacks, server

    with caplog.at_level(logging.WARNING, "tokentrue"):
        found, counts, server = world.run(about)
    assert found.tokens is None
    assert counts == {Why.NOT_TEXT: 1}
    assert caplog.text == ""
    assert server.calls[-1][1]["messages"] == [IMAGE]


def test_a_truncated_turn_is_extended_here_and_not_by_the_engines_tokenizer(world) -> None:
    server = {"routes": {CHAT, TOKENS, TOKENIZE}}
    found, counts = world.run(second_turn(lambda m: m, first={"max_tokens": 1}), server=server)
    assert found.turn.stitch.junction is Junction.CLOSE_ADDED
    assert counts == {}
    found, counts = world.run(
        second_turn(lambda m: m, first={"max_tokens": 1}), server=server, bridging_here=False
    )
    assert counts == {Why.TRUNCATED_ANCHOR: 1}


@pytest.mark.parametrize(
    "answer",
    [
        (500, {"error": {"message": "boom"}}),
        (400, {"error": {"message": "template error"}}),
        (200, {"tokens": "x"}),
        (200, {"tokens": [1], "count": 2}),
    ],
)
def test_a_tokenizer_that_fails_is_a_reason_and_no_error(world, answer) -> None:
    found, counts = world.run(
        second_turn(lambda m: m),
        server={"routes": {CHAT, TOKENS}, "answers": {TOKENIZE: [answer]}},
        bridging_here=False,
    )
    assert counts == {Why.TOKENIZE_FAILED: 1}
    assert found.tokens is not None


def test_a_renderer_that_is_not_the_engines_is_found_out(world, renderer) -> None:
    """The engine's prompt ends otherwise than this renderer's: its glue would not be the engine's."""

    async def about(client, server):
        session = Session()
        ids = [*renderer.render_ids([HELLO]).tolist(), 5, 6, 7]
        said = [*renderer.tokenizer.encode("Yes."), renderer.stop_ids[0]]
        items = [{"token": f"token_id:{i}", "logprob": -1.0} for i in said]
        choice = {"message": {"content": "Yes."}, "finish_reason": "stop", "token_ids": said}
        answer = {"choices": [{**choice, "logprobs": {"content": items}}], "prompt_token_ids": ids}
        server.answers = {CHAT: [(200, answer)]}
        first = await client.get_response([HELLO], "m", session=session)
        await client.get_response([HELLO, first.message, MORE], "m", session=session)
        return client.fallbacks

    assert world.run(about) == {Why.TEMPLATE_DIFFERS: 1}


def test_a_turn_without_ids_cannot_be_extended(world) -> None:
    found, counts = world.run(second_turn(lambda m: m), server={"tells_ids": False})
    assert (found.tokens, found.turn) == (None, None)
    assert "return_token_ids" in found.tokens_missing
    assert counts == {Why.TOKENS_MISSING: 1}


def test_an_engine_that_ignores_the_ids_is_an_error_and_never_a_sample(world) -> None:
    """The call is not spelled as the template spells it, so rendering the messages gives another prompt."""
    session = Session()
    given = {"routes": {CHAT, TOKENS}, "ignores_ids": True, "says": [CALL.replace(": ", ":")]}
    with pytest.raises(EvidenceError):
        world.run(talk(session=session, tools=[TOOL]), server=given)
    assert len(session.turns) == 1


@pytest.mark.parametrize("routes", [{CHAT, TOKENS}, {CHAT, GENERATE}], ids=["tokens", "generate"])
def test_max_tokens_is_clipped_only_when_that_is_configured(world, routes) -> None:
    with pytest.raises(MaxTokensTooLargeError):
        world.run(talk(["hi", "on"], later={"max_tokens": 990}), server={"routes": routes})
    found, server = world.run(
        with_server(talk(["hi", "on"], later={"max_tokens": 990})), server={"routes": routes}, clip_max_tokens=True
    )
    assert found[1].turn.stitch.how is How.BRIDGED
    body = server.calls[-1][1]
    asked = body.get("max_completion_tokens") or body["sampling_params"]["max_tokens"]
    assert asked == 1000 - len(found[1].tokens.prompt_ids)
    with pytest.raises(OverlongPromptError):
        world.run(talk(["hi", "on " * 2000]), server={"routes": routes}, clip_max_tokens=True)


def test_stop_ids_are_the_renderers_and_the_callers_on_every_turn(world, renderer) -> None:
    _, server = world.run(with_server(talk(stop_token_ids=[7])), server={"routes": {CHAT, GENERATE}})
    for _, body, _ in server.calls:
        if body:
            asked = body.get("stop_token_ids") or body["sampling_params"]["stop_token_ids"]
            assert set(asked) == {7, *renderer.stop_ids}


@pytest.mark.parametrize(("policy", "raises"), [("raise", True), ("warn", False)])
def test_a_parameter_that_the_engine_cannot_take(world, policy, raises) -> None:
    if raises:
        with pytest.raises(UnsupportedParameterError, match="best_of"):
            world.run(talk(best_of=2), on_unsupported=policy)
        return
    found = world.run(talk(best_of=2), server={"routes": {CHAT, GENERATE}}, on_unsupported=policy)
    assert len(found) == 3
