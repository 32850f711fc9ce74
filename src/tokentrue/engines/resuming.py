"""An engine that continues a turn which the engine inside gave up, from exactly the ids that were sampled."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokentrue.engines.engine import Engine
from tokentrue.errors import (
    AbortedError,
    ConfigError,
    EmptyCompletionError,
    MaxTokensTooLargeError,
    TokentrueError,
)
from tokentrue.generation import (
    EngineInfo,
    GenerateRequest,
    Generation,
    LogprobsMode,
    PartialGeneration,
    with_logprobs_mode,
)
from tokentrue.resuming import ended, ended_by, join, join_partials, rest_of, why_not_resumable


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
        partial: PartialGeneration | None = None
        for spent in range(self.limit + 1):
            asked = request if partial is None else rest_of(request, partial)
            try:
                rest = await self._sampled(asked, is_rest=partial is not None)
            except AbortedError as exc:
                partial = _so_far(request, asked, partial, exc)
                self._check(request, partial, exc, spent)
            except TokentrueError as exc:
                if partial is None:
                    raise
                whole = ended_by(request, partial, exc.stop_id) if isinstance(exc, EmptyCompletionError) else None
                if whole is not None:
                    return whole
                exc.partial = _with_partial_of(request, asked, partial, exc)
                raise
            else:
                return rest if partial is None else join(request, partial, rest)
            whole = ended(request, partial)
            if whole is not None:
                return whole
        raise AssertionError("unreachable: the last round returns or raises")

    async def _sampled(self, asked: GenerateRequest, is_rest: bool) -> Generation:
        try:
            return await self.engine.generate(asked)
        except MaxTokensTooLargeError as exc:
            if not (is_rest and self.clip_max_tokens):
                raise
            # Where the room is not known it is left out, as `within_room` does for a whole turn.
            sampling = asked.sampling.with_max_tokens(exc.room)
        return await self.engine.generate(replace(asked, sampling=sampling))

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
