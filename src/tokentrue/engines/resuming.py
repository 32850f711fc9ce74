"""An engine that continues a turn which the engine inside gave up, from exactly the ids that were sampled."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from tokentrue.engines.engine import Engine, stream_of
from tokentrue.errors import (
    AbortedError,
    ConfigError,
    EmptyCompletionError,
    MalformedReplyError,
    MaxTokensTooLargeError,
    TokentrueError,
)
from tokentrue.generation import (
    Delta,
    EngineInfo,
    GenerateRequest,
    Generation,
    LogprobsMode,
    PartialGeneration,
    with_logprobs_mode,
)
from tokentrue.resuming import ended, ended_by, join, join_partials, rest_of, why_not_resumable

_Parts: TypeAlias = AsyncGenerator[Delta | Generation, None]
_Sample: TypeAlias = Callable[[GenerateRequest, bool], _Parts]
"""Samples a request, whole or in pieces; True for the rest of a turn."""


@dataclass(frozen=True, slots=True)
class ResumingEngine:
    """Asks for the rest of an aborted turn: the prompt and the partial ids, verbatim (law 1), are the next prompt.

    The generation says at which positions it was resumed, and its weight spans which weights sampled which part.
    What cannot be resumed is raised as it was, and so is every other failure of the rest, with all ids sampled so
    far as `partial`.

    Args:
        engine: Does the sampling; closed by `close`.
        limit: How many times one turn is resumed at most.
        clip_max_tokens: Lower `max_tokens` of a rest to the room that is left, where the engine refuses it: a rest
            may go to an endpoint with a shorter context. Of the first request that is the client's.

    Raises:
        ConfigError: The limit is below 1.
    """

    engine: Engine
    limit: int
    clip_max_tokens: bool = False

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ConfigError(f"a turn must be resumed at most 1 or more times, not {self.limit}")

    async def generate(self, request: GenerateRequest) -> Generation:
        """Sample one completion; see `Engine.generate` and `tokentrue.resuming`.

        Raises:
            AbortedError: It was given up more often than `limit`, without its ids, or with parameters that cannot
                be continued; `partial` holds what was sampled.
            TokentrueError: As `Engine.generate`; `partial` holds what was sampled before, if anything was.
        """
        async with contextlib.aclosing(self._resumed(request, self._whole)) as parts:
            async for part in parts:
                if isinstance(part, Generation):
                    return part
        raise AssertionError("unreachable: the parts end with the generation, or raise")

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Delta | Generation, None]:
        """Sample one completion as a stream, which goes on where the engine gave it up; see `generate`.

        Raises:
            UnsupportedParameterError: The engine inside has no stream.
            TokentrueError: As `generate`.
        """
        async with contextlib.aclosing(self._resumed(request, self._pieces)) as parts:
            async for part in parts:
                yield part

    async def _resumed(self, request: GenerateRequest, sample: _Sample) -> _Parts:
        partial: PartialGeneration | None = None
        given = 0
        for spent in range(self.limit + 1):
            asked = request if partial is None else rest_of(request, partial)
            try:
                async with contextlib.aclosing(sample(asked, partial is not None)) as parts:
                    async for part in parts:
                        if isinstance(part, Generation):
                            yield part if partial is None else join(request, partial, part)
                            return
                        given += len(part.token_ids)
                        yield part
                raise MalformedReplyError("a stream ended without its generation and without an error")
            except AbortedError as exc:
                partial = _so_far(request, asked, partial, exc)
                self._check(request, partial, exc, spent)
                whole = ended(request, partial)
            except TokentrueError as exc:
                if partial is None:
                    raise
                whole = ended_by(request, partial, exc.stop_id) if isinstance(exc, EmptyCompletionError) else None
                if whole is None:
                    exc.partial = _with_partial_of(request, asked, partial, exc)
                    raise
            # What came with the abort and was in no delta of its own is one now.
            for delta in _behind(partial, given):
                given += len(delta.token_ids)
                yield delta
            if whole is not None:
                yield whole
                return
        raise AssertionError("unreachable: the last round returns or raises")

    async def _whole(self, asked: GenerateRequest, is_rest: bool) -> _Parts:
        try:
            yield await self.engine.generate(asked)
            return
        except MaxTokensTooLargeError as exc:
            lowered = self._clipped(asked, is_rest, exc)
        yield await self.engine.generate(lowered)

    async def _pieces(self, asked: GenerateRequest, is_rest: bool) -> _Parts:
        try:
            async with contextlib.aclosing(stream_of(self.engine, asked)) as parts:
                async for part in parts:
                    yield part
            return
        except MaxTokensTooLargeError as exc:
            lowered = self._clipped(asked, is_rest, exc)
        async with contextlib.aclosing(stream_of(self.engine, lowered)) as parts:
            async for part in parts:
                yield part

    def _clipped(self, asked: GenerateRequest, is_rest: bool, exc: MaxTokensTooLargeError) -> GenerateRequest:
        if not (is_rest and self.clip_max_tokens):
            raise exc
        # Where the room is not known it is left out, as `within_room` does for a whole turn.
        return replace(asked, sampling=asked.sampling.with_max_tokens(exc.room))

    def _check(self, request: GenerateRequest, partial: PartialGeneration, exc: AbortedError, spent: int) -> None:
        why = why_not_resumable(request.sampling)
        if not why and spent >= self.limit and ended(request, partial) is None:
            why = f"it was resumed {spent} times already, and the limit is {self.limit}"
        if why:
            raise AbortedError(
                f"{exc}; the turn cannot be resumed: {why}", status=exc.status, partial=partial
            ) from exc

    async def describe(self, model: str | None = None) -> EngineInfo:
        """See `Engine.describe`."""
        return await self.engine.describe(model)

    async def close(self) -> None:
        """Close the engine inside."""
        await self.engine.close()


def _behind(partial: PartialGeneration, given: int) -> tuple[Delta, ...]:
    """What of `partial` was in no delta yet: one delta, or none."""
    ids, logprobs = partial.tokens.completion_ids[given:], partial.tokens.completion_logprobs[given:]
    return (Delta(tuple(ids), tuple(logprobs)),) if len(ids) else ()


def _so_far(
    request: GenerateRequest, asked: GenerateRequest, partial: PartialGeneration | None, exc: AbortedError
) -> PartialGeneration:
    """All ids that were sampled before `exc`.

    Raises:
        AbortedError: It came without its ids; `partial` is what was sampled before.
    """
    if exc.partial is None:
        if partial is None:
            raise exc
        raise AbortedError(
            f"{exc}; the rest of a resumed turn came without its ids", status=exc.status, partial=partial
        ) from exc
    if partial is None:
        return with_logprobs_mode(exc.partial, asked.sampling, LogprobsMode.UNKNOWN)
    return _with_partial_of(request, asked, partial, exc)


def _with_partial_of(
    request: GenerateRequest, asked: GenerateRequest, partial: PartialGeneration, exc: TokentrueError
) -> PartialGeneration:
    """What was sampled before `exc`, and what came with it as a part of `asked`."""
    if exc.partial is None:
        return partial
    return join_partials(request, partial, with_logprobs_mode(exc.partial, asked.sampling, LogprobsMode.UNKNOWN))
