"""`check_engine` on the servers of this folder: what it must know about each, its oracle, and where reports go.

A server of another kind is one more function that gives a `Candidate`.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import re
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from threadpoolctl import threadpool_limits

from servers.dynamo.server import Frontend, Worker
from servers.forward_pass import ForwardPass
from servers.processes import EMBEDDED_MODEL, REPOSITORY
from servers.teacher_forcing import TeacherForcing
from servers.venvs import installed
from servers.vllm.server import BLOCK_TOKENS as VLLM_BLOCK_TOKENS
from servers.vllm.server import CONTEXT_LIMIT, MODEL_NAME, VllmServer
from tokentrue.engines.embedded.engine import EmbeddedEngine
from tokentrue.engines.embedded.transformer import BLOCK_TOKENS as EMBEDDED_BLOCK_TOKENS
from tokentrue.engines.engine import Engine
from tokentrue.engines.http import HttpEngine
from tokentrue.testing import EngineReport, Oracle, ServerFacts, check_engine
from tokentrue.transports.transport import Transport

REPORTS = REPOSITORY / "build" / "engine-reports"
VOCAB_SIZE = json.loads((EMBEDDED_MODEL / "config.json").read_text())["vocab_size"]
_IN_WORK = re.compile(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One running engine, as `check_engine` needs it.

    Args:
        title: What a reader of the table calls it.
        make: Opens the engine.
        model: The name it serves the embedded model under.
        block_tokens: Of its prefix cache.
        count_in_work: The server's own count of requests in work; None when it does not tell.
    """

    title: str
    make: Callable[[], Engine]
    model: str
    block_tokens: int
    count_in_work: Callable[[], float] | None = None


@dataclass(frozen=True, slots=True)
class NamedOracle:
    """A forward pass of the embedded model, and whose it is."""

    name: str
    ask: Oracle


def embedded() -> Candidate:
    """The engine that comes with the package."""
    return Candidate("embedded", EmbeddedEngine, MODEL_NAME, EMBEDDED_BLOCK_TOKENS)


def vllm(server: VllmServer, transport: Transport) -> Candidate:
    """A vLLM on its own."""
    count = partial(requests_in_work, f"{server.url}/metrics")
    return Candidate("vLLM", partial(_engine, server.url, transport), MODEL_NAME, VLLM_BLOCK_TOKENS, count)


def dynamo(frontend: Frontend, worker: Worker, transport: Transport, title: str) -> Candidate:
    """A Dynamo with the embedded model behind it; the worker's log of requests tells what it works on."""

    def count() -> float:
        return sum(request.how is None for request in worker.requests())

    make = partial(_engine, frontend.url, transport)
    return Candidate(title, make, worker.kind.model_name, EMBEDDED_BLOCK_TOKENS, count)


def dynamo_vllm(
    frontend: Frontend, worker: Worker, transport: Transport, title: str, system_port: int
) -> Candidate:
    """A Dynamo with a vLLM behind it, which counts on its system port."""
    count = partial(requests_in_work, f"http://127.0.0.1:{system_port}/metrics")
    make = partial(_engine, frontend.url, transport)
    return Candidate(title, make, worker.kind.model_name, VLLM_BLOCK_TOKENS, count)


def _engine(url: str, transport: Transport) -> HttpEngine:
    return HttpEngine(url, transport, timeout_s=120.0)


def requests_in_work(metrics_url: str) -> float:
    """How many requests a vLLM runs or has waiting, by its metrics.

    Raises:
        ValueError: It does not say.
    """
    with urllib.request.urlopen(metrics_url, timeout=10) as reply:
        found = _IN_WORK.findall(reply.read().decode())
    if not found:
        raise ValueError(f"{metrics_url} does not tell vllm:num_requests_running")
    return sum(map(float, found))


@contextmanager
def best_oracle(log_path: Path) -> Iterator[NamedOracle]:
    """transformers' forward pass in single precision, where an engine's venv has it; else our own in numpy."""
    for name in ("vllm", "dynamo-vllm"):
        python = installed(name)
        if python is not None:
            with ForwardPass(python, EMBEDDED_MODEL, log_path) as forward_pass:
                yield NamedOracle("transformers, float32", forward_pass)
            return
    yield NamedOracle("the embedded model's own numpy forward pass, float32", _own_forward_pass())


def _own_forward_pass() -> Oracle:
    teacher = TeacherForcing(EMBEDDED_MODEL)

    def ask(prompt_ids: list[int], completion_ids: list[int]) -> list[float]:
        with threadpool_limits(1, user_api="blas"):
            found: list[float] = teacher.sampled(prompt_ids, completion_ids).tolist()
        return found

    return ask


def check(candidate: Candidate, oracle: NamedOracle) -> EngineReport:
    """Make every check; the report is also written for `scripts/engines_table.py`."""

    async def in_work() -> float:
        count = candidate.count_in_work
        return 0.0 if count is None else await asyncio.to_thread(count)

    async def run() -> EngineReport:
        engine = candidate.make()
        try:
            return await check_engine(
                engine,
                model=candidate.model,
                vocab_size=VOCAB_SIZE,
                context_limit=CONTEXT_LIMIT,
                oracle=oracle.ask,
                server=ServerFacts(
                    candidate.block_tokens, in_work if candidate.count_in_work is not None else None
                ),
                # The same ids in every run; two candidates may share a prefix cache, so not the same as another's.
                seed=zlib.crc32(candidate.title.encode()),
            )
        finally:
            await engine.close()

    report = asyncio.run(run())
    _write(candidate, oracle, report)
    return report


def _write(candidate: Candidate, oracle: NamedOracle, report: EngineReport) -> None:
    REPORTS.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", candidate.title.lower()).strip("-")
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    told = {"title": candidate.title, "day": day, "oracle": oracle.name, **report.to_dict()}
    (REPORTS / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")
