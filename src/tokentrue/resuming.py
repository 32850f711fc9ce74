"""Continue an aborted turn from exactly the ids that were sampled (pure).

`join(request, partial, generation of rest_of(request, partial))` is the turn as one generation: nothing that was
sampled is lost, and nothing is added. What is sampled next depends on the ids so far and on the parameters; a
parameter whose effect also depends on which ids are *completion* and not prompt cannot be continued, and says so.

- `max_tokens` and `min_tokens` are lowered by what was sampled.
- `seed` becomes one derived from it and from the position, so that the rest does not repeat the random numbers of
  the partial. A greedy turn is the uninterrupted one; a sampled one is reproducible for one position of the abort.
- Stop ids keep their meaning. Stop strings could begin in the partial and end in the rest, where no engine sees
  them, so a turn with stop strings is not resumed.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from tokentrue.generation import (
    FinishReason,
    GenerateRequest,
    Generation,
    LogprobsMode,
    PartialGeneration,
    Usage,
)
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import Logprobs, TokenIds, TurnTokens
from tokentrue.weights import Spans, joined

CONTINUED = frozenset(
    {
        *("allowed_token_ids", "logprobs", "top_logprobs", "return_token_ids", "return_tokens_as_token_ids"),
        *("skip_special_tokens", "spaces_between_special_tokens", "detokenize", "chat_template_kwargs"),
        *("include_stop_str_in_output", "user", "metadata", "output_mode", "skip_reading_prefix_cache", "stream"),
    }
)
"""Parameters of `SamplingParams.extra` that mean the same for the rest as for the whole."""


def why_not_resumable(sampling: SamplingParams) -> str:
    """Which parameter cannot be continued, in words; "" when the turn can be resumed."""
    if sampling.stop:
        return "a stop string could begin in the ids that were sampled and end in the rest"
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(sampling, name):
            return f"{name} counts the ids of a completion, and those that were sampled would become prompt"
    for name, value in sampling.extra.items():
        if value is not None and name not in CONTINUED:
            return f"{name!r} is not known to mean the same for the rest of a completion as for the whole"
    return ""


def rest_of(request: GenerateRequest, partial: PartialGeneration) -> GenerateRequest:
    """The request that continues `request` behind the ids of `partial`; the same one when there are none."""
    done = len(partial.tokens.completion_ids)
    if not done:
        return request
    sampling = request.sampling
    left = replace(
        sampling,
        max_tokens=None if sampling.max_tokens is None else sampling.max_tokens - done,
        min_tokens=None if sampling.min_tokens is None else max(sampling.min_tokens - done, 0),
        seed=None if sampling.seed is None else _seed_at(sampling.seed, done),
        extra=dict(sampling.extra),
    )
    return replace(
        request, prompt_ids=request.prompt_ids.extended(partial.tokens.completion_ids.array()), sampling=left
    )


def _seed_at(seed: int, position: int) -> int:
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def ended(request: GenerateRequest, partial: PartialGeneration) -> Generation | None:
    """The whole turn, where `partial` has all that was asked for: it was given up after its last id.

    None when ids are missing: then there is a rest to ask for.
    """
    ids = partial.tokens.completion_ids
    if not len(ids):
        return None
    sampling = request.sampling
    finish_reason, stop_reason = FinishReason.LENGTH, None
    if ids[-1] in sampling.stop_token_ids and len(ids) > (sampling.min_tokens or 0):
        finish_reason, stop_reason = FinishReason.STOP, ids[-1]
    elif len(ids) != sampling.max_tokens:
        return None
    return _as_whole(request, partial, finish_reason, stop_reason)


def ended_by(request: GenerateRequest, partial: PartialGeneration, stop_id: int | None) -> Generation | None:
    """The whole turn, where the rest of it was nothing but a stop id that the engine names and does not return.

    None where that is not sure: nobody asked for this id as an end, or none was named.
    """
    if stop_id not in request.sampling.stop_token_ids or not len(partial.tokens.completion_ids):
        return None
    return _as_whole(request, partial, FinishReason.STOP, stop_id)


def _as_whole(
    request: GenerateRequest, partial: PartialGeneration, finish_reason: FinishReason, stop_reason: int | None
) -> Generation:
    return Generation(
        tokens=partial.tokens,
        finish_reason=finish_reason,
        stop_reason=stop_reason,
        request_id=partial.request_id,
        model=request.model,
        usage=partial.usage,
        weight_spans=partial.weight_spans,
        logprobs_mode=partial.logprobs_mode,
        resumed_at=partial.resumed_at,
    )


def join(request: GenerateRequest, partial: PartialGeneration, rest: Generation) -> Generation:
    """`partial` and the generation that continued it, as one generation of `request`.

    The prompt's counts are those of the first request; to the others the partial was prompt as well.
    """
    return replace(
        rest,
        tokens=_joined_tokens(request, partial.tokens, rest.tokens),
        usage=_joined_usage(partial.usage, rest.usage),
        weight_spans=_joined_spans(partial, rest),
        text=None,
        logprobs_mode=_joined_mode(partial, rest),
        resumed_at=(*partial.resumed_at, len(partial.tokens.completion_ids), *_behind(partial, rest.resumed_at)),
    )


def join_partials(
    request: GenerateRequest, partial: PartialGeneration, rest: PartialGeneration
) -> PartialGeneration:
    """`partial` and a continuation of it that was given up as well."""
    return PartialGeneration(
        tokens=_joined_tokens(request, partial.tokens, rest.tokens),
        request_id=rest.request_id,
        usage=_joined_usage(partial.usage, rest.usage),
        weight_spans=_joined_spans(partial, rest),
        resumed_at=(*partial.resumed_at, len(partial.tokens.completion_ids), *_behind(partial, rest.resumed_at)),
        logprobs_mode=_joined_mode(partial, rest),
    )


def _behind(partial: PartialGeneration, positions: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(len(partial.tokens.completion_ids) + position for position in positions)


def _joined_tokens(request: GenerateRequest, first: TurnTokens, rest: TurnTokens) -> TurnTokens:
    ids = (*first.completion_ids.tolist(), *rest.completion_ids.tolist())
    logprobs = (*first.completion_logprobs.tolist(), *rest.completion_logprobs.tolist())
    return TurnTokens(request.prompt_ids, TokenIds(ids), Logprobs(logprobs))


def _joined_spans(partial: PartialGeneration, rest: Generation | PartialGeneration) -> Spans:
    return joined((each.weight_spans, len(each.tokens.completion_ids)) for each in (partial, rest))


def _joined_mode(partial: PartialGeneration, rest: Generation | PartialGeneration) -> LogprobsMode:
    """What all log-probabilities of both mean: `ALIKE` is any meaning, a part without ids has none."""
    parts = [part for part in (partial, rest) if len(part.tokens.completion_ids)]
    modes = {part.logprobs_mode for part in parts} - {LogprobsMode.ALIKE}
    if len(modes) > 1:
        return LogprobsMode.UNKNOWN
    # `min_tokens` may be gone from the rest's request, which then shapes nothing where the whole one does; its
    # numbers are those of every meaning none the less, so the partial's decides.
    return modes.pop() if modes else LogprobsMode.ALIKE if parts else rest.logprobs_mode


def _joined_usage(first: Usage, rest: Usage) -> Usage:
    counts = (first.completion_tokens, rest.completion_tokens)
    told = [count for count in counts if count is not None]
    return Usage(first.prompt_tokens, sum(told) if len(told) == len(counts) else None, first.cached_tokens)
