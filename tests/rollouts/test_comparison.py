"""What rendering from text would have done: each cause is recognised, and every count equals a naive one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from played import Play, Played, draw_conversation, tool_result, user
from tokentrue import Renderer, load_renderer
from tokentrue.engines.embedded.engine import MODEL_FOLDER
from tokentrue.errors import RecordError
from tokentrue.rollouts.comparison import (
    BLOCK_TOKENS,
    Comparison,
    compare_episode,
    compare_run,
    drift_example,
    joined_comparison,
    shared_len,
)
from tokentrue.rollouts.drift import DriftCause
from tokentrue.tokens import TokenIds

CALL = '<tool_call>\n{"name": "look_up", "arguments": {"word": "sky"}}\n</tool_call>'


def compared(played: Played, renderer: Renderer) -> Comparison:
    return compare_run([played.episode], played.turns, renderer)


def two_turns(renderer: Renderer, said: str, split: bool = False, calls: bool = False) -> Comparison:
    play = Play(renderer, [user("look it up")])
    play.say(said, split)
    play.answer(tool_result("blue") if calls else user("and now?"))
    play.say("done")
    return compared(play.done(), renderer)


def test_what_the_template_writes_itself_differs_in_nothing(renderer: Renderer) -> None:
    result = two_turns(renderer, CALL, calls=True)
    assert (result.turns, result.follow_ups, result.differing) == (2, 1, 0)
    assert result.causes == {}
    assert result.examples == ()
    assert result.exact_reused == result.rerendered_reused
    assert (result.exact_sequences, result.rerendered_sequences) == (1, 1)


@pytest.mark.parametrize(
    ("said", "split", "calls", "cause"),
    [
        ("<think>\nhm\n</think>\n\nblue", False, False, DriftCause.REASONING_REWRITTEN),
        ("<think>\nnever closed", False, False, DriftCause.REASONING_REWRITTEN),
        (CALL.replace(": ", ":"), False, True, DriftCause.RESPACED),
        ("the sky is blue", True, False, DriftCause.OTHER_SPLIT),
        ('<tool_call>\n{"name": "look_up", "arguments": {\n</tool_call>', False, False, DriftCause.CALL_LOST),
        (CALL + "thanks", False, True, DriftCause.TEXT_CHANGED),
    ],
    ids=lambda value: value.name if isinstance(value, DriftCause) else "",
)
def test_each_cause_is_recognised(
    renderer: Renderer, said: str, split: bool, calls: bool, cause: DriftCause
) -> None:
    result = two_turns(renderer, said, split, calls)
    assert result.differing == 1
    assert result.causes == {cause: 1}
    assert result.first_causes == {cause: 1}
    assert (result.exact_sequences, result.rerendered_sequences) == (1, 2)
    assert result.causes_by_episode == {0: frozenset({cause})}


def test_several_causes_are_each_counted_and_the_first_is_the_example(renderer: Renderer) -> None:
    play = Play(renderer, [user("look it up")])
    play.say("<think>\nhm\n</think>\n\n" + CALL.replace(": ", ":"))
    play.answer(tool_result("blue"))
    play.say("It is blue.")
    play.answer(user("sure?"))
    play.say("yes")
    result = compared(play.done(), renderer)
    assert result.first_causes == {DriftCause.RESPACED: 1, DriftCause.REASONING_REWRITTEN: 1}
    assert result.causes == {DriftCause.RESPACED: 2, DriftCause.REASONING_REWRITTEN: 1}
    assert [example.turn for example in result.examples] == [1, 2]


def test_the_example_shows_both_sides_around_the_first_difference(renderer: Renderer) -> None:
    play = Play(renderer, [user("look it up")])
    play.say("<think>\nhm\n</think>\n\nblue")
    play.answer(user("and now?"))
    play.say("done")
    played = play.done()
    one = compare_episode(played.turns, played.episode.tools, renderer)[1]
    example = drift_example(one, renderer)
    assert example is not None
    at = example.position - example.start
    assert example.exact_ids[:at] == example.rerendered_ids[:at]
    assert example.exact_ids[at] != example.rerendered_ids[at]
    assert "<think>" in example.exact_text
    assert "<think>" not in example.rerendered_text
    assert drift_example(compare_episode(played.turns, played.episode.tools, renderer)[0], renderer) is None


def test_a_template_that_refuses_the_messages_is_a_cause_of_its_own(renderer: Renderer, tmp_path: Path) -> None:
    play = Play(renderer, [user("look it up")])
    play.say("blue")
    play.answer(user("refuse me"))
    play.say("done")
    folder = tmp_path / "refusing"
    shutil.copytree(MODEL_FOLDER, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    template = folder / "chat_template.jinja"
    refusal = "{%- for m in messages %}{%- if m.content == 'refuse me' %}{{ raise_exception('no') }}{%- endif %}"
    template.write_text(refusal + "{%- endfor %}" + template.read_text())
    result = compared(play.done(), load_renderer(folder))
    assert result.causes == {DriftCause.TEMPLATE_REFUSES: 1}
    assert result.rerendered_reused == 0
    assert result.rerendered_sequences == 2


def test_turns_of_no_episode_are_an_error(renderer: Renderer) -> None:
    play = Play(renderer, [user("hello")])
    play.say("hi")
    with pytest.raises(RecordError, match="no such episode"):
        compare_run([], play.done().turns, renderer)


def test_joining_adds_up(renderer: Renderer) -> None:
    first, second = two_turns(renderer, "the sky is blue", split=True), two_turns(renderer, CALL, calls=True)
    joined = joined_comparison([first, second])
    assert joined.turns == 4
    assert joined.differing == 1
    assert joined.causes == {DriftCause.OTHER_SPLIT: 1}
    assert joined.examples == first.examples
    assert joined.exact_prefilled == first.exact_prefilled + second.exact_prefilled
    assert joined.rerendered_sequences == first.rerendered_sequences + second.rerendered_sequences


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_count_equals_a_naive_one(renderer: Renderer, data: st.DataObject) -> None:
    played = draw_conversation(data, renderer)
    result = compared(played, renderer)
    differing = exact_reused = rerendered_reused = breaks = 0
    conversation: tuple = ()
    seen: dict[int, tuple[list[int], list[int]]] = {}
    for record in played.turns:
        conversation = record.conversation(conversation)
        exact = record.turn.tokens.prompt_ids.tolist()
        text = renderer.render_ids(conversation[:-1], tools=played.episode.tools).tolist()
        differing += exact != text
        anchor = record.turn.stitch.anchor_turn
        previous = anchor if anchor is not None else record.turn.index - 1
        if previous in seen:
            before, before_text = seen[previous]
            exact_reused += naive_shared(exact, before) // BLOCK_TOKENS * BLOCK_TOKENS
            rerendered_reused += naive_shared(text, before_text) // BLOCK_TOKENS * BLOCK_TOKENS
            breaks += exact[: len(before)] == before and text[: len(before_text)] != before_text
        sampled = record.turn.tokens.completion_ids.tolist()
        seen[record.turn.index] = (exact + sampled, text + sampled)
    assert result.differing == differing == sum(result.first_causes.values())
    assert (result.exact_reused, result.rerendered_reused) == (exact_reused, rerendered_reused)
    assert result.rerendered_sequences - result.exact_sequences == breaks
    assert set(result.first_causes) <= set(result.causes)


def naive_shared(left: list[int], right: list[int]) -> int:
    count = 0
    while count < min(len(left), len(right)) and left[count] == right[count]:
        count += 1
    return count


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_the_shared_length_is_the_common_prefix(left: list[int], right: list[int]) -> None:
    assert shared_len(TokenIds(left).array(), TokenIds(right).array()) == naive_shared(left, right)
