"""An engine that continues a turn which the engine inside gave up, from exactly the ids that were sampled."""

from __future__ import annotations

from dataclasses import dataclass

from tokentrue.engines.engine import Engine
from tokentrue.errors import AbortedError, ConfigError
from tokentrue.generation import EngineInfo, GenerateRequest, Generation, PartialGeneration
from tokentrue.resuming import ended, join, join_partials, rest_of, why_not_resumable


@dataclass(frozen=True, slots=True)
class ResumingEngine:
    """Asks for the rest of an aborted turn: the prompt and the partial ids, verbatim (law 1), are the next prompt.

    The generation says at which positions it was resumed, and its weight spans which weights sampled which part.
    What cannot be resumed is raised as it was, with all ids sampled so far.

    Args:
        engine: Does the sampling; closed by `close`.
        limit: How many times one turn is resumed at most.

    Raises:
        ConfigError: The limit is below 1.
    """

    engine: Engine
    limit: int

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ConfigError(f"a turn must be resumed at most 1 or more times, not {self.limit}")

    async def generate(self, request: GenerateRequest) -> Generation:
        """Sample one completion; see `Engine.generate` and `tokentrue.resuming`.

        Raises:
            AbortedError: It was given up more often than `limit`, without its ids, or with parameters that cannot
                be continued; `partial` holds what was sampled.
        """
        partial: PartialGeneration | None = None
        for spent in range(self.limit + 1):
            asked = request if partial is None else rest_of(request, partial)
            try:
                rest = await self.engine.generate(asked)
            except AbortedError as exc:
                partial = _so_far(request, partial, exc)
                self._check(request, partial, exc, spent)
            else:
                return rest if partial is None else join(request, partial, rest)
            whole = ended(request, partial)
            if whole is not None:
                return whole
        raise AssertionError("unreachable: the last round returns or raises")

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


def _so_far(request: GenerateRequest, partial: PartialGeneration | None, exc: AbortedError) -> PartialGeneration:
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
        return exc.partial
    return join_partials(request, partial, exc.partial)
