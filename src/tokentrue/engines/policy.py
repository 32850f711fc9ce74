"""Which policy version a call is made under: read before and after it, and put into its cache salt."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from tokentrue.engines.engine import Engine
from tokentrue.errors import AbortedError, ConfigError
from tokentrue.generation import EngineInfo, GenerateRequest, Generation
from tokentrue.sampling import SamplingParams
from tokentrue.weights import attributed, salted

T = TypeVar("T")


class PolicyClock(Protocol):
    """Tells which policy version the engine samples with now. An `Admin` is one."""

    async def version(self) -> str:
        """The version.

        Raises:
            EngineError, TransportError: The engine was asked and cannot tell.
        """
        ...


@dataclass(slots=True)
class GivenVersion:
    """The version as the training loop says it: set `value` once the engines have the new weights.

    Raises:
        ConfigError: The version is empty.
    """

    value: str

    def __post_init__(self) -> None:
        if not self.value:
            raise ConfigError("a policy version is non-empty text, such as 'step-12'")

    async def version(self) -> str:  # async: as `PolicyClock` asks
        """What was given."""
        return self.value


@dataclass(frozen=True, slots=True)
class Bracket:
    """Reads a clock before and after each call.

    Args:
        clock: Where the version is read.
        salts: Also put the version before the call into its cache salt, so that keys and values computed with
            other weights are never read, whether or not anybody reset the prefix cache.
    """

    clock: PolicyClock
    salts: bool = False

    async def around(
        self,
        ask: Callable[[SamplingParams], Awaitable[T]],
        sampling: SamplingParams,
        with_versions: Callable[[T, str, str], T],
    ) -> T:
        """What `ask` gives, through `with_versions` with the version before and after.

        The partial ids of an aborted turn are attributed in the same way.

        Raises:
            EngineError, TransportError: Of the call, or of the clock.
        """
        before = await self.clock.version()
        try:
            answer = await ask(salted(sampling, before) if self.salts else sampling)
        except AbortedError as exc:
            if exc.partial is not None:
                length = len(exc.partial.tokens.completion_ids)
                spans = attributed(exc.partial.weight_spans, length, before, await self.clock.version())
                exc.partial = replace(exc.partial, weight_spans=spans)
            raise
        return with_versions(answer, before, await self.clock.version())


def with_versions(generation: Generation, before: str, after: str) -> Generation:
    """The same generation with its weight spans attributed; see `attributed`."""
    length = len(generation.tokens.completion_ids)
    return replace(generation, weight_spans=attributed(generation.weight_spans, length, before, after))


@dataclass(frozen=True, slots=True)
class BracketedEngine:
    """An engine whose generations say which policy version sampled them, as well as that can be known."""

    engine: Engine
    bracket: Bracket

    async def generate(self, request: GenerateRequest) -> Generation:
        """See `Engine.generate`."""

        async def ask(sampling: SamplingParams) -> Generation:
            return await self.engine.generate(replace(request, sampling=sampling))

        return await self.bracket.around(ask, request.sampling, with_versions)

    async def describe(self, model: str | None = None) -> EngineInfo:
        """See `Engine.describe`."""
        return await self.engine.describe(model)

    async def close(self) -> None:
        """Close the engine inside."""
        await self.engine.close()
