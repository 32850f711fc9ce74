"""Glue: the text that a template writes between message bodies, found with sentinels.

For one *shape* of follow-up (roles, names, calls, tools) the glue is constant, and message text goes
into it unchanged, trimmed, or as JSON. Both are found by asking the template, never assumed: the glue
from a rendering with sentinels, the treatment of text from one with text that every treatment changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from tokentrue.rendering.sentinels import Body


def _to_json(text: str) -> str:
    # The quotation marks stand around the sentinel as well, so they belong to the glue.
    return json.dumps(text, ensure_ascii=False)[1:-1]


class Treatment(Enum):
    """What a template does to one message's text."""

    VERBATIM = "verbatim"
    TRIM = "trim"
    TRIM_LEFT = "trim_left"
    TRIM_RIGHT = "trim_right"
    JSON = "json"

    def apply(self, text: str) -> str:
        """`text` as the template writes it."""
        return _TREATMENTS[self](text)


_TREATMENTS: dict[Treatment, Callable[[str], str]] = {
    Treatment.VERBATIM: str,
    Treatment.TRIM: str.strip,
    Treatment.TRIM_LEFT: str.lstrip,
    Treatment.TRIM_RIGHT: str.rstrip,
    Treatment.JSON: _to_json,
}


def telling_text(word: str) -> str:
    """A text around `word` that every treatment other than `VERBATIM` changes visibly."""
    return f' \n\t{word}"\\{{é🙂}}\n\n{word}\n '


@dataclass(frozen=True, slots=True)
class Stretch:
    """Characters `start` to `end` (excluded) of a rendered text: one message's body."""

    start: int
    end: int
    owner: int


@dataclass(frozen=True, slots=True)
class Glue:
    """Text before, between and behind bodies: `parts[0] + body + parts[1] + … + parts[-1]`."""

    parts: tuple[str, ...]
    treatments: tuple[Treatment, ...]

    def fill(self, bodies: Sequence[Body]) -> tuple[str, tuple[Stretch, ...]]:
        """The text with `bodies` put in, and where each went."""
        pieces = [self.parts[0]]
        length = len(self.parts[0])
        stretches: list[Stretch] = []
        for body, treatment, part in zip(bodies, self.treatments, self.parts[1:], strict=True):
            text = treatment.apply(body.text)
            stretches.append(Stretch(length, length + len(text), body.owner))
            pieces += [text, part]
            length += len(text) + len(part)
        return "".join(pieces), tuple(stretches)


def split_at_sentinels(text: str, words: Sequence[str]) -> tuple[str, ...] | None:
    """The text around the sentinels; None when one is missing, repeated or out of order."""
    parts: list[str] = []
    position = 0
    for word in words:
        found = text.find(word)
        if found < position or text.find(word, found + 1) >= 0:
            return None
        parts.append(text[position:found])
        position = found + len(word)
    return (*parts, text[position:])


def find_treatments(parts: Sequence[str], told: str, bodies: Sequence[Body]) -> tuple[Treatment, ...] | None:
    """How each body was treated in `told`, a rendering with `telling_text` in every body.

    Returns None when a body was treated in no known way: the shape is then rendered anew each time.
    """
    position = len(parts[0])
    if not told.startswith(parts[0]):
        return None
    found: list[Treatment] = []
    for index, body in enumerate(bodies):
        for treatment in Treatment:
            text = treatment.apply(telling_text(body.sentinel))
            if told.startswith(text + parts[index + 1], position):
                position += len(text) + len(parts[index + 1])
                found.append(treatment)
                break
        else:
            return None
    return tuple(found) if position == len(told) else None


def locate_bodies(parts: Sequence[str], text: str, bodies: Sequence[Body]) -> tuple[Stretch, ...] | None:
    """Where the bodies are in `text` when their treatment is unknown; None when that is ambiguous."""
    if not text.startswith(parts[0]) or not text.endswith(parts[-1]):
        return None
    if len(bodies) == 1:
        return (Stretch(len(parts[0]), len(text) - len(parts[-1]), bodies[0].owner),)
    position = len(parts[0])
    stretches: list[Stretch] = []
    for index, body in enumerate(bodies):
        for treatment in Treatment:
            treated = treatment.apply(body.text)
            if text.startswith(treated + parts[index + 1], position):
                stretches.append(Stretch(position, position + len(treated), body.owner))
                position += len(treated) + len(parts[index + 1])
                break
        else:
            return None
    return tuple(stretches) if position == len(text) else None
