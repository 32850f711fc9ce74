"""The bar: drawn on a terminal, silent elsewhere."""

from __future__ import annotations

import asyncio
import io

from rich.console import Console

from tokentrue.messages import Message
from tokentrue.rollouts.environment import EpisodeState, SingleTurnEnv
from tokentrue.rollouts.progress_bar import BarProgress
from tokentrue.rollouts.runner import RolloutPlan, run_rollouts
from tokentrue.testing.scripted_client import ScriptedClient


class Once(SingleTurnEnv[int, EpisodeState[int]]):
    def make_task(self, index, seed):
        return index

    def setup(self, task, seed):
        return EpisodeState(task, seed, [Message(role="user", content="hi")])

    def reward(self, messages, state):
        return 1.0


def drawn(is_terminal):
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=120)
    client = ScriptedClient(lambda messages, rng: Message(role="assistant", content="hello"))
    progress = BarProgress(console)
    asyncio.run(run_rollouts(Once(), client, "m", RolloutPlan(3), progress=progress))
    return console.file.getvalue()


def test_the_bar_shows_episodes_rates_and_reward():
    """What a person waits for."""
    shown = drawn(is_terminal=True)
    assert "3/3" in shown
    assert "turns/s" in shown
    assert "tokens/s" in shown
    assert "reward 1.00" in shown


def test_nothing_is_drawn_where_nobody_looks():
    """A log file gets no control characters."""
    assert drawn(is_terminal=False).strip() == ""
