"""The reading of a renderer, judged: law 6, and that it holds for whatever a model may have sampled."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from tokentrue.messages import Message, ToolCall
from tokentrue.rendering.contract import RendererContract
from tokentrue.rendering.formats.parsed import CallStatus, ParsedToolCall
from tokentrue.rendering.reader import ParsedResponse
from tokentrue.testing.renderer_bridges import Told
from tokentrue.testing.renderer_cases import RendererCase
from tokentrue.testing.renderer_report import RendererCheck
from tokentrue.testing.renderer_turns import NotTried, ids_of, written_by

_MOST_BEGINNINGS = 60
_CONTENT, _THOUGHT = "qzContent", "qzThought"


def _argument_word(index: int) -> str:
    return f"qzArgs{index}q"


def _in_words(said: Message) -> Message:
    calls = [
        replace(call, arguments=json.dumps({"s": _argument_word(index)}))
        for index, call in enumerate(said.tool_calls)
    ]
    return replace(
        said,
        content=_CONTENT if said.content else None,
        reasoning_content=_THOUGHT if said.reasoning_content else None,
        tool_calls=tuple(calls),
    )


def judge_inverse(renderer: RendererContract, case: RendererCase) -> Told:
    """Law 6, with a message compared with what the renderer writes of it.

    Templates leave out text beside a call, reasoning, or all calls but one, and harmony writes text beside a call
    as reasoning. Which it is, is seen by a message of the same shape whose texts occur nowhere else.
    """
    masked = replace(case, said=_in_words(case.said))
    prompt, ids = written_by(renderer, masked)
    whole = renderer.render((*case.opening, masked.said), tools=case.tools, add_generation_prompt=False).text
    continues = prompt == ids_of(renderer, case.opening, case.tools)
    for context in (prompt,) if continues else (prompt, []):
        shape = renderer.parse_response(ids, context, case.tools).to_message()
        wrong = _wrong_shape(masked.said, whole, shape)
        if not wrong:
            break
    else:
        if not continues:
            raise NotTried("the generation prompt is no part of history, and nothing is read but behind it")
        return {RendererCheck.INVERSE: f"{wrong} was read of a message in plain words"}
    expected = _filled(shape, case.said, whole)
    prompt, ids = written_by(renderer, case)
    parsed = renderer.parse_response(ids, prompt if context else [], case.tools)
    found = parsed.to_message()
    if found.digest == expected.digest and all(call.status is CallStatus.OK for call in parsed.tool_calls):
        return {RendererCheck.INVERSE: ""}
    return {RendererCheck.INVERSE: f"read {_json(found)}, where was written {_json(expected)}"}


def _wrong_shape(masked: Message, whole: str, read: Message) -> str:
    """What was read wrongly of a message in plain words, or ""."""
    content, thought = (read.content or "").strip(), (read.reasoning_content or "").strip()
    shown = [word for word in (_THOUGHT, _CONTENT) if word in whole]
    # Beside a call, and only there, content may have been written as reasoning.
    beside = bool(masked.tool_calls) and _CONTENT in thought
    expected_content = _CONTENT if _CONTENT in shown and not beside else ""
    if content != expected_content:
        return f"the content {content!r}"
    words = [word for word in shown if word != _CONTENT or beside]
    if [word for word in (_THOUGHT, _CONTENT) if word in thought] != words or (not words and thought):
        return f"the reasoning {thought!r}"
    wrote = [call for index, call in enumerate(masked.tool_calls) if _argument_word(index) in whole]
    calls = [(call.name, call.arguments_or_text()) for call in wrote]
    found = [(call.name, call.arguments_or_text()) for call in read.tool_calls]
    return "" if found == calls and not read.extra else f"the calls {found} instead of {calls}"


def _filled(shape: Message, said: Message, whole: str) -> Message:
    def fill(text: str | None) -> str | None:
        if text is None:
            return None
        return text.replace(_THOUGHT, said.reasoning_content or "").replace(_CONTENT, said.content or "")

    wrote = [call for index, call in enumerate(said.tool_calls) if _argument_word(index) in whole]
    calls = tuple(
        ToolCall(mine.name, mine.arguments, read.id) for mine, read in zip(wrote, shape.tool_calls, strict=True)
    )
    return replace(
        shape, content=fill(shape.content), reasoning_content=fill(shape.reasoning_content), tool_calls=calls
    )


def _json(message: Message) -> str:
    return json.dumps(message.to_openai(), ensure_ascii=False)


def judge_reading(renderer: RendererContract, case: RendererCase) -> Told:
    """Every beginning of a completion, some noise, and the same twice."""
    prompt, ids = written_by(renderer, case)

    def read(some: Sequence[int]) -> ParsedResponse:
        return renderer.parse_response(some, prompt, case.tools)

    kept = list(ids)
    once, again = read(kept), read(kept)
    pure = "" if kept == ids else "reading changed the list of ids that it was given"
    if once != again:
        pure = "reading the same ids twice gave two different messages"
    return {RendererCheck.PURE: pure, RendererCheck.CUT_SHORT: _cut_short(read, ids, once, renderer.vocab_size)}


def _cut_short(
    read: Callable[[Sequence[int]], ParsedResponse], ids: list[int], whole: ParsedResponse, vocab_size: int
) -> str:
    chance = random.Random(len(ids))
    noise = [[chance.randrange(vocab_size) for _ in range(chance.randint(1, 24))] for _ in range(3)]
    calls = [_call(call) for call in whole.tool_calls if call.status is CallStatus.OK]
    lengths = range(0, len(ids), 1 + len(ids) // _MOST_BEGINNINGS)
    for some in (*(ids[:length] for length in lengths), *noise):
        try:
            parsed = read(some)
        except Exception as exc:  # noqa: BLE001 - the promise is that nothing is raised
            return f"reading {some} raised {type(exc).__name__}: {exc}"
        found = [_call(call) for call in parsed.tool_calls if call.status is CallStatus.OK]
        if some not in noise and found != calls[: len(found)]:
            return f"of {len(some)} of {len(ids)} ids, the calls {found} were read, which the model never finished"
    return ""


def _call(call: ParsedToolCall) -> tuple[str | None, object]:
    return call.name, json.loads(call.arguments or "null")
