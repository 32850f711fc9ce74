"""The shipped calculator on a real vLLM: many turns with tools, every sampled id accounted for."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from servers.vllm.server import BLOCK_TOKENS, MODEL_NAME

from tokentrue.clients.renderer import RendererClient
from tokentrue.engines.embedded.engine import MODEL_FOLDER
from tokentrue.rendering.renderer import load_renderer
from tokentrue.rollouts.runner import RolloutPlan, RolloutResult, run_rollouts
from tokentrue.rollouts.shipped.environments import CalculatorEnv
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import Logprobs
from tokentrue.turns import FALLBACKS, How

pytestmark = pytest.mark.vllm

EPISODES = 48
SCORED_EPISODES = 16


@pytest.fixture(scope="module")
def rollout(ask) -> RolloutResult:
    """The rollout that the tests below look at."""

    async def run() -> RolloutResult:
        async with RendererClient(ask.engine(), load_renderer(MODEL_FOLDER)) as client:
            plan = RolloutPlan(
                EPISODES, concurrency=8, seed=3, sampling=SamplingParams(temperature=1.0, max_tokens=256)
            )
            return await run_rollouts(CalculatorEnv(), client, MODEL_NAME, plan)

    return asyncio.run(run())


def test_every_turn_after_the_first_is_bridged_and_begins_with_the_turn_before(rollout) -> None:
    assert [record.error for record in rollout.records] == [None] * EPISODES
    assert not [record for record in rollout.turns if record.turn.stitch.why in FALLBACKS]
    for played in rollout.episodes:
        previous = None
        for record in played.turns:
            if previous is not None:
                assert record.turn.stitch.how is How.BRIDGED
                assert record.turn.tokens.prompt_ids.starts_with(previous)
            previous = record.turn.tokens.all_ids()


def test_tasks_are_solved_with_tools(rollout) -> None:
    records = rollout.records
    solved = sum(record.reward == 1.0 for record in records)
    called = sum(any(message.role == "tool" for message in record.messages) for record in records)
    assert called >= EPISODES * 0.9
    assert solved >= EPISODES * 0.5
    assert max(record.turns for record in records) >= 3


def test_the_logprobs_of_every_sampled_id_are_our_own_models(rollout, teacher, assert_same_logprobs) -> None:
    turns = [record.turn.tokens for played in rollout.episodes[:SCORED_EPISODES] for record in played.turns]
    found = [logprob for tokens in turns for logprob in tokens.completion_logprobs]
    expected = [teacher.sampled(each.prompt_ids.tolist(), each.completion_ids.tolist()) for each in turns]
    assert_same_logprobs(Logprobs(found), np.concatenate(expected))


def test_exact_ids_keep_the_prefix_cache_warm(rollout) -> None:
    for played in rollout.episodes:
        for before, after in zip(played.turns, played.turns[1:], strict=False):
            computed = len(before.turn.tokens.all_ids()) - 1
            assert after.turn.usage.cached_tokens >= computed // BLOCK_TOKENS * BLOCK_TOKENS
