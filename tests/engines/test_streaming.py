"""HttpEngine's streams against a real server that behaves and misbehaves, and the embedded engine's own."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from aiohttp import web

from tokentrue.engines.embedded.engine import MODEL_NAME, EmbeddedEngine
from tokentrue.engines.engine import StreamingEngine
from tokentrue.engines.http import HttpEngine
from tokentrue.errors import (
    AbortedError,
    ConnectionFailedError,
    ConnectionLostError,
    EngineBusyError,
    EngineFailureError,
    EngineTimeoutError,
    MalformedReplyError,
    OverlongPromptError,
    RouteMissingError,
    TokentrueError,
)
from tokentrue.generation import Delta, FinishReason, GenerateRequest, Generation
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.vllm import VllmTransport

REQUEST = GenerateRequest("m", TokenIds([1, 2, 3]), SamplingParams(max_tokens=4))


def event(ids=(), logprobs=(), **choice) -> bytes:
    content = [{"token_id": i, "logprob": p} for i, p in zip(ids, logprobs, strict=True)]
    told = {"choices": [{"index": 0, "token_ids": list(ids), "logprobs": {"content": content}, **choice}]}
    return b"data: " + json.dumps(told).encode() + b"\n\n"


GOOD = (event([7], [-0.5]), event([8, 9], [-1.5, -0.25]), event(finish_reason="stop"), b"data: [DONE]\n\n")


def streams(*pieces: bytes, then=None):
    """An answer that sends these pieces one by one, and then does something."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0.01)
        if then is not None:
            await then(request)
        return response

    return answer


async def aborts(request: web.Request) -> None:
    request.transport.abort()
    await asyncio.sleep(0)


async def hangs(_: web.Request) -> None:
    await asyncio.Event().wait()


def asked(http, *answers, scenario=None, **settings):
    """Run `scenario(engine, server)`, by default one whole stream."""

    async def main():
        server = http.Server(list(answers))
        async with (
            http.running(server),
            HttpEngine(server.url, VllmTransport(), **{"max_retries": 0, **settings}) as engine,
        ):
            return await (scenario or whole)(engine, server), server

    return asyncio.run(main())


async def whole(engine, _=None, request=REQUEST) -> list[Delta | Generation]:
    return await collected(engine, request, [])


async def collected(engine, request, came, after_each=None) -> list[Delta | Generation]:
    """The parts of a stream, put into `came` as they come."""
    async with contextlib.aclosing(engine.stream(request)) as parts:
        async for part in parts:
            came.append(part)
            if after_each is not None:
                await after_each()
    return came


def test_deltas_come_one_by_one_and_last_the_generation(http) -> None:
    parts, server = asked(http, streams(*GOOD))
    assert parts[:-1] == [Delta((7,), (-0.5,)), Delta((8, 9), (-1.5, -0.25))]
    assert parts[-1].tokens.completion_ids == [7, 8, 9]
    assert parts[-1].finish_reason is FinishReason.STOP
    assert server.bodies[0]["stream"] is True
    assert server.bodies[0]["token_ids"] == [1, 2, 3]


def test_the_first_delta_is_there_before_the_last_is_sampled(http) -> None:
    async def scenario(engine, server):
        async with contextlib.aclosing(engine.stream(REQUEST)) as parts:
            return await anext(parts)

    first, _ = asked(http, streams(GOOD[0], then=hangs), scenario=scenario)
    assert first == Delta((7,), (-0.5,))


def test_a_stream_that_is_left_closes_its_connection(http) -> None:
    async def scenario(engine, server):
        async with contextlib.aclosing(engine.stream(REQUEST)) as parts:
            await anext(parts)
        await asyncio.wait_for(server.cancelled.wait(), 3)

    asked(http, streams(GOOD[0], then=hangs), scenario=scenario)


def test_a_cancelled_task_closes_its_connection(http) -> None:
    async def scenario(engine, server):
        task = asyncio.ensure_future(whole(engine))
        await asyncio.wait_for(server.arrived.wait(), 3)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.cancelled.wait(), 3)

    asked(http, streams(GOOD[0], then=hangs), scenario=scenario)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (streams(*GOOD[:2], then=aborts), ConnectionLostError),
        (streams(*GOOD[:2]), ConnectionLostError),
        (streams(*GOOD[:2], then=hangs), EngineTimeoutError),
        (streams(*GOOD[:2], b'data: {"error": {"message": "died", "code": 500}}\n\n'), EngineFailureError),
        (streams(*GOOD[:2], b'data: {"error": {"message": "busy", "code": 503}}\n\n'), EngineBusyError),
        (streams(*GOOD[:2], event(finish_reason="abort"), b"data: [DONE]\n\n"), AbortedError),
        (streams(*GOOD[:2], b"data: garbage\n\n"), MalformedReplyError),
    ],
)
def test_what_breaks_off_in_the_middle_is_an_error_with_what_came_and_is_not_begun_again(
    http, answer, expected
) -> None:
    async def scenario(engine, server):
        came = []
        with pytest.raises(expected) as raised:
            await collected(engine, REQUEST, came)
        partial = raised.value.partial
        assert partial.tokens.prompt_ids == [1, 2, 3]
        assert partial.tokens.completion_ids == [7, 8, 9]
        assert partial.tokens.completion_logprobs == [-0.5, -1.5, -0.25]
        assert [type(each) for each in came] == [Delta, Delta]
        return len(server.generate_calls)

    calls, _ = asked(http, answer, scenario=scenario, timeout_s=0.5, max_retries=3)
    assert calls == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("resets", ConnectionLostError),
        ("sampled", MalformedReplyError),
        (({"detail": "Not Found"}, 404), RouteMissingError),
        (({"error": {"message": "no stream yet", "code": 501}}, 501), RouteMissingError),
        (({"message": "boom"}, 500), EngineFailureError),
    ],
)
def test_what_is_no_stream_is_an_error_without_ids(http, answer, expected) -> None:
    given = getattr(http, answer) if isinstance(answer, str) else http.replies(*answer)
    with pytest.raises(expected) as raised:
        asked(http, given)
    assert raised.value.partial is None


def test_a_busy_server_is_asked_again_and_a_dead_connection_replaced(http) -> None:
    async def scenario(engine, server):
        await engine.generate(REQUEST)
        return await whole(engine), len(server.generate_calls)

    busy = http.replies({"message": "later"}, 503, **{"retry-after": "0.05"})
    (parts, calls), _ = asked(
        http, http.sampled, http.resets, busy, streams(*GOOD), scenario=scenario, max_retries=2
    )
    assert isinstance(parts[-1], Generation)
    assert calls == 4


def test_nothing_is_sent_for_a_prompt_that_is_too_long_or_to_nobody(http) -> None:
    async def scenario(engine, server):
        with pytest.raises(OverlongPromptError):
            await whole(engine, request=GenerateRequest("m", TokenIds([1] * 64)))
        return len(server.generate_calls)

    assert asked(http, streams(*GOOD), scenario=scenario)[0] == 0

    async def nobody():
        async with HttpEngine("http://127.0.0.1:1", VllmTransport(), max_retries=0) as engine:
            await whole(engine)

    with pytest.raises(ConnectionFailedError):
        asyncio.run(nobody())


def test_a_key_that_a_stream_repeats_is_hidden(http) -> None:
    answer = streams(b'data: {"error": {"message": "bad key sk-9", "code": 401}}\n\n')
    with pytest.raises(TokentrueError) as raised:
        asked(http, answer, api_key="sk-9")
    assert "sk-9" not in str(raised.value)


def embedded(scenario):
    async def main():
        async with EmbeddedEngine() as engine:
            return await scenario(engine)

    return asyncio.run(main())


def long(count=60, **sampling) -> GenerateRequest:
    asked_for = SamplingParams(max_tokens=count, ignore_eos=True, seed=1, **sampling)
    return GenerateRequest(MODEL_NAME, TokenIds(range(20, 60)), asked_for)


def test_the_embedded_engine_streams_what_it_gives_whole() -> None:
    async def scenario(engine: StreamingEngine):
        assert isinstance(engine, StreamingEngine)
        streamed = await asyncio.gather(*(whole(engine, request=long(top_k=k)) for k in (0, 5, 50)))
        return streamed, [await engine.generate(long(top_k=k)) for k in (0, 5, 50)]

    streamed, generations = embedded(scenario)
    for parts, generation in zip(streamed, generations, strict=True):
        *deltas, end = parts
        assert len(deltas) > 5
        assert end.tokens == generation.tokens
        assert [each for delta in deltas for each in delta.token_ids] == generation.tokens.completion_ids
        assert [each for delta in deltas for each in delta.logprobs] == generation.tokens.completion_logprobs


def test_closing_the_embedded_engine_ends_a_stream_with_what_came() -> None:
    async def scenario(engine):
        came = []
        with pytest.raises(AbortedError) as raised:
            await collected(engine, long(1500), came, engine.close)
        told = [each for delta in came for each in delta.token_ids]
        assert raised.value.partial.tokens.completion_ids == told
        assert came

    embedded(scenario)


def test_one_embedded_engine_streams_in_one_loop_after_another() -> None:
    engine = EmbeddedEngine()

    async def left() -> None:
        async with contextlib.aclosing(engine.stream(long(1500))) as parts:
            await anext(parts)

    asyncio.run(left())
    first, second = (asyncio.run(whole(engine, request=long())) for _ in range(2))
    assert first[-1].tokens == second[-1].tokens
    asyncio.run(engine.close())
