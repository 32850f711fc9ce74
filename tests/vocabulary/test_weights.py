"""Policy versions: what an engine says, what a client knows from before and after, and nothing else."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentrue.errors import EngineError
from tokentrue.generation import VersionSource, WeightSpan
from tokentrue.sampling import SamplingParams
from tokentrue.weights import UNSET_LABEL, attributed, contradicting, joined, salted, source_of

names = st.sampled_from(["v1", "v2", "v3"])


@st.composite
def tiling(draw):
    """Spans of every kind that tile a completion, or none, and its length."""
    spans, start = [], 0
    for length in draw(st.lists(st.integers(1, 5), max_size=4)):
        source = draw(st.sampled_from(list(VersionSource)))
        known = source in (VersionSource.ENGINE, VersionSource.BRACKETED)
        between = ("v1", "v2") if source is VersionSource.MIXED else None
        spans.append(WeightSpan(draw(names) if known else None, start, start + length, source, between))
        start += length
    return (tuple(spans), start) if draw(st.booleans()) else ((), start)


def by_id(spans, length):
    """What is said of each id, the slow way."""
    said = [(None, VersionSource.UNKNOWN, None)] * length
    for span in spans:
        for position in range(span.start, span.end):
            said[position] = (span.version, span.source, span.between)
    return said


@given(st.lists(tiling(), max_size=4))
def test_joined_spans_say_of_each_id_what_its_part_said(parts) -> None:
    spans = joined(parts)
    length = sum(each for _, each in parts)
    assert by_id(spans, length) == [said for part, each in parts for said in by_id(part, each)]
    if not any(part for part, _ in parts):
        assert spans == ()
    elif spans:
        assert spans[0].start == 0
        assert spans[-1].end == length
        for left, right in itertools.pairwise(spans):
            assert left.end == right.start
            assert (left.version, left.source, left.between) != (right.version, right.source, right.between)


@given(names, names, st.integers(1, 9))
def test_one_version_before_and_after_is_that_of_every_id_and_two_are_nobodys(before, after, length) -> None:
    (span,) = attributed((), length, before, after)
    assert (span.start, span.end) == (0, length)
    if before == after:
        assert (span.version, span.source) == (before, VersionSource.BRACKETED)
    else:
        assert (span.version, span.source, span.between) == (None, VersionSource.MIXED, (before, after))


def test_what_an_engine_says_of_itself_stands() -> None:
    said = (WeightSpan("v1", 0, 3), WeightSpan("v2", 3, 5))
    assert attributed(said, 5, "v1", "v2") == said
    halves = (WeightSpan(UNSET_LABEL, 0, 3), WeightSpan("v2", 3, 5))
    assert attributed(halves, 5, "v1", "v2") == halves


def test_a_label_that_nobody_ever_set_is_no_evidence() -> None:
    (span,) = attributed((WeightSpan(UNSET_LABEL, 0, 5),), 5, "v7", "v7")
    assert (span.version, span.source) == ("v7", VersionSource.BRACKETED)
    for told in ((), (WeightSpan(UNSET_LABEL, 0, 5),)):
        (span,) = attributed(told, 5, UNSET_LABEL, UNSET_LABEL)
        assert (span.version, span.start, span.end, span.source) == (None, 0, 5, VersionSource.UNKNOWN)
    (span,) = attributed((), 5, UNSET_LABEL, "v1")
    assert span.source is VersionSource.MIXED  # something changed, whatever it was before


def test_a_version_that_could_not_be_read_afterwards_attributes_nothing() -> None:
    said = (WeightSpan("v1", 0, 3), WeightSpan("v2", 3, 5))
    assert attributed(said, 5, "v1", None) == said
    (span,) = attributed((), 5, "v1", None)
    assert (span.version, span.source, span.end) == (None, VersionSource.UNKNOWN, 5)


def test_an_engine_and_a_clock_contradict_only_where_the_clock_stood_still() -> None:
    said = (WeightSpan("v1", 0, 3), WeightSpan("v2", 3, 5))
    assert contradicting(said, "v2", "v2") == ("v1",)
    assert contradicting(said, "v3", "v3") == ("v1", "v2")
    for before, after in (("v1", "v2"), ("v3", None), (UNSET_LABEL, UNSET_LABEL)):
        assert contradicting(said, before, after) == ()
    assert contradicting((WeightSpan(UNSET_LABEL, 0, 5),), "v3", "v3") == ()


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ([], VersionSource.UNKNOWN),
        ([VersionSource.ENGINE], VersionSource.ENGINE),
        ([VersionSource.ENGINE, VersionSource.BRACKETED], VersionSource.BRACKETED),
        ([VersionSource.ENGINE, VersionSource.UNKNOWN, VersionSource.BRACKETED], VersionSource.UNKNOWN),
        ([VersionSource.UNKNOWN, VersionSource.MIXED], VersionSource.MIXED),
    ],
)
def test_a_turn_is_known_as_well_as_its_worst_span(sources, expected) -> None:
    spans = []
    for at, source in enumerate(sources):
        known = source in (VersionSource.ENGINE, VersionSource.BRACKETED)
        between = ("v1", "v2") if source is VersionSource.MIXED else None
        spans.append(WeightSpan("v1" if known else None, at, at + 1, source, between))
    assert source_of(tuple(spans)) is expected


@pytest.mark.parametrize(
    "wrong",
    [
        (None, 0, 1, VersionSource.ENGINE, None),
        ("v1", 0, 1, VersionSource.MIXED, ("v1", "v2")),
        ("v1", 0, 1, VersionSource.UNKNOWN, None),
        (None, 0, 1, VersionSource.MIXED, None),
        ("v1", 0, 1, VersionSource.BRACKETED, ("v1", "v2")),
        ("v1", 2, 1, VersionSource.ENGINE, None),
        ("v1", -1, 1, VersionSource.ENGINE, None),
    ],
)
def test_a_span_says_no_more_than_its_source_knows(wrong) -> None:
    with pytest.raises(EngineError):
        WeightSpan(*wrong)


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=4), st.none() | st.text(min_size=1, max_size=4)), unique=True)
)
def test_two_pairs_of_version_and_salt_never_give_one_salt(pairs) -> None:
    salts = [salted(SamplingParams(cache_salt=salt), version).cache_salt for version, salt in pairs]
    assert len(set(salts)) == len(pairs)
