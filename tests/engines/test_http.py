"""HttpEngine against a real server that behaves and misbehaves."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
import time

import pytest

from tokentrue.engines.http import HttpEngine
from tokentrue.engines.http_settings import root_of
from tokentrue.errors import (
    ConfigError,
    ConnectionFailedError,
    ConnectionLostError,
    EngineBusyError,
    EngineFailureError,
    EngineRequestError,
    EngineTimeoutError,
    MalformedReplyError,
    OverlongPromptError,
    TokentrueError,
    UnknownModelError,
)
from tokentrue.generation import GenerateRequest
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.vllm import VllmTransport

REQUEST = GenerateRequest("m", TokenIds([1, 2, 3]), SamplingParams(max_tokens=4))


def asked(http, *answers, scenario=None, models=None, **settings):
    """Run `scenario(engine, server)`, by default one generate call, against a server with these answers."""

    async def main():
        server = http.Server(list(answers), models)
        async with http.running(server):
            engine = HttpEngine(server.url, VllmTransport(), **{"max_retries": 0, **settings})
            try:
                return await (scenario or once)(engine, server), server
            finally:
                await engine.close()

    return asyncio.run(main())


async def once(engine, _):
    return await engine.generate(REQUEST)


def test_a_sample_comes_back_and_the_ids_went_out(http) -> None:
    generation, server = asked(http, http.sampled)
    assert generation.tokens.completion_ids == [7, 8]
    assert generation.tokens.completion_logprobs == [-0.5, -1.5]
    assert server.bodies[0]["token_ids"] == [1, 2, 3]
    assert server.generate_calls[0].content_type == "application/json"


def test_gzip_is_understood(http) -> None:
    body = gzip.compress(json.dumps({"data": [{"id": "m", "max_model_len": 3}]}).encode())
    with pytest.raises(OverlongPromptError):
        asked(http, http.sampled, models=http.replies(body, **{"content-encoding": "gzip"}))


@pytest.mark.parametrize(
    ("base_url", "root"),
    [
        ("http://h:8000", "http://h:8000"),
        ("http://h:8000/", "http://h:8000"),
        ("http://h:8000/v1", "http://h:8000"),
        ("https://h/proxy/v1/", "https://h/proxy"),
        (" http://[::1]:8000/v1 ", "http://[::1]:8000"),
    ],
)
def test_the_root_of_a_base_url(base_url, root) -> None:
    assert root_of(base_url) == root


@pytest.mark.parametrize(
    "base_url", ["", "h:8000", "ftp://h", "http://", "http://u:p@h", "http://h:99999", "http://h?x=1", "http://[h"]
)
def test_a_base_url_that_is_none(base_url) -> None:
    with pytest.raises(ConfigError):
        root_of(base_url)


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout_s": 0},
        {"connect_timeout_s": -1},
        {"max_connections": 0},
        {"max_retries": -1},
        {"extra_headers": {"x": "a\r\nb"}},
        {"extra_headers": {"": "a"}},
        {"extra_headers": {"x": 1}},
        {"api_key": "a\nb"},
    ],
)
def test_a_setting_that_cannot_work(settings) -> None:
    with pytest.raises(ConfigError):
        HttpEngine("http://h", VllmTransport(), **settings)


def test_headers_of_the_engine_and_of_the_request_are_sent(http) -> None:
    async def scenario(engine, _):
        await engine.generate(
            GenerateRequest("m", TokenIds([1, 2, 3]), headers={"X-Session-ID": "s", "x-a": "mine"})
        )

    _, server = asked(
        http, http.sampled, scenario=scenario, api_key="sk-1", extra_headers={"X-A": "all", "X-B": "b"}
    )
    headers = server.generate_calls[0].headers
    assert headers["X-Session-ID"] == "s"
    assert headers.getall("X-A") == ["mine"]
    assert headers["X-B"] == "b"
    assert headers["Authorization"] == "Bearer sk-1"


@pytest.mark.parametrize("name", ["authorization", "X-Api-Key"])
def test_a_header_that_would_replace_the_key_is_refused_by_name_unless_that_is_allowed(http, name) -> None:
    async def scenario(engine, _):
        await engine.generate(GenerateRequest("m", TokenIds([1, 2, 3]), headers={name: "sk-mine"}))

    with pytest.raises(ConfigError, match=name) as raised:
        asked(http, http.sampled, scenario=scenario, api_key="sk-1")
    assert "sk-" not in str(raised.value)
    with pytest.raises(ConfigError, match=name):
        HttpEngine("http://h", VllmTransport(), api_key="sk-1", extra_headers={name: "sk-mine"})
    _, server = asked(http, http.sampled, scenario=scenario, api_key="sk-1", allow_auth_headers=True)
    assert server.generate_calls[0].headers.getall(name) == ["sk-mine"]


def test_a_key_that_comes_in_a_header_is_hidden_in_errors_too(http) -> None:
    async def scenario(engine, _):
        await engine.generate(GenerateRequest("m", TokenIds([1, 2, 3]), headers={"Authorization": "Bearer sk-9"}))

    with pytest.raises(EngineRequestError) as raised:
        asked(http, http.replies({"error": {"message": "bad key sk-9"}}, 401), scenario=scenario)
    assert "sk-9" not in str(raised.value)


def test_a_request_header_with_a_line_break_is_refused(http) -> None:
    async def scenario(engine, _):
        await engine.generate(GenerateRequest("m", TokenIds([1, 2, 3]), headers={"x": "a\r\nEvil: 1"}))

    with pytest.raises(ConfigError, match="line break"):
        asked(http, http.sampled, scenario=scenario)


@pytest.mark.parametrize(
    ("misbehaviour", "expected"),
    [
        ("resets", (ConnectionLostError, "ClientOSError|ServerDisconnectedError")),
        ("breaks_off", (ConnectionLostError, "ClientPayloadError|ServerDisconnectedError")),
        ("hangs", (EngineTimeoutError, r"POST .*: no whole answer within 0\.3 s \(timeout_s\)")),
    ],
)
def test_a_broken_connection_is_one_of_three_errors_and_is_not_repeated(http, misbehaviour, expected) -> None:
    async def scenario(engine, server):
        with pytest.raises(expected[0], match=expected[1]):
            await engine.generate(REQUEST)
        return len(server.generate_calls)

    no_models = http.replies({"detail": "Not Found"}, 404, connection="close")
    calls, _ = asked(
        http, getattr(http, misbehaviour), scenario=scenario, models=no_models, timeout_s=0.3, max_retries=3
    )
    assert calls == 1, "the first try may have been sampled"


def test_bytes_that_are_no_http(http) -> None:
    async def main():
        async def speak(_, writer):
            writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
            await writer.drain()
            writer.close()

        listener = await asyncio.start_server(speak, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with (
            listener,
            HttpEngine(f"http://127.0.0.1:{port}", VllmTransport(), api_key="sk-secret") as engine,
        ):
            with pytest.raises(MalformedReplyError) as raised:
                await engine.generate(REQUEST)
        shown = repr(raised.value) + repr(raised.value.__cause__) + str(raised.value)
        assert "sk-secret" not in shown

    asyncio.run(main())


def test_a_dead_pooled_connection_is_replaced_once(http) -> None:
    """A server closes the connection after an unhandled 5xx; the next request finds it dead."""

    async def scenario(engine, server):
        await engine.generate(REQUEST)
        return await engine.generate(REQUEST), len(server.generate_calls)

    (generation, calls), _ = asked(http, http.sampled, http.resets, http.sampled, scenario=scenario, max_retries=1)
    assert generation.tokens.completion_ids == [7, 8]
    assert calls == 3


def test_a_reply_that_breaks_off_on_a_pooled_connection_is_not_repeated(http) -> None:
    async def scenario(engine, server):
        await engine.generate(REQUEST)
        with pytest.raises(ConnectionLostError):
            await engine.generate(REQUEST)
        return len(server.generate_calls)

    calls, _ = asked(http, http.sampled, http.breaks_off, scenario=scenario, max_retries=3)
    assert calls == 2


def test_connection_refused_is_repeated_until_the_server_is_there(http) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]

    async def main():
        engine = HttpEngine(f"http://127.0.0.1:{port}", VllmTransport(), max_retries=1)
        started = time.monotonic()
        with pytest.raises(ConnectionFailedError) as raised:
            await engine.generate(REQUEST)
        await engine.close()
        assert raised.value.retryable
        assert raised.value.__cause__ is not None
        return time.monotonic() - started

    assert 0.4 < asyncio.run(main()) < 3


def test_a_busy_server_is_asked_again_when_it_says(http) -> None:
    async def scenario(engine, server):
        started = time.monotonic()
        await engine.generate(REQUEST)
        return time.monotonic() - started, len(server.generate_calls)

    busy = http.replies({"message": "later"}, 503, **{"retry-after": "0.2"})
    (took_s, calls), _ = asked(http, busy, busy, http.sampled, scenario=scenario, max_retries=2)
    assert calls == 3
    assert took_s >= 0.4


@pytest.mark.parametrize(("retry_after", "max_retries", "calls"), [("0", 2, 3), ("3600", 2, 1), ("0", 0, 1)])
def test_waiting_for_a_busy_server_has_an_end(http, retry_after, max_retries, calls) -> None:
    async def scenario(engine, server):
        with pytest.raises(EngineBusyError) as raised:
            await engine.generate(REQUEST)
        assert raised.value.retry_after_s == float(retry_after)
        return len(server.generate_calls)

    busy = http.replies({"message": "later"}, 429, **{"retry-after": retry_after})
    seen, _ = asked(http, busy, scenario=scenario, max_retries=max_retries)
    assert seen == calls


def test_a_failure_of_the_engine_is_not_repeated(http) -> None:
    async def scenario(engine, server):
        with pytest.raises(EngineFailureError):
            await engine.generate(REQUEST)
        return len(server.generate_calls)

    calls, _ = asked(http, http.replies({"message": "boom"}, 500), scenario=scenario, max_retries=3)
    assert calls == 1


def test_a_redirect_is_not_followed(http) -> None:
    with pytest.raises(EngineRequestError, match="elsewhere"):
        asked(http, http.replies(b"", 307, location="http://elsewhere/"))


def test_a_long_prompt_is_refused_before_it_is_sent(http) -> None:
    async def scenario(engine, server):
        for length, is_sent in ((63, True), (64, False), (65, False)):
            request = GenerateRequest("m", TokenIds([1] * length))
            expected = TokentrueError if is_sent else OverlongPromptError
            with pytest.raises(expected) as raised:
                await engine.generate(request)
            if not is_sent:
                assert (raised.value.prompt_len, raised.value.limit) == (length, 64)
        return len(server.generate_calls), server.models_calls

    assert asked(http, http.replies(b"", 500), scenario=scenario)[0] == (1, 1)


@pytest.mark.parametrize("models", [({"detail": "Not Found"}, 404), (b"<html>", 200), ({"data": []}, 200)])
def test_an_unknown_limit_hinders_nothing_and_is_not_remembered(http, models) -> None:
    async def scenario(engine, server):
        await engine.generate(REQUEST)
        await engine.generate(REQUEST)
        server.models = None
        assert (await engine.describe("m")).context_limit == 64
        with pytest.raises(OverlongPromptError):
            await engine.generate(GenerateRequest("m", TokenIds([1] * 64)))
        return server.models_calls

    calls, _ = asked(http, http.sampled, scenario=scenario, models=http.replies(*models))
    assert calls == 2, "once by the first generate, once by describe"


def test_many_first_calls_ask_for_the_limit_once(http) -> None:
    async def scenario(engine, server):
        await asyncio.gather(*(engine.generate(REQUEST) for _ in range(20)))
        return server.models_calls, len(server.generate_calls)

    assert asked(http, http.sampled, scenario=scenario)[0] == (1, 20)


def test_describe(http) -> None:
    async def scenario(engine, _):
        info = await engine.describe()
        assert info == await engine.describe("m")
        with pytest.raises(UnknownModelError, match="'m'"):
            await engine.describe("other")
        return info

    info, _ = asked(http, scenario=scenario)
    assert (info.name, info.models, info.context_limit) == ("vllm", ("m",), 64)


def test_cancelling_closes_the_connection(http) -> None:
    async def scenario(engine, server):
        task = asyncio.create_task(engine.generate(REQUEST))
        await server.arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.cancelled.wait(), 5)

    asked(http, http.hangs, scenario=scenario)


def test_closing_is_idempotent_and_final(http) -> None:
    async def scenario(engine, _):
        await engine.generate(REQUEST)
        await engine.close()
        await engine.close()
        with pytest.raises(ConfigError, match="closed"):
            await engine.generate(REQUEST)

    asked(http, http.sampled, scenario=scenario)


def test_an_engine_moves_to_another_event_loop(http) -> None:
    engine = HttpEngine("http://127.0.0.1:9", VllmTransport(), max_retries=0)

    async def fails() -> None:
        with pytest.raises(ConnectionFailedError):
            await engine.generate(REQUEST)

    asyncio.run(fails())
    asyncio.run(fails())
    asyncio.run(engine.close())


def test_the_key_is_never_shown(http, caplog) -> None:
    """Not even when the server repeats it, as some gateways do."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(EngineRequestError) as raised:
        asked(http, http.replies({"error": "bad key sk-secret-key"}, 401), api_key="sk-secret-key")
    engine = HttpEngine("http://h", VllmTransport(), api_key="sk-secret-key")
    shown = [str(raised.value), repr(raised.value), raised.value.detail, repr(engine), str(engine), caplog.text]
    assert not any("sk-secret-key" in text for text in shown)


def test_proxies_of_the_environment_are_not_trusted(http, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    generation, _ = asked(http, http.sampled)
    assert generation.tokens.completion_ids == [7, 8]
