"""A real HTTP server on a free port of the loopback, whose every answer a test decides."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "vllm", "max_model_len": 64}]}
SAMPLE = {
    "request_id": "r",
    "model": "m",
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "token_ids": [7, 8],
            "logprobs": {"content": [{"token_id": 7, "logprob": -0.5}, {"token_id": 8, "logprob": -1.5}]},
        }
    ],
}


@dataclass
class Server:
    """Answers each generate call with the next of `answers`, the last one again and again."""

    answers: list[Answer] = field(default_factory=list)
    models: Answer | None = None
    url: str = ""
    generate_calls: list[web.Request] = field(default_factory=list)
    bodies: list[dict] = field(default_factory=list)
    models_calls: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def on_generate(self, request: web.Request) -> web.StreamResponse:
        self.generate_calls.append(request)
        self.arrived.set()
        self.bodies.append(json.loads(await request.read()))
        answer = self.answers.pop(0) if len(self.answers) > 1 else (self.answers or [sampled])[0]
        try:
            return await answer(request)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def on_models(self, request: web.Request) -> web.StreamResponse:
        self.models_calls += 1
        return await (self.models or replies(MODELS))(request)


async def sampled(_: web.Request) -> web.StreamResponse:
    """The good answer."""
    return web.json_response(SAMPLE)


def replies(answer: object, status: int = 200, **headers: str) -> Answer:
    """An answer with this JSON value, or these bytes."""

    async def reply(_: web.Request) -> web.StreamResponse:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        return web.Response(body=body, status=status, headers=headers)

    return reply


async def resets(request: web.Request) -> web.StreamResponse:
    """Closes the connection without a byte."""
    request.transport.abort()
    return web.Response()


async def breaks_off(request: web.Request) -> web.StreamResponse:
    """Sends half of the good answer, and closes."""
    body = json.dumps(SAMPLE).encode()
    response = web.StreamResponse(headers={"content-length": str(len(body))})
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    request.transport.abort()
    return response


async def hangs(_: web.Request) -> web.StreamResponse:
    """Never answers."""
    await asyncio.Event().wait()
    return web.Response()


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[Server]:
    app = web.Application()
    app.router.add_post("/inference/v1/generate", server.on_generate)
    app.router.add_get("/v1/models", server.on_models)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()


class Misbehaviour:
    """The names above, for tests, which cannot import a conftest."""

    Server = Server
    running = staticmethod(running)
    replies = staticmethod(replies)
    sampled = staticmethod(sampled)
    resets = staticmethod(resets)
    breaks_off = staticmethod(breaks_off)
    hangs = staticmethod(hangs)
    models = MODELS


@pytest.fixture
def http() -> type[Misbehaviour]:
    """A server to start, and the answers it can give."""
    return Misbehaviour
