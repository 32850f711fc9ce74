"""The recorded request and reply pairs, and a reader of them that shares nothing with the code under test."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tokentrue.generation import GenerateRequest
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.dynamo import DynamoTransport
from tokentrue.transports.sglang import SglangTransport
from tokentrue.transports.transport import HttpReply
from tokentrue.transports.vllm import VllmTransport

CAPTURES = Path(__file__).resolve().parents[3] / "shared" / "captures"
FOLDERS = ("vllm", "dynamo", "dynamo_vllm", "sglang")


@dataclass(frozen=True)
class Capture:
    """One recorded exchange of a token route."""

    sent: dict[str, Any]
    reply: HttpReply
    answer: Any
    transport: VllmTransport | DynamoTransport | SglangTransport

    @property
    def is_stream(self) -> bool:
        return bool(self.sent.get("stream"))

    def request(self) -> GenerateRequest:
        """What was asked, as far as the reader of the reply needs it."""
        is_dynamo = isinstance(self.transport, DynamoTransport)
        asked = self.sent if is_dynamo else (self.sent.get("sampling_params") or {})
        name = "input_ids" if isinstance(self.transport, SglangTransport) else "token_ids"
        ids = self.sent["nvext"]["token_data"] if is_dynamo else self.sent.get(name)
        flat = ids[0] if isinstance(ids, list) and ids and isinstance(ids[0], list) else ids
        known = [int(i) for i in (flat if isinstance(flat, list) else []) if str(i).isdecimal() and int(i) < 2**31]
        stop = asked.get("stop") or []
        max_tokens = (
            asked.get("max_completion_tokens") or asked.get("max_tokens") or asked.get("max_new_tokens") or 0
        )
        sampling = SamplingParams(
            max_tokens=max_tokens if max_tokens > 0 else None,
            stop=tuple(s for s in ([stop] if isinstance(stop, str) else stop) if isinstance(s, str)),
            stop_token_ids=tuple(i for i in asked.get("stop_token_ids", ()) if i >= 0),
            extra={key: self.sent[key] for key in ("rid",) if key in self.sent},
        )
        return GenerateRequest("tiny", TokenIds(known), sampling)

    def changed(self, answer: Any) -> HttpReply:
        """The same reply with another body."""
        return HttpReply(self.reply.status, self.reply.headers, json.dumps(answer).encode())


def _body(response: dict[str, Any]) -> tuple[Any, bytes]:
    answer = response.get("body")
    lines = response.get("sse") or (answer.get("sse_lines") if isinstance(answer, dict) else None)
    if lines is not None:
        return None, "".join(f"{line}\n\n" for line in lines).encode()
    return answer, json.dumps(answer, separators=(",", ":")).encode()


def _reply_only(recorded: dict[str, Any]) -> Capture | None:
    """A reply that was kept without its request (engines paused, swapped or killed under it)."""
    if isinstance(recorded.get("b"), dict) and "output_ids" in recorded["b"]:
        answer, body = _body({"body": recorded["b"]})
        sent = {"input_ids": [0] * answer["meta_info"]["prompt_tokens"]}
        return Capture(sent, HttpReply(recorded["s"], {}, body), answer, SglangTransport())
    response = recorded.get("response") or {"status": 200, "headers": {}, "body": recorded}
    killed = recorded.get("result")
    if isinstance(killed, dict) and "generate_full" in killed:
        response = {"headers": {}, **killed["generate_full"]}
    answer, body = _body(response)
    is_generate = str(answer.get("request_id", "")).startswith("generate-tokens-")
    if not is_generate and response["status"] != 500:
        return None
    prompt_len = answer["usage"]["prompt_tokens"] if is_generate else 1
    return Capture(
        {"token_ids": [0] * prompt_len}, HttpReply(response["status"], {}, body), answer, VllmTransport()
    )


def read_capture(folder: str, name: str) -> Capture | None:
    """The exchange, or None when it is none of a token route."""
    recorded = json.loads((CAPTURES / folder / f"{name}.json").read_text())
    if "request" not in recorded:
        return _reply_only(recorded)
    if "response" not in recorded:
        return None
    asked, response = recorded["request"], recorded["response"]
    sent = asked.get("body") if isinstance(asked.get("body"), dict) else {}
    is_generate = asked["path"].endswith("/inference/v1/generate")
    is_sglang = folder == "sglang" and asked["path"] == "/generate"
    is_chat = asked["path"].endswith("/v1/chat/completions") and folder.startswith("dynamo")
    nvext = sent.get("nvext")
    if not is_generate and not is_sglang and not (is_chat and isinstance(nvext, dict) and "token_data" in nvext):
        return None
    answer, body = _body(response)
    headers = {key.lower(): value for key, value in dict(response["headers"]).items()}
    transport = SglangTransport() if is_sglang else VllmTransport() if is_generate else DynamoTransport()
    return Capture(sent, HttpReply(response["status"], headers, body), answer, transport)


@pytest.fixture(scope="session")
def captures_folder() -> Path:
    """The folder of recordings; it is shared beside the repository and is no part of it."""
    if not CAPTURES.is_dir():
        pytest.skip(f"no recorded replies at {CAPTURES}")
    return CAPTURES


@pytest.fixture(scope="session")
def capture(captures_folder: Path) -> Callable[[str, str], Capture]:
    """Reads one recording of a token route."""

    def read(folder: str, name: str) -> Capture:
        found = read_capture(folder, name)
        assert found is not None, f"{folder}/{name} is no exchange of a token route"
        return found

    return read


@pytest.fixture(scope="session")
def token_route_names(captures_folder: Path) -> set[tuple[str, str]]:
    """Every recording of a token route, by folder and name."""
    names = ((folder, path.stem) for folder in FOLDERS for path in (captures_folder / folder).glob("*.json"))
    return {(folder, name) for folder, name in names if read_capture(folder, name) is not None}
