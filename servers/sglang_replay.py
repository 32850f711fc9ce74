"""SGLang 0.5.23 as it was recorded: a stand-in for a server that does not install on a CPU without stubs.

What it tells of itself is the recording, byte for byte (`../shared/captures/sglang`). A completion is the recorded
reply of `/generate` with its ids, log-probabilities and counts replaced by those of the embedded engine, which
tells log-probabilities at the temperature it sampled at, as SGLang does. An id outside the vocabulary kills it, as
it kills SGLang: the connection breaks, and from then on nothing answers.
"""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from tokentrue.engines.embedded.engine import MODEL_FOLDER, MODEL_NAME, EmbeddedEngine
from tokentrue.generation import GenerateRequest, LogprobsMode
from tokentrue.rendering.renderer import load_renderer
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds

CAPTURES = Path(__file__).resolve().parents[2] / "shared" / "captures" / "sglang"
RECORDED_MODEL = "tiny"

_GETS = ("get_v1_models", "get_server_info", "get_model_info", "get_get_model_info", "get_health")


class SglangReplay:
    """The server; a context manager. `asked` holds the path of every request, `is_dead` whether one killed it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.is_dead = False
        self._generated = _capture("gen_rid")["response"]["body"]
        self._missing = _capture("inference_v1_generate")["response"]
        self._gets = {c["request"]["path"]: c["response"] for c in map(_capture, _GETS)}
        self._renderer = load_renderer(MODEL_FOLDER)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._engine = EmbeddedEngine(logprobs_mode=LogprobsMode.SCALED)
        self._seen: set[tuple[int, ...]] = set()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> SglangReplay:
        """Start it."""
        self._thread.start()
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self._http.shutdown()
        self._http.server_close()
        asyncio.run_coroutine_threadsafe(self._engine.close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and body; raises `ConnectionAbortedError` when the server is dead."""
        self.asked.append(f"{method} {path}")
        if self.is_dead:
            raise ConnectionAbortedError
        if method == "GET" and path in self._gets:
            recorded = self._gets[path]
            return recorded["status"], recorded["body"]
        if method == "POST" and path == "/tokenize":
            ids = self._renderer.render_ids(json.loads(body)["messages"]).tolist()
            return 200, {"tokens": ids, "count": len(ids), "max_model_len": 32768}
        if method == "POST" and path == "/generate":
            return 200, self._generate(json.loads(body))
        return self._missing["status"], self._missing["body"]

    def _generate(self, asked: dict[str, Any]) -> dict[str, Any]:
        ids = asked["input_ids"]
        if not all(0 <= token_id < self._renderer.vocab_size for token_id in ids):
            self.is_dead = True
            raise ConnectionAbortedError
        given = dict(asked["sampling_params"])
        given.pop("skip_special_tokens", None)
        given.pop("no_stop_trim", None)
        given["seed"] = given.pop("sampling_seed", None)
        request = GenerateRequest(MODEL_NAME, TokenIds(ids), SamplingParams.from_args(given))
        generation = asyncio.run_coroutine_threadsafe(self._engine.generate(request), self._loop).result(60)
        sampled = generation.tokens.completion_ids.tolist()
        is_stop = generation.finish_reason.value == "stop"
        end = {"type": "stop", "matched": sampled[-1]} if is_stop else {"type": "length", "length": len(sampled)}
        reply: dict[str, Any] = copy.deepcopy(self._generated)
        reply["output_ids"] = sampled
        reply["meta_info"] |= {
            "finish_reason": end,
            "prompt_tokens": len(ids),
            "completion_tokens": len(sampled),
            "cached_tokens": len(ids) - 1 if tuple(ids) in self._seen else 0,
            "weight_versions": [{"version": "default", "start": 0, "end": len(sampled)}],
            "output_token_logprobs": [
                [logprob, token_id, None]
                for logprob, token_id in zip(generation.tokens.completion_logprobs.tolist(), sampled, strict=True)
            ],
        }
        self._seen.add(tuple(ids))
        return reply


def _capture(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((CAPTURES / f"{name}.json").read_text())
    return content


def _handler(replay: SglangReplay) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            try:
                status, answer = replay.answer(self.command, self.path, body)
            except ConnectionAbortedError:
                self.close_connection = True
                return
            is_text = isinstance(answer, dict) and set(answer) == {"text"}
            data = answer["text"].encode() if is_text else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is printed."""

    return Handler
