"""Texts in a record's columns, lone surrogates included: `told(kept(text)) == text` (pure).

A column holds UTF-8, which has no lone surrogates; a byte-level model can sample one, and an error can quote it.
Such a text is kept with a `?` in its place, so that anything can read the column, and the row's `surrogates` says
which characters were what. Messages are JSON with ASCII escapes and need none of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokentrue.errors import RecordError

_FIRST, _LAST = 0xD800, 0xDFFF


class KeptTexts:
    """The texts of one row on their way into its columns; inverse of `ToldTexts`."""

    def __init__(self) -> None:
        self.surrogates: list[dict[str, Any]] = []

    def text(self, place: str, text: str) -> str:
        """`text` as UTF-8 can hold it; what was replaced is noted under `place`."""
        try:
            text.encode()
            return text
        except UnicodeEncodeError:
            found = [(at, ord(char)) for at, char in enumerate(text) if _FIRST <= ord(char) <= _LAST]
        self.surrogates += [{"place": place, "at": at, "code": code} for at, code in found]
        return text.encode("utf-8", "replace").decode()

    def maybe(self, place: str, text: str | None) -> str | None:
        """`text`, where there is one."""
        return None if text is None else self.text(place, text)


class ToldTexts:
    """The texts of one row as they were before they were kept; before schema version 4 a `?` stays one."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = row
        self._surrogates: list[dict[str, Any]] = row["surrogates"] or []

    def text(self, column: str) -> str:
        """A column that has a text."""
        text: str = self._row[column]
        return self.restored(column, text)

    def maybe(self, column: str) -> str | None:
        """A column that may be empty."""
        return None if self._row[column] is None else self.text(column)

    def restored(self, place: str, text: str) -> str:
        """`text` as it was.

        Raises:
            RecordError: The row names a character that is no replaced one.
        """
        chars: list[str] | None = None
        for one in self._surrogates:
            if one["place"] != place:
                continue
            chars = chars if chars is not None else list(text)
            at, code = one["at"], one["code"]
            if not (0 <= at < len(chars) and chars[at] == "?" and _FIRST <= code <= _LAST):
                raise RecordError(f"its {place} has no replaced surrogate at character {at}")
            chars[at] = chr(code)
        return text if chars is None else "".join(chars)
