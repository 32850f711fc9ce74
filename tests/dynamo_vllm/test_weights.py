"""Weights that change under a real vLLM behind a real Dynamo, by the worker's own control routes.

The worker says nothing of versions in its replies, so a turn is what the client reads before and after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from servers.dynamo.server import DynamoServer
from servers.dynamo_vllm.install import ensure_dynamo_vllm
from servers.dynamo_vllm.server import DYNAMO_VLLM, READY_TIMEOUT_S
from servers.other_weights import write_other_weights
from servers.processes import free_ports
from servers.teacher_forcing import TeacherForcing

from tokentrue.engines.admin import HttpAdmin, make_admin
from tokentrue.engines.embedded.engine import MODEL_FOLDER
from tokentrue.engines.engine import Engine
from tokentrue.engines.http import HttpEngine
from tokentrue.engines.policy import Bracket, BracketedEngine
from tokentrue.engines.resuming import ResumingEngine
from tokentrue.generation import GenerateRequest, Generation, VersionSource
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.admin import PauseMode
from tokentrue.transports.dynamo import DynamoTransport

pytestmark = pytest.mark.dynamo_vllm

PROMPT = [(17 * i) % 300 for i in range(90)]
LENGTH = 300


@dataclass(frozen=True)
class Controlled:
    """A frontend with an RL port, and the folders of two checkpoints that its worker can load."""

    url: str
    rl_url: str
    second: str


@pytest.fixture(scope="module")
def controlled(tmp_path_factory) -> Iterator[Controlled]:
    rl_port, system_port = free_ports(2)
    second = write_other_weights(MODEL_FOLDER, tmp_path_factory.mktemp("second") / "model", seed=1)
    settings = {**DYNAMO_VLLM.settings, "DYN_SYSTEM_PORT": str(system_port)}
    kind = replace(DYNAMO_VLLM, settings=settings, arguments=("--enable-rl",))
    with DynamoServer(ensure_dynamo_vllm(), tmp_path_factory.mktemp("controlled") / "run") as server:
        frontend = server.start_frontend(settings={"DYN_ENABLE_RL": "1", "DYN_RL_PORT": str(rl_port)})
        server.start_worker(kind)
        server.wait_ready(READY_TIMEOUT_S)
        yield Controlled(frontend.url, f"http://127.0.0.1:{rl_port}", str(second))


def request() -> GenerateRequest:
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "seed": 1, "ignore_eos": True, "max_tokens": LENGTH}
    return GenerateRequest("tokentrue-embedded", TokenIds(PROMPT), SamplingParams.from_args(sampling))


def differences(folder: str, generation: Generation) -> np.ndarray:
    """How far each sampled id's log-probability is from that of a checkpoint, in nats."""
    tokens = generation.tokens
    expected = TeacherForcing(Path(folder)).sampled(PROMPT, tokens.completion_ids.tolist())
    return np.abs(tokens.completion_logprobs.array() - expected)


@asynccontextmanager
async def opened(controlled: Controlled) -> AsyncIterator[tuple[Engine, HttpAdmin]]:
    """The engine and its admin, with the first checkpoint loaded."""
    async with (
        HttpEngine(controlled.url, DynamoTransport(), max_retries=0) as engine,
        make_admin("dynamo", controlled.rl_url) as admin,
    ):
        await admin.update_weights(str(MODEL_FOLDER), "first")
        yield engine, admin


async def started(engine: Engine) -> asyncio.Task[Generation]:
    """A generation that is under way, and has some ids by now."""
    task = asyncio.create_task(engine.generate(request()))
    await asyncio.sleep(0.5)
    assert not task.done(), "it was over before the weights could change"
    return task


def test_a_turn_that_is_kept_over_an_update_is_mixed_and_of_no_third_model(controlled) -> None:
    async def run() -> tuple[Generation, Generation]:
        async with opened(controlled) as (engine, admin):
            bracketed = BracketedEngine(engine, Bracket(admin))
            turn = await started(bracketed)
            await admin.update_weights(controlled.second, "second", PauseMode.KEEP)
            return await turn, await bracketed.generate(request())

    kept, after = asyncio.run(run())
    assert kept.weight_spans[0].between == ("first", "second")
    old, new = (differences(folder, kept) for folder in (str(MODEL_FOLDER), controlled.second))
    switch = int(np.argmax(old > 1e-3))
    assert 0 < switch < LENGTH
    assert new[switch:].max() < 1e-3
    assert new[:switch].max() > 0.1
    assert [(span.version, span.source) for span in after.weight_spans] == [("second", VersionSource.BRACKETED)]
    assert differences(controlled.second, after).max() < 1e-3


def test_an_aborted_turn_goes_on_from_its_exact_ids(controlled) -> None:
    """The frontend hands the partial ids on; the second request is sampled by the new weights."""

    async def run() -> Generation:
        async with opened(controlled) as (engine, admin):
            turn = await started(ResumingEngine(engine, 2))
            await admin.update_weights(controlled.second, "second", PauseMode.ABORT)
            return await turn

    resumed = asyncio.run(run())
    assert len(resumed.tokens.completion_ids) == LENGTH
    (at,) = resumed.resumed_at
    assert 0 < at < LENGTH
    old, new = (differences(folder, resumed) for folder in (str(MODEL_FOLDER), controlled.second))
    assert max(old[:at].max(), new[at:].max()) < 1e-3
    assert min(old[at:].max(), new[:at].max()) > 0.1
