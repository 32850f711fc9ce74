"""Weights that change under a running vLLM: every span's log-probabilities are those of its own checkpoint.

The oracle is our own forward pass over each of two checkpoints. The second has noise on every matrix of the
layers, and the embeddings as they were: vLLM 0.32 on CPU reloads other, tied ones into a model that is neither.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from servers.other_weights import write_other_weights
from servers.teacher_forcing import TeacherForcing
from servers.vllm.server import BLOCK_TOKENS, MODEL_NAME

from tokentrue.clients.renderer import RendererClient
from tokentrue.engines.admin import HttpAdmin, make_admin
from tokentrue.engines.embedded.engine import MODEL_FOLDER
from tokentrue.engines.engine import Engine
from tokentrue.engines.policy import Bracket, BracketedEngine, GivenVersion
from tokentrue.engines.resuming import ResumingEngine
from tokentrue.errors import AbortedError, WeightUpdateError
from tokentrue.generation import FinishReason, GenerateRequest, Generation, VersionSource
from tokentrue.rendering.renderer import load_renderer
from tokentrue.rollouts.runner import RolloutPlan, run_rollouts
from tokentrue.rollouts.shipped.environments import CalculatorEnv
from tokentrue.rollouts.summary import summarize
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import Logprobs, TokenIds
from tokentrue.transports.admin import PauseMode
from tokentrue.transports.admin_vllm import VllmAdminCodec

pytestmark = pytest.mark.vllm

PROMPT = [(17 * i) % 300 for i in range(90)]
LENGTH = 300
FIRST = str(MODEL_FOLDER)


@dataclass(frozen=True)
class Checkpoint:
    """A folder of weights, and what our own forward pass says of them."""

    folder: str
    teacher: TeacherForcing

    def differences(self, generation: Generation) -> np.ndarray:
        """How far each sampled id's log-probability is from this checkpoint's, in nats."""
        tokens = generation.tokens
        expected = self.teacher.sampled(tokens.prompt_ids.tolist(), tokens.completion_ids.tolist())
        return np.abs(tokens.completion_logprobs.array() - expected)


@pytest.fixture(scope="module")
def checkpoints(teacher, tmp_path_factory) -> tuple[Checkpoint, Checkpoint]:
    folder = write_other_weights(MODEL_FOLDER, tmp_path_factory.mktemp("second") / "model", seed=1)
    return Checkpoint(FIRST, teacher), Checkpoint(str(folder), TeacherForcing(folder))


@pytest.fixture(scope="module", autouse=True)
def left_as_found(ask) -> Iterator[None]:
    """Whatever happens here, the server goes back to the weights that the other tests expect."""
    yield

    async def restore() -> None:
        async with make_admin("vllm", ask.url) as admin:
            await admin.update_weights(FIRST, "first")
        async with ask.engine() as engine:  # the label that it was born with, which an `Admin` never sets
            call = VllmAdminCodec().set_version("default")
            await engine.exchange(call.call, call.read)

    asyncio.run(restore())


@asynccontextmanager
async def opened(ask) -> AsyncIterator[tuple[Engine, HttpAdmin]]:
    """The engine and its admin, with the first checkpoint loaded."""
    async with ask.engine() as engine, make_admin("vllm", ask.url) as admin:
        await admin.update_weights(FIRST, "first")
        yield engine, admin


def request(prompt_ids=PROMPT, **sampling) -> GenerateRequest:
    asked = {"temperature": 1.0, "seed": 1, "ignore_eos": True, "max_tokens": LENGTH, **sampling}
    return GenerateRequest(MODEL_NAME, TokenIds(prompt_ids), SamplingParams.from_args(asked))


async def started(engine: Engine, asked: GenerateRequest) -> asyncio.Task[Generation]:
    """A generation that is under way, and has some ids by now."""
    task = asyncio.create_task(engine.generate(asked))
    await asyncio.sleep(0.5)
    assert not task.done(), "it was over before the weights could change"
    return task


def assert_each_span_is_its_own(generation, checkpoints, assert_same_logprobs) -> None:
    first, second = generation.weight_spans
    assert (first.version, second.version) == ("first", "second")
    assert first.source is second.source is VersionSource.ENGINE
    assert min(first.end, LENGTH - second.start) >= 5
    old, new = (checkpoint.differences(generation) for checkpoint in checkpoints)
    for span, own, other in ((first, old, new), (second, new, old)):
        mine, theirs = own[span.start : span.end], other[span.start : span.end]
        print(f"{span.version}: {len(mine)} ids, own max {mine.max():.1e}, other's mean {theirs.mean():.2f}")
        assert_same_logprobs(Logprobs(-mine), np.zeros(len(mine)))
        assert np.quantile(mine, 0.99) < 1e-4
        assert theirs.mean() > 0.01
        assert theirs.max() > 0.1


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("mode", [PauseMode.KEEP, PauseMode.ABORT])
def test_each_span_of_a_turn_is_of_its_own_weights(
    ask, checkpoints, assert_same_logprobs, mode, temperature
) -> None:
    """Kept, vLLM continues the turn itself; aborted, we do, from its exact ids."""

    async def run() -> Generation:
        async with opened(ask) as (engine, admin):
            task = await started(ResumingEngine(engine, 1), request(temperature=temperature))
            await admin.update_weights(checkpoints[1].folder, "second", mode)
            return await task

    generation = asyncio.run(run())
    assert len(generation.tokens.completion_ids) == LENGTH
    assert generation.finish_reason is FinishReason.LENGTH
    position = generation.weight_spans[0].end
    assert generation.resumed_at == ((position,) if mode is PauseMode.ABORT else ())
    assert_each_span_is_its_own(generation, checkpoints, assert_same_logprobs)


def test_an_update_takes_and_is_undone_bit_for_bit(ask, checkpoints, assert_same_logprobs) -> None:
    async def run():
        async with opened(ask) as (engine, admin):
            asked = request(max_tokens=40, temperature=0)
            before = await engine.generate(asked)
            await admin.update_weights(checkpoints[1].folder, "second")
            assert await admin.version() == "second"
            during = await engine.generate(asked)
            await admin.update_weights(FIRST, "first")
            return before, during, await engine.generate(asked)

    before, during, after = asyncio.run(run())
    assert after.tokens == before.tokens
    assert [generation.weight_spans[0].version for generation in (before, during, after)] == [
        "first",
        "second",
        "first",
    ]
    assert during.usage.cached_tokens == 0
    assert checkpoints[1].differences(during).max() < 1e-4
    assert checkpoints[0].differences(during).max() > 1.0


@pytest.mark.parametrize("salts", [True, False])
def test_a_salt_of_the_version_keeps_old_keys_and_values_out(ask, checkpoints, salts) -> None:
    """Weights are loaded without any reset, as a careless trainer does. Without the salt that is a third model."""
    clock = GivenVersion(f"one-{salts}")

    async def run():
        turns, prompt_ids = [], list(PROMPT)
        async with opened(ask) as (engine, admin):
            bracketed = BracketedEngine(engine, Bracket(clock, salts))
            for number in range(4):
                if number == 2:
                    load = admin.codec.load(checkpoints[1].folder, "")
                    await engine.exchange(load.call, load.read)
                    clock.value = f"two-{salts}"
                turns.append(await bracketed.generate(request(prompt_ids, max_tokens=20, seed=number)))
                prompt_ids += [*turns[-1].tokens.completion_ids.tolist(), 5, 6, 7]
        return turns

    turns = asyncio.run(run())
    whole_blocks = [(len(turn.tokens.all_ids()) - 1) // BLOCK_TOKENS * BLOCK_TOKENS for turn in turns]
    cached = [turn.usage.cached_tokens for turn in turns]
    if salts:
        assert cached == [0, whole_blocks[0], 0, whole_blocks[2]]
        assert max(checkpoints[1].differences(turn).max() for turn in turns[2:]) < 1e-4
    else:
        assert cached[2] == whole_blocks[1]
        assert checkpoints[1].differences(turns[2]).max() > 1e-2
        assert checkpoints[0].differences(turns[2]).max() > 1e-2


def test_an_update_that_fails_leaves_a_paused_engine_that_can_be_updated(ask, checkpoints) -> None:
    async def run():
        async with opened(ask) as (engine, admin):
            with pytest.raises(WeightUpdateError, match="stopped at 'load'") as raised:
                await admin.update_weights("/no/such/folder", "never")
            assert (raised.value.state, raised.value.weights) == ("paused", "unknown")
            held = asyncio.create_task(engine.generate(request(max_tokens=20)))
            await asyncio.sleep(0.3)
            assert not held.done()
            assert await admin.version() == "first"
            await admin.update_weights(checkpoints[1].folder, "second")
            return await held

    generation = asyncio.run(run())
    assert checkpoints[1].differences(generation).max() < 1e-4
    assert {span.version for span in generation.weight_spans} == {"second"}


def test_an_abort_is_an_error_with_its_ids_where_nobody_resumes(ask, checkpoints) -> None:
    async def run() -> AbortedError:
        async with opened(ask) as (engine, admin):
            task = await started(engine, request())
            await admin.pause(PauseMode.ABORT)
            with pytest.raises(AbortedError) as raised:
                await task
            await admin.resume()
            return raised.value

    partial = asyncio.run(run()).partial
    count = len(partial.tokens.completion_ids)
    assert 0 < count < LENGTH
    expected = checkpoints[0].teacher.sampled(PROMPT, partial.tokens.completion_ids.tolist())
    assert np.abs(partial.tokens.completion_logprobs.array() - expected).max() < 1e-3
    assert [span.version for span in partial.weight_spans] == ["first"]


def test_a_rollout_goes_on_over_updates_and_says_which_id_is_whose(ask, checkpoints, assert_same_logprobs) -> None:
    """Two updates that abort, amid eight conversations at a time: nothing is lost, and nothing is nobody's."""

    async def run():
        async with opened(ask) as (engine, admin):
            client = RendererClient(ResumingEngine(engine, 5), load_renderer(MODEL_FOLDER))
            plan = RolloutPlan(32, concurrency=8, seed=5, sampling=SamplingParams(temperature=1.0, max_tokens=256))
            rolling = asyncio.create_task(run_rollouts(CalculatorEnv(), client, MODEL_NAME, plan))
            for folder, version in ((checkpoints[1].folder, "second"), (FIRST, "third")):
                await asyncio.sleep(1.5)
                assert not rolling.done()
                await admin.update_weights(folder, version, PauseMode.ABORT)
            return await rolling

    result = asyncio.run(run())
    assert [record.error for record in result.records] == [None] * 32
    summary = summarize(result.records, result.turns)
    assert summary.laws_hold
    assert summary.mixed_turns == 0
    assert set(summary.versions) == {"first", "second", "third"}
    assert sum(summary.versions.values()) == summary.completion_tokens
    assert summary.resumed_turns >= 2
    of_version = {"first": checkpoints[0], "second": checkpoints[1], "third": checkpoints[0]}
    resumed = [record.turn for record in result.turns if record.turn.resumed_at]
    found, expected = [], []
    for turn in resumed:
        for span in turn.weight_spans:
            said = of_version[span.version].teacher.sampled(
                turn.tokens.prompt_ids.tolist(), turn.tokens.completion_ids.tolist()
            )
            found += turn.tokens.completion_logprobs[span.start : span.end]
            expected += said[span.start : span.end].tolist()
    assert_same_logprobs(Logprobs(found), np.array(expected))


def test_the_example_runs(ask, checkpoints) -> None:
    async def first_weights() -> None:
        async with opened(ask):
            pass

    asyncio.run(first_weights())
    example = Path(__file__).resolve().parents[2] / "examples" / "weights_vllm.py"
    done = subprocess.run(
        [sys.executable, str(example), f"{ask.url}/v1", MODEL_NAME, checkpoints[1].folder],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "the engine is at step-1" in done.stdout
    assert ": first, says the engine" in done.stdout
    assert ": step-1, says the engine" in done.stdout
    assert "the version of 600 ids is known" in done.stdout
