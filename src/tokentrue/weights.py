"""Which policy version sampled which id: spans attributed, joined, and turned into a cache salt (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tokentrue.generation import VersionSource, WeightSpan
from tokentrue.sampling import SamplingParams

Spans = tuple[WeightSpan, ...]

UNSET_LABEL = "default"
"""The weight version of a vLLM or an SGLang that nobody ever told one: no evidence of anything."""

_WORST_FIRST = (VersionSource.MIXED, VersionSource.UNKNOWN, VersionSource.BRACKETED)


def source_of(spans: Spans) -> VersionSource:
    """The weakest source among the spans of one turn; `UNKNOWN` when there are none."""
    found = {span.source for span in spans}
    if not found:
        return VersionSource.UNKNOWN
    return next((source for source in _WORST_FIRST if source in found), VersionSource.ENGINE)


def attributed(spans: Spans, completion_len: int, before: str, after: str | None) -> Spans:
    """The spans of one completion, with what the client read of the version before and after the call.

    What an engine says of itself stands, unless all it says is the label that it was born with. Else one version
    before and after is that of every id, and two are a mixed turn: nothing is attributed. That label on both sides
    is no version, and neither is a reading that failed (`after` is None): nothing is known then.
    """
    if any(span.version not in (None, UNSET_LABEL) for span in spans):
        return spans
    if after is None or before == after == UNSET_LABEL:
        return (WeightSpan(None, 0, completion_len, VersionSource.UNKNOWN),)
    if before == after:
        return (WeightSpan(before, 0, completion_len, VersionSource.BRACKETED),)
    return (WeightSpan(None, 0, completion_len, VersionSource.MIXED, (before, after)),)


def contradicting(spans: Spans, before: str, after: str | None) -> tuple[str, ...]:
    """The versions that an engine says of itself although the clock read another one, before and after alike."""
    if before != after or before == UNSET_LABEL:
        return ()
    said = (span.version for span in spans if span.source is VersionSource.ENGINE)
    return tuple(dict.fromkeys(name for name in said if name and name not in (UNSET_LABEL, before)))


def joined(parts: Iterable[tuple[Spans, int]]) -> Spans:
    """The spans of completions laid end to end; each part is its spans and its length.

    A part without spans is `UNKNOWN`, unless no part has any: then there are none. Neighbours that say the same
    become one span.
    """
    laid: list[WeightSpan] = []
    start = 0
    some = False
    for spans, length in parts:
        some = some or bool(spans)
        for span in spans or (WeightSpan(None, 0, length, VersionSource.UNKNOWN),):
            _append(laid, replace(span, start=span.start + start, end=span.end + start))
        start += length
    return tuple(laid) if some else ()


def _append(laid: list[WeightSpan], span: WeightSpan) -> None:
    if span.start == span.end:
        return
    last = laid[-1] if laid else None
    if last is not None and replace(last, end=span.end) == replace(span, start=last.start):
        laid[-1] = replace(last, end=span.end)
    else:
        laid.append(span)


def moved(spans: Spans, by: int) -> Spans:
    """The same spans, `by` positions further on."""
    return tuple(replace(span, start=span.start + by, end=span.end + by) for span in spans)


def salted(sampling: SamplingParams, version: str) -> SamplingParams:
    """The parameters with a cache salt of the policy version and of the caller's own salt.

    Two pairs of version and salt never give one salt: the version's length stands in front.
    """
    salt = f"{len(version)}:{version}:{sampling.cache_salt or ''}"
    return replace(sampling, cache_salt=salt, extra=dict(sampling.extra))
