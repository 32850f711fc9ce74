"""Calls written as Python: `[look_up(word="x", n=[1, None]), send()]` (Llama 3.2, ToolACE, LFM2).

The list stands between markers, or is the whole completion. Its own shape is read here and only its values as
literals, so that a parameter may be called `from`, which Python itself would refuse. What is no literal is an
unreadable call, kept as it was written; arguments without a name are such as well.

Some templates write strings without quotes. Then text without quotes is read too, where it can be told from the
rest of the call: without commas, brackets, quotes and `=`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from tokentrue.rendering.formats.marks import Marks
from tokentrue.rendering.formats.parsed import (
    CallStatus,
    ParsedToolCall,
    ReadPiece,
    Schemas,
    Spoken,
    SpokenKind,
    json_text,
)
from tokentrue.rendering.formats.python_literals import Literals, NotLiteral
from tokentrue.rendering.formats.schemas import NO_SCHEMA, Schema
from tokentrue.rendering.formats.typed_values import typed_value

_TEXT = r"""[^\s\[\](){}=,'"]"""
_NAME = re.compile(rf"(?P<name>{_TEXT}*)\s*\(")
_KEY = re.compile(rf"\s*(?P<key>{_TEXT}+)\s*=")
_BARE = re.compile(r"""[^,=()\[\]{}'"]*(?=[,)])""")
_END = re.compile(r"\s*\]")
_LONGEST_BEGINNING = 512
"""So many characters may stand between `[` and the first key of a call that is not told by a marker."""


@dataclass(frozen=True, slots=True)
class PythonList:
    """The list of calls.

    Args:
        bare_strings: The template writes strings without quotes.
        escapes: It escapes quotes in strings; where it does not, a string with one is no literal.
    """

    bare_strings: bool
    escapes: bool = True

    @property
    def name(self) -> str:
        if self.bare_strings:
            return "python calls (strings without quotes)"
        return "python calls" if self.escapes else "python calls (quotes in strings are not escaped)"

    def read(self, body: str, marks: Marks, schemas: Schemas, *, closed: bool) -> tuple[ParsedToolCall, ...]:
        """Every whole call; what is behind the last one, unless it ends the list, is one more.

        An empty list was an attempt all the same, at a call without a name.
        """
        raw = marks.plain(body)
        calls, rest, ended = self.read_list(raw, schemas)
        if calls and not rest.strip():
            return calls
        if ended and not rest.strip():
            return (ParsedToolCall(raw, CallStatus.MISSING_NAME),)
        return (*calls, self.unread(rest, closed=closed))

    def read_list(self, raw: str, schemas: Schemas) -> tuple[tuple[ParsedToolCall, ...], str, bool]:
        """The whole calls, what is behind them, and whether the list was ended."""
        found = Literals(raw)
        found.skip_space()
        if not found.takes("["):
            return (), raw, False
        calls: list[ParsedToolCall] = []
        position = found.at
        while True:
            end = _END.match(raw, position)
            if end is not None:
                return tuple(calls), raw[end.end() :], True
            try:
                call, position = self._call(raw, position, schemas, is_first=not calls)
            except NotLiteral:
                return tuple(calls), raw[position:], False
            calls.append(call)

    def unread(self, raw: str, *, closed: bool) -> ParsedToolCall:
        """What was no whole call."""
        if not closed:
            return ParsedToolCall(raw, CallStatus.UNCLOSED)
        name = _NAME.match(raw.lstrip().removeprefix("[").lstrip(" ,\n"))
        if name is None or not name["name"]:
            return ParsedToolCall(raw, CallStatus.MISSING_NAME if name is not None else CallStatus.INVALID_JSON)
        return ParsedToolCall(raw, CallStatus.INVALID_JSON, name["name"])

    def _call(self, raw: str, start: int, schemas: Schemas, *, is_first: bool) -> tuple[ParsedToolCall, int]:
        reader = Literals(raw, start)
        reader.skip_space()
        if not is_first:
            _need(reader, ",")
            reader.skip_space()
        begin = reader.at
        name = _NAME.match(raw, begin)
        if name is None or not name["name"]:
            raise NotLiteral(f"no name at {begin}")
        reader.at = name.end()
        schema = schemas.get(name["name"], NO_SCHEMA)
        arguments: dict[str, Any] = {}
        reader.skip_space()
        while not reader.takes(")"):
            if arguments:
                _need(reader, ",")
            key = _KEY.match(raw, reader.at)
            if key is None or key["key"] in arguments:
                raise NotLiteral(f"no further key at {reader.at}")
            reader.at = key.end()
            arguments[key["key"]] = self._value(reader, schema.property(key["key"]))
            reader.skip_space()
        text = raw[begin : reader.at]
        return ParsedToolCall(text, CallStatus.OK, name["name"], json_text(arguments)), reader.at

    def _value(self, reader: Literals, schema: Schema) -> Any:
        start = reader.at
        bare = _BARE.match(reader.text, start) if self.bare_strings else None
        if bare is not None:
            reader.at = bare.end()
            return typed_value(bare.group(), schema)
        value = reader.value()
        behind = reader.at
        reader.skip_space()
        if reader.text[reader.at : reader.at + 1] not in (",", ")"):
            raise NotLiteral(f"no end of a value at {behind}")
        return value


@dataclass(frozen=True, slots=True)
class BarePython:
    """The whole completion is the list, without markers: what begins like a call is one."""

    body: PythonList
    marks: Marks = field(default_factory=Marks)

    @property
    def name(self) -> str:
        return f"bare {self.body.name}"

    def start(self, schemas: Schemas, prompt: str = "") -> _BarePythonReader:
        """A reader for one completion."""
        return _BarePythonReader(self, schemas)


class _BarePythonReader:
    def __init__(self, form: BarePython, schemas: Schemas) -> None:
        self._form = form
        self._schemas = schemas
        self._held: list[str] = []
        self._begin = ""
        self._is_call: bool | None = None

    @property
    def reasoning_is_open(self) -> bool:
        return False

    def feed(self, text: str) -> list[ReadPiece]:
        self._held.append(text)
        if self._is_call is None:
            self._begin = (self._begin + text).lstrip()[:_LONGEST_BEGINNING]
            self._is_call = self._decide(self._begin)
        return self._flush() if self._is_call is False else []

    def finish(self, *, stopped: bool) -> list[ReadPiece]:
        if not self._is_call:
            return self._flush()
        raw = self._form.marks.plain("".join(self._held))
        calls, rest, ended = self._form.body.read_list(raw, self._schemas)
        if not ended and (rest.strip() or not calls):
            return [*calls, self._form.body.unread(rest, closed=stopped)]
        return [*calls, *([Spoken(SpokenKind.CONTENT, rest)] if rest.strip() else [])]

    def _decide(self, begin: str) -> bool | None:
        """True: a call; False: text; None: too little of it is there."""
        if begin and not begin.startswith("["):
            return False
        behind = begin[1:].lstrip()
        called = _NAME.match(behind)
        if called is None:
            may_be = re.fullmatch(rf"{_TEXT}*\s*", behind) is not None and len(begin) < _LONGEST_BEGINNING
            return None if may_be else False
        if not called["name"]:
            return False
        if called["name"] in self._schemas:
            return True
        inner = behind[called.end() :].lstrip()
        if inner.startswith(")") or _KEY.match(inner) is not None:
            return True
        may_be = re.fullmatch(rf"{_TEXT}*\s*", inner) is not None and len(begin) < _LONGEST_BEGINNING
        return None if may_be else False

    def _flush(self) -> list[ReadPiece]:
        text, self._held = "".join(self._held), []
        return [Spoken(SpokenKind.CONTENT, self._form.marks.plain(text))] if text else []


def _need(reader: Literals, text: str) -> None:
    if not reader.takes(text):
        raise NotLiteral(f"no {text!r} at {reader.at}")
