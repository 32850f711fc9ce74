"""Glue: the text that a template writes between message bodies, found with sentinels.

Message text goes into the glue unchanged, trimmed, or as JSON. Where each body stands in a real
rendering is found by laying the glue over it; what cannot be laid over is told as unknown.
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


@dataclass(frozen=True, slots=True)
class Stretch:
    """Characters `start` to `end` (excluded) of a rendered text: one message's body."""

    start: int
    end: int
    owner: int


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


def common_length(one: str, other: str) -> int:
    """How many characters both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one.startswith(other[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low
