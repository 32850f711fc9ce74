"""Calls whose parameters stand between tags, one by one: XML parameters and key/value tags.

    <function=NAME> <parameter=KEY> VALUE </parameter> … </function>          (Qwen3-Coder, Nemotron)
    <invoke name="NAME"> <parameter name="KEY"> VALUE </parameter> … </invoke>  (MiniMax)
    NAME <arg_key>KEY</arg_key> <arg_value>VALUE</arg_value> …                  (GLM)
    <parameter name="KEY" string="true"> VALUE </parameter>                      (DeepSeek V3.2: typed tags)

The tags are the template's own; none of them is written here. Around a value exactly what the template writes is
taken off. A value may spell tags: what the template's own spacing tells to be text is text. Where a call is spaced
otherwise, because models respace, white space between tags is free and spelled tags are tags.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeAlias

from tokentrue.rendering.formats.block_glue import common_prefix, common_suffix
from tokentrue.rendering.formats.marks import Marks, is_mark
from tokentrue.rendering.formats.parsed import CallStatus, ParsedToolCall, Schemas, called_with, json_text
from tokentrue.rendering.formats.probing import KEY, VALUE, Probes
from tokentrue.rendering.formats.schemas import NO_SCHEMA, Schema
from tokentrue.rendering.formats.typed_values import typed_value

_Pairs: TypeAlias = list[tuple[str, str | None, str]]
"""A key, the type word of its tag, and the value, as marked text."""

_QUOTED = "quoted text"
"""In the place of a type word."""


@dataclass(frozen=True, slots=True)
class TypeWord:
    """A word in a key's tag that tells whether its value is text: `before WORD after`.

    Args:
        text_word: The word for text; every other one stands for JSON.
    """

    before: str
    after: str
    text_word: str

    @property
    def pattern(self) -> str:
        """A pattern for the tag's end, with the word in the group `kind`."""
        return rf"{_loose(self.before)}(?P<kind>\w+){_loose(self.after)}"


def derive_type_word(probes: Probes, key_open: str, key_close: str) -> TypeWord | None:
    """The word in which the tags of a text and of a number differ; None when they are the same."""
    said = probes.said(probes.message(None, {KEY: VALUE, "n": 7}))
    found = re.search(rf"{re.escape(key_open)}n(.*?)7", said, re.DOTALL) if said is not None else None
    if found is None or found[1] == key_close:
        return None
    prefix = re.sub(r"\w+\Z", "", common_prefix(key_close, found[1]))
    suffix = re.sub(r"\A\w+", "", common_suffix(key_close, found[1]))
    word = key_close[len(prefix) : len(key_close) - len(suffix)]
    return TypeWord(prefix, suffix, word) if re.fullmatch(r"\w+", word) else None


def derive_quote(probes: Probes, key_close: str, value_close: str) -> tuple[str, str] | None:
    """What stands around a value that looks like a tag, and around no other one; None where nothing does."""
    hard = f"{VALUE}<&\n{VALUE}"
    said = probes.said(probes.message(None, {KEY: hard}))
    around = rf"{re.escape(key_close)}(?P<open>\S+?){re.escape(hard)}(?P<close>\S+?){re.escape(value_close)}"
    found = re.search(around, said) if said is not None else None
    return (found["open"], found["close"]) if found is not None else None


@dataclass(frozen=True, slots=True)
class Spacing:
    """The white space of one template: behind the name's tag, around a value, behind a value and the last one."""

    behind_name: str
    value_lead: str
    value_trail: str
    behind_value: str
    behind_last: str


@dataclass(frozen=True, slots=True)
class ParameterTags:
    """The tags of one template, as marked text without the white space around them.

    Args:
        call_open, call_close: Around one call inside a block; empty where the block itself is the call.
        name_close: Ends the name where a tag does; empty where the first key's tag does.
        key_open, key_close: Around a key; `key_close` includes what opens the value.
        value_close: Ends a value.
        spacing: The white space around them.
        type_word: Told by the tag itself instead of the tool's schema; then `key_close` is not looked at.
        counter: The number in `name_close`, where the template counts its calls; a call may have any.
        is_escaped: Names and keys are written with `&quot;` and `&amp;`.
        quote: What opens and closes a text that may spell tags (`<![CDATA[`, `]]>`); None where nothing does.
        raw: What opens and closes all arguments as one JSON text; None where they never are.
    """

    call_open: str
    call_close: str
    name_close: str
    key_open: str
    key_close: str
    value_close: str
    spacing: Spacing
    type_word: TypeWord | None = None
    counter: str = ""
    is_escaped: bool = False
    quote: tuple[str, str] | None = None
    raw: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        kind = "typed " if self.type_word is not None else ""
        has_tag_for_key = self.key_open.endswith(">") or is_mark(self.key_open[-1:])
        return kind + ("key/value tags" if has_tag_for_key and not self.call_open else "xml parameters")

    def read(self, body: str, marks: Marks, schemas: Schemas, *, closed: bool) -> tuple[ParsedToolCall, ...]:
        """Every call in a block; one that was cut off is `UNCLOSED`."""
        if not self.call_open:
            return (self._read_call(body, marks, schemas, closed=closed),)
        starts = self._starts(body)
        if not starts:
            status = CallStatus.MISSING_NAME if closed else CallStatus.UNCLOSED
            return (ParsedToolCall(marks.plain(body), status),)
        ends = [*starts[1:], len(body)]
        parts = [body[start:end] for start, end in zip(starts, ends, strict=True)]
        last = len(parts) - 1
        calls = tuple(
            self._read_call(part, marks, schemas, closed=closed or index < last or self._is_whole(part))
            for index, part in enumerate(parts)
        )
        before = body[: starts[0]]
        if before.strip():
            return (ParsedToolCall(marks.plain(before), CallStatus.MISSING_NAME), *calls)
        return calls

    def _is_whole(self, part: str) -> bool:
        return bool(self.call_close) and part.rstrip().endswith(self.call_close)

    def _starts(self, body: str) -> list[int]:
        # A call begins at the block's begin or behind another call; elsewhere its tag is text in a value.
        pattern = rf"(?:\A|{re.escape(self.call_close)})\s*(?={_loose(self.call_open)})"
        return [match.end() for match in re.finditer(pattern, body)]

    def _read_call(self, part: str, marks: Marks, schemas: Schemas, *, closed: bool) -> ParsedToolCall:
        raw = marks.plain(part)
        if not closed:
            return ParsedToolCall(raw, CallStatus.UNCLOSED)
        inner = re.sub(rf"\A\s*{_loose(self.call_open)}", "", part)
        name_text, rest = self._split_name(inner)
        name = self._word(name_text, marks).strip()
        if not name:
            return ParsedToolCall(raw, CallStatus.MISSING_NAME)
        written = self._raw_arguments(rest)
        if written is not None:
            return called_with(raw, name, marks.plain(written))
        schema = schemas.get(name, NO_SCHEMA)
        pairs = self._read_pairs(rest, marks, schema)
        if pairs is None:
            return ParsedToolCall(raw, CallStatus.INVALID_JSON, name)
        values: dict[str, Any] = {}
        for key, kind, value in pairs:
            plain_key, text = self._word(key, marks), marks.plain(value)
            if plain_key in values:
                # One of the two values would be lost.
                return ParsedToolCall(raw, CallStatus.INVALID_JSON, name)
            values[plain_key] = self._value(text, kind, schema.property(plain_key))
        return ParsedToolCall(raw, CallStatus.OK, name, json_text(values))

    def _raw_arguments(self, rest: str) -> str | None:
        """What stands in the element of raw arguments; None where there is no such element."""
        if self.raw is None:
            return None
        opened, closed = map(_loose, self.raw)
        found = re.fullmatch(rf"\s*{opened}(.*){closed}\s*(?:{_loose(self.call_close)}\s*)?", rest, re.DOTALL)
        return found[1] if found is not None else None

    def _value(self, text: str, kind: str | None, schema: Schema) -> Any:
        if kind == _QUOTED:
            types = schema.types
            return text if not types or "string" in types else typed_value(text, schema)
        if self.type_word is None:
            return typed_value(text, schema)
        return text if kind == self.type_word.text_word else typed_value(text)

    def _word(self, text: str, marks: Marks) -> str:
        """A name or a key."""
        plain = marks.plain(text)
        return plain.replace("&quot;", '"').replace("&amp;", "&") if self.is_escaped else plain

    def _split_name(self, inner: str) -> tuple[str, str]:
        name_close = _loose(self.name_close)
        if self.counter:
            name_close = name_close.replace(self.counter, r"\d+", 1)
        enders = [_loose(text) for text in (self.key_open, self.call_close) if text]
        match = re.search("|".join([f"(?P<close>{name_close})", *enders] if name_close else enders), inner)
        if match is None:
            return inner, ""
        consumed = match.end() if match.groupdict().get("close") else match.start()
        return inner[: match.start()], inner[consumed:]

    def _read_pairs(self, rest: str, marks: Marks, schema: Schema) -> _Pairs | None:
        """As the template spaces them, and where that cannot be, as models do."""
        exact = self._pairs(rest, is_exact=True)
        if exact is None:
            return self._pairs(rest, is_exact=False)
        spelled = re.compile(rf"{_loose(self.value_close)}\s*{_loose(self.key_open)}")
        if not any(spelled.search(value) for _, kind, value in exact if kind != _QUOTED):
            return exact
        # Text that spells tags, or respaced tags: the latter where a key is required that only they have.
        respaced = self._pairs(rest, is_exact=False) or []
        found, kept = ({self._word(key, marks) for key, _, _ in pairs} for pairs in (respaced, exact))
        return respaced if (found - kept) & schema.required else exact

    def _pairs(self, rest: str, *, is_exact: bool) -> _Pairs | None:
        """Keys, their type words and values in order; None when something else stands between them."""
        key_open, key_close = _loose(self.key_open), _loose(self.key_close)
        if self.type_word is not None:
            key_close = self.type_word.pattern
        lead, trail = re.escape(self.spacing.value_lead), re.escape(self.spacing.value_trail)
        last = rf"{_loose(self.call_close)}\s*\Z|\Z" if self.call_close else r"\Z"
        if is_exact:
            behind = rf"{re.escape(self.spacing.behind_value)}{key_open}"
            behind = rf"{behind}|{re.escape(self.spacing.behind_last)}(?:{last})"
        else:
            lead, trail, behind = rf"(?:{lead})?", rf"(?:{trail})?", rf"\s*(?:{key_open}|{last})"
        value = rf"{lead}(?P<value>.*?){trail}"
        if self.quote is not None:
            opened, closed = map(re.escape, self.quote)
            free = "" if is_exact else r"\s*"
            quoted = rf"{lead}{free}{opened}(?P<quoted>.*?){closed}{free}{trail}"
            value = rf"(?:{quoted}|(?!{free}{opened}){value})"
        pair = re.compile(
            rf"\s*{key_open}(?>(?P<key>.*?){key_close}){value}"
            rf"{_loose(self.value_close)}(?={behind})",
            re.DOTALL,
        )
        end = re.compile(rf"\s*(?:{last})")
        if is_exact and rest[: len(rest) - len(rest.lstrip())] != self.spacing.behind_name:
            return None
        pairs: _Pairs = []
        position = 0
        while not end.match(rest, position):
            match = pair.match(rest, position)
            if match is None:
                return None
            groups = match.groupdict()
            is_quoted = groups.get("quoted") is not None
            kind, text = (_QUOTED, groups["quoted"]) if is_quoted else (groups.get("kind"), groups["value"])
            pairs.append((match["key"].strip(), kind, text))
            position = match.end()
        return pairs


def _loose(text: str) -> str:
    """A pattern for `text` in which white space may have any length."""
    return r"\s*".join(re.escape(word) for word in re.split(r"\s*\n\s*", text.strip())).replace(r"\ ", r"\s+")
