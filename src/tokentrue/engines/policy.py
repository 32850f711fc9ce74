"""Which policy version a call is made under: read before and after it, and put into its cache salt."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from tokentrue.engines.engine import Engine, stream_of
from tokentrue.errors import ConfigError, TokentrueError
from tokentrue.generation import AnyGeneration, Delta, EngineInfo, GenerateRequest, Generation
from tokentrue.sampling import SamplingParams
from tokentrue.weights import UNSET_LABEL, attributed, contradicting, salted

T = TypeVar("T")

_LOGGER = logging.getLogger(__name__)

Mark = Callable[[Generation], Generation]
"""The same generation with its weight spans attributed."""


class PolicyClock(Protocol):
    """Tells which policy version the engine samples with now. An `Admin` is one."""

    async def version(self) -> str | None:
        """The version; None where the engine was never told one.

        Raises:
            EngineError, TransportError: The engine was asked and cannot tell.
        """
        ...


def check_version(version: str) -> None:
    """Refuse what is no version.

    Raises:
        ConfigError: It is empty, or the label of engines that were never told one.
    """
    if not version or version == UNSET_LABEL:
        raise ConfigError(
            f"a policy version is non-empty text, such as 'step-12', and not {version!r}: {UNSET_LABEL!r} is the "
            f"label of an engine that was never told a version"
        )


@dataclass(slots=True)
class GivenVersion:
    """The version as the training loop says it: set `value` once the engines have the new weights.

    Raises:
        ConfigError: The version is empty, or the label of engines that were never told one.
    """

    value: str

    def __post_init__(self) -> None:
        check_version(self.value)

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
    _told: set[tuple[str, str]] = field(default_factory=set, init=False, repr=False, compare=False)

    async def around(
        self,
        ask: Callable[[SamplingParams], Awaitable[T]],
        sampling: SamplingParams,
        on_inside: Callable[[T, Mark], T],
    ) -> T:
        """What `ask` gives, its generation attributed to the version before and after; see `attributed`.

        The partial ids of a turn that was given up are attributed in the same way.

        Args:
            on_inside: Applies the second argument to the generation inside of the first.

        Raises:
            EngineError, TransportError: Of the call, or of the clock before it. Once something is sampled, a clock
                that fails takes nothing away: the ids are of an unknown version, and a warning says why.
        """
        before = await self.clock.version() or UNSET_LABEL
        try:
            answer = await ask(salted(sampling, before) if self.salts else sampling)
        except TokentrueError as exc:
            if exc.partial is not None:
                exc.partial = self._marked(exc.partial, before, await self._after())
            raise
        after = await self._after()
        return on_inside(answer, lambda generation: self._marked(generation, before, after))

    async def around_stream(
        self,
        ask: Callable[[SamplingParams], AsyncGenerator[Delta | Generation, None]],
        sampling: SamplingParams,
    ) -> AsyncGenerator[Delta | Generation, None]:
        """`around` a stream: its deltas as they come, and its end attributed; raises as `around`."""
        before = await self.clock.version() or UNSET_LABEL
        try:
            asked = salted(sampling, before) if self.salts else sampling
            async with contextlib.aclosing(ask(asked)) as parts:
                async for part in parts:
                    if isinstance(part, Generation):
                        yield self._marked(part, before, await self._after())
                    else:
                        yield part
        except TokentrueError as exc:
            if exc.partial is not None:
                exc.partial = self._marked(exc.partial, before, await self._after())
            raise

    async def _after(self) -> str | None:
        try:
            return await self.clock.version() or UNSET_LABEL
        except Exception as exc:  # noqa: BLE001 - a clock may be anybody's, and the ids are there already
            _LOGGER.warning(
                "the policy version could not be read after a call, so who sampled its ids is known only where "
                "the engine says it: %s: %s",
                type(exc).__name__,
                exc,
            )
            return None

    def _marked(self, sampled: AnyGeneration, before: str, after: str | None) -> AnyGeneration:
        spans = sampled.weight_spans
        for version in contradicting(spans, before, after):
            if (version, before) not in self._told:
                self._told.add((version, before))
                _LOGGER.warning(
                    "the engine says that %r sampled a turn, and the clock said %r before and after it; the "
                    "engine's word stands: either its label or the clock was not set with the weights",
                    version,
                    before,
                )
        return replace(sampled, weight_spans=attributed(spans, len(sampled.tokens.completion_ids), before, after))


@dataclass(frozen=True, slots=True)
class BracketedEngine:
    """An engine whose generations say which policy version sampled them, as well as that can be known."""

    engine: Engine
    bracket: Bracket

    async def generate(self, request: GenerateRequest) -> Generation:
        """See `Engine.generate`."""

        async def ask(sampling: SamplingParams) -> Generation:
            return await self.engine.generate(replace(request, sampling=sampling))

        return await self.bracket.around(ask, request.sampling, lambda generation, mark: mark(generation))

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Delta | Generation, None]:
        """See `StreamingEngine.stream`; the end says which version sampled what.

        Raises:
            UnsupportedParameterError: The engine inside has no stream.
        """

        def ask(sampling: SamplingParams) -> AsyncGenerator[Delta | Generation, None]:
            return stream_of(self.engine, replace(request, sampling=sampling))

        async with contextlib.aclosing(self.bracket.around_stream(ask, request.sampling)) as parts:
            async for part in parts:
                yield part

    async def describe(self, model: str | None = None) -> EngineInfo:
        """See `Engine.describe`."""
        return await self.engine.describe(model)

    async def close(self) -> None:
        """Close the engine inside."""
        await self.engine.close()
