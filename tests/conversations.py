"""Generated conversations, and a stand-in for a model that samples a given text in its own token split."""

from __future__ import annotations

import json
from dataclasses import dataclass

from hypothesis import strategies as st

from tokentrue import Message, Renderer, ToolCall
from tokentrue.errors import TemplateRenderError
from tokentrue.generation import FinishReason

TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks a word up.",
            "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
        },
    },
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
        "  ",
        "\t",
        '"',
        "\\",
        "{",
        "}",
        "<",
        "</",
        "|>",
        ".",
        ":\n\n",
        "1",
        "23",
    ]
)
words = st.text(alphabet="abcdefghij KLMNO.,:;!?\n'\"{}[]<>/|_-0123456789é漢🙂", max_size=30)
texts = st.one_of(words, st.lists(st.one_of(nasty, words), max_size=6).map("".join))
said = texts.map(str.strip).filter(lambda text: text and not text.startswith("{"))
json_scalars = st.one_of(st.integers(-999, 999), st.booleans(), st.none(), texts)
arguments = st.dictionaries(st.text(alphabet="abcxyz_", min_size=1, max_size=6), json_scalars, max_size=3)


@st.composite
def assistant_messages(draw: st.DrawFn, max_calls: int = 3, reasoning: bool = True) -> Message:
    """What a model may say: text, calls or both; reasoning or none."""
    calls = draw(st.lists(arguments, max_size=max_calls))
    content = draw(said) if not calls or draw(st.booleans()) else None
    thought = draw(st.none() | said) if reasoning else None
    return Message(
        role="assistant",
        content=content,
        reasoning_content=thought,
        tool_calls=tuple(
            ToolCall("look_up", json.dumps(value, ensure_ascii=False), f"call_{i}")
            for i, value in enumerate(calls)
        ),
    )


@st.composite
def follow_ups(draw: st.DrawFn, assistant: Message) -> tuple[Message, ...]:
    """What a caller may send next: a result for every call, else a question."""
    if not assistant.tool_calls:
        return (Message(role="user", content=draw(texts)),)
    results = [
        Message(role="tool", content=draw(texts), tool_call_id=call.id, name=call.name)
        for call in assistant.tool_calls
    ]
    if draw(st.booleans()):
        return tuple(results)
    return (*results, Message(role="user", content=draw(texts)))


openings = st.one_of(
    texts.map(lambda text: (Message(role="user", content=text),)),
    st.tuples(
        texts.map(lambda text: Message(role="system", content=text)),
        texts.map(lambda text: Message(role="user", content=text)),
    ),
)


@dataclass(frozen=True)
class Sampled:
    """Ids as an engine might have sampled them, and how sampling ended."""

    ids: list[int]
    finish_reason: FinishReason


def draw_completion(data: st.DataObject, renderer: Renderer, message: Message) -> Sampled:
    """`message` as the template writes it, in a split of its own, stopped, stripped of its stop, or cut.

    No strategy takes the renderer as an argument: Hypothesis would print a whole vocabulary for it.
    """
    ids = renderer.render_assistant(message, tools=TOOLS).tolist()
    body, close = ids[:-1], ids[-1]
    resplit: list[int] = []
    for token_id in body:
        added = renderer.tokenizer.added_token_of_id(token_id)
        text = renderer.tokenizer.decode([token_id])
        if added is None and len(text) > 1 and "\ufffd" not in text and data.draw(st.booleans()):
            cut = data.draw(st.integers(1, len(text) - 1))
            halves = renderer.tokenizer.encode(text[:cut]) + renderer.tokenizer.encode(text[cut:])
            resplit += halves if renderer.tokenizer.decode(halves) == text else [token_id]
        else:
            resplit.append(token_id)
    ending = data.draw(st.sampled_from(["stop", "stop", "stop", "other stop", "stripped", "cut"]))
    if ending == "cut":
        return Sampled(resplit[: data.draw(st.integers(1, max(len(resplit), 1)))] or [close], FinishReason.LENGTH)
    if ending == "stripped" and resplit:
        return Sampled(resplit, FinishReason.STOP)
    if ending == "other stop":
        return Sampled([*resplit, renderer.stop_ids[-1]], FinishReason.STOP)
    return Sampled([*resplit, close], FinishReason.STOP)


def takes(renderer: Renderer, messages: tuple[Message, ...]) -> bool:
    """Whether the template renders these messages at all (Llama takes one call at a time)."""
    try:
        renderer.render_text(messages, tools=TOOLS)
    except TemplateRenderError:
        return False
    return True
