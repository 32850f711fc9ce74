"""Laws 3 and 4 at the rim: what a reply shows is compared with what was asked.

Nothing here repairs: a check passes, or its error names the position and both values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from tokentrue.errors import (
    AbortedError,
    AlignmentError,
    EmptyCompletionError,
    EngineError,
    EvidenceError,
    MalformedReplyError,
    TokentrueError,
    UnknownFinishError,
)
from tokentrue.generation import (
    REPETITION_STOP,
    FinishReason,
    GenerateRequest,
    PartialGeneration,
    PromptLogprobs,
    Usage,
    VersionSource,
    WeightSpan,
)
from tokentrue.sampling import SamplingParams
from tokentrue.weights import UNSET_LABEL

SENTINEL_LOGPROB = -9999.0
"""vLLM's chat routes write this for minus infinity, Dynamo's worker -1e30: no sampled id has either."""

LOGPROB_TOLERANCE = 1e-3
"""Nats, or the share of a larger value, by which two copies of one log-probability may differ (one is fp32)."""

_TOKEN_ID_PREFIX = "token_id:"


class CachedWire(msgspec.Struct):
    """`usage.prompt_tokens_details`."""

    cached_tokens: int | None = None


class UsageWire(msgspec.Struct):
    """`usage`, as vLLM and Dynamo write it."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: CachedWire | None = None

    def usage(self) -> Usage:
        """The same counts as a value of the vocabulary."""
        details = self.prompt_tokens_details
        return Usage(self.prompt_tokens, self.completion_tokens, details.cached_tokens if details else None)


class Counts(Protocol):
    """Whatever tells token counts: `usage`, or SGLang's `meta_info`."""

    prompt_tokens: int | None
    completion_tokens: int | None

    def usage(self) -> Usage:
        """The same counts as a value of the vocabulary."""
        ...


class SpanWire(msgspec.Struct):
    """One of `weight_versions`, as vLLM and SGLang write them."""

    version: str
    start: int
    end: int


def weight_spans_from(told: Sequence[SpanWire] | None) -> tuple[WeightSpan, ...]:
    """The same spans as values of the vocabulary; none when the engine does not tell them.

    The label that an engine was born with is no version: whose weights those are, nobody said.
    """
    return tuple(
        WeightSpan(None, span.start, span.end, VersionSource.UNKNOWN)
        if span.version == UNSET_LABEL
        else WeightSpan(span.version, span.start, span.end)
        for span in told or ()
    )


class LogprobItem(msgspec.Struct):
    """One entry of `logprobs.content`: vLLM 0.32 and Dynamo give `token_id`, vLLM < 0.32 `token_id:N` as token."""

    logprob: float | None = None
    token_id: int | None = None
    token: str | None = None

    def maybe_id(self) -> int | None:
        """The sampled id that this item is about, or None when it names none."""
        if self.token_id is not None:
            return self.token_id
        token = self.token or ""
        digits = token[len(_TOKEN_ID_PREFIX) :]
        if token.startswith(_TOKEN_ID_PREFIX) and digits.isdecimal() and len(digits) < 12:
            return int(digits)
        return None


class LogprobsWire(msgspec.Struct):
    """`choice.logprobs`."""

    content: list[LogprobItem] | None = None


NOT_THERE = msgspec.Raw()
"""The default of a field that is left undecoded; `is_absent` knows it."""


def is_absent(raw: msgspec.Raw) -> bool:
    """Whether an undecoded field was left out or null."""
    return bytes(raw) in (b"", b"null")


def decoded_ids(raw: msgspec.Raw, where: str) -> list[int] | None:
    """The ids in an array that was left undecoded; None when it is absent or null.

    Raises:
        MalformedReplyError: It is no array of integers.
    """
    if is_absent(raw):
        return None
    try:
        return msgspec.json.decode(raw, type=list[int])
    except msgspec.MsgspecError as exc:
        raise MalformedReplyError(f"{where} is no list of token ids: {exc}", status=200) from exc


def echo_equals(request: GenerateRequest, raw: msgspec.Raw, where: str, advice: str) -> bool:
    """Whether the reply echoes the prompt ids; an unequal echo is an error.

    Raises:
        EvidenceError: The echoed ids are not those that were sent.
        MalformedReplyError: The echo is no array of integers.
    """
    # The echo is as long as the conversation: comparing bytes costs a fraction of decoding it.
    if bytes(raw) == b"[" + request.prompt_ids.json_items() + b"]":
        return True
    echoed = decoded_ids(raw, where)
    if echoed is None:
        return False
    sent = request.prompt_ids.tolist()
    if echoed != sent:
        at = next(
            (i for i, (a, b) in enumerate(zip(sent, echoed, strict=False)) if a != b), min(len(sent), len(echoed))
        )
        raise EvidenceError(
            f"the engine did not use the prompt ids: {len(sent)} were sent, {where} has {len(echoed)}, and "
            f"they differ at position {at}; {advice}",
            status=200,
        )
    return True


def check_prompt_count(request: GenerateRequest, usage: Counts | None, advice: str) -> None:
    """Compare `usage.prompt_tokens`, when the engine tells it, with the number of ids sent.

    Raises:
        EvidenceError: They differ, or more tokens are said to be cached than the prompt has.
    """
    if usage is None:
        return
    counted = usage.prompt_tokens
    if counted is not None and counted != len(request.prompt_ids):
        raise EvidenceError(
            f"the engine did not use the prompt ids: {len(request.prompt_ids)} were sent and it counts {counted} "
            f"prompt tokens; {advice}",
            status=200,
        )
    cached = usage.usage().cached_tokens
    if cached is not None and not 0 <= cached <= len(request.prompt_ids):
        raise EvidenceError(
            f"the engine says that {cached} of the {len(request.prompt_ids)} prompt tokens were cached", status=200
        )


def check_completion(
    request: GenerateRequest, ids: Sequence[int], usage: Counts | None, stopped_at: int | str | None = None
) -> None:
    """Compare the sampled ids with the vocabulary, with `max_tokens` and with the engine's own count.

    Args:
        stopped_at: What the engine names as the end; without ids that tells whether it took a stop id off.

    Raises:
        EmptyCompletionError: There are none.
        MalformedReplyError: An id cannot be one of this vocabulary.
        EvidenceError: There are more than were asked for, or another number than the engine counts, or a stop
            id in the middle.
    """
    if not ids:
        # An engine that counts more than the stop id has kept ids back, and one that counts nothing may have.
        is_told = usage is not None and usage.completion_tokens in (0, 1)
        stop_id = stopped_at if is_told and isinstance(stopped_at, int) else None
        raise EmptyCompletionError("the engine finished without sampling a single id", stop_id=stop_id)
    vocab_size = request.vocab_size if request.vocab_size is not None else 2**31
    if min(ids) < 0 or max(ids) >= vocab_size:
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise MalformedReplyError(f"sampled id {wrong} is outside the vocabulary of {vocab_size}", status=200)
    limit = request.sampling.max_tokens
    if limit is not None and len(ids) > limit:
        raise EvidenceError(f"max_tokens={limit} was asked and {len(ids)} ids came back", status=200)
    _check_stops_were_used(request.sampling, ids)
    counted = usage.completion_tokens if usage is not None else None
    if counted is not None and counted != len(ids):
        raise EvidenceError(
            f"{len(ids)} sampled ids came back and the engine counts {counted} completion tokens", status=200
        )


def _check_stops_were_used(sampling: SamplingParams, ids: Sequence[int]) -> None:
    """An engine that samples on behind a stop id was not told of it, or forgot it; before `min_tokens` it may."""
    stop_ids = set(sampling.stop_token_ids)
    for position in range(sampling.min_tokens or 0, len(ids) - 1 if stop_ids else 0):
        if ids[position] in stop_ids:
            raise EvidenceError(
                f"the stop id {ids[position]} came at position {position} of {len(ids)}, and sampling went on",
                status=200,
            )


def check_values(logprobs: Sequence[float | None], place: str = "position", start: int = 0) -> list[float]:
    """The log-probabilities, none missing and none a stand-in for minus infinity.

    Args:
        place: What the error calls a position, the first of which is `start`.

    Raises:
        AlignmentError: One is; names its position. (Finite and <= 0 is checked where `Logprobs` is built.)
    """
    values: list[float] = []
    for position, value in enumerate(logprobs, start):
        if value is None or value <= SENTINEL_LOGPROB:
            raise AlignmentError(f"log-probability {value!r} at {place} {position} is no measurement", status=200)
        values.append(value)
    return values


def paired_logprobs(ids: Sequence[int], wire: LogprobsWire | None) -> list[float]:
    """One log-probability for each sampled id, each item having named its id (law 3).

    Raises:
        AlignmentError: They are missing, fewer or more, or an item is about another id.
    """
    if wire is None or wire.content is None:
        raise AlignmentError(f"{len(ids)} sampled ids came without log-probabilities", status=200)
    items = wire.content
    if len(items) != len(ids):
        raise AlignmentError(f"{len(ids)} sampled ids came with {len(items)} log-probabilities", status=200)
    for position, (token_id, item) in enumerate(zip(ids, items, strict=True)):
        named = item.maybe_id()
        if named != token_id:
            raise AlignmentError(
                f"position {position} was sampled as {token_id} and its log-probability is for "
                f"{named if named is not None else item.token!r}",
                status=200,
            )
    return check_values([item.logprob for item in items])


def check_subsequence(ids: list[int], items: Sequence[LogprobItem]) -> None:
    """Items of another length may be fewer (a worker's chunk lost some), never about other ids.

    Raises:
        AlignmentError: One is about an id that is not there, or not in its order.
    """
    position = 0
    for item in items:
        named = item.maybe_id()
        if named is None:
            continue
        if named not in ids[position:]:
            raise AlignmentError(
                f"{len(ids)} sampled ids came with {len(items)} log-probabilities, one of them for {named}, "
                f"which is not among the ids from position {position} on",
                status=200,
            )
        position = ids.index(named, position) + 1


class _PromptItem(msgspec.Struct):
    """What is said of one id at one place of the prompt."""

    logprob: float | None = None


_PROMPT_ITEMS = msgspec.json.Decoder(list[dict[str, _PromptItem] | None])


def asks_prompt_logprobs(sampling: SamplingParams) -> bool:
    """Whether the prompt's log-probabilities are asked for; 0 asks for them, without alternatives."""
    asked = sampling.extra.get("prompt_logprobs")
    return asked is not None and asked is not False


def prompt_logprobs_from(request: GenerateRequest, *told: msgspec.Raw) -> PromptLogprobs | None:
    """The log-probability of each prompt id (law 3); None when they were not asked for.

    An entry is an object whose keys are ids: the prompt's own id, and alternatives when more were asked for.

    Args:
        told: The same list from each of its writers, undecoded, absent ones included.

    Raises:
        EvidenceError: They were asked for and nobody tells them.
        AlignmentError: There is not one entry for each id, an entry is not about its id, or two writers differ.
        MalformedReplyError: It is no list of such entries.
    """
    if not asks_prompt_logprobs(request.sampling):
        return None
    found = [raw for raw in told if not is_absent(raw)]
    if not found:
        raise EvidenceError("prompt_logprobs were asked for, and the reply has none", status=200)
    first, *others = [_prompt_logprobs(request, raw) for raw in found]
    for other in others:
        for position, (mine, theirs) in enumerate(zip(first[1:], other[1:], strict=True), start=1):
            if mine is not None and theirs is not None and not _is_close(mine, theirs):
                raise AlignmentError(
                    f"the reply has {mine} and {theirs} as the log-probability of prompt position {position}",
                    status=200,
                )
    return first


def _is_close(mine: float, theirs: float) -> bool:
    return abs(mine - theirs) <= LOGPROB_TOLERANCE * max(1.0, abs(mine))


def _prompt_logprobs(request: GenerateRequest, raw: msgspec.Raw) -> PromptLogprobs:
    try:
        entries = _PROMPT_ITEMS.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedReplyError(f"prompt_logprobs cannot be read: {exc}", status=200) from exc
    ids = request.prompt_ids.tolist()
    if len(entries) != len(ids):
        raise AlignmentError(f"{len(ids)} prompt ids came with {len(entries)} prompt_logprobs", status=200)
    if entries[0] is not None:
        raise AlignmentError(f"the first prompt id follows nothing, and has {entries[0]!r}", status=200)
    values: list[float | None] = []
    for position, (token_id, entry) in enumerate(zip(ids[1:], entries[1:], strict=True), start=1):
        item = (entry or {}).get(str(token_id))
        if item is None:
            raise AlignmentError(
                f"prompt id {token_id} at position {position} has no log-probability; there are some for "
                f"{list(entry or ())[:8]!r}",
                status=200,
            )
        values.append(item.logprob)
    return (None, *check_values(values, "prompt position", 1))


def finish_reason_from(word: str | None) -> FinishReason:
    """The engine's word for why sampling ended.

    `tool_calls` is a frontend's reading of the text behind a stop; here the ids decide, so it is `STOP`.
    `repetition` is a cut by the engine (vLLM's `RequestStatus.FINISHED_REPETITION`), no end that the model wrote.

    Raises:
        AbortedError: There is no word, or it says that the turn was given up.
        UnknownFinishError: The word is unknown.
    """
    if word in ("stop", "tool_calls"):
        return FinishReason.STOP
    if word in ("length", "repetition"):
        return FinishReason.LENGTH
    if word is None or word in ("abort", "cancelled", "content_filter") or word.startswith("error"):
        raise AbortedError(f"the engine gave up the turn: finish_reason is {word!r}", status=200)
    raise UnknownFinishError(
        f"finish_reason {word!r} is unknown, and so whether the turn is whole; this error's `partial` has its ids",
        status=200,
    )


def stop_reason_from(word: str | None, told: int | str | None) -> int | str | None:
    """What ended the sampling: what the engine names, and where it names nothing, that it found repetition."""
    return REPETITION_STOP if told is None and word == "repetition" else told


ABORTED_WORDS = frozenset({"abort", "cancelled"})
"""Finish reasons of a turn that was given up from outside; its ids were sampled like any others."""


def keeps_ids(exc: EngineError, word: str | None) -> bool:
    """Whether the ids of an unfinished turn were sampled like any others: no error of the engine's ended it."""
    return isinstance(exc, UnknownFinishError) or word in ABORTED_WORDS


def finish_reason_or(word: str | None, build: Callable[[], PartialGeneration]) -> FinishReason:
    """`finish_reason_from`, of which an unknown word keeps what was sampled; see `aborted_with`."""
    try:
        return finish_reason_from(word)
    except UnknownFinishError as exc:
        raise aborted_with(exc, build) from None


def aborted_with(exc: EngineError, build: Callable[[], PartialGeneration]) -> EngineError:
    """`exc` with what had been sampled, or with the reason why that is not usable.

    Args:
        build: Makes the partial generation, and raises where it does not stand up to the laws.
    """
    try:
        told, partial = str(exc), build()
    except TokentrueError as why:
        told, partial = f"{exc}; the ids that came with it are not usable: {why}", None
    error = type(exc)(told, status=exc.status)
    error.partial = partial
    return error


def check_partial(request: GenerateRequest, ids: Sequence[int], usage: Counts | None) -> None:
    """`check_completion` for a turn that was given up, which may have no ids yet."""
    if ids:
        check_completion(request, ids, usage)


def check_stop(
    request: GenerateRequest, ids: Sequence[int], finish_reason: FinishReason, stop_reason: int | str | None
) -> None:
    """What the engine names as the end must be there, and must have been asked for where that can be known.

    A stop id that nobody asked for is none the less right: it is one of the model's own end-of-sequence ids, which
    vLLM names (0.32: all but the first) and does not name (0.31). That the last id is some stop id is therefore
    required only where the model's own are switched off.

    Raises:
        EvidenceError: The named stop id is not the last one, the named string was not asked for, or nothing that
            was asked for can have ended it.
    """
    if finish_reason is not FinishReason.STOP:
        return
    asked = request.sampling
    if isinstance(stop_reason, int) and ids[-1] != stop_reason:
        raise EvidenceError(
            f"the engine says that id {stop_reason} stopped it; the last id is {ids[-1]}", status=200
        )
    if isinstance(stop_reason, str) and stop_reason not in asked.stop:
        raise EvidenceError(f"the engine stopped at {stop_reason!r}, which was not asked for", status=200)
    if stop_reason is None and asked.ignore_eos and not asked.stop and ids[-1] not in asked.stop_token_ids:
        raise EvidenceError(
            f"the engine says that it stopped, but end-of-sequence ids are ignored and the last id {ids[-1]} is "
            f"none of the stop ids that were asked for",
            status=200,
        )
