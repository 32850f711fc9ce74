"""Sentinels: words that stand for message text while a template shows where it puts that text.

Message text is never searched for in a rendering: it may equal anything the template writes. A
sentinel is a word of letters and digits that occurs nowhere else, which no template trims or escapes;
where a text happens to hold such a word, other words are taken (`salt`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tokentrue.messages import Message, ToolCall


@dataclass(frozen=True, slots=True)
class Body:
    """One stretch of message text: its sentinel, its real text, and the message it belongs to."""

    sentinel: str
    text: str
    owner: int


@dataclass(frozen=True, slots=True)
class Masked:
    """Messages whose text was replaced by sentinels, and what was replaced."""

    messages: tuple[Message, ...]
    bodies: tuple[Body, ...]


def sentinel(kind: str, index: int, part: int = 0, salt: int = 0) -> str:
    """A word that no other sentinel contains: fixed width, one letter for the kind."""
    return f"qz{kind}{salt:03d}y{index:06d}x{part:03d}zq"


def mask_new(messages: Sequence[Message], first_index: int, salt: int = 0) -> Masked:
    """Replace the content of each message by a sentinel; roles, names and ids stay real."""
    masked: list[Message] = []
    bodies: list[Body] = []
    for offset, message in enumerate(messages):
        word = sentinel("N", offset, salt=salt)
        bodies.append(Body(word, message.content or "", first_index + offset))
        masked.append(with_content(message, word))
    return Masked(tuple(masked), tuple(bodies))


def mask_assistant(message: Message, index: int, salt: int = 0, *, with_text: bool = False) -> Masked:
    """The sampled assistant message without a byte of model text: sentinels for content and arguments.

    Call names and ids stay, because templates look them up when they write tool results. Reasoning is
    left out: whether it is kept is decided before the close, never behind it.

    Args:
        with_text: Give it content though it only calls tools.
    """
    bodies: list[Body] = []
    content = None
    if with_text or message.content or not message.tool_calls:
        content = sentinel("A", 0, salt=salt)
        bodies.append(Body(content, message.content or "", index))
    calls: list[ToolCall] = []
    for position, call in enumerate(message.tool_calls):
        word = sentinel("A", 1, position, salt)
        bodies.append(Body(word, call.arguments, index))
        calls.append(ToolCall(name=call.name, arguments=json.dumps({"qz": word}), id=call.id))
    masked = Message(role="assistant", content=content, tool_calls=tuple(calls), name=message.name)
    return Masked((masked,), tuple(bodies))


def with_content(message: Message, content: str) -> Message:
    """The same message with other content."""
    return Message(
        role=message.role,
        content=content,
        reasoning_content=message.reasoning_content,
        tool_calls=message.tool_calls,
        tool_call_id=message.tool_call_id,
        name=message.name,
        extra=dict(message.extra),
    )


def unmasked(text: str, *masked: Masked) -> str:
    """`text` with what the sentinels stand for."""
    for body in (body for each in masked for body in each.bodies):
        text = text.replace(body.sentinel, body.text)
    return text
