"""Completions as no model should write them, and what must hold for each: nothing raises, nothing is lost.

Words that stand nowhere else are put among the ids. Whatever disorder they stand in, each must come back: in the
content, in the reasoning, or in what was kept of a call.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from templates.at_hand import completion, random_messages
from templates.spoken import TYPED_TOOLS
from tokentrue import Renderer
from tokentrue.errors import TemplateRenderError
from tokentrue.rendering.formats.harmony import Channels
from tokentrue.rendering.formats.marks import has_mark
from tokentrue.rendering.formats.parsed import CallStatus
from tokentrue.rendering.reader import ParsedResponse, response_of
from tokentrue.rendering.streaming import Delta

READABLE = (CallStatus.OK, CallStatus.UNKNOWN_TOOL)
NASTY = (
    *("[" * 300, "{" * 300, '{"a":' * 300, "(" * 300, "9" * 5000, "1e999", "-1e999", "NaN", "Infinity", "-0"),
    *('{"a": 1, "a": 2}', '"\\ud800"', '"\\ud83d\\ude00"', "\ufffd", "\x00", "\\", "'", '"', "'''", '"""', "```"),
    *(
        "[look_up(",
        "look_up(s=",
        ">>>look_up\n",
        ">>>",
        "to=functions.",
        "</",
        "<",
        "{",
        "}",
        "]",
        ",",
        ":",
        "=",
        ")",
    ),
    *(
        '{"name": "look_up", "arguments": {',
        '"parameters": null}',
        "</function>",
        "<parameter=s>",
        "call:look_up{",
    ),
    *(" ", "\n\n", "\t", "é", "漢", "🙂", "a\u0301", "null", "True", "__import__('os')", "1_0", "0x1f", "<think>"),
)


@dataclass(frozen=True)
class Disorder:
    """One completion.

    Args:
        words: What was put in, and whether a reader may leave it out: in a header, where no text belongs.
    """

    tail: tuple[int, ...]
    ids: tuple[int, ...]
    words: tuple[tuple[str, bool], ...]


def disorders(renderer: Renderer, seed: int, count: int) -> Iterator[Disorder]:
    """Completions of all kinds of disorder: written well and then changed, and ids at random."""
    chance = random.Random(seed)
    added = [info.id for info in renderer.tokenizer.added_tokens()]
    format_ids = [i for i, _ in renderer.tool_format.marks.spellings] if renderer.tool_format is not None else []
    special = [*format_ids, *renderer.stop_ids] * 3 + chance.sample(added, min(len(added), 12))
    known = list(_written(renderer, seed))
    for _ in range(count):
        tail, ids = chance.choice(known) if known and chance.random() < 0.8 else ((), ())
        changed = list(ids)
        for _ in range(chance.choice([0, 1, 1, 2, 3, 5])):
            _change(renderer, changed, special, chance)
        if chance.random() < 0.3:
            del changed[chance.randint(0, len(changed)) :]
        yield _with_words(renderer, tuple(tail), changed, chance)


def _written(renderer: Renderer, seed: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    for message in random_messages(renderer, seed, 12):
        try:
            prompt, ids = completion(renderer, message)
        except TemplateRenderError:
            continue
        yield tuple(prompt[-16:]), tuple(ids)


def _change(renderer: Renderer, ids: list[int], special: Sequence[int], chance: random.Random) -> None:
    at, end = sorted((chance.randint(0, len(ids)), chance.randint(0, len(ids))))
    end = min(end, at + chance.choice([1, 1, 2, 5, 30]))
    kind = chance.randrange(6)
    if kind == 0:
        del ids[at:end]
    elif kind == 1:
        ids[end:end] = ids[at:end]
    elif kind == 2:
        ids[at:end] = ids[at:end][::-1]
    elif kind == 3:
        ids.insert(at, chance.choice(special))
    elif kind == 4:
        ids[at:at] = [chance.randrange(renderer.vocab_size) for _ in range(chance.randint(1, 6))]
    else:
        ids[at:at] = renderer.tokenizer.encode(chance.choice(NASTY))


def _with_words(renderer: Renderer, tail: tuple[int, ...], ids: list[int], chance: random.Random) -> Disorder:
    words: list[tuple[str, bool]] = []
    # From behind, so that no word is put into another one.
    places = sorted(chance.sample(range(len(ids) + 1), min(chance.choice([0, 1, 1, 2, 3]), len(ids) + 1)))
    for index, at in reversed(list(enumerate(places))):
        word = f"qzw{index}{chance.randrange(10, 99)}qz"
        words.append((word, _in_header(renderer, ids[:at])))
        ids[at:at] = renderer.tokenizer.encode(word)
    return Disorder(tail, tuple(ids), tuple(words))


def _in_header(renderer: Renderer, before: Sequence[int]) -> bool:
    form = renderer.tool_format
    if not isinstance(form, Channels):
        return False
    last = next((i for i in reversed(before) if renderer.tokenizer.added_token_of_id(i) is not None), None)
    return last is None or form.marks.char(last) not in (form.message,)


def read_in_pieces(renderer: Renderer, found: Disorder, size: int) -> tuple[ParsedResponse, list[Delta]]:
    """The response, and the deltas in the order in which they came."""
    reader = renderer.reader.start(prompt_tail=found.tail, tools=TYPED_TOOLS)
    deltas: list[Delta] = []
    for at in range(0, len(found.ids), size):
        deltas += reader.feed(found.ids[at : at + size])
    deltas += reader.finish()
    return response_of(deltas, reader), deltas


def check_disorder(renderer: Renderer, found: Disorder) -> None:
    """Everything that must hold for any completion; an AssertionError tells what does not."""
    parsed = renderer.reader.parse(found.ids, prompt_tail=found.tail, tools=TYPED_TOOLS)
    for size in (1, 3):
        assert read_in_pieces(renderer, found, size)[0] == parsed, size
    kept = [parsed.content, parsed.reasoning_content or ""]
    for call in parsed.tool_calls:
        assert (call.arguments is None) == (call.status not in READABLE), call
        kept += [call.raw, call.name or ""]
        if call.arguments is not None:
            check_arguments(call.arguments)
    told = "\n".join(kept)
    assert not has_mark(told)
    lost = [word for word, may_go in found.words if not may_go and word not in told]
    assert not lost, (lost, renderer.tokenizer.decode(found.ids), parsed)
    message = parsed.to_message()
    assert message.digest == parsed.to_message().digest
    json.dumps(message.to_openai())


def check_arguments(arguments: str) -> None:
    """Arguments are JSON, as strict as RFC 8259 has it."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    # An integer of any length is JSON, and so is what nests deeper than Python's own reader goes.
    with contextlib.suppress(RecursionError):
        json.loads(arguments, parse_constant=refuse, parse_int=str)
