"""Runs many episodes: a fixed number of workers, one seed, one failing episode stops no other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tokentrue.clients.client import Client
from tokentrue.errors import (
    ConfigError,
    EngineRequestError,
    InvalidSamplingError,
    RouteMissingError,
    TokenizerFolderError,
    TransportError,
    UnknownModelError,
    UnsupportedParameterError,
)
from tokentrue.rollouts.environment import Environment, StateT, TaskT
from tokentrue.rollouts.player import EpisodeOrder, EpisodePlayer, PlayedEpisode
from tokentrue.rollouts.progress import Progress, SilentProgress
from tokentrue.rollouts.trajectory import EpisodeRecord, TrajectorySink, TurnRecord
from tokentrue.sampling import SamplingParams

_FATAL = (
    ConfigError,
    InvalidSamplingError,
    RouteMissingError,
    TokenizerFolderError,
    UnknownModelError,
    UnsupportedParameterError,
)
"""Failures that would meet every episode in the same way."""

_FATAL_BEFORE_ANY_TURN = (EngineRequestError, TransportError)
"""Failures that say the engine cannot be used at all, as long as it has answered nothing."""

_FAILURES_PER_WORKER = 2

_Work: TypeAlias = Callable[[Iterator[int]], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """What to run.

    Args:
        episodes: How many.
        concurrency: How many at a time.
        seed: Decides every task and every sampled id; results do not depend on `concurrency`.
        sampling: Parameters of every turn. Its `seed` must be None: each turn's seed is derived.
        headers: Sent with every turn.
        headers_from_state: As `ClientConfig.extra_headers_from_state`: header names by the field of the episode's
            state whose value they carry.

    Raises:
        ConfigError: A number is out of range, or `sampling` brings a seed or asks for several completions.
    """

    episodes: int
    concurrency: int = 8
    seed: int = 0
    sampling: SamplingParams = field(default_factory=SamplingParams)
    headers: Mapping[str, str] = field(default_factory=dict)
    headers_from_state: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("episodes", self.episodes), ("concurrency", self.concurrency)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, not {value!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigError(f"seed must be a whole number, not {self.seed!r}")
        if self.sampling.seed is not None:
            raise ConfigError(
                f"sampling.seed={self.sampling.seed!r}: give the plan a seed, from which each turn's is derived"
            )
        if self.sampling.n != 1:
            raise ConfigError(f"sampling.n={self.sampling.n!r}: an episode continues one completion per turn")


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """Every episode of a run, in the order of its index, whatever order they ended in."""

    episodes: tuple[PlayedEpisode, ...]
    duration_s: float

    @property
    def records(self) -> tuple[EpisodeRecord, ...]:
        """The episodes without their turns."""
        return tuple(played.record for played in self.episodes)

    @property
    def turns(self) -> tuple[TurnRecord, ...]:
        """All turns, by episode and turn."""
        return tuple(turn for played in self.episodes for turn in played.turns)


class _Discard:
    """The sink of a run that nobody records."""

    def episode_started(self, episode: EpisodeRecord) -> None:
        """Nothing."""

    def turn_done(self, turn: TurnRecord) -> None:
        """Nothing."""

    def episode_done(self, episode: EpisodeRecord) -> None:
        """Nothing."""


class _Watcher:
    """Passes everything on to the sink and to the progress, and knows whether the engine still answers."""

    def __init__(self, sink: TrajectorySink, progress: Progress, concurrency: int) -> None:
        self._sink = sink
        self._progress = progress
        self._any_turn = False
        self._failures_since_turn = 0
        self._failure_limit = _FAILURES_PER_WORKER * concurrency

    def episode_started(self, episode: EpisodeRecord) -> None:
        self._sink.episode_started(episode)

    def turn_done(self, turn: TurnRecord) -> None:
        self._any_turn = True
        self._failures_since_turn = 0
        self._sink.turn_done(turn)
        self._progress.turn_done(turn)

    def episode_done(self, episode: EpisodeRecord) -> None:
        self._sink.episode_done(episode)
        self._progress.episode_done(episode)

    def raise_if_hopeless(self, failure: Exception | None) -> None:
        """Raise an episode's failure when the other episodes would meet it too."""
        if failure is None:
            return
        if isinstance(failure, _FATAL) or (not self._any_turn and isinstance(failure, _FATAL_BEFORE_ANY_TURN)):
            raise failure
        if isinstance(failure, TransportError):
            self._failures_since_turn += 1
            if self._failures_since_turn >= self._failure_limit:
                raise failure


async def run_rollouts(
    environment: Environment[TaskT, StateT],
    client: Client,
    model: str,
    plan: RolloutPlan,
    *,
    record: TrajectorySink | None = None,
    progress: Progress | None = None,
) -> RolloutResult:
    """Play `plan.episodes` episodes, `plan.concurrency` at a time.

    For one environment, engine and seed, the result is a function of the plan without its `concurrency`.
    An episode that raises is recorded with its error and stops no other.

    Args:
        environment: The rules; one object for all episodes.
        client: Stays open.
        model: The name the engine serves the model under.
        plan: What to run.
        record: Told of every turn and episode as they happen; stays open.
        progress: Told the same, for a person; None is silent.

    Raises:
        ConfigError, InvalidSamplingError, UnknownModelError, RouteMissingError, ...: A failure that every episode
            would meet, raised as it is.
        TransportError, EngineRequestError: The engine answered no turn at all, or died on the way.
        RecordError: The record cannot be written.
        asyncio.CancelledError: Cancelled; every episode under way was cleaned up and recorded as cancelled.
    """
    begun = time.perf_counter()
    shown = progress if progress is not None else SilentProgress()
    watcher = _Watcher(record if record is not None else _Discard(), shown, plan.concurrency)
    played: dict[int, PlayedEpisode] = {}

    async def work(indices: Iterator[int]) -> None:
        for index in indices:
            order = EpisodeOrder(index, plan.seed, model, plan.sampling, plan.headers, plan.headers_from_state)
            played[index] = await EpisodePlayer(environment, client, order, watcher).play()
            watcher.raise_if_hopeless(played[index].failure)

    shown.started(plan.episodes)
    try:
        await _run_workers(work, plan)
    finally:
        shown.finished()
    return RolloutResult(tuple(played[index] for index in sorted(played)), time.perf_counter() - begun)


async def _run_workers(work: _Work, plan: RolloutPlan) -> None:
    """Run the workers over one shared queue of indices; the first failure cancels the others and is raised."""
    indices = iter(range(plan.episodes))
    workers = [asyncio.ensure_future(work(indices)) for _ in range(min(plan.concurrency, plan.episodes))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
