"""How many requests one endpoint is given at once: a limit that follows what the endpoint can take.

Additive growth, multiplicative cut, as TCP does: the limit grows by one for each round of good answers while it
is what holds requests back, and is cut when the endpoint says "later" or goes silent. What is above the limit
waits here, first come first served; so a slow endpoint makes its callers wait instead of piling up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tokentrue.errors import ConfigError


@dataclass(frozen=True, slots=True)
class GateLimits:
    """Bounds of one endpoint's gate.

    Args:
        least: The limit is never cut below it.
        start: Where the limit begins.
        most: The limit never grows above it.
        waiting: Requests that may wait at once; 0 refuses what cannot be sent now.
        cut: What the limit is multiplied by when the endpoint is overloaded.
        cut_pause_s: Several complaints within so many seconds are one: they tell of the same overload.

    Raises:
        ConfigError: The bounds contradict each other.
    """

    least: int = 1
    start: int = 32
    most: int = 1024
    waiting: int = 100_000
    cut: float = 0.7
    cut_pause_s: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.start <= self.most:
            raise ConfigError(f"limits need 1 <= least <= start <= most: {self.least}, {self.start}, {self.most}")
        if self.waiting < 0 or not 0 < self.cut < 1 or self.cut_pause_s < 0:
            raise ConfigError(f"waiting and cut_pause_s must be >= 0 and cut between 0 and 1: {self!r}")


@dataclass(slots=True)
class Gate:
    """Lets requests through, at most `limit` at a time. Used from one event loop.

    Args:
        clock: Seconds that only go up.
    """

    limits: GateLimits
    clock: Callable[[], float]
    in_flight: int = 0
    waiting: int = 0
    limit: int = field(init=False)
    _waiters: deque[asyncio.Future[bool]] = field(default_factory=deque, init=False)
    _good: int = field(default=0, init=False)
    _cut_at: float = field(default=float("-inf"), init=False)

    def __post_init__(self) -> None:
        self.limit = self.limits.start

    @property
    def is_full(self) -> bool:
        """Whether a request would neither be let through nor be allowed to wait."""
        return self.in_flight >= self.limit and self.waiting >= self.limits.waiting

    async def enter(self) -> bool:
        """Wait for a place; False when `turn_away` was called meanwhile, and then no place is held."""
        if self.in_flight < self.limit and not self.waiting:
            self.in_flight += 1
            return True
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self.waiting += 1
        # Whoever waited in front may have been cancelled, and then nobody would let this one in.
        self._admit()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                self.waiting -= 1
                with contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)
                self._admit()
            elif waiter.result():
                # The place was given in the very moment in which the caller gave up.
                self.leave()
            raise

    def leave(self) -> None:
        """Give a place back, to whoever has waited longest."""
        self.in_flight -= 1
        self._admit()

    def turn_away(self) -> None:
        """Send everybody who waits somewhere else."""
        while self._waiters:
            self._answer(False)

    def good(self) -> None:
        """A request was answered: after a round of them the limit grows, if it was what held requests back."""
        self._good = self._good + 1 if self.in_flight >= self.limit else 0
        if self._good >= self.limit and self.limit < self.limits.most:
            self.limit += 1
            self._good = 0
            self._admit()

    def overloaded(self) -> None:
        """The endpoint said "later", or nothing in time: the limit is cut."""
        now = self.clock()
        self._good = 0
        if now - self._cut_at >= self.limits.cut_pause_s:
            self._cut_at = now
            self.limit = max(self.limits.least, int(self.limit * self.limits.cut))

    def _admit(self) -> None:
        while self._waiters and self.in_flight < self.limit:
            self.in_flight += self._answer(True)

    def _answer(self, comes_in: bool) -> bool:
        """Answer the next in the line; whether a place was taken by that."""
        waiter = self._waiters.popleft()
        if waiter.done():
            return False
        self.waiting -= 1
        waiter.set_result(comes_in)
        return comes_in
