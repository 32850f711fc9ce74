"""Gemma's calls: `call:NAME{key:<|"|>text<|"|>,other:[1,true,{k:null}]}`, where a marker quotes strings.

Keys are not quoted, so a key that contains `:` cannot be told from its value; strings may contain anything.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from tokentrue.rendering.formats.marks import Marks
from tokentrue.rendering.formats.parsed import CallStatus, ParsedToolCall, Schemas, json_text

_DEEPEST = 100
_WORDS: dict[str, Any] = {
    "true": True, "True": True, "false": False, "False": False, "null": None, "None": None, "none": None
}  # fmt: skip
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?\Z")


@dataclass(frozen=True, slots=True)
class QuotedFields:
    """A name and fields whose strings stand between two marks.

    Args:
        prefix: What stands before the name.
        quote: The marker that opens and closes a string, as marked text.
    """

    prefix: str
    quote: str

    @property
    def name(self) -> str:
        return "fields with quote markers"

    def read(self, body: str, marks: Marks, schemas: Schemas, *, closed: bool) -> tuple[ParsedToolCall, ...]:
        """One block is one call."""
        raw = marks.plain(body)
        if not closed:
            return (ParsedToolCall(raw, CallStatus.UNCLOSED),)
        head, brace, rest = body.strip().removeprefix(self.prefix).partition("{")
        name = marks.plain(head).strip()
        if not name:
            return (ParsedToolCall(raw, CallStatus.MISSING_NAME),)
        try:
            fields = _Fields(brace + rest, self.quote, marks).whole()
        except ValueError:
            return (ParsedToolCall(raw, CallStatus.INVALID_JSON, name),)
        return (ParsedToolCall(raw, CallStatus.OK, name, json_text(fields)),)


class _Fields:
    """A recursive-descent reader; `ValueError` where the text is not in the grammar."""

    def __init__(self, text: str, quote: str, marks: Marks) -> None:
        self._text = text
        self._quote = quote
        self._marks = marks
        self._at = 0

    def whole(self) -> Any:
        """The one value that the text is."""
        value = self._value(0)
        self._skip_space()
        if self._at != len(self._text):
            raise ValueError(self._at)
        return value

    def _value(self, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError(depth)
        self._skip_space()
        if self._takes("{"):
            return self._object(depth)
        if self._takes("["):
            return self._list(depth)
        if self._takes(self._quote):
            return self._string()
        return self._scalar()

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self._skip_space()
        if self._takes("}"):
            return found
        while True:
            key = self._key()
            if key in found:
                raise ValueError(key)  # one of the two values would be lost
            found[key] = self._value(depth + 1)
            if self._ends("}"):
                return found

    def _list(self, depth: int) -> list[Any]:
        found: list[Any] = []
        self._skip_space()
        if self._takes("]"):
            return found
        while True:
            found.append(self._value(depth + 1))
            if self._ends("]"):
                return found

    def _key(self) -> str:
        self._skip_space()
        if self._takes(self._quote):
            key = self._string()
            self._skip_space()
            if not self._takes(":"):
                raise ValueError(self._at)
            return key
        end = self._text.find(":", self._at)
        if end < 0:
            raise ValueError(self._at)
        key, self._at = self._marks.plain(self._text[self._at : end]).strip(), end + 1
        return key

    def _string(self) -> str:
        end = self._text.find(self._quote, self._at)
        if end < 0:
            raise ValueError(self._at)
        text, self._at = self._text[self._at : end], end + len(self._quote)
        return self._marks.plain(text)

    def _scalar(self) -> Any:
        match = re.compile(r"[^,\]}\s]+").match(self._text, self._at)
        if match is None:
            raise ValueError(self._at)
        self._at = match.end()
        word = match.group()
        if word in _WORDS:
            return _WORDS[word]
        if not _NUMBER.match(word):
            raise ValueError(word)
        number = float(word) if any(char in word for char in ".eE") else int(word)
        if not math.isfinite(number):
            raise ValueError(word)  # JSON has no infinity
        return number

    def _ends(self, closer: str) -> bool:
        self._skip_space()
        if self._takes(closer):
            return True
        if not self._takes(","):
            raise ValueError(self._at)
        return False

    def _takes(self, text: str) -> bool:
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _skip_space(self) -> None:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1
