"""A progress bar with turns and tokens per second. Apart from `progress`, so that only it needs rich."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from tokentrue.rollouts.trajectory import EpisodeRecord, TurnRecord


class BarProgress:
    """One line on a terminal: episodes, turns per second, sampled tokens per second, mean reward.

    Rates are over the whole run so far. On something that is no terminal, nothing is drawn.
    """

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeElapsedColumn(),
        )
        self._bar = Bar(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("episodes", total=None, rates="")
        self._begun = 0.0
        self._turns = 0
        self._sampled_tokens = 0
        self._rewards: list[float] = []

    def started(self, episodes: int) -> None:
        """Draw the empty bar."""
        self._begun = time.perf_counter()
        self._bar.update(self._task, total=episodes)
        self._bar.start()

    def turn_done(self, turn: TurnRecord) -> None:
        """Count the turn and its sampled ids."""
        self._turns += 1
        self._sampled_tokens += len(turn.turn.tokens.completion_ids)
        self._bar.update(self._task, rates=self._rates())

    def episode_done(self, episode: EpisodeRecord) -> None:
        """Move the bar by one."""
        if episode.reward is not None:
            self._rewards.append(episode.reward)
        self._bar.update(self._task, advance=1, rates=self._rates())

    def finished(self) -> None:
        """Leave the last state on the screen."""
        self._bar.stop()

    def _rates(self) -> str:
        elapsed_s = max(time.perf_counter() - self._begun, 1e-9)
        parts = [f"{self._turns / elapsed_s:.1f} turns/s", f"{self._sampled_tokens / elapsed_s:.0f} tokens/s"]
        if self._rewards:
            parts.append(f"reward {sum(self._rewards) / len(self._rewards):.2f}")
        return " · ".join(parts)
