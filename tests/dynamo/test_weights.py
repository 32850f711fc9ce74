"""Weights that change behind a real Dynamo: its frontend tells the workers, and each worker is controlled.

The worker samples with the embedded engine, so that our own forward pass says whose log-probabilities are whose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from servers.dynamo.install import ensure_dynamo
from servers.dynamo.server import EMBEDDED, DynamoServer
from servers.other_weights import write_other_weights
from servers.processes import free_ports
from servers.teacher_forcing import TeacherForcing

from tokentrue.engines.admin import HttpAdmin, make_admin
from tokentrue.engines.embedded.engine import MODEL_FOLDER
from tokentrue.engines.http import HttpEngine
from tokentrue.engines.policy import Bracket, BracketedEngine
from tokentrue.errors import EvidenceError, RouteMissingError, WeightUpdateError
from tokentrue.generation import GenerateRequest, VersionSource
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.admin import PauseMode
from tokentrue.transports.dynamo import DynamoTransport

pytestmark = pytest.mark.dynamo

PROMPT = [(17 * i) % 300 for i in range(90)]
NAME = "tokentrue-controlled"


@dataclass(frozen=True)
class Controlled:
    """A frontend with an RL port, and a worker with control routes."""

    url: str
    rl_url: str

    def engine(self) -> HttpEngine:
        return HttpEngine(self.url, DynamoTransport(), max_retries=0, timeout_s=60.0)

    def admin(self) -> HttpAdmin:
        return make_admin("dynamo", self.rl_url, timeout_s=60.0)


@pytest.fixture(scope="module")
def controlled(tmp_path_factory) -> Iterator[Controlled]:
    (rl_port,) = free_ports(1)
    kind = replace(EMBEDDED, model_name=NAME, arguments=("--rl",), settings={"DYN_SYSTEM_PORT": "0"})
    # The RL port tells only of the workers in its own namespace.
    rl = {"DYN_ENABLE_RL": "1", "DYN_RL_PORT": str(rl_port), "DYN_NAMESPACE": "tokentrue"}
    with DynamoServer(ensure_dynamo(), tmp_path_factory.mktemp("controlled")) as server:
        frontend = server.start_frontend(settings=rl)
        server.start_worker(kind)
        server.wait_ready()
        yield Controlled(frontend.url, f"http://127.0.0.1:{rl_port}")


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """Another checkpoint of the model."""
    return write_other_weights(MODEL_FOLDER, tmp_path_factory.mktemp("second") / "model", seed=1)


def request(**sampling) -> GenerateRequest:
    asked = {"temperature": 1.0, "seed": 1, "ignore_eos": True, "max_tokens": 24, **sampling}
    return GenerateRequest(NAME, TokenIds(PROMPT), SamplingParams.from_args(asked))


def differences(folder, generation) -> np.ndarray:
    tokens = generation.tokens
    expected = TeacherForcing(folder).sampled(PROMPT, tokens.completion_ids.tolist())
    return np.abs(tokens.completion_logprobs.array() - expected)


def test_an_update_through_the_frontends_list_of_workers(controlled, second) -> None:
    async def run():
        async with controlled.engine() as engine, controlled.admin() as admin:
            with pytest.raises(EvidenceError, match="nobody labelled"):
                await admin.version()
            await admin.update_weights(str(MODEL_FOLDER), "first", PauseMode.WAIT)
            bracketed = BracketedEngine(engine, Bracket(admin))
            before = await bracketed.generate(request())
            held = asyncio.create_task(bracketed.generate(request(seed=2, max_tokens=200)))
            await asyncio.sleep(0.2)
            await admin.update_weights(str(second), "second", PauseMode.WAIT)
            return before, await held, await bracketed.generate(request())

    before, held, after = asyncio.run(run())
    assert [(span.version, span.source) for span in before.weight_spans] == [("first", VersionSource.BRACKETED)]
    assert differences(MODEL_FOLDER, before).max() < 1e-5
    # It was finished by the old weights, and Dynamo does not say so: all that is known is that they changed.
    assert [span.between for span in held.weight_spans] == [("first", "second")]
    assert held.weight_spans[0].source is VersionSource.MIXED
    assert [(span.version, span.source) for span in after.weight_spans] == [("second", VersionSource.BRACKETED)]
    assert differences(second, after).max() < 1e-5
    assert differences(MODEL_FOLDER, after).max() > 0.5


def test_what_a_worker_cannot_do_stops_the_update_and_leaves_it_running(controlled) -> None:
    async def run():
        async with controlled.engine() as engine, controlled.admin() as admin:
            with pytest.raises(WeightUpdateError, match="cannot pause with mode 'keep'") as raised:
                await admin.update_weights(str(MODEL_FOLDER), "third", PauseMode.KEEP)
            assert (raised.value.step, raised.value.state) == ("pause", "running")
            await engine.generate(request())

    asyncio.run(run())


def test_a_folder_that_is_not_there_leaves_it_paused(controlled) -> None:
    async def run():
        async with controlled.engine() as engine, controlled.admin() as admin:
            with pytest.raises(WeightUpdateError) as raised:
                await admin.update_weights("/no/such/folder", "never", PauseMode.WAIT)
            assert (raised.value.step, raised.value.state) == ("load", "paused")
            waiting = asyncio.create_task(engine.generate(request()))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            await admin.update_weights(str(MODEL_FOLDER), "back", PauseMode.WAIT)
            return await waiting

    assert differences(MODEL_FOLDER, asyncio.run(run())).max() < 1e-5


def test_the_port_of_completions_is_not_the_rl_port(controlled) -> None:
    async def run():
        async with make_admin("dynamo", controlled.url) as admin:
            await admin.pause()

    with pytest.raises(RouteMissingError, match="DYN_RL_PORT"):
        asyncio.run(run())
