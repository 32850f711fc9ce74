"""One canonical form: what is the same message is decided by `digest`, and by nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentrue.errors import InvalidMessageError
from tokentrue.messages import Message, ToolCall, messages_from, tools_from

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@dataclass
class Typed:
    """Stands for a client library's typed message."""

    data: dict[str, Any]

    def model_dump(self) -> dict[str, Any]:
        return self.data


@given(st.text(max_size=20))
def test_parts_strings_and_typed_objects_are_one_message(text: str) -> None:
    plain = Message.from_any({"role": "user", "content": text})
    parts = Message.from_any({"role": "user", "content": [{"type": "text", "text": text}], "name": None})
    typed = Message.from_any(Typed({"role": "user", "content": text}))
    assert plain.digest == parts.digest == typed.digest
    assert (plain.digest == Message.from_any({"role": "user"}).digest) == (text == "")


@given(st.dictionaries(st.text(max_size=6), json_values, max_size=4))
def test_arguments_are_the_same_when_they_are_the_same_json_value(value: dict[str, Any]) -> None:
    def message(text: str) -> Message:
        return Message(role="assistant", tool_calls=(ToolCall("f", text, "c1"),))

    spaced, compact = json.dumps(value, indent=2), json.dumps(value, separators=(",", ":"), sort_keys=True)
    assert message(spaced).digest == message(compact).digest
    assert message(spaced).digest != message(json.dumps({"other": value})).digest


def test_numbers_that_are_equal_as_json_values_are_the_same() -> None:
    one = Message(role="assistant", tool_calls=(ToolCall("f", '{"a": 1.0}'),))
    assert one.digest == Message(role="assistant", tool_calls=(ToolCall("f", '{"a":1}'),)).digest


def test_broken_arguments_are_kept_and_never_equal_to_empty_ones() -> None:
    broken = Message(role="assistant", tool_calls=(ToolCall("f", '{"a": '),))
    assert broken.to_openai()["tool_calls"][0]["function"]["arguments"] == '{"a": '
    assert broken.digest != Message(role="assistant", tool_calls=(ToolCall("f", "{}"),)).digest


@given(st.dictionaries(st.sampled_from(["content", "name", "reasoning_content", "weight"]), st.text(max_size=5)))
def test_reading_is_the_inverse_of_writing(fields: dict[str, str]) -> None:
    message = Message.from_any({"role": "assistant", **fields})
    assert Message.from_any(message.to_openai()) == message
    assert Message.from_any(message.to_openai()).digest == message.digest


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"content": "x"}, r"messages\[1\] has no role"),
        ({"role": "robot", "content": "x"}, "'robot' is not one of"),
        ({"role": "user", "content": 3}, "content must be text"),
        ({"role": "user", "content": [{"text": "x"}]}, r"content\[0\] is no content part"),
        ({"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}, "cannot carry tool_calls"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "has no function name"),
        ({"role": "assistant", "tool_calls": {}}, "must be a list"),
        ({"role": "tool", "content": "x", "tool_call_id": 7}, "tool_call_id of a tool message"),
        (17, "must be a mapping"),
    ],
)
def test_a_wrong_message_is_named(value: object, says: str) -> None:
    with pytest.raises(InvalidMessageError, match=says):
        messages_from([{"role": "user", "content": "ok"}, value])  # type: ignore[list-item]


def test_parts_that_are_not_text_are_kept() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:…"}}
    message = Message.from_any({"role": "user", "content": [{"type": "text", "text": "look"}, image]})
    assert message.content is None
    assert message.parts == ({"type": "text", "text": "look"}, image)


def test_tools_come_in_both_envelopes() -> None:
    bare = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert tools_from([bare]) == tools_from([{"type": "function", "function": bare}])
    with pytest.raises(InvalidMessageError, match=r"tools\[0\] has no function name"):
        tools_from([{"type": "function"}])
