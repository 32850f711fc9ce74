"""Token ropes are indistinguishable from plain lists, and log-probabilities belong to ids (law 3)."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentrue.errors import AlignmentError, InvalidTokenIdError
from tokentrue.tokens import Logprobs, TokenIds, TurnTokens

ids_lists = st.lists(st.integers(0, 2**31 - 1), max_size=30)


def rope(pieces: list[list[int]]) -> TokenIds:
    joined = TokenIds()
    for piece in pieces:
        joined = joined.extended(piece)
    return joined


@given(st.lists(ids_lists, max_size=6))
def test_a_rope_behaves_as_the_joined_list(pieces: list[list[int]]) -> None:
    joined, flat = rope(pieces), [i for piece in pieces for i in piece]
    assert joined == flat
    assert list(joined) == joined.tolist() == flat
    assert len(joined) == len(flat)
    assert json.loads(b"[" + joined.json_items() + b"]") == flat
    assert joined.array().dtype == np.int32
    assert hash(joined) == hash(TokenIds(flat))
    for index in range(-len(flat), len(flat)):
        assert joined[index] == flat[index]
        assert joined[index:] == flat[index:]


@given(st.lists(ids_lists, max_size=5), st.data())
def test_tail_reads_the_same_ids_as_a_slice(pieces: list[list[int]], data: st.DataObject) -> None:
    joined = rope(pieces)
    start = data.draw(st.integers(0, len(joined)))
    assert joined.tail(start).tolist() == joined.tolist()[start:]


@given(st.lists(ids_lists, max_size=5), ids_lists)
def test_starts_with_is_what_lists_say(pieces: list[list[int]], other: list[int]) -> None:
    joined = rope(pieces)
    flat = joined.tolist()
    assert joined.starts_with(TokenIds(flat[: len(flat) // 2]))
    assert joined.extended(other).starts_with(joined)
    assert joined.starts_with(other) == (flat[: len(other)] == other)


@given(ids_lists, st.sampled_from([-1, 2**31, 2**70, True, np.True_, "1", 1.0, None]), ids_lists)
def test_the_one_bad_id_among_good_ones_is_named(before: list[int], bad: object, behind: list[int]) -> None:
    with pytest.raises(InvalidTokenIdError) as caught:
        TokenIds([*before, bad, *behind])  # type: ignore[list-item]
    assert f"token id {bad!r} at position {len(before)}" in str(caught.value)


@given(ids_lists, st.sampled_from([np.int64, np.uint8, np.int32]))
def test_integers_of_numpy_are_ids(ids: list[int], kind: type) -> None:
    small = [token_id % 200 for token_id in ids]
    assert TokenIds([*small, *map(kind, small)]) == small + small


@pytest.mark.parametrize("bad", [[-1], [2**31], [True], ["1"], [1.0], [None]])
def test_what_is_no_token_id_is_refused(bad: list[object]) -> None:
    with pytest.raises(InvalidTokenIdError, match=r"position 0|outside"):
        TokenIds(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.array([-1]), np.array([2**40]), np.array([1.0]), np.array([[1]])])
def test_arrays_are_checked_like_lists(bad: np.ndarray) -> None:
    with pytest.raises(InvalidTokenIdError):
        TokenIds(bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.5, "x", None, True])
def test_a_logprob_is_a_finite_number_below_zero(bad: object) -> None:
    with pytest.raises(AlignmentError, match="position 1"):
        Logprobs([-0.5, bad])  # type: ignore[list-item]


@given(st.integers(0, 5), st.integers(0, 5))
def test_ids_and_logprobs_of_different_length_cannot_be_put_together(n: int, m: int) -> None:
    def build() -> TurnTokens:
        return TurnTokens(TokenIds([1]), TokenIds(range(n)), Logprobs([-0.1] * m))

    if n == m:
        assert build().completion_mask.tolist() == [True] * n
        assert build().all_ids() == [1, *range(n)]
    else:
        with pytest.raises(AlignmentError, match=f"{n} sampled ids came with {m}"):
            build()


def test_arrays_handed_out_cannot_be_changed() -> None:
    tokens = TurnTokens(TokenIds([1, 2]).extended([3]), TokenIds([4]), Logprobs([-0.5]))
    for array in (tokens.prompt_ids.array(), tokens.completion_ids.array(), tokens.completion_logprobs.array()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7
