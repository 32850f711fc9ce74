"""What was read in a completion: attempted tool calls with their status, and the stretches of text around them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import msgspec

from tokentrue.messages import ToolCall
from tokentrue.rendering.formats.schemas import Schema

_RAW_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT = msgspec.json.Decoder(str)

Schemas = Mapping[str, Schema]
"""JSON schema of each offered tool's parameters, by the tool's name. Empty: no tool was offered."""


class CallStatus(Enum):
    """What became of one attempted tool call."""

    OK = "ok"
    INVALID_JSON = "invalid_json"
    UNCLOSED = "unclosed"
    UNKNOWN_TOOL = "unknown_tool"
    MISSING_NAME = "missing_name"


@dataclass(frozen=True, slots=True)
class ParsedToolCall:
    """One attempted call. `raw` is what the model wrote between the markers; `arguments` is JSON text.

    `name` and `arguments` are None where they could not be read; they are never replaced by `{}`. `id` is
    the call id where the grammar writes one. `INVALID_JSON` stands for arguments that the grammar cannot
    read, whichever grammar it is, and for such that are no object: no tool can be called with a number.
    """

    raw: str
    status: CallStatus
    name: str | None = None
    arguments: str | None = None
    id: str | None = None


class SpokenKind(Enum):
    """Whom a stretch of text is for."""

    CONTENT = "content"
    REASONING = "reasoning"


@dataclass(frozen=True, slots=True)
class Spoken:
    """A stretch of content or reasoning, in reading order."""

    kind: SpokenKind
    text: str


ReadPiece = Spoken | ParsedToolCall
"""One piece of a completion, in the order in which it was written."""


def schemas_of(tools: Sequence[Mapping[str, Any]]) -> Schemas:
    """The parameter schemas of tools in OpenAI's envelope."""
    functions = (tool["function"] for tool in tools)
    return {str(function["name"]): Schema.of(function.get("parameters")) for function in functions}


def judged(call: ParsedToolCall, schemas: Schemas) -> ParsedToolCall:
    """The same call, `UNKNOWN_TOOL` when its name was not offered; without offers nothing is judged."""
    if not schemas or call.status is not CallStatus.OK or call.name in schemas:
        return call
    return replace(call, status=CallStatus.UNKNOWN_TOOL)


def call_of(parsed: ParsedToolCall, call_id: str) -> ToolCall | None:
    """The message form of a call whose name and arguments could be read, else None.

    Args:
        call_id: Used where the grammar writes no id of its own.
    """
    if parsed.name is None or parsed.arguments is None:
        return None
    return ToolCall(name=parsed.name, arguments=parsed.arguments, id=parsed.id or call_id)


def is_json(text: str) -> bool:
    """Whether `text` is one JSON value and nothing else."""
    try:
        msgspec.json.decode(text.encode("utf-8", "surrogatepass"), type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False
    return True


def called_with(raw: str, name: str, arguments: str, call_id: str | None = None) -> ParsedToolCall:
    """A call whose arguments are JSON text: `OK` where that is an object, which a call's arguments have to be."""
    try:
        _RAW_OBJECT.decode(arguments.encode("utf-8", "surrogatepass"))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return ParsedToolCall(raw, CallStatus.INVALID_JSON, name, id=call_id)
    return ParsedToolCall(raw, CallStatus.OK, name, arguments, call_id)


def is_ended_json(text: str) -> bool:
    """Whether `text` is one JSON value, and no further character could be more of it: `12` may become `123`."""
    return is_json(text) and not text[-1:].isdigit()


def json_text(value: Any) -> str:
    """`value` as JSON text that can be encoded as UTF-8."""
    text = json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if any("\ud800" <= char <= "\udfff" for char in text) else text


@dataclass(frozen=True, slots=True)
class CallKeys:
    """The keys of a call that is written as one JSON object; `id_key` None where it writes no id."""

    name_key: str
    arguments_key: str
    id_key: str | None = None

    def read(self, raw: str) -> ParsedToolCall:
        """Read one object; the arguments keep the model's own spelling."""
        try:
            fields = _RAW_OBJECT.decode(raw.strip().encode("utf-8", "surrogatepass"))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return ParsedToolCall(raw, CallStatus.INVALID_JSON)
        if _has_twice(raw, [self.name_key, self.arguments_key]):
            return ParsedToolCall(raw, CallStatus.INVALID_JSON)
        name = _text_field(fields, self.name_key)
        if not name:
            return ParsedToolCall(raw, CallStatus.MISSING_NAME)
        if self.arguments_key not in fields:
            return ParsedToolCall(raw, CallStatus.INVALID_JSON, name=name)
        arguments = bytes(fields[self.arguments_key]).decode("utf-8")
        call_id = _text_field(fields, self.id_key) if self.id_key is not None else None
        return called_with(raw, name, arguments, call_id or None)


@dataclass(frozen=True, slots=True)
class NameAsKey:
    """A call that is written as a JSON object with one key, its name: `{"NAME": {…}}` (Apertus)."""

    def read(self, raw: str) -> ParsedToolCall:
        """Read one object; the arguments keep the model's own spelling."""
        try:
            fields = _RAW_OBJECT.decode(raw.strip().encode("utf-8", "surrogatepass"))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return ParsedToolCall(raw, CallStatus.INVALID_JSON)
        if len(fields) != 1:
            return ParsedToolCall(raw, CallStatus.INVALID_JSON if fields else CallStatus.MISSING_NAME)
        ((name, arguments),) = fields.items()
        if not name:
            return ParsedToolCall(raw, CallStatus.MISSING_NAME)
        if _has_twice(raw, [name]):
            return ParsedToolCall(raw, CallStatus.INVALID_JSON, name)
        return called_with(raw, name, bytes(arguments).decode("utf-8"))


def _has_twice(raw: str, keys: Sequence[str]) -> bool:
    """Whether the JSON object `raw` has one of these keys twice, so that a value of it would be lost."""
    if all(raw.count(json.dumps(key, ensure_ascii=False)) < 2 for key in keys):
        return False
    # The outermost object is the last that is decoded.
    outermost: list[str] = []

    def keep(pairs: list[tuple[str, Any]]) -> None:
        outermost[:] = [key for key, _ in pairs]

    try:
        # Numbers stay text: Python refuses to make one of more than some thousand digits, and JSON has them.
        json.loads(raw, object_pairs_hook=keep, parse_int=str)
    except RecursionError:
        return False
    return any(outermost.count(key) > 1 for key in keys)


def _text_field(fields: Mapping[str, msgspec.Raw], key: str) -> str | None:
    try:
        return _TEXT.decode(bytes(fields[key]))
    except (KeyError, msgspec.DecodeError):
        return None
