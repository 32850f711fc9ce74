"""One call to an engine: what is asked, what comes back, what the engine says of itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeVar

from tokentrue.errors import AlignmentError, EngineError, LogprobsMeaningError
from tokentrue.messages import Message
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import Logprobs, TokenIds, TurnTokens


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One completion to sample from exactly these prompt ids.

    Args:
        model: The name the engine serves the model under.
        prompt_ids: The ids to continue; never empty.
        sampling: Parameters, with the renderer's stop ids already merged in.
        vocab_size: Ids at or above it are refused before anything is sent; None when unknown.
        tools: Tool definitions; only transports whose server parses tool calls send them.
        headers: Further request headers, such as `X-Session-ID`.
        context_limit: The engine's limit, where it is known: what is left of it is asked for where `max_tokens` is
            left out and the engine would choose a small number instead.
    """

    model: str
    prompt_ids: TokenIds
    sampling: SamplingParams = field(default_factory=SamplingParams)
    vocab_size: int | None = None
    tools: tuple[dict[str, Any], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    context_limit: int | None = None

    @property
    def prompt_len(self) -> int | None:
        """Tokens in the prompt."""
        return len(self.prompt_ids)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One assistant message to sample for these messages, which the engine renders.

    Args:
        model: The name the engine serves the model under.
        messages: The whole conversation so far.
        sampling: Parameters.
        tools: Tool definitions in OpenAI shape.
        headers: Further request headers, such as `X-Session-ID`.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    tools: tuple[dict[str, Any], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def prompt_len(self) -> int | None:
        """None: how many tokens these messages are is the engine's to say."""
        return None


class LogprobsMode(Enum):
    """Which distribution the log-probabilities of sampled ids belong to.

    They differ as soon as a request shapes the distribution: by a temperature other than 1, by truncation (top-k,
    top-p, min-p), by penalties or biases. At temperature 0 nothing is scaled: vLLM and SGLang then give the number
    at temperature 1 in every mode.
    """

    RAW = "raw"
    """Log-softmax of the model's logits at temperature 1, whatever was sampled from: vLLM's default. (A grammar
    has masked them before.)"""
    SCALED = "scaled"
    """After penalties and temperature, before truncation: SGLang's default."""
    PROCESSED = "processed"
    """Of what was sampled from, after temperature and truncation: vLLM's `--logprobs-mode processed_logprobs`."""
    ALIKE = "alike"
    """The request shapes nothing (see `reads_alike`), so that all of these are one number. Said of a turn, never
    of an engine."""
    UNKNOWN = "unknown"
    """Nobody has measured it."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself.

    Args:
        name: "embedded", "vllm", "dynamo", ...
        version: As reported, or "" when the server does not tell.
        models: Names that it serves.
        context_limit: Largest number of tokens a sequence may have, or None when not told.
        logprobs_mode: What its log-probabilities mean; `UNKNOWN` for a server that was not measured.
    """

    name: str
    version: str
    models: tuple[str, ...]
    context_limit: int | None
    logprobs_mode: LogprobsMode = LogprobsMode.UNKNOWN


class FinishReason(Enum):
    """Why sampling ended. An abort is no member: it is an `AbortedError`, never a sample."""

    STOP = "stop"
    """The model ended it, or a stop that was asked for."""
    LENGTH = "length"
    """It was cut: by `max_tokens`, by the context limit, or by an engine that was told to look for repetition
    (vLLM's `repetition_detection`); the stop reason of the last is `REPETITION_STOP`."""
    TOOL_CALLS = "tool_calls"
    """The model ended it, with a call that can be carried out."""


REPETITION_STOP = "repetition_detected"
"""The stop reason of a completion that the engine cut because it repeated itself; vLLM's own word."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the engine reported them; None where it said nothing."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


class VersionSource(Enum):
    """Who says which policy version sampled an id."""

    ENGINE = "engine"
    """The engine itself, in its reply."""
    BRACKETED = "bracketed"
    """The version was the same before and after the call."""
    MIXED = "mixed"
    """It was another one after the call than before: which of them sampled which id is not known."""
    UNKNOWN = "unknown"
    """Nobody says."""


@dataclass(frozen=True, slots=True)
class WeightSpan:
    """The policy version that sampled completion ids `start` (included) to `end` (excluded).

    Args:
        version: None exactly when it is not known: for `MIXED` and `UNKNOWN`.
        between: Only for `MIXED`: the version before the call and the one after it.

    Raises:
        EngineError: It ends before it starts, or says of a version more or less than its source knows.
    """

    version: str | None
    start: int
    end: int
    source: VersionSource = VersionSource.ENGINE
    between: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        is_known = self.source in (VersionSource.ENGINE, VersionSource.BRACKETED)
        is_mixed = self.source is VersionSource.MIXED
        if self.end < self.start or self.start < 0:
            raise EngineError(f"a weight span cannot go from {self.start} to {self.end}")
        if (self.version is not None) is not is_known or (self.between is not None) is not is_mixed:
            raise EngineError(f"a weight span says more or less of its version than its source knows: {self!r}")


PromptLogprobs = tuple[float | None, ...]
"""One log-probability for each prompt id; None for the first."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One completion as an engine sampled it, after laws 3 and 4 were checked.

    Args:
        tokens: Prompt ids as sent, sampled ids and log-probabilities. The stop id is the last id
            when the engine returns it.
        finish_reason: `STOP` or `LENGTH` here; `TOOL_CALLS` is decided after reading the ids.
        stop_reason: The stop id or stop string that ended sampling, when the engine told it.
        request_id: The engine's own id of the request; "" when it has none.
        prompt_ids_echoed: True when the engine echoed the prompt ids and they were equal.
        text: What the engine itself decoded, when it did; never used for ids.
        weight_spans: Which policy version sampled which ids; empty when nobody says.
        prompt_logprobs: The log-probability of each prompt id, None for the first, which follows nothing;
            None altogether unless `prompt_logprobs` was asked for.
        logprobs_mode: What the log-probabilities of the sampled ids mean.
        resumed_at: Completion positions at which an aborted turn was continued by another request.

    Raises:
        EngineError: The weight spans do not tile the completion, or it was resumed outside of itself.
        AlignmentError: There is not one log-probability for each prompt id, or one is no finite number <= 0.
    """

    tokens: TurnTokens
    finish_reason: FinishReason
    stop_reason: int | str | None = None
    request_id: str = ""
    model: str = ""
    usage: Usage = field(default_factory=Usage)
    prompt_ids_echoed: bool = False
    weight_spans: tuple[WeightSpan, ...] = ()
    text: str | None = None
    prompt_logprobs: PromptLogprobs | None = None
    logprobs_mode: LogprobsMode = LogprobsMode.UNKNOWN
    resumed_at: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.prompt_logprobs is not None:
            _check_prompt_logprobs(self.prompt_logprobs, len(self.tokens.prompt_ids))
        completion_len = len(self.tokens.completion_ids)
        _check_tiles(self.weight_spans, completion_len)
        if any(not 0 <= position <= completion_len for position in self.resumed_at):
            raise EngineError(
                f"a completion of {completion_len} ids cannot have been resumed at {self.resumed_at}"
            )


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new in a stream: some sampled ids, at least one, each with its log-probability.

    Raises:
        AlignmentError: There are not as many of one as of the other, or none.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.token_ids or len(self.token_ids) != len(self.logprobs):
            raise AlignmentError(
                f"a delta of {len(self.token_ids)} ids and {len(self.logprobs)} log-probabilities"
            )


@dataclass(frozen=True, slots=True)
class PartialGeneration:
    """What an engine had sampled when it gave up a turn; rides on an `AbortedError`, never a sample by itself.

    Args:
        tokens: Prompt ids as sent, the ids sampled so far (perhaps none) and their log-probabilities.
        resumed_at: As in `Generation`: the turn may have been given up before.
        logprobs_mode: As in `Generation`.

    Raises:
        EngineError: The weight spans do not tile the ids.
    """

    tokens: TurnTokens
    request_id: str = ""
    usage: Usage = field(default_factory=Usage)
    weight_spans: tuple[WeightSpan, ...] = ()
    resumed_at: tuple[int, ...] = ()
    logprobs_mode: LogprobsMode = LogprobsMode.UNKNOWN

    def __post_init__(self) -> None:
        _check_tiles(self.weight_spans, len(self.tokens.completion_ids))


AnyGeneration = TypeVar("AnyGeneration", Generation, PartialGeneration)


def _check_tiles(spans: tuple[WeightSpan, ...], completion_len: int) -> None:
    position = 0
    for span in spans:
        if span.start != position:
            raise EngineError(f"weight spans do not tile the completion: {spans!r}")
        position = span.end
    if spans and position != completion_len:
        raise EngineError(f"weight spans end at {position}, the completion at {completion_len}: {spans!r}")


_SHAPES_NOTHING = frozenset(
    {
        *("chat_template_kwargs", "detokenize", "include_stop_str_in_output", "logprobs", "prompt_logprobs"),
        *("return_token_ids", "skip_special_tokens", "spaces_between_special_tokens", "top_logprobs"),
    }
)
"""Further parameters, by the engines' names, that leave the distribution as it is."""


def reads_alike(sampling: SamplingParams) -> bool:
    """Whether all modes give one number: `raw == scaled == processed` for every id that this samples.

    Only what is said counts: a value that is left out is the engine's default, which a model's generation
    configuration may set to anything.
    """
    said = (sampling.temperature == 1, sampling.top_p == 1, sampling.top_k in (0, -1), sampling.min_p == 0)
    shapes = (
        *(sampling.frequency_penalty, sampling.presence_penalty, sampling.logit_bias, sampling.min_tokens),
        *(value for name, value in sampling.extra.items() if name not in _SHAPES_NOTHING),
    )
    return all(said) and sampling.repetition_penalty == 1 and not any(shapes)


def with_logprobs_mode(generation: AnyGeneration, sampling: SamplingParams, mode: LogprobsMode) -> AnyGeneration:
    """The generation, saying what its log-probabilities mean, unless it says so already.

    Args:
        mode: What the engine's log-probabilities mean, as far as that is known.
    """
    if generation.logprobs_mode is not LogprobsMode.UNKNOWN:
        return generation
    return replace(generation, logprobs_mode=LogprobsMode.ALIKE if reads_alike(sampling) else mode)


def common_logprobs_mode(modes: Iterable[LogprobsMode]) -> LogprobsMode:
    """What log-probabilities that are used together mean; `ALIKE` goes with every mode, and is what nothing has.

    Raises:
        LogprobsMeaningError: They mean different things, or that of some is not known.
    """
    found = sorted(set(modes) - {LogprobsMode.ALIKE}, key=lambda mode: mode.value)
    if len(found) > 1:
        names = " and ".join(mode.value for mode in found)
        raise LogprobsMeaningError(
            f"the log-probabilities mean different things ({names}) and are not comparable: use turns of one "
            f"engine and one logprobs mode"
        )
    return found[0] if found else LogprobsMode.ALIKE


_HOW_TO_GET = {
    LogprobsMode.RAW: "vLLM's --logprobs-mode raw_logprobs",
    LogprobsMode.SCALED: "SGLang",
    LogprobsMode.PROCESSED: "vLLM's --logprobs-mode processed_logprobs",
}


def check_logprobs_mode(found: LogprobsMode, wanted: LogprobsMode, where: str) -> None:
    """Refuse log-probabilities that do not mean what is wanted; `ALIKE` is whatever is wanted.

    Raises:
        LogprobsMeaningError: Says what they mean, and how to get others.
    """
    if found in (wanted, LogprobsMode.ALIKE):
        return
    shown = "were not measured" if found is LogprobsMode.UNKNOWN else f"are {found.value!r}"
    raise LogprobsMeaningError(
        f"{where}: the log-probabilities {shown} and {wanted.value!r} ones are wanted, which cannot be computed "
        f"from them: sample at temperature 1 without truncation (all five parameters given), or with "
        f"{_HOW_TO_GET.get(wanted, 'an engine that is measured')}"
    )


def _check_prompt_logprobs(values: PromptLogprobs, prompt_len: int) -> None:
    if len(values) != prompt_len:
        raise AlignmentError(f"{prompt_len} prompt ids came with {len(values)} log-probabilities")
    first, *others = values
    if first is not None or None in others:
        at = 0 if first is not None else values.index(None, 1)
        raise AlignmentError(f"the log-probability of the prompt id at position {at} is {values[at]!r}")
    Logprobs(value for value in others if value is not None)


def make_tokens(prompt_ids: TokenIds, completion_ids: Sequence[int], logprobs: Sequence[float]) -> TurnTokens:
    """Build `TurnTokens` from what a wire carried.

    Raises:
        InvalidTokenIdError: An id is no token id.
        AlignmentError: A log-probability is no finite number <= 0, or the lengths differ.
    """
    return TurnTokens(prompt_ids, TokenIds(completion_ids), Logprobs(logprobs))
