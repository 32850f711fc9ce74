"""The numbers of a run, and that a broken law is seen."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tokentrue.cli.report import summary_lines
from tokentrue.errors import EngineFailureError
from tokentrue.generation import LogprobsMode, Usage, make_tokens
from tokentrue.messages import Message
from tokentrue.rollouts.environment import EpisodeState, MultiTurnEnv, StopReason
from tokentrue.rollouts.laws import Law
from tokentrue.rollouts.runner import RolloutPlan, run_rollouts
from tokentrue.rollouts.summary import summarize
from tokentrue.testing.scripted_client import ScriptedClient
from tokentrue.tokens import TokenIds
from tokentrue.turns import How, Junction, Stitch, Why


class Continues(MultiTurnEnv[int, EpisodeState[int]]):
    """Four turns; episodes with an odd index succeed; the third turn forgets the conversation when told so."""

    max_turns = 4
    forgets = False

    def make_task(self, index, seed):
        return index

    def setup(self, task, seed):
        return EpisodeState(task, seed, [Message(role="user", content=f"task {task}")])

    def env_response(self, messages, state):
        if self.forgets and len(messages) == 4:
            state.messages[0] = Message(role="user", content="edited")
        return [Message(role="user", content="go on")]

    def reward(self, messages, state):
        return float(state.task % 2)


def policy(messages, rng):
    if messages[0].content == "task 3":
        raise EngineFailureError("broke")
    return Message(role="assistant", content="abc")


def played(environment=None):
    plan = RolloutPlan(5, concurrency=2)
    return asyncio.run(run_rollouts(environment or Continues(), ScriptedClient(policy), "m", plan))


def broken_laws(turns):
    return {check.law for check in summarize((), turns).laws if not check.holds}


def test_a_run_in_numbers():
    """Every count of a run whose every number is known."""
    result = played()
    summary = summarize(result.records, result.turns)
    assert (summary.episodes, summary.scored, summary.succeeded) == (5, 4, 1)
    assert (summary.success_rate, summary.mean_reward) == (0.25, 0.25)
    assert summary.stop_reasons == {StopReason.MAX_TURNS: 4, StopReason.ERROR: 1}
    assert summary.errors == {"tokentrue.errors.EngineFailureError": 1}
    assert (summary.turns, summary.bridged, summary.completion_tokens) == (16, 12, 64)
    assert summary.prompt_tokens == sum(len(t.turn.tokens.prompt_ids) for t in result.turns)
    assert summary.cached_tokens == sum(t.turn.usage.cached_tokens for t in result.turns)
    assert summary.how == {How.RENDERED: 4, How.BRIDGED: 12}
    assert summary.rendered_why == {Why.FIRST_TURN: 4}
    assert summary.junctions == {Junction.EXACT: 12}
    assert summary.unexplained == 0
    assert summary.laws_hold
    assert {check.law: check.checked for check in summary.laws} == {
        Law.VERBATIM: 12,
        Law.ALIGNED: 16,
        Law.NO_SILENT_FALLBACK: 16,
        Law.NOTHING_LOST: 64,
    }


def test_an_empty_run_has_no_rates():
    """Missing is not zero."""
    summary = summarize((), ())
    assert (summary.success_rate, summary.mean_reward, summary.cached_tokens) == (None, None, None)
    assert summary.laws_hold


def test_a_rewritten_conversation_is_a_branch_and_no_broken_law():
    """The reason is there, and both branches' sampled ids are trained once."""

    class Forgets(Continues):
        forgets = True

    result = played(Forgets())
    summary = summarize(result.records, result.turns)
    assert summary.rendered_why[Why.NO_SHARED_PREFIX] > 0
    assert summary.unexplained == 0
    assert summary.laws_hold


def _edited(turns, position, **changes):
    turn = turns[position].turn
    return [*turns[:position], replace(turns[position], turn=replace(turn, **changes)), *turns[position + 1 :]]


def test_a_bridge_that_changed_a_known_id_breaks_law_1():
    """One id in the middle of the known ids."""
    turns = list(played().turns)
    tokens = turns[2].turn.tokens
    ids = tokens.prompt_ids.tolist()
    ids[3] += 1
    changed = make_tokens(TokenIds(ids), tokens.completion_ids, tokens.completion_logprobs)
    assert Law.VERBATIM in broken_laws(_edited(turns, 2, tokens=changed))


def test_a_dropped_opener_is_the_one_exception_to_law_1():
    """It may drop sampled ids, and only as many as it says."""
    turns = list(played().turns)
    before, after = turns[0].turn, turns[1].turn
    known = before.tokens.all_ids().tolist()
    kept = len(known) - 1
    tokens = make_tokens(
        TokenIds([*known[:kept], 9, 9]), after.tokens.completion_ids, after.tokens.completion_logprobs
    )
    stitch = replace(after.stitch, junction=Junction.OPENER_DROPPED, known_len=kept)
    changed = _edited(turns[:2], 1, tokens=tokens, stitch=stitch)
    assert broken_laws(changed) == set()
    assert Law.VERBATIM in broken_laws(_edited(changed, 1, stitch=replace(stitch, known_len=kept + 1)))
    assert Law.VERBATIM in broken_laws(_edited(changed, 1, stitch=replace(stitch, known_len=0)))


@pytest.mark.parametrize(
    "stitch",
    [
        Stitch(How.RENDERED, Why.FIRST_TURN),
        Stitch(How.RENDERED, Why.KNOWN_PREFIX),
        Stitch(How.BRIDGED, Why.FIRST_TURN, "", Junction.EXACT, 1, 0),
    ],
)
def test_a_reason_that_does_not_explain_breaks_law_5(stitch):
    """A render in the middle of a conversation is no first turn."""
    turns = list(played().turns)
    summary = summarize((), _edited(turns, 2, stitch=stitch))
    assert summary.unexplained == 1
    (check,) = [c for c in summary.laws if c.law is Law.NO_SILENT_FALLBACK]
    assert "turn 2 of episode 0 is" in check.violations[0]


def test_a_fallback_with_a_reason_is_counted_and_explained():
    """Law 5 forbids silence, not fallbacks."""
    turns = _edited(list(played().turns), 2, stitch=Stitch(How.RENDERED, Why.STOP_IN_MIDDLE, "id 256"))
    summary = summarize((), turns)
    assert summary.rendered_why[Why.STOP_IN_MIDDLE] == 1
    assert summary.laws_hold


def test_a_bridge_from_a_turn_that_is_not_there_breaks_laws_1_and_7():
    """Nothing can be built from it."""
    turns = list(played().turns)
    stitch = replace(turns[1].turn.stitch, anchor_turn=99)
    assert broken_laws(_edited(turns, 1, stitch=stitch)) == {Law.VERBATIM, Law.NOTHING_LOST}


def test_cached_tokens_are_summed_over_those_that_were_told():
    """An engine that says nothing is not an engine that cached nothing."""
    turns = [replace(t, turn=replace(t.turn, usage=Usage())) for t in played().turns]
    assert summarize((), turns).cached_tokens is None
    some = [replace(turns[0], turn=replace(turns[0].turn, usage=Usage(1, 1, 7))), *turns[1:]]
    summary = summarize((), some)
    assert (summary.cached_tokens, summary.cached_told) == (7, 1)
    assert ", 7 cached (told of 1 turns)" in "\n".join(summary_lines(summary))
    assert "told of" not in "\n".join(summary_lines(summarize((), played().turns)))


def with_modes(turns, *modes):
    """The turns, meaning these by their log-probabilities, in turn."""
    return [
        replace(turn, turn=replace(turn.turn, logprobs_mode=modes[index % len(modes)]))
        for index, turn in enumerate(turns)
    ]


def test_log_probabilities_of_two_meanings_are_counted_and_loud():
    """No trainer can use them together, and the summary says so instead of failing."""
    turns = played().turns
    mixed = summarize((), with_modes(turns, LogprobsMode.RAW, LogprobsMode.PROCESSED))
    assert mixed.has_mixed_logprobs
    assert set(mixed.logprobs_modes) == {LogprobsMode.RAW, LogprobsMode.PROCESSED}
    assert any("MIXED" in line for line in summary_lines(mixed))
    assert broken_laws(with_modes(turns, LogprobsMode.RAW, LogprobsMode.PROCESSED)) == {Law.NOTHING_LOST}
    alike = summarize((), with_modes(turns, LogprobsMode.RAW, LogprobsMode.ALIKE))
    assert not alike.has_mixed_logprobs
    assert alike.laws_hold
    assert not any("MIXED" in line for line in summary_lines(alike))


def test_unmeasured_log_probabilities_are_told():
    lines = summary_lines(summarize((), played().turns))
    assert any("unknown" in line and "was not measured" in line for line in lines)
