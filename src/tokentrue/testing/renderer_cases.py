"""Generated turns for renderers, small ones first, and the smallest one that still shows a fault."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from tokentrue.messages import Message, ToolCall

_TYPES = {
    "s": "string",
    "text": "string",
    "i": "integer",
    "n": "number",
    "b": "boolean",
    "a": "array",
    "o": "object",
}
TOOLS: tuple[dict[str, Any], ...] = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Does it.",
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind, "description": "d"} for key, kind in _TYPES.items()},
                "required": [],
            },
        },
    }
    for name in ("look_up", "send")
)
"""The tools of every case: arguments of every JSON type, so that a grammar without quotes can be read back."""

_PIECES = (
    *("a", "Yes", " ", "\n", "\n\n", "é", "漢字", "🙂", '"', "'", "\\", "{", "}", "[", "]", ".", ":\n\n"),
    *(":", ",", "7", "23", "null", "true", "<", "</", ">", "```", "|", "|>", "\t", "word " * 12),
)
_MOST_SHRINKING = 60


class Ending(Enum):
    """How sampling ended."""

    CLEAN = "with the stop that the template writes"
    OTHER_STOP = "with another stop id"
    STRIPPED = "stopped, and the engine left the stop out"
    CUT = "cut by the limit"


@dataclass(frozen=True, slots=True)
class RendererCase:
    """One turn: `said` is sampled behind `opening`, and `new` follows.

    Args:
        cut: Which part of the sampled ids is kept, where `ending` is `CUT`.
        tools: Empty, or `TOOLS`.
    """

    opening: tuple[Message, ...]
    said: Message
    new: tuple[Message, ...]
    ending: Ending = Ending.CLEAN
    cut: float = 0.5
    tools: tuple[dict[str, Any], ...] = TOOLS

    def __str__(self) -> str:
        told = [json.dumps(each.to_openai(), ensure_ascii=False) for each in (*self.opening, self.said, *self.new)]
        tools = "with" if self.tools else "without"
        return "\n  ".join([f"{self.ending.name} (cut {self.cut:.2f}), {tools} tools:", *told])


def generate_cases(seed: int, count: int) -> Iterator[RendererCase]:
    """`count` turns, small ones first; every fourth is without tools and calls."""
    chance = random.Random(seed)
    endings = list(Ending)
    for index in range(count):
        size = 1 + index * 5 // max(count, 1)
        uses_tools = index % 4 != 3
        calls = chance.choice((0, 1, 1, 2, 3)) if uses_tools else 0
        said = Message(
            role="assistant",
            content=_said(chance, size) if not calls or chance.random() < 0.4 else None,
            reasoning_content=_said(chance, size) if chance.random() < 0.5 else None,
            tool_calls=tuple(_call(chance, size, number) for number in range(calls)),
        )
        system = (Message(role="system", content=_text(chance, size)),) if chance.random() < 0.5 else ()
        earlier = (_user(_text(chance, size)), Message(role="assistant", content=_said(chance, size)))
        opening = (*system, *(earlier if chance.random() < 0.3 else ()), _user(_text(chance, size)))
        case = RendererCase(
            opening=opening,
            said=said,
            new=_follow_up(chance, size, said),
            ending=endings[index % len(endings)],
            cut=chance.random(),
            tools=TOOLS if uses_tools else (),
        )
        yield case


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def _text(chance: random.Random, most: int) -> str:
    return "".join(chance.choice(_PIECES) for _ in range(chance.randint(0, most)))


def _said(chance: random.Random, most: int) -> str:
    # Templates trim what was said; a text that needs no trimming comes back as it was.
    return "S" + _text(chance, most) + "E"


def _call(chance: random.Random, size: int, number: int) -> ToolCall:
    typed: dict[str, Callable[[], Any]] = {
        "s": lambda: _text(chance, size),
        "text": lambda: _text(chance, size),
        "i": lambda: chance.randint(-99, 99),
        "b": lambda: chance.random() < 0.5,
        "n": lambda: chance.choice((1.5, -2, 0.25)),
        "a": lambda: [_text(chance, size), 1, {"k": None}],
        "o": lambda: {"k": _text(chance, size)},
    }
    keys = chance.sample(sorted(typed), chance.randint(0, min(size, 4)))
    arguments = {key: typed[key]() for key in keys}
    name = chance.choice(("look_up", "send"))
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False), f"call{number:05d}")


def _follow_up(chance: random.Random, size: int, said: Message) -> tuple[Message, ...]:
    if not said.tool_calls:
        return (_user(_text(chance, size)),)
    results = tuple(
        Message(role="tool", content=_text(chance, size), tool_call_id=call.id, name=call.name)
        for call in said.tool_calls
    )
    return results if chance.random() < 0.6 else (*results, _user(_text(chance, size)))


def smallest_case(case: RendererCase, fails: Callable[[RendererCase], str]) -> RendererCase:
    """The smallest case found for which `fails` still tells something, by leaving out one thing after another."""
    left = _MOST_SHRINKING
    shrunk = True
    while shrunk and left > 0:
        shrunk = False
        for smaller in _smaller(case):
            left -= 1
            if fails(smaller):
                case, shrunk = smaller, True
                break
            if left <= 0:
                break
    return case


def _smaller(case: RendererCase) -> Iterator[RendererCase]:
    if len(case.opening) > 1:
        yield replace(case, opening=case.opening[-1:])
    said, new = case.said, case.new
    if case.ending is not Ending.CLEAN:
        yield replace(case, ending=Ending.CLEAN)
    if said.reasoning_content is not None:
        yield replace(case, said=replace(said, reasoning_content=None))
    if said.content is not None and said.tool_calls:
        yield replace(case, said=replace(said, content=None))
    if said.tool_calls and new[-1].role == "user":
        yield replace(case, new=new[:-1])
    if len(said.tool_calls) > 1:
        kept = said.tool_calls[:-1]
        results = tuple(each for each in new if each.tool_call_id != said.tool_calls[-1].id)
        yield replace(case, said=replace(said, tool_calls=kept), new=results)
    elif said.tool_calls:
        yield replace(case, said=Message(role="assistant", content="S"), new=(_user("?"),))
    if case.tools and not said.tool_calls:
        yield replace(case, tools=())
    yield from _with_shorter_texts(case)


def _with_shorter_texts(case: RendererCase) -> Iterator[RendererCase]:
    for shorter in _shorter(case.said.content, "SE"):
        yield replace(case, said=replace(case.said, content=shorter))
    for shorter in _shorter(case.said.reasoning_content, "SE"):
        yield replace(case, said=replace(case.said, reasoning_content=shorter))
    for at, message in enumerate(case.opening):
        for shorter in _shorter(message.content, "?"):
            yield replace(case, opening=_with(case.opening, at, replace(message, content=shorter)))
    for at, message in enumerate(case.new):
        for shorter in _shorter(message.content, "?"):
            yield replace(case, new=_with(case.new, at, replace(message, content=shorter)))
    for at, call in enumerate(case.said.tool_calls):
        value = call.arguments_or_text()
        for key in value:
            less = json.dumps({k: v for k, v in value.items() if k != key}, ensure_ascii=False)
            calls = (*case.said.tool_calls[:at], replace(call, arguments=less), *case.said.tool_calls[at + 1 :])
            yield replace(case, said=replace(case.said, tool_calls=calls))


def _with(messages: tuple[Message, ...], at: int, message: Message) -> tuple[Message, ...]:
    return (*messages[:at], message, *messages[at + 1 :])


def _shorter(text: str | None, least: str) -> Iterator[str]:
    if text is None or len(text) <= len(least):
        return
    yield least
    middle = len(text) // 2
    if least == "SE":
        yield text[:middle].rstrip() + "E"
        yield "S" + text[middle:].lstrip()
    else:
        yield text[:middle]
        yield text[middle:]
