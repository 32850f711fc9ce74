"""Calls whose parameters are elements with names of their own, and whose objects and lists are elements in them.

    opener call_open NAME name_close <KEY>VALUE</KEY> <KEY><item>VALUE</item> …</KEY> call_close closer

So MiniMax-M3 writes. Every tag begins with one and the same marker, so that text which spells a tag is text. A
value is text, or it is elements: the members of an object, or, each in a tag of one known name, the items of a
list. Text is typed by the JSON schema (`typed_values.py`), down into what it says of members and items; where
the schema is silent, `7` is a number, and what no number and no boolean is written as is text. White space
between tags is free; around a value there is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tokentrue.rendering.formats.blocks import Blocks
from tokentrue.rendering.formats.marks import Marks
from tokentrue.rendering.formats.parsed import CallStatus, ParsedToolCall, Schemas, json_text
from tokentrue.rendering.formats.probing import KEY, NAME, OTHER_KEY, OTHER_VALUE, TEXT, VALUE, Probes
from tokentrue.rendering.formats.schemas import NO_SCHEMA, Schema
from tokentrue.rendering.formats.typed_values import typed_value

_DEEPEST = 100


@dataclass(frozen=True, slots=True)
class NestedTags:
    """The tags of one template, without the marker that each begins with and the white space behind.

    Args:
        mark: Begins every tag.
        call_open, name_close: Around a call's name.
        call_close: Ends a call.
        item: The name of the tag around one item of a list.
    """

    mark: str
    call_open: str
    name_close: str
    call_close: str
    item: str

    @property
    def name(self) -> str:
        return "nested tags"

    def read(self, body: str, marks: Marks, schemas: Schemas, *, closed: bool) -> tuple[ParsedToolCall, ...]:
        """Every call in a block; what stands between calls is an attempt without a name."""
        before, *tags = body.split(self.mark)
        calls = [_stray(marks.plain(before), closed=closed or bool(tags))] if before.strip() else []
        at = 0
        while at < len(tags):
            reader = _Elements(self, tags, marks, at)
            end, call = reader.call(schemas, closed=closed)
            calls.append(call)
            at = end
        if not calls:
            return (_stray(marks.plain(body), closed=closed),)
        return tuple(calls)


def _stray(raw: str, *, closed: bool) -> ParsedToolCall:
    return ParsedToolCall(raw, CallStatus.MISSING_NAME if closed else CallStatus.UNCLOSED)


class _NotWrittenError(Exception):
    """What the grammar does not write; `is_cut` where only the end is missing."""

    def __init__(self, *, is_cut: bool) -> None:
        self.is_cut = is_cut
        super().__init__(is_cut)


class _Elements:
    """Reads tags, each with the text behind it, from `at` on."""

    def __init__(self, form: NestedTags, tags: list[str], marks: Marks, at: int) -> None:
        self._form = form
        self._tags = tags
        self._marks = marks
        self._start = self._at = at

    def call(self, schemas: Schemas, *, closed: bool) -> tuple[int, ParsedToolCall]:
        """One call or what stands in its place, and where the next one may begin."""
        form, tag = self._form, self._tags[self._start]
        name_end = tag.find(form.name_close) if tag.startswith(form.call_open) else -1
        if name_end < 0:
            end = self._end_of_stray()
            # The last tag may be half of a call's, or of what closes the block.
            return end, _stray(self._raw(end), closed=closed or end < len(self._tags))
        name = self._marks.plain(tag[len(form.call_open) : name_end]).strip()
        schema = schemas.get(name, NO_SCHEMA)
        try:
            self._need_space(tag[name_end + len(form.name_close) :])
            self._at += 1
            arguments = self._members(form.call_close, schema, 0)
        except _NotWrittenError as error:
            end = self._end_of_call()
            if error.is_cut and not closed:
                return end, ParsedToolCall(self._raw(end), CallStatus.UNCLOSED)
            return end, ParsedToolCall(self._raw(end), CallStatus.INVALID_JSON, name or None)
        raw = self._raw(self._at)
        if not name:
            return self._at, ParsedToolCall(raw, CallStatus.MISSING_NAME)
        return self._at, ParsedToolCall(raw, CallStatus.OK, name, json_text(arguments))

    def _members(self, close: str, schema: Schema, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not self._takes(close):
            key = self._marks.plain(self._key())
            if key in found:
                raise _NotWrittenError(is_cut=False)
            found[key] = self._element(schema.property(key), depth)
        return found

    def _element(self, schema: Schema, depth: int) -> Any:
        """The value of the element that opens here."""
        if depth > _DEEPEST:
            raise _NotWrittenError(is_cut=False)
        key = self._key()
        text = self._tags[self._at][len(key) + 2 :]
        self._at += 1
        close = f"</{key}>"
        if self._takes(close):
            return _typed(self._marks.plain(text), schema)
        self._need_space(text)
        types = schema.types
        if self._key() != self._form.item or ("object" in types and "array" not in types):
            return self._members(close, schema, depth + 1)
        items: list[Any] = []
        while not self._takes(close):
            if self._key() != self._form.item:
                raise _NotWrittenError(is_cut=False)
            items.append(self._element(schema.item(len(items)), depth + 1))
        return items

    def _key(self) -> str:
        """The name in the tag that opens here."""
        tag = self._tag()
        end = tag.find(">")
        if not tag.startswith("<") or tag.startswith("</") or end < 0:
            raise _NotWrittenError(is_cut=self._at == len(self._tags) - 1)
        return tag[1:end]

    def _takes(self, close: str) -> bool:
        tag = self._tag()
        if not tag.startswith(close):
            if self._at == len(self._tags) - 1 and close.startswith(tag):
                raise _NotWrittenError(is_cut=True)
            return False
        self._need_space(tag[len(close) :])
        self._at += 1
        return True

    def _tag(self) -> str:
        if self._at >= len(self._tags):
            raise _NotWrittenError(is_cut=True)
        return self._tags[self._at]

    def _need_space(self, text: str) -> None:
        if text.strip():
            raise _NotWrittenError(is_cut=False)

    def _end_of_stray(self) -> int:
        at = self._start + 1
        while at < len(self._tags) and not self._tags[at].startswith(self._form.call_open):
            at += 1
        return at

    def _end_of_call(self) -> int:
        """Behind the first tag that closes a call, or in front of the next one that opens a call."""
        at = self._start + 1
        while at < len(self._tags) and not self._tags[at].startswith(self._form.call_open):
            at += 1
            if self._tags[at - 1].startswith(self._form.call_close):
                break
        return at

    def _raw(self, end: int) -> str:
        return self._marks.plain("".join(self._form.mark + tag for tag in self._tags[self._start : end])).strip()


def _typed(text: str, schema: Schema) -> Any:
    """The value that a text stands for; nothing at all may be an empty list or object."""
    types = schema.types
    if not types:
        value = typed_value(text)
        return value if isinstance(value, (int, float)) and json_text(value) == text else text
    if text.strip() or "string" in types:
        return typed_value(text, schema)
    empty: dict[str, Any] = {"array": [], "object": {}, "null": None}
    return next((value for kind, value in empty.items() if kind in types), text)


def nested_tags(probes: Probes) -> Blocks | None:
    """The tags that a template writes, found in known calls; None where it writes others."""
    one = probes.said(probes.message(None, {KEY: VALUE}))
    deep = probes.said(probes.message(None, {KEY: [VALUE, {OTHER_KEY: OTHER_VALUE}]}))
    text = probes.said(probes.message(TEXT, {KEY: VALUE}))
    mark = r"[\ud800-\udfff]"
    found = one and re.fullmatch(
        rf"(?P<lead>\s*)(?P<mark>{mark})(?P<opener><[^<>]+>|{mark})\s*(?P=mark)(?P<call_open><[^<>]*){NAME}"
        rf"(?P<name_close>[^<>]*>)\s*(?P=mark)<{KEY}>{VALUE}(?P=mark)</{KEY}>\s*(?P=mark)(?P<call_close></[^<>]+>)\s*"
        rf"(?P=mark)(?P<closer></[^<>]+>|{mark})(?P<trail>\s*)",
        one,
    )
    if not found or deep is None:
        return None
    items = (
        rf"<{KEY}>\1<(?P<item>\w+)>{VALUE}\1</(?P=item)>\1<(?P=item)>\1<{OTHER_KEY}>{OTHER_VALUE}\1</{OTHER_KEY}>"
    )
    item = re.search(rf"({re.escape(found['mark'])}){items}", deep)
    if item is None:
        return None
    opener, closer = found["mark"] + found["opener"], found["mark"] + found["closer"]
    spoken = re.search(rf"{TEXT}(\s*){re.escape(opener)}", text) if text is not None else None
    body = NestedTags(found["mark"], found["call_open"], found["name_close"], found["call_close"], item["item"])
    dropped = frozenset({"", found["trail"]})
    before_first = spoken[1] if spoken is not None else ""
    return Blocks(probes.marks, opener, closer, before_first, found["lead"], dropped, frozenset(), body)
