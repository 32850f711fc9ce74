"""What an endpoint's log-probabilities mean, found out by asking it for a few tokens.

A reply does not say it, and a server's flags are not ours to read. So one prompt is continued by a few tokens in
three ways, and the meanings differ in every place where the likeliest id has a probability clearly below 1 (which
may not be the first place: a model may always begin with `<think>`):

    ======================================  =========  =========  ===========
    asked                                   raw        scaled     processed
    ======================================  =========  =========  ===========
    `first`  temperature 1, top-k 1         log p      log p      0
    `cold`   temperature 0.02, all ids      log p      about 0    about 0
    `plain`  temperature 1, all ids         log p of what it samples, in every mode: shows that p is not 1
    ======================================  =========  =========  ===========

`cold` truncates nothing, because SGLang takes a request with top-k 1 for greedy and does not scale it then; and
0.02 is not lower, because vLLM raises what is below 0.01. Two things could deceive, and are asked about again: a
prompt after which one id is certain (`plain` again, until its ids leave no room for that), and several ids that
are equally likely, which a low temperature does not part either (`cold` again: they take turns). A `first` that is
what k equally likely ids have, for any k, is no evidence by itself: `raw` is told there only when `cold` came to
the id of `first` so often, and in so many places, that ties cannot be why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from tokentrue.engines.engine import Engine, EngineServer, stream_of
from tokentrue.errors import AbortedError, EvidenceError, TokentrueError
from tokentrue.generation import (
    AnyGeneration,
    Delta,
    EngineInfo,
    GenerateRequest,
    Generation,
    LogprobsMode,
    with_logprobs_mode,
)
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.transport import HttpCall, HttpReply

T = TypeVar("T")

_LOGGER = logging.getLogger(__name__)

Ask = Callable[[SamplingParams], Awaitable[Generation]]
"""Continues one certain prompt under these parameters."""

PLAIN = SamplingParams(temperature=1.0, top_p=1.0, top_k=-1, min_p=0.0, repetition_penalty=1.0, max_tokens=12)
FIRST = replace(PLAIN, top_k=1, extra={})
COLD = replace(PLAIN, temperature=0.02, extra={})

SAME_NATS = 0.04
"""Two log-probabilities this close are taken for one: kernels in bfloat16 differ by less for one prompt."""

APART_NATS = 0.2
"""Two log-probabilities this far apart are two."""

CHANCE = math.log(1e6)
"""How unlikely ties must be as the reason why `cold` always came to the id of `first`: the log of 1 to so many."""

CHANCE_OF_PLACES = math.log(1e3)
"""The same with each place counted once: an engine may draw from one seed, and repeat itself when asked again."""

TRIES = 6
"""How often one way of asking is repeated at most."""

ASK_AGAIN_S = 30.0
"""How long a failure to measure stands."""

MEASURE_WITHIN_S = 30.0
"""How long a sampled turn waits for a measurement at most."""


Sampled = tuple[int, float]
"""A sampled id and its log-probability in nats."""


@dataclass(frozen=True, slots=True)
class LogprobsProbe:
    """What was sampled in one place, behind one and the same text, for each way of asking.

    `plain` may be empty: what was sampled freely may have gone another way before.
    """

    first: Sampled
    plain: tuple[Sampled, ...]
    cold: tuple[Sampled, ...]

    @property
    def highest_raw(self) -> float:
        """What `first` can be at most at temperature 1, when `plain` is true: the probabilities sum to 1."""
        seen = dict(self.plain)
        if self.first[0] in seen:
            return seen[self.first[0]]
        left = 1.0 - math.fsum(math.exp(logprob) for logprob in seen.values())
        return math.log(left) if left > 0 else -math.inf

    @property
    def mode(self) -> LogprobsMode:
        """What the answers show; `UNKNOWN` where they fit two meanings, or none."""
        first, cold = self.first[1], self.cold[0][1]
        if any(token_id != self.first[0] or abs(logprob - cold) > SAME_NATS for token_id, logprob in self.cold):
            return LogprobsMode.UNKNOWN
        if self.may_be_certain:
            return LogprobsMode.PROCESSED if self.highest_raw < -APART_NATS else LogprobsMode.UNKNOWN
        if first > -APART_NATS or first > self.highest_raw + SAME_NATS:
            return LogprobsMode.UNKNOWN
        if abs(first - cold) <= SAME_NATS:
            return LogprobsMode.UNKNOWN if self.may_be_tied else LogprobsMode.RAW
        return LogprobsMode.SCALED if cold - first > APART_NATS / 2 else LogprobsMode.UNKNOWN

    @property
    def may_be_certain(self) -> bool:
        """Whether everything is as where one id is certain."""
        return self.first[1] > -SAME_NATS and self.cold[0][1] > -SAME_NATS

    @property
    def may_be_tied(self) -> bool:
        """Whether everything is as where nothing but some equally likely ids is possible."""
        count = max(2, round(math.exp(min(-self.first[1], 20.0))))
        return -self.first[1] > 20.0 or abs(self.first[1] + math.log(count)) <= 2 * SAME_NATS

    @property
    def is_raw_or_tied(self) -> bool:
        """Whether `first` and every `cold` say the same of the same id, and only ties could make that no `RAW`."""
        steady = all(
            token_id == self.first[0] and abs(logprob - self.first[1]) <= SAME_NATS
            for token_id, logprob in self.cold
        )
        return steady and self.first[1] <= min(-APART_NATS, self.highest_raw + SAME_NATS)

    def __str__(self) -> str:
        free = (("T=1", each) for each in self.plain[-1:])
        asked = (("T=1 top_k=1", self.first), ("T=0.02", self.cold[-1]), *free)
        return ", ".join(f"{how}: id {token_id} at {logprob:.4f}" for how, (token_id, logprob) in asked)


@dataclass(frozen=True, slots=True)
class MeasuredLogprobs:
    """What was found out, and from which numbers.

    Args:
        mode: `UNKNOWN` when the numbers do not tell.
        why: For a person: the numbers that decided, or why nothing did.
        probes: Every place that was looked at.
    """

    mode: LogprobsMode
    why: str
    probes: tuple[LogprobsProbe, ...] = ()


async def measure_logprobs_mode(
    engine: Engine,
    model: str,
    prompt_ids: Sequence[int] | TokenIds,
    *,
    vocab_size: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> MeasuredLogprobs:
    """What `engine`'s log-probabilities mean, by three requests for a few tokens, or some more.

    Args:
        prompt_ids: A prompt of the model, best one after which several ids are likely; where it does not tell,
            its beginnings are tried.
        vocab_size: As in `GenerateRequest`; SGLang demands it.

    Raises:
        EngineError, TransportError: The engine could not be asked.
    """
    whole = prompt_ids if isinstance(prompt_ids, TokenIds) else TokenIds(prompt_ids)
    request = GenerateRequest(model, whole, vocab_size=vocab_size, headers=dict(headers or {}))
    return await measure(asks_of(engine, request))


def asks_of(engine: Engine, request: GenerateRequest) -> list[Ask]:
    """The prompt of a request and some of its beginnings as `Ask`s."""
    whole = request.prompt_ids
    lengths = dict.fromkeys(max(1, len(whole) * quarters // 4) for quarters in (4, 3, 2, 1))

    def ask_with(ids: TokenIds) -> Ask:
        return lambda sampling: engine.generate(replace(request, prompt_ids=ids, sampling=sampling))

    return [ask_with(whole if length == len(whole) else TokenIds(whole[:length])) for length in lengths]


async def measure(asks: Sequence[Ask]) -> MeasuredLogprobs:
    """Try one prompt after the other until the numbers tell.

    Raises:
        EngineError, TransportError: The engine could not be asked.
    """
    tried: tuple[LogprobsProbe, ...] = ()
    for ask in asks:
        tried = await _probed(ask, tried)
        mode = _agreed(tried)
        if mode is not LogprobsMode.UNKNOWN:
            tied = (probe for probe in tried if probe.is_raw_or_tied)
            telling = next((probe for probe in tried if probe.mode is mode), None) or next(tied)
            return MeasuredLogprobs(mode, str(telling), tried)
    seen = f"; the last: {tried[-1]}" if tried else ""
    why = f"{len(asks)} prompts fit no meaning, or several{seen}"
    return MeasuredLogprobs(LogprobsMode.UNKNOWN, why, tried)


async def _probed(ask: Ask, before: tuple[LogprobsProbe, ...]) -> tuple[LogprobsProbe, ...]:
    """`before`, and every place of one short completion; asked again where certain or tied ids leave it open."""
    first, plain, cold = [[await _sampled(ask, sampling)] for sampling in (FIRST, PLAIN, COLD)]
    probes = _probes(first[0], plain, cold)
    for _ in range(TRIES - 1):
        if _agreed(before + probes) is not LogprobsMode.UNKNOWN:
            break
        if all(probe.may_be_certain for probe in probes):
            plain.append(await _sampled(ask, PLAIN))
        elif any(probe.may_be_tied for probe in probes):
            cold.append(await _sampled(ask, COLD))
        probes = _probes(first[0], plain, cold)
    return before + probes


def _probes(
    first: Sequence[Sampled], plain: Sequence[Sequence[Sampled]], cold: Sequence[Sequence[Sampled]]
) -> tuple[LogprobsProbe, ...]:
    """One probe for each place that every `cold` completion reached by the ids of `first`."""
    ids = [token_id for token_id, _ in first]

    def came_here(completion: Sequence[Sampled], place: int) -> bool:
        return len(completion) > place and [token_id for token_id, _ in completion[:place]] == ids[:place]

    found: list[LogprobsProbe] = []
    for place, sampled in enumerate(first):
        if not all(came_here(completion, place) for completion in cold):
            break
        free = tuple(completion[place] for completion in plain if came_here(completion, place))
        found.append(LogprobsProbe(sampled, free, tuple(completion[place] for completion in cold)))
    return tuple(found)


def _agreed(probes: Sequence[LogprobsProbe]) -> LogprobsMode:
    """What all places say that say anything."""
    said = {probe.mode for probe in probes} - {LogprobsMode.UNKNOWN}
    if not said:
        # Of k equally likely ids, each with `first` = -log k, one is drawn again with a chance of 1 in k.
        steady = [probe for probe in probes if probe.is_raw_or_tied]
        by_places = -math.fsum(probe.first[1] for probe in steady)
        by_draws = -math.fsum(probe.first[1] * len(probe.cold) for probe in steady)
        is_raw = len(steady) > 1 and by_places >= CHANCE_OF_PLACES and by_draws >= CHANCE
        return LogprobsMode.RAW if is_raw else LogprobsMode.UNKNOWN
    return said.pop() if len(said) == 1 else LogprobsMode.UNKNOWN


async def _sampled(ask: Ask, sampling: SamplingParams) -> tuple[Sampled, ...]:
    tokens = (await ask(sampling)).tokens
    if not len(tokens.completion_ids):
        raise EvidenceError("a few tokens were asked for, and none was sampled")
    logprobs = (float(logprob) for logprob in tokens.completion_logprobs)
    return tuple(zip(map(int, tokens.completion_ids), logprobs, strict=True))


@dataclass(slots=True)
class LogprobsModes:
    """What one endpoint's log-probabilities mean, by model: measured once, when it first matters.

    It matters as soon as a request may shape the distribution (`reads_alike`). A failure to measure fails no turn:
    the turn says `UNKNOWN`, a warning says why, and after `ASK_AGAIN_S` it is tried again.
    """

    _measured: dict[str, MeasuredLogprobs] = field(default_factory=dict, init=False)
    _failed_at: dict[str, float] = field(default_factory=dict, init=False)
    _asking: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = field(default=None, init=False, repr=False)

    def known(self, model: str) -> LogprobsMode:
        """What was measured; `UNKNOWN` where nothing was."""
        found = self._measured.get(model)
        return found.mode if found is not None else LogprobsMode.UNKNOWN

    async def measured(self, model: str, asks: Sequence[Ask]) -> MeasuredLogprobs:
        """What was measured, now or before.

        Raises:
            EngineError, TransportError: The endpoint could not be asked; nothing is remembered then.
        """
        async with self._lock():
            if model not in self._measured:
                self._measured[model] = await measure(asks)
                self._tell(model, self._measured[model])
        return self._measured[model]

    async def marked(
        self, generation: AnyGeneration, model: str, sampling: SamplingParams, asks: Callable[[], Sequence[Ask]]
    ) -> AnyGeneration:
        """The generation, saying what its log-probabilities mean.

        Args:
            asks: Called only when something has to be measured.
        """
        marked = with_logprobs_mode(generation, sampling, self.known(model))
        if marked.logprobs_mode is not LogprobsMode.UNKNOWN or model in self._measured or self._waits(model):
            return marked
        async with self._lock():
            # Those who waited behind a failure do not fail anew, one after the other.
            if model not in self._measured and not self._waits(model):
                await self._try(model, asks)
        return with_logprobs_mode(generation, sampling, self.known(model))

    async def _try(self, model: str, asks: Callable[[], Sequence[Ask]]) -> None:
        try:
            async with asyncio.timeout(MEASURE_WITHIN_S):
                self._measured[model] = await measure(asks())
        except (TokentrueError, TimeoutError) as exc:
            self._failed_at[model] = time.monotonic()
            told = str(exc) or f"no answer within {MEASURE_WITHIN_S:g} s"
            _LOGGER.warning(
                "what the log-probabilities of %s mean could not be measured, turns say 'unknown': %s", model, told
            )
            return
        self._tell(model, self._measured[model])

    def _waits(self, model: str) -> bool:
        failed_at = self._failed_at.get(model)
        return failed_at is not None and time.monotonic() - failed_at < ASK_AGAIN_S

    def _lock(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._asking is None or self._asking[0] is not loop:
            self._asking = (loop, asyncio.Lock())
        return self._asking[1]

    def _tell(self, model: str, measured: MeasuredLogprobs) -> None:
        level = logging.WARNING if measured.mode is LogprobsMode.UNKNOWN else logging.INFO
        _LOGGER.log(level, "log-probabilities of %s are %s (%s)", model, measured.mode.value, measured.why)


@dataclass(frozen=True, slots=True)
class MeasuredEngine:
    """An engine of which every generation says what its log-probabilities mean. Implements `Engine`."""

    engine: Engine
    modes: LogprobsModes = field(default_factory=LogprobsModes)

    async def generate(self, request: GenerateRequest) -> Generation:
        """See `Engine.generate`; the first one whose meaning matters is followed by a few short ones.

        The ids of an aborted turn are marked as well: the rest of it may come from another endpoint.
        """
        try:
            generation = await self.engine.generate(request)
        except AbortedError as exc:
            if exc.partial is not None and len(exc.partial.tokens.completion_ids):
                exc.partial = await self._marked(exc.partial, request)
            raise
        return await self._marked(generation, request)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Delta | Generation, None]:
        """See `StreamingEngine.stream`; what the numbers mean is said at the end, and measured then if it must be.

        Raises:
            UnsupportedParameterError: The engine inside has no stream.
        """
        try:
            async with contextlib.aclosing(stream_of(self.engine, request)) as parts:
                async for part in parts:
                    yield await self._marked(part, request) if isinstance(part, Generation) else part
        except AbortedError as exc:
            if exc.partial is not None and len(exc.partial.tokens.completion_ids):
                exc.partial = await self._marked(exc.partial, request)
            raise

    async def _marked(self, sampled: AnyGeneration, request: GenerateRequest) -> AnyGeneration:
        return await self.modes.marked(
            sampled, request.model, request.sampling, lambda: asks_of(self.engine, request)
        )

    async def measured(self, request: GenerateRequest) -> MeasuredLogprobs:
        """What the log-probabilities of the request's model mean, measured now unless they were before.

        Args:
            request: Its prompt is asked about; its sampling parameters are not used.

        Raises:
            EngineError, TransportError: The engine could not be asked.
        """
        return await self.modes.measured(request.model, asks_of(self.engine, request))

    async def describe(self, model: str | None = None) -> EngineInfo:
        """See `Engine.describe`; with what was measured so far."""
        info = await self.engine.describe(model)
        name = model if model is not None else next(iter(info.models), "")
        if info.logprobs_mode is not LogprobsMode.UNKNOWN:
            return info
        return replace(info, logprobs_mode=self.modes.known(name))

    async def close(self) -> None:
        """Close the engine."""
        await self.engine.close()


@dataclass(frozen=True, slots=True)
class MeasuredServer(MeasuredEngine):
    """The same for a server that takes other calls as well: a member of a fleet, measured on its own."""

    engine: EngineServer

    async def exchange(
        self, call: HttpCall, read: Callable[[HttpReply], T], headers: Mapping[str, str] | None = None
    ) -> T:
        """See `Server.exchange`."""
        return await self.engine.exchange(call, read, headers)
