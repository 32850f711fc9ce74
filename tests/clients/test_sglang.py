"""`renderer_transport="sglang"` drives every client; the server speaks the wire that was recorded of 0.5.23."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from tokentrue import Message, Session
from tokentrue.cli.connecting import TRANSPORTS as CLI_TRANSPORTS
from tokentrue.clients.making import make_client
from tokentrue.clients.wires import WIRES
from tokentrue.config import TRANSPORTS, ClientConfig
from tokentrue.errors import ConfigError, MaxTokensTooLargeError, OverlongPromptError
from tokentrue.generation import FinishReason
from tokentrue.turns import How, Junction, Why

CLIENTS = ("renderer", "openai_chat_completions_token", "openai_chat_completions")
SGLANG = {"renderer_transport": "sglang"}
LIMIT = 1000


def talk(*texts, **sampling):
    """Says the texts in turn, in one session; gives the responses and what the server was asked."""

    async def about(client, server):
        session, messages, found = Session(), [], []
        for text in texts:
            messages.append(Message("user", text))
            found.append(await client.get_response(messages, "m", sampling or None, session=session))
            messages.append(found[-1].message)
        return found, server

    return about


def test_every_value_of_renderer_transport_has_its_codecs() -> None:
    assert set(WIRES) == set(TRANSPORTS) == set(CLI_TRANSPORTS)
    for name in TRANSPORTS:
        wire = WIRES[name](ClientConfig(renderer_transport=name), _policy())
        assert wire.transport.name == name
        assert wire.chat.name == f"{name} chat"


def _policy():
    from tokentrue.transports.parameters import OnUnsupported

    return OnUnsupported.RAISE


@pytest.mark.parametrize("client_type", CLIENTS)
def test_two_turns(world, client_type) -> None:
    (one, two), server = world.run(
        talk("Hello there.", "And now?", max_tokens=50),
        client_type=client_type,
        server={"says": ["Fine.", "Well."]},
        **SGLANG,
    )
    assert (one.message.content, two.message.content) == ("Fine.", "Well.")
    known = one.tokens.prompt_ids.tolist() + one.tokens.completion_ids.tolist()
    assert two.tokens.prompt_ids.tolist()[: len(known)] == known
    by_messages = client_type == "openai_chat_completions"
    assert two.turn.stitch.how is (How.ENGINE_RENDERED if by_messages else How.BRIDGED)
    paths = {"renderer": ["/generate"] * 2, "openai_chat_completions_token": ["/v1/chat/completions", "/generate"]}
    assert server.paths() == paths.get(client_type, ["/v1/chat/completions"] * 2)
    assert server.probes() == []


def test_the_engines_tokenize_bridges_too(world) -> None:
    (_, two), server = world.run(
        talk("Hello there.", "And now?", max_tokens=50),
        client_type="openai_chat_completions_token",
        bridge_tokenizer="engine",
        server={"says": ["Fine.", "Well."]},
        **SGLANG,
    )
    assert two.turn.stitch.how is How.BRIDGED
    # The conversation, then it with another text in place of the sampled one, and of the new one.
    assert server.paths() == ["/v1/chat/completions", *["/tokenize"] * 3, "/generate"]


@pytest.mark.parametrize("client_type", CLIENTS[:2])
def test_without_max_tokens_the_room_is_asked_for_and_a_long_answer_is_not_cut_at_128(world, client_type) -> None:
    text = "word " * 150
    (_, two), server = world.run(
        talk("Hello.", "And now?"), client_type=client_type, server={"says": ["Fine.", text]}, **SGLANG
    )
    assert two.finish_reason is FinishReason.STOP
    assert two.message.content.strip() == text.strip()
    body = server.calls[-1][1]
    assert body["sampling_params"]["max_new_tokens"] == LIMIT - len(two.tokens.prompt_ids) - 1
    assert server.models_calls == 1


def test_a_stop_string_leaves_the_close_to_be_added(world) -> None:
    (one, two), _ = world.run(
        talk("Hello.", "And now?", max_tokens=50, stop=["END"]),
        client_type="renderer",
        server={"says": ["Fine. END and more", "Well."]},
        **SGLANG,
    )
    assert one.turn.stop_reason == "END"
    assert "more" not in one.message.content
    assert two.turn.stitch.how is How.BRIDGED
    assert two.turn.stitch.junction is Junction.CLOSE_ADDED


@pytest.mark.parametrize("client_type", CLIENTS)
def test_too_large_a_max_tokens_is_clipped_where_that_is_asked(world, client_type) -> None:
    settings = {"client_type": client_type, "server": {"says": ["Fine."]}, **SGLANG}
    with pytest.raises(MaxTokensTooLargeError) as raised:
        world.run(talk("Hello.", max_tokens=LIMIT), **settings)
    assert raised.value.limit == LIMIT
    (one,), _ = world.run(talk("Hello.", max_tokens=LIMIT), clip_max_tokens=True, **settings)
    assert one.message.content == "Fine."


@pytest.mark.parametrize("client_type", CLIENTS)
def test_a_prompt_that_is_too_long(world, client_type) -> None:
    with pytest.raises(OverlongPromptError):
        world.run(talk("word " * LIMIT, max_tokens=5), client_type=client_type, **SGLANG)


def test_a_chat_reply_without_ids_says_why(world) -> None:
    (one, two), _ = world.run(
        talk("Hello.", "And now?", max_tokens=50),
        client_type="openai_chat_completions",
        server={"tells_ids": False},
        **SGLANG,
    )
    assert one.tokens is None
    assert "return_token_ids" in two.tokens_missing


def test_the_replica_travels_in_the_body_and_in_the_header(world) -> None:
    _, server = world.run(talk("Hello.", max_tokens=5), client_type="renderer", data_parallel_rank=0, **SGLANG)
    _, body, request = server.calls[-1]
    assert body["routed_dp_rank"] == 0
    assert request.headers["X-data-parallel-rank"] == "0"


def test_a_token_client_without_a_renderer_is_refused() -> None:
    config = ClientConfig(client_type="openai_chat_completions_token", **SGLANG)
    with pytest.raises(ConfigError, match="needs a renderer"):
        asyncio.run(make_client(config))


def test_a_recorded_conversation_is_read_by_the_chat_client(captures_folder) -> None:
    """The server gives one recorded answer, byte for byte, and only to the recorded request."""
    recorded = json.loads((captures_folder / "sglang" / "chat.json").read_text())
    sent, answer = recorded["request"]["body"], recorded["response"]["body"]

    async def chat(request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        as_asked = body["messages"] == sent["messages"] and body["model"] == "tiny" and body["temperature"] == 0
        as_told = all(body[name] == sent[name] for name in sent if name.startswith("return_"))
        if not (as_asked and as_told and body["max_completion_tokens"] == sent["max_tokens"]):
            return web.json_response({"error": {"message": "that was not recorded"}}, status=400)
        return web.json_response(answer)

    async def main():
        app = web.Application()
        app.router.add_post(recorded["request"]["path"], chat)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        config = ClientConfig(
            api_base_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1", max_retries=0, **SGLANG
        )
        try:
            async with await make_client(config) as client:
                return await client.get_response(sent["messages"], "tiny", {"max_tokens": 8, "temperature": 0})
        finally:
            await runner.cleanup()

    response = asyncio.run(main())
    choice = answer["choices"][0]
    assert response.tokens.prompt_ids == choice["prompt_token_ids"]
    assert response.tokens.completion_ids == choice["response_token_ids"]
    assert (response.finish_reason, response.turn.stitch.why) == (FinishReason.LENGTH, Why.FIRST_TURN)


def test_what_its_log_probabilities_mean_is_measured(world) -> None:
    """The questions name the vocabulary too, without which nothing is sent."""
    _, server = world.run(
        talk("Hello.", max_tokens=5, temperature=0.7), client_type="renderer", measure_logprobs=True, **SGLANG
    )
    assert len(server.paths()) > 1
