"""The shipped calculator through a real Dynamo, against the same rollout in this process."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tokentrue.clients.renderer import RendererClient
from tokentrue.engines.embedded.engine import EmbeddedEngine
from tokentrue.engines.engine import Engine
from tokentrue.rendering.renderer import load_renderer
from tokentrue.rollouts.runner import RolloutPlan, RolloutResult, run_rollouts
from tokentrue.rollouts.shipped.environments import CalculatorEnv
from tokentrue.sampling import SamplingParams
from tokentrue.turns import FALLBACKS

pytestmark = pytest.mark.dynamo

EPISODES = 24
PLAN = RolloutPlan(EPISODES, concurrency=8, seed=3, sampling=SamplingParams(temperature=1.0, max_tokens=256))


def play(engine: Engine, worker) -> RolloutResult:
    """The plan on one engine."""

    async def run() -> RolloutResult:
        async with RendererClient(engine, load_renderer(worker.model_folder)) as client:
            return await run_rollouts(CalculatorEnv(), client, worker.kind.model_name, PLAN)

    return asyncio.run(run())


@pytest.fixture(scope="module")
def through_dynamo(dynamo, ask) -> RolloutResult:
    """The rollout behind the real frontend; the worker's log shows what arrived."""
    return play(ask.engine(), dynamo.embedded)


def test_every_prompt_reached_the_worker_as_it_was_built(dynamo, through_dynamo) -> None:
    assert [record.error for record in through_dynamo.records] == [None] * EPISODES
    assert not [record for record in through_dynamo.turns if record.turn.stitch.why in FALLBACKS]
    built = Counter(tuple(record.turn.tokens.prompt_ids) for record in through_dynamo.turns)
    assert built <= Counter(request.prompt_ids for request in dynamo.embedded.requests())


def test_dynamo_and_this_process_sample_the_same_conversations(dynamo, through_dynamo) -> None:
    worker = dynamo.embedded
    here = play(EmbeddedEngine(worker.model_folder, model_name=worker.kind.model_name), worker)
    for far, near in zip(through_dynamo.episodes, here.episodes, strict=True):
        for far_turn, near_turn in zip(far.turns, near.turns, strict=True):
            assert far_turn.turn.tokens.prompt_ids == near_turn.turn.tokens.prompt_ids
            assert far_turn.turn.tokens.completion_ids == near_turn.turn.tokens.completion_ids
            assert far_turn.turn.tokens.completion_logprobs.tolist() == pytest.approx(
                near_turn.turn.tokens.completion_logprobs.tolist(), abs=1e-4
            )
        assert far.record.messages == near.record.messages
        assert far.record.stop_reason is near.record.stop_reason
        assert far.record.reward == near.record.reward


def test_tasks_are_solved_with_tools_behind_dynamo(through_dynamo) -> None:
    records = through_dynamo.records
    solved = sum(record.reward == 1.0 for record in records)
    called = sum(any(message.role == "tool" for message in record.messages) for record in records)
    assert called >= EPISODES * 0.9
    assert solved >= EPISODES * 0.5
    assert max(record.turns for record in records) >= 3
