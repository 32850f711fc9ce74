"""Does what a template writes behind the sampled message depend on what was said long before?

Templates look at message text through their own literals: `'/no_think' in content`,
`content.startswith('<tool_response>')`. So a tail is compared over histories whose texts are, begin
with, hold and end with each literal that the template's source compares or calls with, the names and
arguments of calls and the names of speakers among them; over histories and texts that are longer than each
number that it compares with; and over histories of several lengths and of every kind of message: with and
without tool calls, several at once, text beside them, reasoning, names, system prompts in the middle, texts
of no line and of several, two messages of one role, and keys of messages that only this template knows. A
tail that stays the same over all of them may be found with a short history (`tail`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tokentrue.messages import Message, ToolCall
from tokentrue.rendering.chat_template import LookedAt
from tokentrue.rendering.tail import BridgeRefused, FollowUp, TailFinder
from tokentrue.rendering.template_messages import PROBE_CALL, PROBE_KEY, PROBE_TOOL
from tokentrue.turns import Why

_QUESTION = Message(role="user", content="What is 2 + 2?")
_SYSTEM = Message(role="system", content="You answer.")
_SAID = Message(role="assistant", content="It is 4.")
_CALLED = Message(role="assistant", tool_calls=(PROBE_CALL,))
_RESULT = Message(role="tool", content="4", tool_call_id=PROBE_CALL.id, name=PROBE_CALL.name)
_NEXT = Message(role="user", content="And five?")

_SAID_AND_CALLED = Message(role="assistant", content="Let me see.", tool_calls=(PROBE_CALL,))
_ANOTHER_CALL = ToolCall(name=PROBE_CALL.name, arguments=PROBE_CALL.arguments, id="qzCallId8")
_CALLED_TWICE = Message(role="assistant", tool_calls=(PROBE_CALL, _ANOTHER_CALL))
_ANOTHER_RESULT = Message(role="tool", content="5", tool_call_id=_ANOTHER_CALL.id, name=PROBE_CALL.name)

_FEW = 4
"""How many pairs of question and answer are enough to see a template that counts none of its own numbers."""
_MANY = 64
"""Numbers above this are not tried: a conversation of so many messages is rendered in full every so often."""
_OWN_KEYS = frozenset(
    {
        *("role", "content", "tool_calls", "function", "arguments", "name", "id", "tool_call_id"),
        *("reasoning_content", "reasoning", "thinking"),
        *dir(str),
        *dir(dict),
        *dir(list),
        *("first", "last", "index", "index0", "length", "previtem", "nextitem"),
    }
)
"""Keys that the messages here have already, and what Python's values and Jinja's loops have."""

_FOLLOW_UPS: tuple[tuple[Message, tuple[Message, ...]], ...] = (
    (_SAID, (_NEXT,)),
    (_CALLED, (_RESULT,)),
    # A template that drops calls beside text, or closes a message by how many it has, may count results.
    (_SAID_AND_CALLED, (_RESULT,)),
    (_CALLED_TWICE, (_RESULT, _ANOTHER_RESULT)),
)


def _texts(literals: Sequence[str]) -> Iterator[str]:
    for literal in literals:
        yield literal
        yield f"{literal} and more"
        yield f"before {literal}"
        yield f"before {literal} and more"


def _pair(question: str, answer: str) -> tuple[Message, ...]:
    return (
        Message(role="user", content=question),
        Message(role="assistant", content=answer, reasoning_content="I think so."),
    )


def _loop(text: str) -> tuple[Message, ...]:
    return (_CALLED, Message(role="tool", content=text, tool_call_id=PROBE_CALL.id, name=PROBE_CALL.name))


def _looked_at(finder: TailFinder) -> LookedAt:
    """What the template looks at, without what is tried anyhow or cannot be."""
    found = finder.template.looked_at
    numbers = (number for number in found.numbers if _FEW < number <= _MANY)
    keys = (key for key in found.keys if key not in _OWN_KEYS)
    return replace(found, numbers=tuple(numbers), keys=tuple(keys))


def _middles(looked: LookedAt) -> Iterator[tuple[Message, ...]]:
    """What may stand between the system prompt and the sampled message, the last question included."""
    for pairs in range(_FEW):
        yield (*(_pair("Hello.", "Good day.") * pairs), _QUESTION)
    yield (*_pair("Hello.", ""), _QUESTION, *_loop("1"), *_loop("2"))
    # Templates count calls, or know the first of them: behind the last question there may be none yet.
    yield (_QUESTION, *_loop("1"), _SAID, _QUESTION)
    yield (_QUESTION, *_loop("1"), _QUESTION)
    yield (*_pair("Hello.", "Good day."), _QUESTION, *_loop("1"), _SAID, _QUESTION, *_loop("3"))
    for other in _kinds(looked):
        yield (_QUESTION, *other, _QUESTION)
        if other[-1].role == "tool":
            yield (_QUESTION, *other)
    for number in looked.numbers:
        yield (*(_pair("Hello.", "Good day.") * number), _QUESTION)
        yield (*_pair("x" * (number + 1), "x" * (number + 1)), _QUESTION, *_loop("x" * (number + 1)))
    for text in _texts(looked.literals):
        yield (*_pair(text, text), *_pair("Hello.", text), _QUESTION, *_loop(text))


def _kinds(looked: LookedAt) -> Iterator[tuple[Message, ...]]:
    """Kinds of messages that conversations have now and then, behind a question; the last is no question."""
    yield (_CALLED_TWICE, _RESULT, _ANOTHER_RESULT, _SAID)
    yield (_SAID_AND_CALLED, _RESULT)
    yield (replace(_CALLED, reasoning_content="I look."), _RESULT)
    yield (_QUESTION, _SAID)
    yield (_SAID, _SYSTEM, _QUESTION, _SAID)
    yield (_SAID, replace(_SYSTEM, role="developer"), _QUESTION, _SAID)
    yield (_SAID, replace(_QUESTION, content=""), _SAID)
    yield (_SAID, replace(_QUESTION, name="Ada"), _SAID)
    yield _loop("")
    yield (*_pair("One.\n\nTwo.\n", "One.\n\nTwo.\n"), _QUESTION, *_loop("1\n2\n"))
    if looked.keys:
        extra = dict.fromkeys(looked.keys, True)
        yield (replace(_SAID, extra=extra), replace(_QUESTION, extra=extra), _SAID)
    for text in looked.literals:
        said = replace(_SAID, reasoning_content=f"It is {text}.")
        called = ToolCall(text, _arguments(looked, text), "qzCallId7")
        yield (
            said,
            replace(_QUESTION, name=text),
            replace(_CALLED, tool_calls=(called,)),
            replace(_RESULT, name=text),
        )


def _arguments(looked: LookedAt, text: str) -> str:
    """Arguments of a call that have `text` as a key, and as what every key has that the template reads."""
    return json.dumps({PROBE_KEY: text, text: "", **dict.fromkeys(looked.keys, text)})


def _tail_text(
    finder: TailFinder,
    history: tuple[Message, ...],
    new: tuple[Message, ...],
    tools: bool,
    *,
    as_said: bool = False,
) -> str | None:
    """Close and tail; "" where no bridge can be proved, None where the template refuses the messages."""
    offered: tuple[dict[str, Any], ...] = (PROBE_TOOL,) if tools else ()
    tail = finder.derive(FollowUp(history, new, offered), as_said=as_said, place_only=True)
    if isinstance(tail, BridgeRefused):
        return None if tail.why is Why.TEMPLATE_RAISED else ""
    return tail.seam.close.text + tail.text


def short_history_is_enough(finder: TailFinder) -> bool:
    """Whether no probed middle of a conversation changes the tail, or leaves none that can be proved."""
    looked = _looked_at(finder)
    for leading in ((), (_SYSTEM,)):
        for said, new in _FOLLOW_UPS:
            for tools in (False, True):
                wanted = _tail_text(finder, (*leading, _QUESTION, said), new, tools)
                if not wanted:
                    continue
                for middle in _middles(looked):
                    found = _tail_text(finder, (*leading, *middle, said), new, tools)
                    if found is not None and found != wanted:
                        return False
    return True


def history_matters_nowhere(
    finder: TailFinder, minimal: tuple[Message, ...], said: Message, new: tuple[Message, ...], tools: bool
) -> bool:
    """Whether `minimal` gives the same tail as every probed history and sampled message."""
    wanted = _tail_text(finder, minimal, new, tools)
    if not wanted:
        return False
    looked = _looked_at(finder)
    # Where a short history is enough, no literal in the middle matters: that was tried.
    middles = replace(looked, literals=()) if finder.short_is_enough else looked
    histories = [(*leading, *middle, said) for leading in ((), (_SYSTEM,)) for middle in _middles(middles)]
    for text in _texts(looked.literals):
        asked = Message(role="user", content=text)
        histories += [(Message(role="system", content=text), _QUESTION, said), (asked, said)]
    histories += [(_QUESTION, other) for other in _others(said, looked, tools=tools)]
    told = 0
    for history in histories:
        found = _tail_text(finder, history, new, tools, as_said=True)
        if found is not None and found != wanted:
            return False
        told += found is not None
    return bool(told)


def _others(said: Message, looked: LookedAt, *, tools: bool) -> Iterator[Message]:
    """What may have been sampled in the place of `said`: with reasoning, without a word, with each literal."""
    yield replace(said, reasoning_content="I think so.")
    if said.tool_calls:
        yield replace(said, content=None if said.content else "Let me see.")
        for written in ("{}", *(_arguments(looked, text) for text in looked.literals)):
            yield replace(said, tool_calls=tuple(replace(call, arguments=written) for call in said.tool_calls))
        return
    yield replace(said, content=None)
    for text in _texts(looked.literals):
        yield replace(said, content=text)
    if tools:
        yield from (_CALLED, _SAID_AND_CALLED)


def made_up_calls_matter_nowhere(
    finder: TailFinder, minimal: tuple[Message, ...], new: tuple[Message, ...], tools: tuple[dict[str, Any], ...]
) -> bool:
    """Whether the calls at the end of `minimal` may as well have another order, and other names.

    Results tell by which calls they were asked for, but not in which order, and those of OpenAI's shape do not
    tell their names: gpt-oss and Gemma write the name that the call has.
    """
    asked, said = minimal[:-1], minimal[-1]
    if not said.tool_calls:
        return True
    unnamed = {message.tool_call_id for message in new if message.role == "tool" and not message.name}
    names = ("qzOther8", *finder.template.looked_at.literals) if unnamed else ()
    others = [said.tool_calls[::-1]]
    for name in names:
        others.append(tuple(replace(c, name=name) if c.id in unnamed else c for c in said.tool_calls))

    def found(calls: tuple[ToolCall, ...]) -> str:
        messages = (*asked, replace(said, tool_calls=calls))
        tail = finder.derive(FollowUp(messages, new, tools), place_only=True)
        return "" if isinstance(tail, BridgeRefused) else tail.seam.close.text + tail.text

    wanted = found(said.tool_calls)
    return all(found(calls) == wanted for calls in others if calls != said.tool_calls)


def generation_prompts(finder: TailFinder) -> tuple[str, ...]:
    """What the template adds for a generation prompt, in each of the ways that were seen; longest first."""
    seen: list[str] = []
    for leading in ((), (_SYSTEM,)):
        for history in ((_QUESTION,), (_QUESTION, _CALLED, _RESULT), (_QUESTION, _SAID, _NEXT)):
            for tools in ((), (PROBE_TOOL,)):
                added = finder.generation_prompt((*leading, *history), tools)
                if added:
                    seen.append(added)
    return tuple(sorted(dict.fromkeys(seen), key=len, reverse=True))
