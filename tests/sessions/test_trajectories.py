"""Law 7 under a length limit: every sampled id is trained once, masked, or counted as cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokentrue.errors import AlignmentError, CallerError, LogprobsMeaningError
from tokentrue.generation import FinishReason, LogprobsMode, Usage, make_tokens
from tokentrue.sessions.trajectories import Cut, SampledCounts, cut_tokens, session_samples
from tokentrue.tokens import TokenIds
from tokentrue.turns import How, Junction, Stitch, Turn, Why


def turn(index, prompt, sampled, anchor=None, junction=Junction.EXACT) -> Turn:
    tokens = make_tokens(TokenIds(prompt), sampled, [-0.5 - i for i in range(len(sampled))])
    stitch = Stitch(How.ENGINE_RENDERED, Why.MESSAGES_ONLY)
    if anchor is not None:
        stitch = Stitch(How.BRIDGED, Why.KNOWN_PREFIX, "", junction, anchor)
    return Turn(index, tokens, stitch, FinishReason.STOP, None, Usage())


def test_a_rendered_prompt_that_begins_with_the_exact_ids_continues_them() -> None:
    turns = [turn(0, [1, 2], [3]), turn(1, [1, 2, 3, 4], [5]), turn(2, [1, 2, 9, 4], [6])]
    found = session_samples(turns)
    assert [sample.turns for sample in found.samples] == [(0, 1), (2,)]
    assert found.counts == SampledCounts(sampled=3, trained=3, masked=0, cut=0)
    assert not found.is_truncated


def meaning(mode, index=0) -> Turn:
    return replace(turn(index, [1, 2], [3]), logprobs_mode=mode)


@pytest.mark.parametrize("wanted", [LogprobsMode.RAW, LogprobsMode.SCALED, LogprobsMode.PROCESSED])
@pytest.mark.parametrize("found", LogprobsMode)
def test_logprobs_are_what_the_trainer_asked_for_or_nothing_comes(found, wanted) -> None:
    """Only temperature 1 without truncation is every meaning at once; nothing else can be converted."""
    if found in (wanted, LogprobsMode.ALIKE):
        sample = session_samples([meaning(found)], logprobs_mode=wanted).samples[0]
        assert sample.logprobs[2] == -0.5
        assert sample.logprobs_mode is found
        assert list(meaning(found).logprobs_as(wanted)) == [-0.5]
        return
    for asked in (
        lambda: session_samples([meaning(found)], logprobs_mode=wanted),
        lambda: meaning(found).logprobs_as(wanted),
    ):
        with pytest.raises(LogprobsMeaningError, match="turn 0: the log-probabilities") as caught:
            asked()
        assert wanted.value in str(caught.value)


def test_a_sample_of_unknown_meaning_is_warned_about(caplog) -> None:
    session_samples([meaning(LogprobsMode.RAW)])
    assert not caplog.records
    session_samples([meaning(LogprobsMode.UNKNOWN)])
    assert "unknown meaning" in caplog.text


def test_two_meanings_in_one_session_are_refused() -> None:
    """Also where nobody asked for one of them."""
    mixed = [meaning(LogprobsMode.RAW), meaning(LogprobsMode.PROCESSED, 1)]
    with pytest.raises(LogprobsMeaningError, match="processed and raw"):
        session_samples(mixed)
    alike = [meaning(LogprobsMode.RAW), meaning(LogprobsMode.ALIKE, 1)]
    assert {sample.logprobs_mode for sample in session_samples(alike).samples} == {LogprobsMode.RAW}
    assert session_samples([meaning(LogprobsMode.UNKNOWN)]).samples[0].logprobs_mode is LogprobsMode.UNKNOWN


def test_a_turn_that_two_branches_share_is_trained_in_the_first() -> None:
    turns = [turn(0, [1], [2]), turn(1, [1, 2, 3], [4], 0), turn(2, [1, 2, 5], [6], 0)]
    first, second = session_samples(turns).samples
    assert first.loss_mask.tolist() == [False, True, False, True]
    assert second.loss_mask.tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("limit", "cut", "prompt", "sampled", "dropped"),
    [
        (5, Cut.WHOLE, [1, 2, 3], [4, 5], 0),
        (4, Cut.COMPLETION, [1, 2, 3], [4], 1),
        (3, Cut.COMPLETION, [1, 2, 3], [], 2),
        (2, Cut.PROMPT, [1, 2], [], 2),
    ],
)
def test_a_limit_cuts_the_completion_first_and_then_the_prompt(limit, cut, prompt, sampled, dropped) -> None:
    found = cut_tokens(turn(0, [1, 2, 3], [4, 5]).tokens, limit)
    assert (found.cut, found.dropped) == (cut, dropped)
    assert found.tokens.prompt_ids == prompt
    assert found.tokens.completion_ids == sampled
    assert len(found.tokens.completion_logprobs) == len(sampled)
    assert found.is_truncated is (cut is not Cut.WHOLE)
    assert found.overlong_prompt is (cut is Cut.PROMPT)


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(CallerError, match="max_seq_len=0"):
        session_samples([turn(0, [1], [2])], max_seq_len=0)


def test_an_episode_that_is_not_trained_on_has_no_loss_and_is_counted() -> None:
    found = session_samples([turn(0, [1, 2], [3, 4])], is_trained=False, turns_without_ids=1)
    assert not found.samples[0].loss_mask.any()
    assert np.isnan(found.samples[0].logprobs).all()
    assert found.counts == SampledCounts(sampled=2, trained=0, masked=2, cut=0, turns_without_ids=1)


def test_counts_that_do_not_add_up_cannot_be_built() -> None:
    with pytest.raises(AlignmentError, match="3 ids were sampled"):
        SampledCounts(sampled=3, trained=1, masked=1, cut=0)


@st.composite
def sessions(draw) -> list[Turn]:
    """Turns that bridge from any earlier one, or are rendered anew."""
    turns: list[Turn] = []
    for index in range(draw(st.integers(1, 7))):
        more = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
        sampled = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
        anchor = draw(st.none() | st.integers(0, index - 1)) if index else None
        known = turns[anchor].tokens.all_ids().tolist() if anchor is not None else []
        turns.append(turn(index, [*known, *more], sampled, anchor))
    return turns


@settings(deadline=None)
@given(sessions(), st.none() | st.integers(1, 30))
def test_nothing_is_lost_or_trained_twice_whatever_the_limit(turns, limit) -> None:
    found = session_samples(turns, max_seq_len=limit)
    assert sum(int(sample.loss_mask.sum()) for sample in found.samples) == found.counts.trained
    assert found.counts.trained + found.counts.cut == sum(len(t.tokens.completion_ids) for t in turns)
    assert all(limit is None or len(sample.token_ids) <= limit for sample in found.samples)
    expected = sorted(
        pair
        for each in turns
        for kept in [each.tokens if limit is None else cut_tokens(each.tokens, limit).tokens]
        for pair in zip(kept.completion_ids, kept.completion_logprobs, strict=True)
    )
    trained = sorted(
        pair
        for sample in found.samples
        for pair in zip(
            sample.token_ids[sample.loss_mask].tolist(), sample.logprobs[sample.loss_mask].tolist(), strict=True
        )
    )
    assert trained == expected
