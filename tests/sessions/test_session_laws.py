"""Laws 1, 5 and 7 over whole generated sessions: growing, branching, retried, edited."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversations import TOOLS, assistant_messages, draw_completion, follow_ups, openings
from tokentrue import Message, Renderer, Session, load_renderer
from tokentrue.errors import AlignmentError
from tokentrue.generation import FinishReason, Generation, make_tokens
from tokentrue.rendering.renderer import Renderer as _Renderer
from tokentrue.sessions.samples import training_samples
from tokentrue.turns import FALLBACKS, How, Junction, Turn, Why

EMBEDDED = Path(__file__).parents[2] / "src" / "tokentrue" / "engines" / "embedded" / "model"
relaxed = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="session")
def renderer() -> Renderer:
    """The embedded model's own folder: a Qwen3-like template."""
    return load_renderer(EMBEDDED)


def play(
    session: Session, renderer: _Renderer, messages: tuple[Message, ...], ids: list[int], finish: FinishReason
) -> tuple[Turn, Message]:
    """One turn: stitch, "sample" `ids`, read them, commit."""
    stitched = session.stitch(renderer, messages, TOOLS)
    logprobs = [-(int(hashlib.md5(str((i, t)).encode()).hexdigest(), 16) % 97) / 97 for i, t in enumerate(ids)]
    generation = Generation(tokens=make_tokens(stitched.prompt_ids, ids, logprobs), finish_reason=finish)
    parsed = renderer.parse_response(ids, prompt_ids=stitched.prompt_ids, tools=TOOLS)
    message = parsed.to_message(f"call_{len(session.turns)}")
    return session.commit(stitched, generation, message, finish), message


def draw_session(data: st.DataObject, renderer: Renderer) -> tuple[Session, list[tuple[Message, ...]]]:
    """A session of several turns; now and then the caller goes back and goes on from an earlier point."""
    session = Session("s")
    histories: list[tuple[Message, ...]] = [data.draw(openings)]
    prompts: list[tuple[Message, ...]] = []
    for _ in range(data.draw(st.integers(1, 6))):
        prompt = data.draw(st.sampled_from(histories)) if data.draw(st.booleans()) else histories[-1]
        wanted = data.draw(assistant_messages())
        sampled = draw_completion(data, renderer, wanted)
        _, message = play(session, renderer, prompt, sampled.ids, sampled.finish_reason)
        prompts.append(prompt)
        histories.append((*prompt, message, *data.draw(follow_ups(message))))
    return session, prompts


@relaxed
@given(data=st.data())
def test_law_1_and_law_5_hold_on_every_turn(renderer: Renderer, data: st.DataObject) -> None:
    session, prompts = draw_session(data, renderer)
    for turn, prompt in zip(session.turns, prompts, strict=True):
        sampled_before = any(message.role == "assistant" for message in prompt)
        if turn.stitch.how is How.BRIDGED:
            assert turn.stitch.anchor_turn is not None
            anchor = session.turns[turn.stitch.anchor_turn].tokens
            assert turn.tokens.prompt_ids.starts_with(anchor.all_ids())
            assert turn.stitch.known_len == len(anchor.all_ids())
            assert turn.stitch.junction is not None
        else:
            assert turn.stitch.why in (Why.FIRST_TURN, Why.RETRY_SAME_PROMPT)
            assert not sampled_before
        assert turn.stitch.why not in FALLBACKS


@relaxed
@given(data=st.data())
def test_law_7_every_sampled_id_is_trained_exactly_once(renderer: Renderer, data: st.DataObject) -> None:
    session, _ = draw_session(data, renderer)
    samples = training_samples(session.turns)
    trained = sum(int(sample.loss_mask.sum()) for sample in samples)
    assert trained == sum(len(turn.tokens.completion_ids) for turn in session.turns)
    for sample in samples:
        assert np.isnan(sample.logprobs[~sample.loss_mask]).all()
        assert np.isfinite(sample.logprobs[sample.loss_mask]).all()
    firsts = {turn.index: next(s for s in samples if turn.index in s.turns) for turn in session.turns}
    for index, sample in firsts.items():
        tokens = session.turns[index].tokens
        at = slice(len(tokens.prompt_ids), len(tokens.all_ids()))
        assert sample.token_ids[at].tolist() == tokens.completion_ids
        assert sample.loss_mask[at].all()
        assert sample.logprobs[at].tolist() == tokens.completion_logprobs


@relaxed
@given(data=st.data())
def test_the_spans_of_a_turn_tile_what_is_new_in_its_prompt(renderer: Renderer, data: st.DataObject) -> None:
    session, _ = draw_session(data, renderer)
    for turn in session.turns:
        position = turn.stitch.known_len
        for span in turn.prompt_spans:
            assert span.start == position
            position = span.end
        assert position == len(turn.tokens.prompt_ids)


def ids_of(renderer: Renderer, text: str) -> list[int]:
    return [*renderer.tokenizer.encode(text), renderer.stop_ids[0]]


def test_dicts_typed_objects_and_messages_are_one_history(renderer: Renderer) -> None:
    session = Session()
    user = {"role": "user", "content": "What is 2 + 2?"}
    messages = session.read_messages([user])
    _, said = play(session, renderer, messages, ids_of(renderer, "It is 4."), FinishReason.STOP)
    history = [
        user,
        {"role": "assistant", "content": "It is 4.", "tool_calls": None},
        {"role": "user", "content": "?"},
    ]
    as_parts = json.loads(json.dumps(history))
    as_parts[0]["content"] = [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 2?"}]
    assert said.content == "It is 4."
    for values in (history, as_parts, [Message.from_any(value) for value in history]):
        stitched = session.stitch(renderer, session.read_messages(values), TOOLS)
        assert stitched.stitch.how is How.BRIDGED


def test_a_retry_of_the_same_prompt_uses_the_same_ids(renderer: Renderer) -> None:
    session = Session()
    prompt = session.read_messages("Hello")
    first, _ = play(session, renderer, prompt, ids_of(renderer, "Hi."), FinishReason.STOP)
    second, _ = play(session, renderer, prompt, ids_of(renderer, "Ho."), FinishReason.STOP)
    assert second.tokens.prompt_ids == first.tokens.prompt_ids
    assert second.stitch.why is Why.RETRY_SAME_PROMPT
    assert len(training_samples(session.turns)) == 2


def test_an_edited_message_opens_a_branch_at_the_deepest_sampled_message(renderer: Renderer) -> None:
    session = Session()
    user = Message(role="user", content="Go")
    turn, said = play(session, renderer, (user,), ids_of(renderer, "One."), FinishReason.STOP)
    more = (user, said, Message(role="user", content="Two?"))
    _, said_two = play(session, renderer, more, ids_of(renderer, "Two."), FinishReason.STOP)
    edited = (user, said, Message(role="user", content="Three?"))
    stitched = session.stitch(renderer, edited, TOOLS)
    assert stitched.stitch.how is How.BRIDGED
    assert stitched.stitch.anchor_turn == turn.index
    assert "Three?" in renderer.tokenizer.decode(stitched.prompt_ids)
    assert said_two.content == "Two."


@pytest.mark.parametrize("changed", ["tools", "assistant"])
def test_what_cannot_be_stitched_says_why(renderer: Renderer, changed: str) -> None:
    session = Session()
    user = Message(role="user", content="Go")
    _, said = play(session, renderer, (user,), ids_of(renderer, "One."), FinishReason.STOP)
    if changed == "tools":
        stitched = session.stitch(renderer, (user, said, user), ())
        assert "no turn of this session had these tools" in stitched.stitch.detail
    else:
        other = Message(role="assistant", content="Something else.")
        stitched = session.stitch(renderer, (user, other, user), TOOLS)
        assert "message 1 is the first that this session does not know" in stitched.stitch.detail
    assert stitched.stitch.how is How.RENDERED
    assert stitched.stitch.why is Why.NO_SHARED_PREFIX


def test_a_foreign_assistant_message_behind_a_sampled_one_is_a_named_fallback(renderer: Renderer) -> None:
    session = Session()
    user = Message(role="user", content="Go")
    _, said = play(session, renderer, (user,), ids_of(renderer, "One."), FinishReason.STOP)
    foreign = Message(role="assistant", content="Written by somebody else.")
    stitched = session.stitch(renderer, (user, said, user, foreign, user), TOOLS)
    assert stitched.stitch.why is Why.ASSISTANT_IN_NEW
    assert "message 3" in stitched.stitch.detail


def test_a_sample_whose_ids_contradict_its_turns_is_refused(renderer: Renderer) -> None:
    session = Session()
    user = Message(role="user", content="Go")
    _, said = play(session, renderer, (user,), ids_of(renderer, "One."), FinishReason.STOP)
    play(session, renderer, (user, said, user), ids_of(renderer, "Two."), FinishReason.STOP)
    first, second = session.turns
    tampered = make_tokens(
        first.tokens.prompt_ids, [1] * len(first.tokens.completion_ids), [-1.0] * len(first.tokens.completion_ids)
    )
    wrong = Turn(0, tampered, first.stitch, first.finish_reason, None, first.usage)
    with pytest.raises(AlignmentError, match=r"turn 0: .*law 1"):
        training_samples([wrong, second])


def test_a_dropped_opener_gives_its_turn_a_sample_of_its_own(renderer: Renderer) -> None:
    session = Session()
    user = Message(role="user", content="Go")
    _, said = play(session, renderer, (user,), ids_of(renderer, "One."), FinishReason.STOP)
    turn, _ = play(session, renderer, (user, said, user), ids_of(renderer, "Two."), FinishReason.STOP)
    from dataclasses import replace

    dropped = replace(turn, stitch=replace(turn.stitch, junction=Junction.OPENER_DROPPED))
    samples = training_samples([session.turns[0], dropped])
    assert [sample.turns for sample in samples] == [(0,), (1,)]
