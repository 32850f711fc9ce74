"""Laws 1 and 2 over generated conversations, on every renderer that must be exact."""

from __future__ import annotations

import json
import unicodedata

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from conversations import TOOLS, assistant_messages, draw_completion, follow_ups, openings, takes
from tokentrue import Message, Renderer
from tokentrue.generation import FinishReason
from tokentrue.rendering.bridge import Bridge
from tokentrue.rendering.tail import BridgeRefused, FollowUp, Tail
from tokentrue.tokens import TokenIds
from tokentrue.turns import Junction, TokenKind, Why

relaxed = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def draw_turn(data: st.DataObject, renderer: Renderer):
    """A turn that was sampled, and what the caller sends next."""
    opening = data.draw(openings)
    calls = 1 if renderer.tool_format is not None and renderer.tool_format.name.startswith("bare") else 3
    assistant = data.draw(assistant_messages(calls, reasoning=renderer.reader.reasoning is not None))
    new = data.draw(follow_ups(assistant))
    assume(takes(renderer, (*opening, assistant, *new)))
    sampled = draw_completion(data, renderer, assistant)
    prompt_ids = renderer.render_ids(opening, tools=TOOLS)
    return opening, assistant, new, sampled, prompt_ids


def bridge_of(renderer: Renderer, turn) -> Bridge:
    opening, assistant, new, sampled, prompt_ids = turn
    outcome = renderer.bridge_to_next_turn(
        prompt_ids,
        sampled.ids,
        new,
        history=(*opening, assistant),
        finish_reason=sampled.finish_reason,
        tools=TOOLS,
    )
    assert isinstance(outcome, Bridge), outcome
    return outcome


@relaxed
@given(data=st.data())
def test_law_1_the_bridge_begins_with_what_was_sampled(renderer: Renderer, data: st.DataObject) -> None:
    turn = draw_turn(data, renderer)
    bridge = bridge_of(renderer, turn)
    known = [*turn[4].tolist(), *turn[3].ids]
    assert bridge.prompt_ids.tolist()[: len(known)] == known
    assert bridge.known_len == len(known)
    assert bridge.prompt_ids.tolist() == [*known, *bridge.added_ids]


@relaxed
@given(data=st.data())
def test_law_2_the_bridge_is_the_end_of_the_full_rendering(renderer: Renderer, data: st.DataObject) -> None:
    turn = draw_turn(data, renderer)
    opening, assistant, new, *_ = turn
    bridge = bridge_of(renderer, turn)
    full = renderer.render_ids((*opening, assistant, *new), tools=TOOLS).tolist()
    inserted = {
        Junction.EXACT: 0,
        Junction.STOP_REWRITTEN: 0,
        Junction.CLOSE_RESTORED: 1,
        Junction.CLOSE_ADDED: 1,
    }[bridge.junction]
    behind_close = list(bridge.added_ids[inserted:])
    if bridge.junction is Junction.CLOSE_ADDED:  # open reasoning is closed first, by a few ids more
        closes = [i for i, token_id in enumerate(bridge.added_ids) if token_id in renderer.stop_ids]
        behind_close = list(bridge.added_ids[closes[0] + 1 :])
    assert full[len(full) - len(behind_close) :] == behind_close
    assert full[len(full) - len(behind_close) - 1] in renderer.stop_ids
    text = unicodedata.normalize("NFC", renderer.tokenizer.decode(behind_close))
    for message in new:
        written = unicodedata.normalize("NFC", (message.content or "").strip())  # Qwen's tokenizer normalises
        assert written in text or json.dumps(written, ensure_ascii=False)[1:-1] in text


@relaxed
@given(data=st.data())
def test_the_fast_path_is_the_slow_path(renderer: Renderer, data: st.DataObject) -> None:
    """A short history and the whole one give the same tail, over conversations of several turns."""
    assert renderer.certificate.short_history
    calls = 1 if renderer.tool_format is not None and renderer.tool_format.name.startswith("bare") else 3
    history = data.draw(openings)
    for _ in range(data.draw(st.integers(1, 4))):
        assistant = data.draw(assistant_messages(calls, reasoning=renderer.reader.reasoning is not None))
        history = (*history, assistant)
        new = data.draw(follow_ups(assistant))
        assume(takes(renderer, (*history, *new)))
        asked = FollowUp(history, new, TOOLS)
        tails = renderer.bridges.tails
        assert tails.tail(asked) == tails.full_tail(asked) == tails.derive(asked)
        short = asked.shortened()
        if short is not None:
            found, whole = tails.derive(short), tails.derive(asked)
            assert isinstance(found, Tail)
            assert isinstance(whole, Tail)
            assert (found.seam, found.text) == (whole.seam, whole.text)
        history = (*history, *new)
    assert renderer.bridges.tails.memory.disproofs == []


@relaxed
@given(data=st.data())
def test_the_spans_tile_the_bridge_and_name_the_new_messages(renderer: Renderer, data: st.DataObject) -> None:
    turn = draw_turn(data, renderer)
    opening, _, new, *_ = turn
    bridge = bridge_of(renderer, turn)
    position = bridge.known_len
    for span in bridge.spans:
        assert span.start == position
        assert span.end > span.start
        assert span.kind is not TokenKind.SAMPLED
        position = span.end
    assert position == len(bridge.prompt_ids)
    owners = {span.owner for span in bridge.spans if span.kind is TokenKind.BODY}
    first = len(opening) + 1
    assert owners <= set(range(first, first + len(new)))
    assert owners >= {first + i for i, message in enumerate(new) if (message.content or "").strip()}


@relaxed
@given(data=st.data())
def test_the_junction_says_how_sampling_ended(renderer: Renderer, data: st.DataObject) -> None:
    turn = draw_turn(data, renderer)
    sampled, bridge = turn[3], bridge_of(renderer, turn)
    close = renderer.tokenizer.added_token(renderer.certificate.close or "")
    assert close is not None
    if sampled.ids[-1] == close.id:
        expected = Junction.EXACT
    elif sampled.ids[-1] in renderer.stop_ids:
        expected = Junction.STOP_REWRITTEN
    elif sampled.finish_reason is FinishReason.STOP:
        expected = Junction.CLOSE_RESTORED
    else:
        expected = Junction.CLOSE_ADDED
    assert bridge.junction is expected
    assert (bridge.added_ids[0] == close.id) == (expected is Junction.CLOSE_RESTORED) or (
        expected is Junction.CLOSE_ADDED
    )


@relaxed
@given(data=st.data())
def test_a_stop_in_the_middle_is_refused_never_trimmed(renderer: Renderer, data: st.DataObject) -> None:
    opening, assistant, new, sampled, prompt_ids = draw_turn(data, renderer)
    at = data.draw(st.integers(0, len(sampled.ids) - 1))
    broken = [*sampled.ids[:at], renderer.stop_ids[0], *sampled.ids[at:]]
    outcome = renderer.bridge_to_next_turn(prompt_ids, broken, new, history=(*opening, assistant), tools=TOOLS)
    assert isinstance(outcome, BridgeRefused)
    assert outcome.why is Why.STOP_IN_MIDDLE
    assert f"position {at}" in outcome.detail


def test_without_history_a_proved_shape_is_bridged(renderer: Renderer) -> None:
    opening = (Message(role="user", content="Hello there"),)
    assistant = Message(role="assistant", content="Hi")
    new = (Message(role="user", content="And now?"),)
    prompt, ids = renderer.render_ids(opening), renderer.render_assistant(assistant)
    with_history = renderer.bridge_to_next_turn(prompt, ids, new, history=(*opening, assistant))
    assert isinstance(with_history, Bridge)
    without = renderer.bridge_to_next_turn(prompt, ids, new)
    assert isinstance(without, Bridge)
    assert without.prompt_ids == with_history.prompt_ids


def test_what_cannot_be_proved_is_refused_with_its_reason(qwen_like: Renderer, without_close: Renderer) -> None:
    user = Message(role="user", content="Hi")
    assistant = Message(role="assistant", content="Ho")
    ids = TokenIds([1, 2, 3])

    def why(renderer: Renderer, history: tuple[Message, ...], new: tuple[Message, ...]) -> Why:
        outcome = renderer.bridge_to_next_turn(ids, [5], new, history=history)
        assert isinstance(outcome, BridgeRefused)
        assert outcome.detail
        return outcome.why

    image = Message.from_any({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]})
    assert why(qwen_like, (user, assistant), ()) is Why.NOTHING_NEW
    assert why(qwen_like, (user, assistant), (user, assistant)) is Why.ASSISTANT_IN_NEW
    assert why(qwen_like, (user, assistant), (image,)) is Why.NOT_TEXT
    assert why(qwen_like, (user,), (user,)) is Why.HISTORY_NEEDED
    assert why(without_close, (user, assistant), (user,)) is Why.NO_ATOMIC_CLOSE


def test_truncated_reasoning_is_closed_before_the_message_is(qwen_like: Renderer) -> None:
    tokenizer = qwen_like.tokenizer
    prompt = qwen_like.render_ids([{"role": "user", "content": "Hi"}])
    cut = tokenizer.encode("<think>\nI wond")
    outcome = qwen_like.bridge_to_next_turn(
        prompt,
        cut,
        [{"role": "user", "content": "Well?"}],
        history=[{"role": "user", "content": "Hi"}, {"role": "assistant", "reasoning_content": "I wond"}],
        finish_reason=FinishReason.LENGTH,
    )
    assert isinstance(outcome, Bridge)
    added = tokenizer.decode(outcome.added_ids)
    assert added.startswith("\n</think>\n\n<|im_end|>\n<|im_start|>user\nWell?")
    assert outcome.junction is Junction.CLOSE_ADDED
