"""The first design's own smoke: a conversation that never ends, and the worker's log as the witness.

More than 300 calls, none of them a fallback; each prompt that the worker got begins with the ids of the turn
before it, verbatim; and the frontend says as many times that it took the client's ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

import pytest

from tokentrue.clients.renderer import RendererClient
from tokentrue.messages import Message
from tokentrue.rendering.renderer import load_renderer
from tokentrue.rollouts.environment import EpisodeState, MultiTurnEnv, StopReason, Truncation
from tokentrue.rollouts.runner import RolloutPlan, RolloutResult, run_rollouts
from tokentrue.sampling import SamplingParams
from tokentrue.turns import FALLBACKS, How

pytestmark = pytest.mark.dynamo

EPISODES, TURNS = 16, 20


class AlwaysContinueEnv(MultiTurnEnv[int, EpisodeState[int]]):
    """Whatever the model says, even when it is cut off: go on."""

    max_turns: ClassVar[int] = TURNS
    on_truncation: ClassVar[Truncation] = Truncation.CONTINUE

    def make_task(self, index: int, seed: int) -> int:
        """The number of the episode."""
        return index

    def setup(self, task: int, seed: int) -> EpisodeState[int]:
        """One question to begin with."""
        return EpisodeState(task, seed, [Message(role="user", content=f"Start with {task}, and carry on.")])

    def env_response(self, messages: Sequence[Message], state: EpisodeState[int]) -> Sequence[Message]:
        """The same words every time."""
        return [Message(role="user", content=f"Go on, please: {len(messages)}.")]


def play(worker, asker, max_tokens: int) -> RolloutResult:
    """All episodes through the renderer client and the real frontend."""

    async def run() -> RolloutResult:
        async with RendererClient(asker.engine(), load_renderer(worker.model_folder)) as client:
            plan = RolloutPlan(EPISODES, concurrency=8, seed=7, sampling=SamplingParams(max_tokens=max_tokens))
            return await run_rollouts(AlwaysContinueEnv(), client, worker.kind.model_name, plan)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "max_tokens"),
    [pytest.param("faults", 40, id="replies-that-end"), pytest.param("embedded", 12, id="replies-cut-off")],
)
def test_previous_ids_reach_the_worker_verbatim(dynamo, ask, eventually, name, max_tokens) -> None:
    worker = getattr(dynamo, name)
    requests_before = len(worker.requests())
    markers_before = dynamo.frontend.token_in_count()

    result = play(worker, ask, max_tokens)

    assert {record.stop_reason for record in result.records} == {StopReason.MAX_TURNS}
    calls = len(result.turns)
    assert calls == EPISODES * TURNS >= 300
    assert [record.turn.stitch for record in result.turns if record.turn.stitch.why in FALLBACKS] == []
    hows = [record.turn.stitch.how for record in result.turns]
    assert hows.count(How.BRIDGED) == EPISODES * (TURNS - 1)

    received = worker.requests()[requests_before:]
    assert len(received) == calls
    assert all(request.token_in for request in received)
    by_prompt = {request.prompt_ids: request for request in received}
    assert len(by_prompt) == calls
    for played in result.episodes:
        previous: tuple[int, ...] = ()
        for record in played.turns:
            tokens = record.turn.tokens
            request = by_prompt[tuple(tokens.prompt_ids)]  # exactly these ids stood in front of the worker
            assert request.completion_ids == tuple(tokens.completion_ids)
            assert request.prompt_ids[: len(previous)] == previous
            previous = request.prompt_ids + request.completion_ids

    eventually(
        lambda: dynamo.frontend.token_in_count() - markers_before >= calls, "the frontend's log is complete"
    )
    assert dynamo.frontend.token_in_count() - markers_before == calls
