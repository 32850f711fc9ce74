"""One real Dynamo for the whole session: two frontends, three workers, all of them stopped at the end."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # `servers` is no part of the wheel

from servers.dynamo.install import ensure_dynamo  # noqa: E402
from servers.dynamo.server import EMBEDDED, FAULTS, DynamoServer, Frontend, Worker  # noqa: E402
from servers.plain_http import exchange  # noqa: E402

from tokentrue.engines.http import HttpEngine  # noqa: E402
from tokentrue.generation import GenerateRequest, Generation  # noqa: E402
from tokentrue.sampling import SamplingParams  # noqa: E402
from tokentrue.tokens import TokenIds  # noqa: E402
from tokentrue.transports.dynamo import DynamoTransport  # noqa: E402

MORTAL = replace(FAULTS, model_name="tokentrue-mortal", model_folder="tokentrue-mortal.model")
WORDY = replace(FAULTS, model_name="tokentrue-wordy", model_folder="tokentrue-wordy.model")
CHUNKY = replace(FAULTS, model_name="tokentrue-chunky", model_folder="tokentrue-chunky.model")


@dataclass(frozen=True, slots=True)
class LiveDynamo:
    """What the tests talk to.

    `mortal` is a second fault worker, for the tests that kill it, `chunky` a third, which sends several ids at
    a time, and `wordy` a fourth, which `/inference/v1/generate` does not find; `forgetful` is a second
    frontend, which finds the same workers and has been told to ignore `nvext`; neither it nor `chatty`, a
    third, serves that route.
    """

    server: DynamoServer
    frontend: Frontend
    forgetful: Frontend
    chatty: Frontend
    faults: Worker
    embedded: Worker
    mortal: Worker
    chunky: Worker
    wordy: Worker


@pytest.fixture(scope="session")
def dynamo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDynamo]:
    """A running Dynamo."""
    with DynamoServer(ensure_dynamo(), tmp_path_factory.mktemp("dynamo")) as server:
        frontend = server.start_frontend()
        by_chat = {"DYN_VLLM_ENABLE_INFERENCE_V1_GENERATE": "0"}
        forgetful = server.start_frontend("forgetful", {"DYN_DISABLE_FRONTEND_NVEXT": "1", **by_chat})
        chatty = server.start_frontend("chatty", by_chat)
        workers = [server.start_worker(kind) for kind in (FAULTS, EMBEDDED, MORTAL)]
        workers.append(server.start_worker(CHUNKY, "--tokens-per-chunk", "5"))
        workers.append(server.start_worker(WORDY, "--no-token-route"))
        server.wait_ready()
        yield LiveDynamo(server, frontend, forgetful, chatty, *workers)


@dataclass(frozen=True, slots=True)
class Asker:
    """Sends single requests through the product's engine and the Dynamo transport."""

    url: str

    def engine(self, transport=None, **settings) -> HttpEngine:
        """An engine that tells every failure at once, and the first one."""
        return HttpEngine(self.url, transport or DynamoTransport(), **{"max_retries": 0, **settings})

    def generate(self, worker: Worker, prompt_ids, *, settings=None, **sampling) -> Generation:
        """One completion of `prompt_ids` by `worker`."""
        model = worker.kind.model_name
        request = GenerateRequest(model, TokenIds(prompt_ids), SamplingParams.from_args(sampling))

        async def ask() -> Generation:
            engine = self.engine(**(settings or {}))
            try:
                return await engine.generate(request)
            finally:
                await engine.close()

        return asyncio.run(ask())

    def generate_unchecked(self, worker: Worker, prompt_ids, **sampling) -> Generation:
        """The same without the engine, which would know the context limit and not send what is too long."""
        model = worker.kind.model_name
        request = GenerateRequest(model, TokenIds(prompt_ids), SamplingParams.from_args(sampling))
        transport = DynamoTransport()
        reply = exchange(self.url, transport.write_generate(request))
        return transport.read_generate(request, reply)


@pytest.fixture(scope="session")
def ask(dynamo: LiveDynamo) -> Asker:
    """Asks the frontend that works as it should."""
    return Asker(dynamo.frontend.url)


@pytest.fixture
def ask_forgetful(dynamo: LiveDynamo) -> Asker:
    """Asks the frontend that ignores `nvext`."""
    return Asker(dynamo.forgetful.url)


@pytest.fixture
def run_with_engine() -> Callable[..., object]:
    """Opens an engine, runs one call on it, closes it."""

    def run(asker: Asker, call: Callable[[HttpEngine], Awaitable[object]], transport=None) -> object:
        async def once() -> object:
            engine = asker.engine(transport)
            try:
                return await call(engine)
            finally:
                await engine.close()

        return asyncio.run(once())

    return run


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool], str], None]:
    """Waits for something that another process does in its own time."""

    def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 15.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"after {timeout_s} s still not true: {what}"
            time.sleep(0.02)

    return wait_for
