"""Runs the real command in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

COMMAND = [sys.executable, "-W", "error", "-m", "tokentrue"]

Run = Callable[..., subprocess.CompletedProcess[str]]


def run_command(*args: object, **options: object) -> subprocess.CompletedProcess[str]:
    """`tokentrue` with these arguments; what it printed and its exit code."""
    environment = {**os.environ, "COLUMNS": "100", **options.pop("env", {})}
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(
        [*COMMAND, *map(str, args)], text=True, check=False, timeout=120, env=environment, **settings
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
    """Answers `GET /v1/models` only."""

    models: ClassVar[list[str]] = []
    status: ClassVar[int] = 200

    def do_GET(self) -> None:
        body = json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts a server that lists these models; gives its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(*models: str, status: int = 200) -> str:
        handler = type("Handler", (_Server,), {"models": list(models), "status": status})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
