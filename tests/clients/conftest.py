"""A small vLLM on the loopback: it renders with the shipped model's template and says what a test tells it to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from tokentrue import Renderer, load_renderer
from tokentrue.clients.client import Client
from tokentrue.clients.making import make_client
from tokentrue.config import ClientConfig
from tokentrue.engines.embedded.engine import MODEL_FOLDER
from tokentrue.rendering.contract import RendererContract

CHAT, TOKENS = "/v1/chat/completions", "/v1/chat/completions/tokens"
GENERATE, DERENDER, TOKENIZE = "/inference/v1/generate", "/v1/chat/completions/derender", "/tokenize"
LIMIT = 1000
CAPTURES = Path(__file__).resolve().parents[3] / "shared" / "captures"


@dataclass
class SmallVllm:
    """Serves `routes`; `says` are the texts it samples, the last one again and again.

    Args:
        answers: Replies to give instead, by path, used up in order: (status, JSON value).
        tells_ids: Whether chat replies carry ids.
        renders_with: Template variables that its template always gets.
    """

    renderer: Renderer
    routes: set[str] = field(default_factory=lambda: {CHAT, TOKENIZE})
    says: list[str] = field(default_factory=lambda: ["All right."])
    answers: dict[str, list[tuple[int, object]]] = field(default_factory=dict)
    tells_ids: bool = True
    ignores_ids: bool = False
    calls: list[tuple[str, dict, web.Request]] = field(default_factory=list)
    url: str = ""
    models_calls: int = 0

    def paths(self) -> list[str]:
        """What was asked, in order, probes and the list of models left out."""
        return [path for path, body, _ in self.calls if body]

    def probes(self) -> list[str]:
        """What was probed, in order."""
        return [path for path, body, _ in self.calls if not body]

    async def answer(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        self.calls.append((request.path, body, request))
        if self.answers.get(request.path):
            status, value = self.answers[request.path].pop(0)
            return web.json_response(value, status=status)
        if request.path not in self.routes:
            return web.json_response({"detail": "Not Found"}, status=404)
        if not body:
            return web.json_response({"error": {"message": "field required", "code": 400}}, status=400)
        return self._served(request.path, body)

    async def models(self, _: web.Request) -> web.Response:
        self.models_calls += 1
        return web.json_response({"data": [{"id": "m", "owned_by": "vllm"}]})

    def _served(self, path: str, body: dict) -> web.Response:
        if path == TOKENIZE:
            ids = self._render(body, add_generation_prompt=body["add_generation_prompt"])
            return web.json_response({"count": len(ids), "tokens": ids, "max_model_len": LIMIT})
        if path == DERENDER:
            return web.json_response(self._derendered(body))
        is_ids = path == GENERATE or (path == TOKENS and not self.ignores_ids)
        prompt = body["token_ids" if path == GENERATE else "tokens"] if is_ids else self._render(body)
        asked = body["sampling_params"] if path == GENERATE else body
        max_tokens = asked.get("max_tokens" if path == GENERATE else "max_completion_tokens")
        if len(prompt) >= LIMIT or len(prompt) + (max_tokens or 0) > LIMIT:
            words = (
                f"This model's maximum context length is {LIMIT} tokens. However, you requested {max_tokens} "
                f"output tokens and your prompt contains {len(prompt)} input tokens."
            )
            return web.json_response({"error": {"message": words, "code": 400}}, status=400)
        return web.json_response(self._completion(path, prompt, max_tokens))

    def _render(self, body: dict, add_generation_prompt: bool = True) -> list[int]:
        return self.renderer.render_ids(
            body["messages"], tools=body.get("tools"), add_generation_prompt=add_generation_prompt
        ).tolist()

    def _completion(self, path: str, prompt: list[int], max_tokens: int | None) -> dict:
        text = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        whole = [*self.renderer.tokenizer.encode(text), self.renderer.stop_ids[0]]
        ids = whole[:max_tokens]
        choice = {"index": 0, "finish_reason": "stop" if len(ids) == len(whole) else "length", "stop_reason": None}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}
        items = [{"token": f"token_id:{i}", "logprob": -0.5} for i in ids]
        choice["logprobs"] = {"content": items}
        if path == GENERATE:
            return {"request_id": "r", "model": "m", "usage": usage, "choices": [{**choice, "token_ids": ids}]}
        choice["message"] = self._message(ids, prompt)
        if not self.tells_ids:
            return {"id": "c", "model": "m", "usage": usage, "choices": [{**choice, "logprobs": None}]}
        full = [{**choice, "token_ids": ids}]
        return {"id": "c", "model": "m", "usage": usage, "choices": full, "prompt_token_ids": prompt}

    def _derendered(self, body: dict) -> dict:
        choice = body["generate_response"]["choices"][0]
        message = self._message(choice["token_ids"], body["prompt_token_ids"])
        return {"id": "d", "choices": [{"message": message, "finish_reason": "stop"}]}

    def _message(self, ids: list[int], prompt: list[int]) -> dict:
        said = self.renderer.parse_response(ids, prompt_ids=prompt).to_message("engine").to_openai()
        return {"content": None, **said}


SAMPLING_KEYS = {
    *("max_new_tokens", "stop", "stop_token_ids", "temperature", "top_p", "top_k", "min_p", "sampling_seed"),
    *("skip_special_tokens", "ignore_eos", "regex"),
}


@dataclass
class SmallSglang(SmallVllm):
    """The same on SGLang's wire, as 0.5.23 was recorded: a foreign id kills it, and 128 tokens are its default."""

    routes: set[str] = field(default_factory=lambda: {CHAT, TOKENIZE, "/generate"})

    async def models(self, _: web.Request) -> web.Response:
        self.models_calls += 1
        return web.json_response({"data": [{"id": "m", "owned_by": "sglang", "max_model_len": LIMIT}]})

    def _served(self, path: str, body: dict) -> web.Response:
        if path == TOKENIZE:
            return super()._served(path, body)
        is_generate = path == "/generate"
        prompt = body["input_ids"] if is_generate else self._render(body)
        if not all(0 <= token_id < self.renderer.vocab_size for token_id in prompt):
            raise SystemExit("index out of range in self")
        asked = body["sampling_params"] if is_generate else body
        unknown = set(asked) - SAMPLING_KEYS
        if is_generate and unknown:
            return web.json_response(
                {"error": f"unknown field `{min(unknown)}`, expected one of `stop`"}, status=400
            )
        wanted = asked.get("max_new_tokens", 128) if is_generate else asked.get("max_completion_tokens")
        words = self._too_long(len(prompt), wanted)
        if words:
            return web.json_response({"error": {"message": words}}, status=400)
        return web.json_response(self._answer(path, body, prompt, wanted))

    def _too_long(self, prompt_len: int, wanted: int | None) -> str:
        if prompt_len >= LIMIT:
            return f"The input ({prompt_len} tokens) is longer than the model's context length ({LIMIT} tokens)."
        if prompt_len + (wanted or 0) > LIMIT:
            return (
                f"Requested token count exceeds the model's maximum context length of {LIMIT} tokens. You "
                f"requested a total of {prompt_len + (wanted or 0)} tokens: {prompt_len} tokens from the input "
                f"messages and {wanted} tokens for the completion."
            )
        return ""

    def _answer(self, path: str, body: dict, prompt: list[int], wanted: int | None) -> dict:
        text = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        whole = [*self.renderer.tokenizer.encode(text), self.renderer.stop_ids[0]]
        ids = whole[:wanted]
        is_whole = len(ids) == len(whole)
        end = {"type": "stop", "matched": ids[-1]} if is_whole else {"type": "length", "length": wanted}
        stop = (body.get("sampling_params") or body).get("stop") or []
        if stop and stop[0] in text:
            # A stop string leaves the ids up to the one that completed it.
            decode = self.renderer.tokenizer.decode
            spelled = next(length for length in range(len(ids)) if stop[0] in decode(ids[:length]))
            ids, end = ids[:spelled], {"type": "stop", "matched": stop[0]}
        meta = {
            "id": "sg",
            "finish_reason": end,
            "prompt_tokens": len(prompt),
            "completion_tokens": len(ids),
            "cached_tokens": 0,
            "dp_rank": None,
            "weight_versions": [{"version": "default", "start": 0, "end": len(ids)}],
            "input_token_logprobs": [],
            "output_token_logprobs": [[-0.5, token_id, None] for token_id in ids],
        }
        if path == "/generate":
            return {"text": text, "output_ids": ids, "meta_info": meta}
        choice = {
            "index": 0,
            "message": self._message(ids, prompt),
            "finish_reason": end["type"],
            "matched_stop": end.get("matched"),
            "logprobs": {"content": [{"token": "?", "logprob": -0.5, "bytes": []} for _ in ids]},
        }
        told = {"prompt_token_ids": prompt, "response_token_ids": ids, "meta_info": meta} if self.tells_ids else {}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}
        return {"id": "sg", "model": "m", "usage": usage, "choices": [{**choice, **told}]}


@asynccontextmanager
async def serving(server: SmallVllm) -> AsyncIterator[SmallVllm]:
    app = web.Application()
    app.router.add_post("/{path:.*}", server.answer)
    app.router.add_get("/v1/models", server.models)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()


@pytest.fixture(scope="session")
def renderer() -> Renderer:
    """The shipped model's."""
    return load_renderer(MODEL_FOLDER)


@dataclass
class World:
    """Starts a server, opens a client to it, and has a talk; `clients_renderer` is not the server's."""

    renderer: Renderer
    clients_renderer: RendererContract | None = None

    def run(
        self, about: Callable[[Client, SmallVllm], Awaitable[object]], *, server: dict | None = None, **settings
    ) -> object:
        """What `about` gives, with a token client that bridges here unless the settings say otherwise."""
        bridging_here, clock = settings.pop("bridging_here", True), settings.pop("clock", None)
        kind = SmallSglang if settings.get("renderer_transport") == "sglang" else SmallVllm

        async def once() -> object:
            async with serving(kind(self.renderer, **(server or {}))) as small:
                chosen = {"client_type": "openai_chat_completions_token", "max_retries": 0, **settings}
                # What the log-probabilities mean has tests of its own, and its requests would be counted here.
                chosen = {"measure_logprobs": False, **chosen}
                config = ClientConfig(api_base_url=small.url, **chosen)
                chosen_renderer = (self.clients_renderer or self.renderer) if bridging_here else None
                async with await make_client(config, chosen_renderer, clock) as client:
                    return await about(client, small)

        return asyncio.run(once())


@pytest.fixture
def world(renderer) -> World:
    """A server to start and a client to talk with it."""
    return World(renderer)


@pytest.fixture(scope="session")
def captures_folder() -> Path:
    """The folder of recordings; it is shared beside the repository and is no part of it."""
    if not CAPTURES.is_dir():
        pytest.skip(f"no recorded replies at {CAPTURES}")
    return CAPTURES
