"""The gate of one endpoint: never more at once than its limit, first come first served, no place lost."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentrue.engines.gate import Gate, GateLimits
from tokentrue.errors import ConfigError


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@given(seed=st.integers(0, 10_000), start=st.integers(1, 4))
def test_the_limit_holds_and_no_place_is_lost_whatever_callers_do(seed, start) -> None:
    """Callers come, finish, give up at any moment, and the limit moves; in the end everything is given back."""
    draw = random.Random(seed)

    async def main() -> None:
        clock = Clock()
        gate = Gate(GateLimits(least=1, start=start, most=6), clock)
        inside: set[int] = set()
        release: dict[int, asyncio.Event] = {}

        async def caller(name: int) -> None:
            if not await gate.enter():
                return
            inside.add(name)
            try:
                await release.setdefault(name, asyncio.Event()).wait()
                gate.good()
            finally:
                inside.discard(name)
                gate.leave()

        tasks: dict[int, asyncio.Task[None]] = {}
        highest = gate.limit
        for step in range(60):
            what = draw.random()
            if what < 0.5:
                tasks[step] = asyncio.create_task(caller(step))
            elif what < 0.75 and inside:
                release[draw.choice(sorted(inside))].set()
            elif what < 0.9 and tasks:
                tasks[draw.choice(sorted(tasks))].cancel()
            elif what < 0.95:
                clock.now += 2
                gate.overloaded()
            else:
                gate.turn_away()
            if draw.random() < 0.7:
                await settled()
            highest = max(highest, gate.limit)
            assert len(inside) <= gate.in_flight
            assert gate.in_flight <= highest
        for _ in range(200):
            await settled()
            for name in list(inside):
                release[name].set()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert (gate.in_flight, gate.waiting) == (0, 0)
        assert await gate.enter()

    asyncio.run(main())


def test_who_waits_longest_is_next() -> None:
    async def main() -> list[int]:
        gate = Gate(GateLimits(start=1), Clock())
        order: list[int] = []

        async def caller(name: int) -> None:
            assert await gate.enter()
            order.append(name)
            await asyncio.sleep(0)
            gate.leave()

        await asyncio.gather(*(caller(name) for name in range(20)))
        return order

    assert asyncio.run(main()) == list(range(20))


def test_who_comes_while_the_others_give_up_is_let_in() -> None:
    async def main() -> None:
        gate = Gate(GateLimits(start=1, most=1), Clock())
        never = asyncio.Event()

        async def caller() -> None:
            assert await gate.enter()
            try:
                await never.wait()
            finally:
                gate.leave()

        inside, waiting = asyncio.create_task(caller()), asyncio.create_task(caller())
        await settled()
        # All in one step of the loop: the one inside gives up, another one comes, the waiting one gives up.
        inside.cancel()
        late = asyncio.create_task(caller())
        waiting.cancel()
        await settled()
        assert (gate.in_flight, gate.waiting) == (1, 0)
        late.cancel()
        await settled()
        assert (gate.in_flight, gate.waiting, len(gate._waiters)) == (0, 0, 0)

    asyncio.run(main())


def test_the_limit_grows_only_while_it_holds_requests_back_and_is_cut_once_per_overload() -> None:
    async def main() -> None:
        clock = Clock()
        gate = Gate(GateLimits(least=2, start=4, most=5, cut=0.5, cut_pause_s=1.0), clock)
        for _ in range(100):
            gate.good()
        assert gate.limit == 4  # nobody was held back
        for _ in range(4):
            await gate.enter()
        for _ in range(4):
            gate.good()
        assert gate.limit == 5
        clock.now = 10.0
        gate.overloaded()
        gate.overloaded()
        assert gate.limit == 2
        clock.now = 11.5
        gate.overloaded()
        assert gate.limit == 2  # never below the least

    asyncio.run(main())


@pytest.mark.parametrize("wrong", [{"least": 0}, {"start": 0}, {"most": 3}, {"cut": 1.0}, {"waiting": -1}])
def test_bounds_that_contradict_each_other_are_refused(wrong) -> None:
    with pytest.raises(ConfigError):
        GateLimits(**wrong)
