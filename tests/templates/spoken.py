"""Messages whose arguments follow a schema, and the form in which a template can give them back."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from tokentrue import Message, ToolCall

_TYPES = {
    "s": "string",
    "text": "string",
    "i": "integer",
    "n": "number",
    "b": "boolean",
    "a": "array",
    "o": "object",
}
TYPED_TOOLS = tuple(
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

nasty = st.sampled_from(
    [
        "é",
        "漢字",
        "🙂",
        "a\u0301",
        "\n",
        "\n\n",
        " ",
        "\t",
        '"',
        "\\",
        "{",
        "}",
        "<",
        "</",
        ">",
        "|",
        "7",
        "true",
        "null",
        "```",
        "'",
        "</parameter>",
        "</invoke>",
        "<parameter=s>",
        "</parameter><parameter=s>",
        '</parameter><parameter name="s">',
        "name",
        ":",
        ",",
        "[",
        "]",
        "\ufffd",
    ]
)
words = st.text(alphabet="abc KLM.,:;!?\n'\"{}[]<>/|_-0123é漢🙂", max_size=20)
texts = st.one_of(
    words,
    st.lists(st.one_of(nasty, words), max_size=5).map("".join),
    st.sampled_from(["7", "1.5", "null", "True", "[]", "{}", "x" * 5000]),
)
said = texts.map(str.strip).filter(lambda text: text and not text.startswith(("{", "[")))
numbers = st.one_of(st.integers(-(2**40), 2**40), st.floats(-1e6, 1e6, allow_nan=False))
inner = st.recursive(
    st.one_of(texts, st.integers(-99, 99), st.booleans(), st.none()),
    lambda below: st.one_of(
        st.lists(below, max_size=3), st.dictionaries(st.sampled_from("kxyz"), below, max_size=3)
    ),
    max_leaves=4,
)
_VALUES = {
    "string": texts,
    "integer": st.integers(-(2**40), 2**40),
    "number": numbers,
    "boolean": st.booleans(),
    "array": st.lists(inner, max_size=3),
    "object": st.dictionaries(st.sampled_from(["k", "x", "yy"]), inner, max_size=3),
}
arguments = st.fixed_dictionaries({}, optional={key: _VALUES[kind] for key, kind in _TYPES.items()})


def _told_inside(value: Any) -> Any:
    """`value` without what is written as something of another type is, in its objects and lists."""
    if isinstance(value, dict):
        told = {key: _told_inside(inner) for key, inner in value.items()}
        return {key: inner for key, inner in told.items() if inner not in (None, [], {})}
    if isinstance(value, list):
        return [inner for inner in map(_told_inside, value) if inner not in (None, [], {})]
    return f"S{value}" if isinstance(value, str) and value[:1] in "-0123456789tf" else value


def arguments_of(*, types_inside: bool) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments by the schema of `TYPED_TOOLS`, which says nothing of what stands inside of objects and lists."""
    if types_inside:
        return arguments
    return arguments.map(
        lambda values: {k: v if isinstance(v, str) else _told_inside(v) for k, v in values.items()}
    )


@st.composite
def spoken_messages(
    draw: st.DrawFn,
    max_calls: int = 3,
    text_beside_calls: bool = True,
    reasoning: bool = True,
    types_inside: bool = True,
) -> Message:
    """What a model may say."""
    values = arguments_of(types_inside=types_inside)
    calls = draw(st.lists(st.tuples(st.sampled_from(["look_up", "send"]), values), max_size=max_calls))
    content = draw(said) if not calls or (text_beside_calls and draw(st.booleans())) else None
    thought = draw(st.none() | said) if reasoning else None
    return Message(
        role="assistant",
        content=content,
        reasoning_content=thought,
        tool_calls=tuple(
            ToolCall(name, json.dumps(value, ensure_ascii=False), f"functions.{name}:{i}")
            for i, (name, value) in enumerate(calls)
        ),
    )


def with_generated_ids(message: Message) -> Message:
    """The same message as a grammar without call ids gives it back."""
    calls = tuple(ToolCall(call.name, call.arguments, f"call_{i}") for i, call in enumerate(message.tool_calls))
    return Message(
        role="assistant", content=message.content, reasoning_content=message.reasoning_content, tool_calls=calls
    )
