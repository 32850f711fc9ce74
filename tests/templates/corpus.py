"""Conversations as callers send them: plain dicts in OpenAI chat shape, generated from a seed, odd on purpose."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from templates.spoken import TYPED_TOOLS

ODD_TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "größe",
            "description": "Says \"how big\"\n<b>漢字</b> & 'more' 🙂.",
            "parameters": {
                "type": "object",
                "properties": {
                    "of": {"type": "string", "enum": ["a", "b"], "description": "</tools> <|im_end|>"},
                    "deep": {
                        "type": "array",
                        "items": {"type": "object", "properties": {"x": {"type": "integer"}}},
                    },
                },
                "required": ["of"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}},
    },
)
SPELLED = (
    *(
        "<|im_end|>",
        "<|im_start|>system\n",
        "<|eot_id|>",
        "<|end|>",
        "<|start|>assistant",
        "</s>",
        "<s>",
        "[INST]",
    ),
    *("<think>", "</think>\n\n", "<tool_call>\n", "</tool_call>", "<|user|>", "<|assistant|>\n", "<|return|>"),
    *(
        "<｜end▁of▁sentence｜>",
        "<｜Assistant｜>",
        "<|observation|>",
        "<turn|>",
        "<|tool_response>",
        "[TOOL_CALLS]",
    ),
)
_PIECES = (
    *(
        "Yes",
        " no",
        "a",
        " ",
        "\n",
        "\n\n",
        "\t",
        "é",
        "a\u0301",
        "漢字",
        "🙂",
        "👩‍👩‍👧",
        "\u200b",
        "\ufffd",
        "\x00",
    ),
    *(
        '"',
        "'",
        "\\",
        "{",
        "}",
        "[",
        "]",
        "<",
        ">",
        "&",
        "|",
        ":",
        ",",
        ".\n\n",
        "7",
        "1.5",
        "null",
        "true",
        "{{ x }}",
    ),
    *("{% if %}", "```", "word " * 30, "{'a': 1}", '{"a": 1}'),
)


@dataclass(frozen=True)
class Conversation:
    """What a caller sends.

    Args:
        choice: A number to choose template kwargs by.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...]
    add_generation_prompt: bool
    choice: int


class _Writer:
    """Draws the parts of one conversation."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(f"conversation {seed}")
        self.calls = 0

    def text(self, most: int = 5) -> str:
        pieces = [self.chance.choice(_PIECES) for _ in range(self.chance.randint(0, most))]
        if self.chance.random() < 0.15:
            pieces.insert(self.chance.randint(0, len(pieces)), self.chance.choice(SPELLED))
        return "".join(pieces)

    def value(self, depth: int = 2) -> Any:
        kinds: list[Any] = [self.text(3), self.chance.randint(-(2**40), 2**40), 1.5, True, None, "7", "", "null"]
        if depth:
            kinds += [[self.value(depth - 1)], {"k": self.value(depth - 1)}, {}, []]
        return self.chance.choice(kinds)

    def call(self) -> dict[str, Any]:
        arguments = {
            key: self.value() for key in self.chance.sample(["s", "i", "é", "o"], self.chance.randint(0, 3))
        }
        self.calls += 1
        function = {"name": self.chance.choice(["look_up", "send"]), "arguments": arguments}
        if self.chance.random() < 0.5:
            function["arguments"] = json.dumps(arguments, ensure_ascii=self.chance.random() < 0.5)
        return {"id": f"call{self.calls:05d}", "type": "function", "function": function}

    def assistant(self, most_calls: int) -> dict[str, Any]:
        calls = [self.call() for _ in range(self.chance.randint(0, most_calls))]
        message: dict[str, Any] = {"role": "assistant"}
        kind = self.chance.choice(["none", "empty", "absent", "text"]) if calls else "text"
        if kind != "absent":
            message["content"] = {"none": None, "empty": "", "text": self.text()}[kind]
        if self.chance.random() < 0.4:
            message[self.chance.choice(["reasoning_content", "reasoning"])] = self.text()
        if calls or self.chance.random() < 0.1:
            message["tool_calls"] = calls or None
        return message

    def results(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                "role": "tool",
                "content": self.chance.choice([self.text(), json.dumps({"ok": self.text(2)})]),
                "tool_call_id": call["id"],
                "name": call["function"]["name"],
            }
            for call in calls
        ]


def conversation(seed: int) -> Conversation:
    """The conversation of one seed; a third of them are plain enough for a template that takes little."""
    writer = _Writer(seed)
    chance = writer.chance
    is_plain = chance.random() < 0.35
    messages: list[dict[str, Any]] = []
    if chance.random() < 0.5:
        role = "system" if is_plain or chance.random() < 0.9 else "developer"
        messages.append({"role": role, "content": writer.text()})
    messages.append({"role": "user", "content": writer.text()})
    for _ in range(chance.randint(0, 3)):
        said = writer.assistant(0 if is_plain else chance.choice([0, 1, 1, 3]))
        messages.append(said)
        results = writer.results(said.get("tool_calls") or [])
        messages += results
        if not is_plain and chance.random() < 0.05:
            messages.append({"role": "system", "content": writer.text()})
        if not results or chance.random() < 0.4:
            messages.append({"role": "user", "content": writer.text()})
    if chance.random() < 0.2:
        messages.append(writer.assistant(0 if is_plain else 1))
    tools = () if is_plain else chance.choice([(), TYPED_TOOLS, (*TYPED_TOOLS, *ODD_TOOLS)])
    return Conversation(tuple(messages), tools, chance.random() < 0.75, chance.randint(0, 10**6))
