"""Cancelling a request stops its sampling on the server, and the engine stays as usable as it was."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from tokentrue.testing.engine_report import BrokenPromiseError, Finding
from tokentrue.testing.engine_subject import Subject, distance, require

REQUESTS = 24
GIVE_UP_S = 5.0
"""So long may a cancelled task take to end, and a server to notice that its client is gone."""


async def cancelling_stops_the_sampling(subject: Subject) -> Finding:
    """Many long requests are cancelled in the middle: each task ends cancelled, the server works on none of
    them any more, and a short request is answered as if they had never been.

    The server's own count is the evidence where `in_work` was given. Without it the time of the short request
    is: it must not wait for what nobody waits for.
    """
    prompt_ids = subject.prompt(20)
    before = await subject.sample(prompt_ids, 4)
    whole_s = await _time_of_one(subject)
    busy = await _begun_and_cancelled(subject, whole_s)
    idle_s = await until_idle(subject)
    started = time.monotonic()
    try:
        async with asyncio.timeout(max(1.0, whole_s) if subject.server.in_work is None else None):
            after = await subject.sample(prompt_ids, 4)
    except TimeoutError as exc:
        raise BrokenPromiseError(
            f"a short request waits longer behind {REQUESTS} cancelled ones than the {whole_s:.1f} s that one of "
            f"them takes alone: they are still sampled"
        ) from exc
    answered_s = time.monotonic() - started
    require(distance(before, after) <= subject.tolerance, "after cancelling the engine samples something else")
    if subject.server.in_work is None:
        seen = f"the next short request took {answered_s:.2f} s, a long one takes {whole_s:.2f} s"
    else:
        seen = f"the server worked on {busy:.0f} and {idle_s:.2f} s later on none"
    return Finding(
        f"{REQUESTS} requests cancelled in the middle; {seen}; the engine samples the same as before",
        {
            "in_work_before": busy,
            "idle_after_s": idle_s,
            "next_request_s": answered_s,
            "one_long_request_s": whole_s,
        },
    )


async def _begun_and_cancelled(subject: Subject, whole_s: float) -> float:
    """Send the requests, cancel them in the middle; gives how many the server worked on."""
    tasks = [asyncio.ensure_future(_long_request(subject)) for _ in range(REQUESTS)]
    try:
        busy = await _until_in_work(subject, whole_s, tasks)
        done_early = sum(task.done() for task in tasks)
        require(done_early < REQUESTS, f"{REQUESTS} requests ended before they could be cancelled")
        for task in tasks:
            task.cancel()
        await _all_cancelled(tasks, done_early)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=GIVE_UP_S)
    return busy


def _long_count(subject: Subject) -> int:
    return min(900, subject.context_limit - 40)


async def _long_request(subject: Subject) -> None:
    await subject.sample(subject.prompt(20), _long_count(subject), temperature=1.0)


async def _time_of_one(subject: Subject) -> float:
    started = time.monotonic()
    await _long_request(subject)
    return time.monotonic() - started


async def _until_in_work(subject: Subject, whole_s: float, tasks: Sequence[asyncio.Future[None]]) -> float:
    """Wait until the server works on the requests, by its own count or for a tenth of their time."""
    if subject.server.in_work is None:
        await asyncio.sleep(whole_s / 10)
        return 0.0
    deadline = time.monotonic() + GIVE_UP_S
    while (busy := await subject.server.in_work()) < REQUESTS / 2:
        for task in tasks:
            if task.done():
                task.result()  # a request that failed says more than a count that does not rise
        require(time.monotonic() < deadline, f"{REQUESTS} requests were sent and the server works on {busy:.0f}")
        await asyncio.sleep(0.01)
    return busy


async def _all_cancelled(tasks: Sequence[asyncio.Future[None]], done_early: int) -> None:
    _, pending = await asyncio.wait(tasks, timeout=GIVE_UP_S)
    for task in pending:
        task.cancel()
    require(not pending, f"{len(pending)} cancelled requests were still running after {GIVE_UP_S:.0f} s")
    answered = sum(not task.cancelled() for task in tasks)
    failed = [task.exception() for task in tasks if not task.cancelled() and task.exception() is not None]
    if failed:
        raise BrokenPromiseError(f"a cancelled request raised {failed[0]!r} instead") from failed[0]
    require(answered <= done_early, f"{answered - done_early} requests were cancelled and answered all the same")


async def until_idle(subject: Subject) -> float:
    """Wait until the server works on nothing, by its own count where there is one; gives how long that took."""
    started = time.monotonic()
    while subject.server.in_work is not None and (busy := await subject.server.in_work()) > 0:
        waited_s = time.monotonic() - started
        require(
            waited_s < GIVE_UP_S,
            f"{waited_s:.0f} s after cancelling the server still works on {busy:.0f} requests",
        )
        await asyncio.sleep(0.01)
    return time.monotonic() - started
