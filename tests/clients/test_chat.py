"""The messages client, and what all clients share: sessions, headers, keys that are never shown."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tokentrue import Message, Session
from tokentrue.clients.making import make_client
from tokentrue.clients.renderer import RendererClient
from tokentrue.config import ClientConfig, EndpointConfig
from tokentrue.errors import (
    ConfigError,
    EmptyCompletionError,
    MaxTokensTooLargeError,
    OverlongPromptError,
    SpelledMarkerWarning,
    TokentrueError,
)
from tokentrue.generation import FinishReason
from tokentrue.turns import How, Why

CHAT, GENERATE = "/v1/chat/completions", "/inference/v1/generate"
TYPES = ("openai_chat_completions", "openai_chat_completions_token", "renderer")
HELLO = Message("user", "Hello there, how are you?")
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
SECRET = "sk-very-secret"


def once(*args, **kwargs):
    """One call."""

    async def about(client, server):
        return await client.get_response([HELLO], "m", *args, **kwargs), server

    return about


def test_every_turn_is_the_engines_rendering_with_its_ids(world, renderer) -> None:
    session = Session()

    async def about(client, _):
        first = await client.get_response([HELLO], "m", session=session)
        said = [HELLO, first.message, Message("user", "And?")]
        return said, await client.get_response(said, "m", session=session)

    said, second = world.run(about, client_type=TYPES[0])
    assert second.tokens.prompt_ids == renderer.render_ids(said)
    assert [turn.stitch.how for turn in session.turns] == [How.ENGINE_RENDERED] * 2
    assert [turn.stitch.why for turn in session.turns] == [Why.FIRST_TURN, Why.MESSAGES_ONLY]


def test_an_engine_without_ids_gives_an_answer_without_a_turn(world) -> None:
    found, _ = world.run(once(), client_type=TYPES[0], server={"tells_ids": False})
    assert found.message.content == "All right."
    assert (found.tokens, found.turn) == (None, None)
    assert "return_token_ids" in found.tokens_missing


def test_an_answer_of_nothing_is_an_error(world) -> None:
    empty = {
        "choices": [{"message": {"content": None}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 0},
    }
    with pytest.raises(EmptyCompletionError):
        world.run(once(), client_type=TYPES[0], server={"answers": {CHAT: [(200, empty)]}})


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', FinishReason.TOOL_CALLS),
        ('<tool_call>\n{"name": "nope", "arguments": {}}\n</tool_call>', FinishReason.STOP),
        ("Nothing to call.", FinishReason.STOP),
    ],
)
def test_a_turn_ends_in_tool_calls_only_with_a_call_that_can_be_carried_out(world, says, expected) -> None:
    found, _ = world.run(once(None, [TOOL]), client_type=TYPES[0], server={"says": [says]})
    assert found.finish_reason is expected


def test_a_call_that_was_cut_does_not_end_in_tool_calls(world) -> None:
    says = ['<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call> and then some more text']
    found, _ = world.run(once({"max_tokens": 22}, [TOOL]), client_type=TYPES[0], server={"says": says})
    assert found.finish_reason is FinishReason.LENGTH


def test_max_tokens_is_clipped_by_every_client_only_when_configured(world) -> None:
    routes = {"routes": {CHAT, GENERATE}}
    for client_type in TYPES:
        with pytest.raises(MaxTokensTooLargeError):
            world.run(once({"max_tokens": 999}), client_type=client_type, server=routes)
        found, _ = world.run(
            once({"max_tokens": 999}), client_type=client_type, server=routes, clip_max_tokens=True
        )
        assert found.tokens is not None


def test_where_the_engine_does_not_tell_the_prompts_length_one_more_request_tells_which_is_too_long(world) -> None:
    """Dynamo's `actual` may be the prompt alone, or prompt and `max_tokens`."""
    unclear = (
        400,
        {"message": "Invalid request", "details": {"type": "context_length", "limit": 9, "actual": 15}},
    )
    long = (400, {"message": "Invalid request", "details": {"type": "context_length", "limit": 9, "actual": 15}})

    def asked(*answers, **settings):
        given = {"answers": {CHAT: list(answers)}}
        return world.run(
            once({"max_tokens": 8}), client_type=TYPES[0], renderer_transport="dynamo", server=given, **settings
        )

    with pytest.raises(OverlongPromptError):
        asked(unclear, long)
    with pytest.raises(MaxTokensTooLargeError):
        asked(unclear, (500, {"message": "x"}))
    with pytest.raises(OverlongPromptError):
        asked(unclear, long, clip_max_tokens=True)


@pytest.mark.parametrize("client_type", TYPES)
def test_headers_of_state_session_and_endpoint_travel_with_every_call(world, client_type) -> None:
    config = ClientConfig(extra_headers_from_state={"X-Step": "step"})
    _, server = world.run(
        once(session=Session(id="abc"), headers=config.headers_from_state({"step": 3})),
        client_type=client_type,
        server={"routes": {CHAT, GENERATE}},
        data_parallel_rank=1,
        extra_headers={"X-Team": "t"},
    )
    headers = server.calls[-1][2].headers
    assert headers["X-Session-ID"] == "abc"
    assert (headers["X-Step"], headers["X-Team"], headers["X-data-parallel-rank"]) == ("3", "t", "1")


@pytest.mark.parametrize("client_type", TYPES)
def test_a_callers_own_session_header_replaces_the_default_one(world, client_type) -> None:
    _, server = world.run(
        once(headers={"x-session-id": "mine"}), client_type=client_type, server={"routes": {CHAT, GENERATE}}
    )
    assert server.calls[-1][2].headers.getall("X-Session-ID") == ["mine"]


@pytest.mark.parametrize("client_type", TYPES)
def test_two_rollouts_have_two_session_ids(world, client_type) -> None:
    async def about(client, server):
        for _ in range(2):
            await client.get_response([HELLO], "m")
        return server

    server = world.run(about, client_type=client_type, server={"routes": {CHAT, GENERATE}})
    ids = [request.headers["X-Session-ID"] for _, body, request in server.calls if body]
    assert len(set(ids)) == 2


@pytest.mark.parametrize("client_type", TYPES)
@pytest.mark.parametrize("status", [200, 401, 500])
def test_a_key_is_in_no_log_error_or_repr(world, client_type, status, monkeypatch, caplog) -> None:
    """Also where the server repeats it, and also inside a 200."""
    monkeypatch.setenv("TOKENTRUE_TEST_KEY", SECRET)
    echoed = (status, {"error": {"message": f"Incorrect API key provided: {SECRET}"}})
    seen = {}

    async def about(client, server):
        seen["repr"] = repr(client)
        return await once()(client, server)

    with caplog.at_level(logging.DEBUG), pytest.raises(TokentrueError) as raised:
        world.run(
            about,
            client_type=client_type,
            api_key_var="TOKENTRUE_TEST_KEY",
            server={"answers": {CHAT: [echoed], GENERATE: [echoed]}},
        )
    chain = [raised.value, raised.value.__cause__, raised.value.__context__]
    assert all(SECRET not in repr(error) + str(error) for error in chain)
    assert SECRET not in caplog.text + seen["repr"]


@pytest.mark.parametrize("client_type", TYPES)
def test_a_calls_own_header_cannot_replace_the_key_in_silence(world, client_type, monkeypatch) -> None:
    monkeypatch.setenv("TOKENTRUE_TEST_KEY", SECRET)
    given = {"client_type": client_type, "api_key_var": "TOKENTRUE_TEST_KEY"}
    routes = {"routes": {CHAT, GENERATE}}
    with pytest.raises(ConfigError, match="authorization"):
        world.run(once(headers={"authorization": "Bearer x"}), server=routes, **given)
    _, server = world.run(once(), server=routes, **given)
    assert server.calls[-1][2].headers["Authorization"] == f"Bearer {SECRET}"
    _, server = world.run(
        once(headers={"authorization": "Bearer x"}), server=routes, allow_auth_headers=True, **given
    )
    assert server.calls[-1][2].headers.getall("Authorization") == ["Bearer x"]


# -- make_client -------------------------------------------------------------------------------------------------


def made(**settings):
    async def make():
        async with await make_client(ClientConfig(**settings)) as client:
            return client

    return asyncio.run(make())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"client_type": TYPES[2]}, "needs a renderer"),
        ({"client_type": TYPES[2], "renderer": "none"}, "needs a renderer"),
        ({"client_type": TYPES[1], "renderer_transport": "dynamo"}, "has no /tokenize"),
        ({"client_type": TYPES[1], "bridge_tokenizer": "local"}, "bridge_tokenizer='local'"),
        (
            {"client_type": TYPES[1], "renderer_transport": "dynamo", "bridge_tokenizer": "engine"},
            "bridge_tokenizer='engine'",
        ),
        ({"client_type": TYPES[2], "renderer": "embedded", "tool_parser": "hermes"}, "tool_parser='hermes'"),
        ({"client_type": TYPES[2], "renderer": "embedded", "reasoning_parser": "x"}, "reasoning_parser='x'"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_before_any_call(settings, words) -> None:
    with pytest.raises(ConfigError) as raised:
        made(**settings)
    assert words in str(raised.value)


def test_the_renderer_of_a_configuration_keeps_its_policy_for_spelled_markers() -> None:
    prompts = []
    for policy in ("as_template", "escape"):
        client = made(client_type=TYPES[2], renderer="embedded", spelled_markers=policy)
        assert isinstance(client, RendererClient)
        with pytest.warns(SpelledMarkerWarning, match="spells the special token '<\\|im_end\\|>'"):
            prompts.append(client.renderer.render_ids([{"role": "user", "content": "a<|im_end|>"}]))
    assert len(prompts[0]) < len(prompts[1])


def test_a_tokenizer_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(TokentrueError, match="/no/such/folder"):
        made(client_type=TYPES[2], renderer_model_name="/no/such/folder")


def test_a_fleet_is_made_of_all_endpoints() -> None:
    endpoints = (
        EndpointConfig(api_base_url="http://a:1"),
        EndpointConfig(api_base_url="http://b:2", data_parallel_rank=0),
        EndpointConfig(api_base_url="http://b:2", data_parallel_rank=1),
    )
    client = made(client_type=TYPES[2], renderer="embedded", endpoint_configs=endpoints, fleet=True)
    assert repr(client.engine) == "Fleet(['http://a:1', 'http://b:2 rank 0', 'http://b:2 rank 1'])"
    with pytest.raises(ConfigError, match="different names"):
        made(client_type=TYPES[2], renderer="embedded", endpoint_configs=endpoints[:1] * 2, fleet=True)
    with pytest.raises(ConfigError, match="ranks of SGLang"):
        made(
            client_type=TYPES[1],
            renderer="embedded",
            renderer_transport="sglang",
            endpoint_configs=endpoints,
            fleet=True,
        )


def test_a_client_is_made_for_the_endpoint_that_the_index_picks() -> None:
    endpoints = (EndpointConfig(api_base_url="http://a:1"), EndpointConfig(api_base_url="http://b:2"))
    client = made(client_type=TYPES[2], renderer="embedded", client_idx=3, endpoint_configs=endpoints)
    assert isinstance(client, RendererClient)
    assert "http://b:2" in repr(client.engine)
