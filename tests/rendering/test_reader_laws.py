"""Law 6: reading is the inverse of writing, whatever the model's own split, and never raises."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversations import TOOLS, assistant_messages, takes
from tokentrue import Message, Renderer
from tokentrue.rendering.formats.parsed import CallStatus
from tokentrue.rendering.formats.reasoning import ReasoningState
from tokentrue.rendering.reader import MALFORMED_KEY
from tokentrue.rendering.streaming import ContentDelta

relaxed = settings(max_examples=60, deadline=None)


def draw_message(data: st.DataObject, renderer: Renderer) -> Message | None:
    bare = renderer.tool_format is not None and renderer.tool_format.name.startswith("bare")
    message = data.draw(assistant_messages(1 if bare else 3, reasoning=renderer.reader.reasoning is not None))
    if bare and message.tool_calls and message.content:
        return None  # Llama's template drops text beside a call
    return message if takes(renderer, (Message(role="user", content="?"), message)) else None


@relaxed
@given(data=st.data())
def test_law_6_parse_is_the_inverse_of_render_assistant(renderer: Renderer, data: st.DataObject) -> None:
    message = draw_message(data, renderer)
    if message is None:
        return
    ids = renderer.render_assistant(message, tools=TOOLS)
    parsed = renderer.parse_response(ids, tools=TOOLS)
    assert all(call.status is CallStatus.OK for call in parsed.tool_calls)
    assert parsed.stop_id in renderer.stop_ids
    expected = Message.from_any(json.loads(renderer_text(renderer, json.dumps(message.to_openai()))))
    assert parsed.to_message("call").digest == expected.digest


def renderer_text(renderer: Renderer, text: str) -> str:
    """Text as the tokenizer can hold it: some normalise it (Qwen: NFC)."""
    value = json.loads(text)

    def through(item: object) -> object:
        if isinstance(item, str):
            return renderer.tokenizer.decode(renderer.tokenizer.encode(item)) if item else item
        if isinstance(item, dict):
            return {key: through(inner) for key, inner in item.items()}
        if isinstance(item, list):
            return [through(inner) for inner in item]
        return item

    for call in value.get("tool_calls", []):
        arguments = through(json.loads(call["function"]["arguments"]))
        call["function"]["arguments"] = json.dumps(arguments)
    return json.dumps({key: item if key == "tool_calls" else through(item) for key, item in value.items()})


@relaxed
@given(data=st.data())
def test_a_cut_anywhere_is_read_without_an_exception_and_invents_nothing(
    renderer: Renderer, data: st.DataObject
) -> None:
    message = draw_message(data, renderer)
    if message is None:
        return
    ids = renderer.render_assistant(message, tools=TOOLS).tolist()
    whole = renderer.parse_response(ids, tools=TOOLS)
    for length in range(len(ids)):
        parsed = renderer.parse_response(ids[:length], tools=TOOLS)
        assert len(parsed.tool_calls) <= len(whole.tool_calls)
        for call, whole_call in zip(parsed.tool_calls, whole.tool_calls, strict=False):
            if call.status is CallStatus.OK:
                assert (call.name, call.arguments) == (whole_call.name, whole_call.arguments)
            else:
                assert call.arguments is None


@given(ids=st.lists(st.integers(0, 610), max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_ids_can_be_read_and_every_attempt_has_a_status(qwen_like: Renderer, ids: list[int]) -> None:
    parsed = qwen_like.parse_response(ids)
    opener = qwen_like.tokenizer.added_token("<tool_call>")
    assert opener is not None
    if parsed.reasoning is ReasoningState.ABSENT:
        body = ids[:-1] if parsed.stop_id is not None else ids
        assert len(parsed.tool_calls) == body.count(opener.id)
    message = parsed.to_message()
    kept = len(message.tool_calls) + len(message.extra.get(MALFORMED_KEY, []))
    assert kept == len(parsed.tool_calls)


@pytest.mark.parametrize(
    ("text", "status", "name", "arguments"),
    [
        ('{"name": "look_up", "arguments": {"word": "x"}}', CallStatus.OK, "look_up", '{"word": "x"}'),
        ('{"name":"look_up","arguments":{ "word":1.50 }}', CallStatus.OK, "look_up", '{ "word":1.50 }'),
        ('{"name": "look_up", "arguments": {"word": ', CallStatus.INVALID_JSON, None, None),
        ('{"name": "other", "arguments": {}}', CallStatus.UNKNOWN_TOOL, "other", "{}"),
        ('{"arguments": {}}', CallStatus.MISSING_NAME, None, None),
        ('{"name": 7, "arguments": {}}', CallStatus.MISSING_NAME, None, None),
        ('{"name": "look_up"}', CallStatus.INVALID_JSON, "look_up", None),
        ("look_up(word=1)", CallStatus.INVALID_JSON, None, None),
        ("", CallStatus.INVALID_JSON, None, None),
    ],
)
def test_each_kind_of_attempt_has_its_status(
    qwen_like: Renderer, text: str, status: CallStatus, name: str | None, arguments: str | None
) -> None:
    ids = qwen_like.tokenizer.encode(f"I try.\n<tool_call>\n{text}\n</tool_call><|im_end|>")
    parsed = qwen_like.parse_response(ids, tools=TOOLS)
    assert parsed.content == "I try."
    (call,) = parsed.tool_calls
    assert (call.status, call.name, call.arguments) == (status, name, arguments)
    assert call.raw.strip() == text.strip()
    assert parsed.has_ok_call == (status is CallStatus.OK)


def test_a_call_that_is_never_closed_is_kept_with_what_was_written(qwen_like: Renderer) -> None:
    ids = qwen_like.tokenizer.encode('<tool_call>\n{"name": "look_up", "argu')
    parsed = qwen_like.parse_response(ids, tools=TOOLS)
    assert [(call.status, call.raw) for call in parsed.tool_calls] == [
        (CallStatus.UNCLOSED, '\n{"name": "look_up", "argu')
    ]
    assert parsed.to_message().extra[MALFORMED_KEY] == [
        {"raw": '\n{"name": "look_up", "argu', "status": "unclosed"}
    ]


def test_text_that_spells_a_marker_is_content(qwen_like: Renderer) -> None:
    pieces = ["<tool", "_call>", '{"name": "look_up", "arguments": {}}', "</tool", "_call>"]
    ids = [token_id for piece in pieces for token_id in qwen_like.tokenizer.encode(piece)]
    parsed = qwen_like.parse_response(ids, tools=TOOLS)
    assert parsed.tool_calls == ()
    assert parsed.content == "".join(pieces)


def test_text_behind_a_call_is_not_lost(qwen_like: Renderer) -> None:
    call = '<tool_call>\n{"name": "look_up", "arguments": {}}\n</tool_call>'
    parsed = qwen_like.parse_response(qwen_like.tokenizer.encode(f"before\n{call} behind"), tools=TOOLS)
    assert parsed.content == "before behind"
    assert parsed.has_ok_call


def test_reasoning_is_told_open_closed_and_absent(qwen_like: Renderer) -> None:
    encode = qwen_like.tokenizer.encode

    def read(text: str, prompt: str = "") -> tuple[ReasoningState, str | None, str]:
        parsed = qwen_like.parse_response(encode(text), prompt_ids=encode(prompt))
        return parsed.reasoning, parsed.reasoning_content, parsed.content

    assert read("<think>\nI see.\n</think>\n\nYes.") == (ReasoningState.CLOSED, "I see.", "Yes.")
    assert read("<think>\nI se") == (ReasoningState.OPEN, "I se", "")
    assert read("Yes.") == (ReasoningState.ABSENT, None, "Yes.")
    opened = "<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert read("I see.\n</think>\n\nYes.", opened) == (ReasoningState.CLOSED, "I see.", "Yes.")
    shut = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert read("Yes.", shut) == (ReasoningState.ABSENT, None, "Yes.")


@pytest.mark.parametrize(
    ("prompt", "text", "content"),
    [
        ("<think>\n\n</think>", "\n\nYes.", "Yes."),
        ("<think>\n\n</think>", "\n\n\nYes.", "\nYes."),
        ("<think>\n\n</think>", "Yes.", "Yes."),
        ("<think>\n\n</think>", "\nYes.", "\nYes."),
        ("<think>\n\n</think>", "\n\n", ""),
        ("<think>\n\n</think>", "\n", "\n"),
        ("<think>\n\n</think>\n\n", "\n\nYes.", "\n\nYes."),
        ("</think> So", "\n\nYes.", "\n\nYes."),
    ],
)
def test_white_space_behind_reasoning_that_the_prompt_closes_is_the_templates(
    qwen_like: Renderer, prompt: str, text: str, content: str
) -> None:
    encode = qwen_like.tokenizer.encode
    prompt_ids = encode(f"<|im_end|>\n<|im_start|>assistant\n{prompt}")
    parsed = qwen_like.parse_response(encode(text), prompt_ids=prompt_ids)
    assert (parsed.reasoning, parsed.content) == (ReasoningState.ABSENT, content)
    reader = qwen_like.start_reading(prompt_ids=prompt_ids)
    deltas = [delta for token_id in encode(text) for delta in reader.feed([token_id])] + list(reader.finish())
    assert "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta)) == content
