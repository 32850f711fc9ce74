"""Runs the real command in a process of its own."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, ClassVar

import pytest

from cli.nursery import WITHIN_S, Nursery

COMMAND = [sys.executable, "-W", "error", "-m", "tokentrue"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@cache
def _nursery() -> Nursery:
    nursery = Nursery()
    atexit.register(nursery.close)
    return nursery


def run_command(
    *args: object,
    env: Mapping[str, str] | None = None,
    stdout: IO[str] | int = subprocess.PIPE,
    anew: bool = False,
) -> subprocess.CompletedProcess[str]:
    """`tokentrue` with these arguments; what it printed and its exit code.

    Args:
        anew: Nothing is imported beforehand, and Python hashes strings in an order of this process' own.
    """
    told, environment = [str(arg) for arg in args], {**os.environ, "COLUMNS": "100", **(env or {})}
    if not anew:
        return _nursery().run(told, environment, stdout if isinstance(stdout, int) else stdout.fileno())
    return subprocess.run(
        [*COMMAND, *told],
        text=True,
        check=False,
        timeout=WITHIN_S,
        env=environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


@dataclass(frozen=True)
class Failure:
    """How a command failed."""

    code: int
    line: str


def failure_of(done: subprocess.CompletedProcess[str]) -> Failure:
    """Checks what holds for every failure: one line on standard error, no traceback."""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("tokentrue: ")
    assert "Traceback" not in done.stderr
    return Failure(done.returncode, lines[0])


@pytest.fixture(scope="session")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of three short episodes."""
    folder = tmp_path_factory.mktemp("runs") / "calculator"
    done = run_command(
        "rollout", "--env", "calculator", "--episodes", 3, "--max-turns", 4, "--max-tokens", 80, "--out", folder
    )
    assert done.returncode == 0, done.stderr
    return folder


class _Server(BaseHTTPRequestHandler):
    """Answers `GET /v1/models`, and the token route when it has something to say."""

    models: ClassVar[list[str]] = []
    sampled: ClassVar[list[int]] = []
    authorization: ClassVar[list[str]] = []
    status: ClassVar[int] = 200

    def do_GET(self) -> None:
        body = json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self) -> None:
        """vLLM's token route: always `sampled`, each id at log-probability -0.5."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).authorization.append(self.headers["Authorization"] or "")
        if "token_ids" not in asked:
            self.send_error(400 if self.path == "/inference/v1/generate" else 404)
            return
        items = [{"token": f"token_id:{i}", "logprob": -0.5, "top_logprobs": []} for i in self.sampled]
        choice = {"index": 0, "token_ids": self.sampled, "finish_reason": "stop", "logprobs": {"content": items}}
        body = json.dumps({"request_id": "r", "choices": [choice], "prompt_token_ids": asked["token_ids"]})
        self.send_response(200 if self.sampled else 501)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts a server that lists these models; gives its URL. Keys that it was sent go to `authorization`."""
    servers: list[ThreadingHTTPServer] = []

    def start(
        *models: str, status: int = 200, sampled: tuple[int, ...] = (), authorization: list[str] | None = None
    ) -> str:
        keys = authorization if authorization is not None else []
        fields = {"models": list(models), "status": status, "sampled": list(sampled), "authorization": keys}
        handler = type("Handler", (_Server,), fields)
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
