"""The shipped model has learnt the tool protocol: it solves tasks that it was never trained on, by sampling."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tokentrue.engines.embedded.engine import EmbeddedEngine
from tokentrue.rollouts.shipped import arithmetic, shop
from training.conversations import Encoder
from training.evaluation import Outcome, play_task

TASKS = 48


def play(make_task: Callable[..., arithmetic.Task | shop.Task], folder: Path, count: int) -> list[Outcome]:
    encoder = Encoder(folder)

    async def run() -> list[Outcome]:
        async with EmbeddedEngine() as engine:
            tasks = [make_task(seed, "heldout") for seed in range(count)]
            return await asyncio.gather(
                *(play_task(engine, encoder, task, seed) for seed, task in enumerate(tasks))
            )

    return asyncio.run(run())


@pytest.mark.parametrize("make_task", [arithmetic.make_task, shop.make_task])
def test_most_heldout_tasks_are_solved_at_temperature_one(
    make_task: Callable[..., arithmetic.Task | shop.Task], model_folder: Path
) -> None:
    outcomes = play(make_task, model_folder, TASKS)
    solved = [outcome for outcome in outcomes if outcome.verdict == "solved" and outcome.turns >= 3]
    assert len(solved) >= 0.7 * TASKS, [outcome.verdict for outcome in outcomes]


def test_the_same_seed_plays_the_same_conversation(model_folder: Path) -> None:
    first, second = (play(arithmetic.make_task, model_folder, 4) for _ in range(2))
    assert first == second
