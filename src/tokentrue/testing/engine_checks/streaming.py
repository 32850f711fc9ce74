"""A stream tells the same completion as a whole reply, in pieces, and stops when it is left."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from tokentrue.engines.engine import StreamingEngine
from tokentrue.errors import OverlongPromptError, RouteMissingError, UnsupportedParameterError
from tokentrue.generation import Delta, Generation
from tokentrue.testing.engine_checks.cancelling import until_idle
from tokentrue.testing.engine_report import BrokenPromiseError, Finding
from tokentrue.testing.engine_subject import NotOfferedError, Subject, distance, ids_of, logprobs_of, require

COUNT = 40


async def deltas_are_the_whole(subject: Subject) -> Finding:
    """Joined, the deltas are the ids and log-probabilities of the stream's own end, and those of a whole reply
    to the same request; a stream that is left stops the sampling; what is refused whole is refused as a stream."""
    engine = subject.engine
    if not isinstance(engine, StreamingEngine):
        raise NotOfferedError("this engine has no stream")
    counts: list[int] = []
    for length in (1, 40, 200):
        prompt_ids = subject.prompt(length)
        for way in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 6}):
            counts.append(await _compare(subject, engine, prompt_ids, way))
    require(max(counts) > 1, f"{COUNT} ids came in one piece: that is no stream")
    idle_s = await _left_early(subject, engine)
    try:
        await _parts(engine.stream(subject.request(subject.prompt(subject.context_limit), max_tokens=1)))
    except OverlongPromptError:
        pass
    else:
        raise BrokenPromiseError("a prompt that fills the context was taken as a stream")
    return Finding(
        f"{len(counts)} streams of {COUNT} ids in {min(counts)} to {max(counts)} deltas: joined they are their "
        f"end, and the whole reply; left early it is idle {idle_s:.2f} s later",
        {"streams": len(counts), "most_deltas": max(counts), "idle_after_s": idle_s},
    )


async def _compare(
    subject: Subject, engine: StreamingEngine, prompt_ids: Sequence[int], way: dict[str, Any]
) -> int:
    whole = await subject.sample(prompt_ids, COUNT, **way)
    request = subject.request(prompt_ids, max_tokens=COUNT, ignore_eos=True, **way)
    try:
        deltas, end = await _parts(engine.stream(request))
    except RouteMissingError as exc:
        raise NotOfferedError(f"the server does not stream this route ({exc.status})") from exc
    except UnsupportedParameterError as exc:
        if exc.parameter != "stream":
            raise
        raise NotOfferedError(f"{exc.where} has no stream") from exc
    subject.check_shape(end, prompt_ids)
    joined = [each for delta in deltas for each in delta.token_ids]
    logprobs = [each for delta in deltas for each in delta.logprobs]
    require(joined == ids_of(end), f"the deltas have {len(joined)} ids, the end {len(ids_of(end))} others")
    require(logprobs == logprobs_of(end), "the log-probabilities of the deltas are not those of the end")
    apart = distance(whole, end)
    require(apart <= subject.tolerance, f"the same request, whole and as a stream, gave two answers ({apart:.2g})")
    told = (whole.finish_reason, whole.stop_reason, whole.usage.prompt_tokens, whole.usage.completion_tokens)
    streamed = (end.finish_reason, end.stop_reason, end.usage.prompt_tokens, end.usage.completion_tokens)
    # A stream may take another route, which tells more; it never tells less, or something else.
    same = all(one in (None, other) for one, other in zip(told, streamed, strict=True))
    require(same, f"a whole reply tells {told}, its stream {streamed}")
    return len(deltas)


async def _parts(stream: AsyncGenerator[Delta | Generation, None]) -> tuple[list[Delta], Generation]:
    deltas: list[Delta] = []
    end: Generation | None = None
    async with contextlib.aclosing(stream) as parts:
        async for part in parts:
            require(end is None, "something came behind the end of a stream")
            if isinstance(part, Generation):
                end = part
            else:
                deltas.append(part)
    if end is None:
        raise BrokenPromiseError("a stream ended without its generation and without an error")
    return deltas, end


async def _left_early(subject: Subject, engine: StreamingEngine) -> float:
    prompt_ids = subject.prompt(30)
    before = await subject.sample(prompt_ids, 4)
    long = subject.request(prompt_ids, max_tokens=min(900, subject.context_limit - 40), ignore_eos=True, seed=1)
    async with contextlib.aclosing(engine.stream(long)) as parts:
        first = await anext(parts)
        require(isinstance(first, Delta), "a long stream began with its end")
    idle_s = await until_idle(subject)
    apart = distance(before, await subject.sample(prompt_ids, 4))
    require(apart <= subject.tolerance, "after a stream was left the engine samples something else")
    return idle_s
