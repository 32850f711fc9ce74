"""Holding text back while what follows may still change what it is: half a marker, white space that is trimmed."""

from __future__ import annotations

from collections.abc import Iterable


def held_length(text: str, endings: Iterable[str]) -> int:
    """How many characters at the end of `text` may be the beginning of one of `endings`."""
    best = 0
    for ending in endings:
        for length in range(min(len(ending), len(text)), best, -1):
            if text.endswith(ending[:length]):
                best = length
                break
    return best


class TrimmedText:
    """Text without the white space that the template writes before and behind it.

    Law: the pieces that come out concatenate to `text.removeprefix(lead)`, and when the text was ended by its
    marker (`end(cut=True)`), to `text.removeprefix(lead).removesuffix(trail)`.
    """

    def __init__(self, lead: str, trail: str = "") -> None:
        self._lead = lead
        self._trail = trail
        self._held = ""

    def push(self, text: str) -> str:
        """More text; returns what is certain."""
        self._held += text
        if self._lead:
            if len(self._held) < len(self._lead) and self._lead.startswith(self._held):
                return ""
            self._held = self._held.removeprefix(self._lead)
            self._lead = ""
        keep = held_length(self._held, [self._trail])
        certain = self._held[: len(self._held) - keep]
        self._held = self._held[len(certain) :]
        return certain

    def end(self, *, cut: bool) -> str:
        """The rest; `cut` when the marker that `trail` stands before was found."""
        rest = self._held.removeprefix(self._lead) if self._lead else self._held
        self._held, self._lead = "", ""
        return rest.removesuffix(self._trail) if cut and self._trail else rest
