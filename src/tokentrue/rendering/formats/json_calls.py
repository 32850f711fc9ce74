"""Calls whose arguments are JSON: one object, several in a list or in lines, or a name with JSON behind it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from tokentrue.rendering.formats.marks import Marks
from tokentrue.rendering.formats.parsed import (
    CallKeys,
    CallStatus,
    NameAsKey,
    ParsedToolCall,
    Schemas,
    called_with,
    is_ended_json,
)

_DECODER = json.JSONDecoder(parse_int=str)  # only where a value ends is asked for, and Python refuses long numbers
_BETWEEN = re.compile(r"[\s,]*")


@dataclass(frozen=True, slots=True)
class JsonObject:
    """`{"name": …, "arguments": …}` (Qwen, Hermes)."""

    keys: CallKeys

    @property
    def name(self) -> str:
        return "json"

    def read(self, body: str, marks: Marks, schemas: Schemas, *, closed: bool) -> tuple[ParsedToolCall, ...]:
        """One block is one call; one that was never closed is not read."""
        raw = marks.plain(body)
        return (self.keys.read(raw) if closed else ParsedToolCall(raw, CallStatus.UNCLOSED),)


@dataclass(frozen=True, slots=True)
class JsonList:
    """`[{"name": …, "arguments": …}, …]` up to the end of the completion (Mistral)."""

    keys: CallKeys | NameAsKey

    @property
    def name(self) -> str:
        return "json list" if isinstance(self.keys, CallKeys) else "json list of {name: arguments}"

    def read(self, body: str, marks: Marks, schemas: Schemas, *, closed: bool) -> tuple[ParsedToolCall, ...]:
        """Every whole object is a call; what is behind the last one, unless it closes the list, is one more.

        An empty list was an attempt all the same, at a call without a name.
        """
        raw = marks.plain(body)
        position = len(raw) - len(raw.lstrip())
        if not raw.startswith("[", position):
            return (ParsedToolCall(raw, CallStatus.INVALID_JSON if closed else CallStatus.UNCLOSED),)
        calls, position = _objects(raw, position + 1, self.keys)
        rest = raw[position:].strip()
        if calls and rest in ("]", ""):
            return calls
        if rest == "]":
            return (ParsedToolCall(raw, CallStatus.MISSING_NAME),)
        status = CallStatus.UNCLOSED if not closed or not rest else CallStatus.INVALID_JSON
        return (*calls, ParsedToolCall(raw[position:], status))


@dataclass(frozen=True, slots=True)
class JsonLines:
    """One object after the other in one block, without brackets and commas (MiniMax-M1)."""

    keys: CallKeys

    @property
    def name(self) -> str:
        return "json lines"

    def read(self, body: str, marks: Marks, schemas: Schemas, *, closed: bool) -> tuple[ParsedToolCall, ...]:
        """Every whole object is a call; what is behind the last one is one more."""
        raw = marks.plain(body)
        calls, position = _objects(raw, 0, self.keys)
        if calls and not raw[position:].strip():
            return calls
        status = CallStatus.INVALID_JSON if closed else CallStatus.UNCLOSED
        return (*calls, ParsedToolCall(raw[position:], status))


def _objects(raw: str, position: int, keys: CallKeys | NameAsKey) -> tuple[tuple[ParsedToolCall, ...], int]:
    """The whole objects from `position` on, and where the last of them ends."""
    calls: list[ParsedToolCall] = []
    while True:
        match = _BETWEEN.match(raw, position)
        start = match.end() if match is not None else position
        try:
            _, end = _DECODER.raw_decode(raw, start)
        except (ValueError, RecursionError):
            return tuple(calls), start
        calls.append(keys.read(raw[start:end]))
        position = end


@dataclass(frozen=True, slots=True)
class NamedJson:
    """`prefix name separator arguments suffix`, where only the arguments are JSON (DeepSeek, Kimi, Mistral).

    Args:
        prefix, separator, suffix: The template's own text, as marked text.
        id_separator: What stands between the name and the call id, where the id is written.
        id_is_first: The id is written before the name (Solar), not behind it.
        id_is_name: The header is the call id, `functions.<name>:<index>` (Kimi).
        self_closing: The grammar has no closing marker: whole JSON closes the call.
    """

    prefix: str
    separator: str
    suffix: str
    id_separator: str = ""
    id_is_first: bool = False
    id_is_name: bool = False
    self_closing: bool = False

    @property
    def name(self) -> str:
        return "call id + json" if self.id_is_name else "name + json"

    def read(self, body: str, marks: Marks, schemas: Schemas, *, closed: bool) -> tuple[ParsedToolCall, ...]:
        """One block is one call."""
        raw = marks.plain(body)
        header, arguments = self._halves(body)
        name, call_id = self._name(header, marks)
        read = marks.plain(arguments) if arguments is not None else None
        if not closed and not (self.self_closing and read is not None and is_ended_json(read)):
            return (ParsedToolCall(raw, CallStatus.UNCLOSED),)
        if not name:
            return (ParsedToolCall(raw, CallStatus.MISSING_NAME),)
        if read is None:
            return (ParsedToolCall(raw, CallStatus.INVALID_JSON, name, id=call_id),)
        return (called_with(raw, name, read, call_id),)

    def _halves(self, body: str) -> tuple[str, str | None]:
        inner = body.removeprefix(self.prefix) if self.prefix and body.startswith(self.prefix) else body
        # Models respace what their template writes, and white space alone stands inside of arguments as well.
        visible = self.separator.strip()
        if not visible and "{" in inner:
            header, found, arguments = inner.partition("{")
            arguments = found + arguments
        else:
            header, found, arguments = inner.partition(self.separator)
            if not found and visible:
                header, found, arguments = inner.partition(visible)
        if not found:
            return header, None
        if arguments.endswith(self.suffix):
            return header, arguments.removesuffix(self.suffix)
        return header, arguments.strip().removesuffix(self.suffix.strip()).strip()

    def _name(self, header: str, marks: Marks) -> tuple[str | None, str | None]:
        if self.id_separator:
            name, _, call_id = header.partition(self.id_separator)
            if self.id_is_first:
                name, call_id = call_id, name
            return marks.plain(name).strip() or None, marks.plain(call_id).strip() or None
        plain = marks.plain(header).strip()
        if not self.id_is_name:
            return plain or None, None
        match = re.fullmatch(r"(?:functions\.)?(.+?)(?::\d+)?", plain, re.DOTALL)
        return (match.group(1) if match is not None else None), plain or None
