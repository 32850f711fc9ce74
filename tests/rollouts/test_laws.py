"""Every law holds for generated conversations, and every law check can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from played import Play, Played, draw_conversation, tool_result, user
from rendering_folders import write_folder
from tokentrue import Message, Renderer, load_renderer
from tokentrue.errors import RecordError
from tokentrue.generation import Usage, make_tokens
from tokentrue.rendering.certificate import FollowUpKind
from tokentrue.rendering.certificate import Verdict as CertifiedVerdict
from tokentrue.rollouts.laws import Law
from tokentrue.rollouts.proof import Normalised, joined_proof, prove
from tokentrue.rollouts.trajectory import TurnRecord
from tokentrue.tokens import Logprobs, TokenIds, TurnTokens
from tokentrue.turns import How, Junction, Why

CALL = '<tool_call>\n{"name":"look_up","arguments":{"word":"sky"}}\n</tool_call>'


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_all_laws_hold_for_generated_conversations(renderer: Renderer, data: st.DataObject) -> None:
    played = draw_conversation(data, renderer)
    proof = prove([played.episode], played.turns, renderer)
    assert proof.holds, [check for check in proof.checks if not check.holds]
    assert [check.law for check in proof.checks] == list(Law)


@pytest.fixture(scope="module")
def played(renderer: Renderer) -> Played:
    play = Play(renderer, [user("look it up")])
    play.say("<think>\nhm\n</think>\n\n" + CALL)
    play.answer(tool_result("blue"))
    play.say("It is blue.")
    play.answer(user("sure?"))
    play.say("yes")
    return play.done()


def with_turn(turn: TurnRecord, **changes: object) -> TurnRecord:
    return replace(turn, turn=replace(turn.turn, **changes))


def with_prompt(turn: TurnRecord, prompt_ids: list[int]) -> TurnRecord:
    tokens = turn.turn.tokens
    return with_turn(
        turn, tokens=TurnTokens(TokenIds(prompt_ids), tokens.completion_ids, tokens.completion_logprobs)
    )


def changed_known_id(turn: TurnRecord) -> TurnRecord:
    ids = turn.turn.tokens.prompt_ids.tolist()
    return with_prompt(turn, [ids[0] + 1, *ids[1:]])


def changed_bridge_id(turn: TurnRecord) -> TurnRecord:
    ids = turn.turn.tokens.prompt_ids.tolist()
    return with_prompt(turn, [*ids[:-1], ids[-1] + 1])


def further_id_at_the_junction(turn: TurnRecord) -> TurnRecord:
    ids, known = turn.turn.tokens.prompt_ids.tolist(), turn.turn.stitch.known_len
    changed = with_prompt(turn, [*ids[:known], ids[known], *ids[known:]])
    return with_turn(changed, usage=Usage(len(ids) + 1, None))


def shorter_bridge(turn: TurnRecord) -> TurnRecord:
    known = turn.turn.stitch.known_len
    changed = with_prompt(turn, turn.turn.tokens.prompt_ids[: known + 2])
    return with_turn(changed, usage=Usage())


def another_junction(turn: TurnRecord) -> TurnRecord:
    return with_turn(turn, stitch=replace(turn.turn.stitch, junction=Junction.CLOSE_ADDED))


def a_positive_logprob(turn: TurnRecord) -> TurnRecord:
    tokens = turn.turn.tokens
    wrong = Logprobs(tokens.completion_logprobs)
    # The constructor refuses it, so it is put in behind the constructor's back.
    object.__setattr__(wrong, "_values", wrong.array() + 1.0)
    return with_turn(turn, tokens=TurnTokens(tokens.prompt_ids, tokens.completion_ids, wrong))


def other_prompt_count(turn: TurnRecord) -> TurnRecord:
    return with_turn(turn, usage=Usage(len(turn.turn.tokens.prompt_ids) - 1, None))


def other_completion_count(turn: TurnRecord) -> TurnRecord:
    return with_turn(turn, usage=Usage(None, len(turn.turn.tokens.completion_ids) + 1))


def silent_fallback(turn: TurnRecord) -> TurnRecord:
    stitch = replace(turn.turn.stitch, how=How.RENDERED, why=Why.KNOWN_PREFIX, junction=None)
    return with_turn(turn, stitch=stitch)


def another_message(turn: TurnRecord) -> TurnRecord:
    return replace(turn, message=Message(role="assistant", content="It is green."))


def a_missing_anchor(turn: TurnRecord) -> TurnRecord:
    return with_turn(turn, stitch=replace(turn.turn.stitch, anchor_turn=7))


def other_sampled_id(turn: TurnRecord) -> TurnRecord:
    tokens = turn.turn.tokens
    ids = tokens.completion_ids.tolist()
    return with_turn(
        turn, tokens=make_tokens(tokens.prompt_ids, [ids[0] + 1, *ids[1:]], tokens.completion_logprobs.tolist())
    )


@pytest.mark.parametrize(
    ("law", "change"),
    [
        (Law.VERBATIM, changed_known_id),
        (Law.VERBATIM, a_missing_anchor),
        (Law.FAITHFUL, changed_bridge_id),
        (Law.FAITHFUL, further_id_at_the_junction),
        (Law.FAITHFUL, shorter_bridge),
        (Law.FAITHFUL, another_junction),
        (Law.FAITHFUL, a_missing_anchor),
        (Law.ALIGNED, a_positive_logprob),
        (Law.EVIDENCE, other_prompt_count),
        (Law.EVIDENCE, other_completion_count),
        (Law.NO_SILENT_FALLBACK, silent_fallback),
        (Law.INVERSE, another_message),
        (Law.NOTHING_LOST, other_sampled_id),
    ],
    ids=lambda value: value.name if isinstance(value, Law) else value.__name__,
)
def test_each_law_check_can_fail(
    renderer: Renderer, played: Played, law: Law, change: Callable[[TurnRecord], TurnRecord]
) -> None:
    """The second turn of three is changed."""
    turns = [played.turns[0], change(played.turns[1]), played.turns[2]]
    proof = prove([played.episode], turns, renderer)
    broken = {check.law: check.violations for check in proof.checks if not check.holds}
    assert law in broken
    assert not proof.holds
    assert "of episode 0" in broken[law][0] or "episode 0:" in broken[law][0]


def test_a_bridge_that_the_full_rendering_does_not_have_breaks_law_2(renderer: Renderer, played: Played) -> None:
    """The record says that another message was answered."""
    turns = list(played.turns)
    turns[1] = replace(turns[1], new_messages=(tool_result("green"),))
    proof = prove([played.episode], turns, renderer)
    assert Law.FAITHFUL in {check.law for check in proof.checks if not check.holds}


def test_what_the_template_cannot_write_back_is_counted_with_its_reason(renderer: Renderer) -> None:
    play = Play(renderer, [user("look it up")])
    play.say('<tool_call>\n{"name": "look_up", "arguments": {\n</tool_call>')
    play.answer(tool_result("error"))
    spelled = [i for char in "a <tool_call> b" for i in renderer.tokenizer.encode(char)]
    play.sample([*spelled, renderer.stop_ids[0]])
    played = play.done()
    proof = prove([played.episode], played.turns, renderer)
    assert proof.holds
    assert proof.normalised == {Normalised.UNREADABLE_CALL: 1, Normalised.SPELLED_MARKER: 1}


def test_reasoning_that_a_template_never_writes_back_is_its_own_loss(tmp_path: Path) -> None:
    """As Gemma's, it writes reasoning beside a call only; the certificate says so too."""
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
        "{%- if m.tool_calls and m.reasoning_content %}"
        "{{- '<think>' + m.reasoning_content + '</think>' }}{%- endif %}"
        "{{- m.content }}{%- for call in m.tool_calls or [] %}"
        '{{- \'<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
        "{{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}{%- endfor %}"
        "{{- '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    renderer = load_renderer(write_folder(tmp_path, template))
    play = Play(renderer, [user("Hi")])
    call = '<tool_call>\n{"name": "look_up", "arguments": {}}\n</tool_call>'
    for said in ("<think>Hm</think>Yes", "<think>Hm</think>" + call, "Yes"):
        message = play.say(said)
        play.answer(tool_result("a drink", message.tool_calls[0].id or "") if message.tool_calls else user("And?"))
    played = play.done()
    proof = prove([played.episode], played.turns, renderer)
    assert proof.holds, [check.violations for check in proof.checks]
    assert proof.normalised == {Normalised.REASONING_LEFT_OUT: 1}
    changed = replace(played.turns[0], message=replace(played.turns[0].message, reasoning_content="No"))
    assert not prove([played.episode], [changed, *played.turns[1:]], renderer).holds
    findings = {found.kind: found for found in renderer.certificate.findings}
    text, called = findings[FollowUpKind.AFTER_REASONING], findings[FollowUpKind.TOOL_AFTER_REASONING]
    assert (text.verdict, called.verdict) == (CertifiedVerdict.TEMPLATE_REWRITES_HISTORY, CertifiedVerdict.EXACT)
    assert (text.expected, text.template) == ("Two and two.", "It is 4.<|im_end|>\n")
    assert "leaves sampled reasoning out" in text.detail


def test_an_engine_that_tells_no_counts_is_not_checked(renderer: Renderer, played: Played) -> None:
    turns = [with_turn(turn, usage=Usage()) for turn in played.turns]
    (check,) = [c for c in prove([played.episode], turns, renderer).checks if c.law is Law.EVIDENCE]
    assert (check.checked, check.broken) == (0, 0)


def test_proofs_add_up(renderer: Renderer, played: Played) -> None:
    one = prove([played.episode], played.turns, renderer)
    bad = prove([played.episode], [played.turns[0], other_prompt_count(played.turns[1])], renderer)
    joined = joined_proof([one, bad])
    counts = {check.law: (check.checked, check.broken) for check in joined.checks}
    assert counts[Law.EVIDENCE] == (5, 1)
    assert counts[Law.VERBATIM] == (3, 0)
    assert not joined.holds


def test_turns_of_no_episode_are_an_error(renderer: Renderer, played: Played) -> None:
    with pytest.raises(RecordError, match="no such episode"):
        prove([], played.turns, renderer)


def test_a_turn_that_could_not_be_read_is_no_breach_of_law_6(renderer: Renderer) -> None:
    """Its message is the text of its ids, or empty, and the turn says so; unless it says so, it is a breach."""
    play = Play(renderer, [user("which colour?")])
    play.say("<think>\nhm\n</think>\n\nblue")
    played = play.done()
    other = replace(played.turns[0], message=Message(role="assistant", content="<think>..."))
    unread = replace(other, turn=replace(other.turn, unread="it raised"))
    laws = {check.law: check for check in prove([played.episode], [unread], renderer).checks}
    assert (laws[Law.INVERSE].checked, laws[Law.INVERSE].broken) == (0, 0)
    laws = {check.law: check for check in prove([played.episode], [other], renderer).checks}
    assert laws[Law.INVERSE].broken == 1
