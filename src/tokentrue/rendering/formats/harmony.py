"""Harmony (gpt-oss): a completion is a row of messages, each with a channel, and perhaps a recipient.

    [start ROLE] header channel NAME … message TEXT end [start ROLE header channel NAME … message TEXT end] …

What the analysis channel says is reasoning; a message to a recipient is a call with JSON arguments, written
`to=functions.NAME` before or behind the channel; everything else is content. Which channel is reasoning, and
how a recipient is written, is read off the template. Where there are no channels (Muse Glimmer) the recipient
tells all: reasoning is to one of them, content to another, and a call may have a grammar of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tokentrue.rendering.formats.marks import Marks
from tokentrue.rendering.formats.parsed import (
    CallStatus,
    ParsedToolCall,
    ReadPiece,
    Schemas,
    Spoken,
    SpokenKind,
    called_with,
    is_ended_json,
)
from tokentrue.rendering.formats.tool_format import CallBody

_MOST_TYPES = 2
"""Behind the channel mark: the channel's name, and perhaps what the body is written in (`json`)."""


@dataclass(frozen=True, slots=True)
class CallBlock:
    """How the body of a call is written where it is not JSON: `opener BODY closer`, in ordinary text."""

    opener: str
    closer: str
    body: CallBody


@dataclass(frozen=True, slots=True)
class Channels:
    """The markers of one template, as marked text.

    Args:
        start_mark: Begins a further message; its role follows.
        role: Who writes a completion; what another one says is kept with its header.
        channel: Before the channel's name in a header; empty where there are no channels.
        message: Ends the header.
        ends: Each of them ends a message.
        reasoning_channel: The channel of reasoning, or its recipient where there are no channels.
        recipient_prefix: Before a tool's name in a recipient (`functions.`).
        everybody: The recipient of content, where there are no channels.
        block: How a call is written where it is not JSON.
    """

    marks: Marks
    start_mark: str
    role: str
    channel: str
    message: str
    ends: frozenset[str]
    reasoning_channel: str
    recipient_prefix: str
    everybody: str = ""
    block: CallBlock | None = None

    @property
    def name(self) -> str:
        written = f", {self.block.body.name}" if self.block is not None else ""
        return f"channels ({self.reasoning_channel} is reasoning, calls to={self.recipient_prefix}…{written})"

    @property
    def no_tools(self) -> frozenset[str]:
        """Recipients that are no tools. A tool's result is addressed to the assistant, and is no call."""
        return frozenset({"assistant"} if self.channel else {"assistant", self.everybody, self.reasoning_channel})

    def start(self, schemas: Schemas, prompt: str = "") -> _ChannelReader:
        """A reader for one completion."""
        return _ChannelReader(self, schemas)


class _ChannelReader:
    def __init__(self, form: Channels, schemas: Schemas) -> None:
        self._form = form
        self._schemas = schemas
        self._header: list[str] = []
        self._body: list[str] = []
        self._is_started = False
        self._kind: SpokenKind | None = None
        self._recipient: str | None = None
        self._in_body = False
        self._is_fresh = True
        self._had: set[SpokenKind] = set()
        stops = {*form.ends, form.start_mark}
        self._body_stops = re.compile("|".join(map(re.escape, sorted(stops))))
        self._header_stops = re.compile("|".join(map(re.escape, sorted({*stops, form.message}))))

    @property
    def reasoning_is_open(self) -> bool:
        return self._in_body and self._kind is SpokenKind.REASONING

    def feed(self, text: str) -> list[ReadPiece]:
        pieces: list[ReadPiece] = []
        position = 0
        while True:
            stops = self._body_stops if self._in_body else self._header_stops
            match = stops.search(text, position)
            if match is None:
                break
            before, mark, position = text[position : match.start()], match.group(), match.end()
            if self._in_body:
                pieces += self._more(before) + self._end_body(closed=True)
            else:
                self._header.append(before)
                header, self._header = "".join(self._header), []
                pieces += self._open_body(header) if mark == self._form.message else self._bodiless(header)
            self._is_started = mark == self._form.start_mark
        rest = text[position:]
        if self._in_body:
            return pieces + self._more(rest)
        self._header.append(rest)
        return pieces

    def finish(self, *, stopped: bool) -> list[ReadPiece]:
        if self._in_body:
            return self._end_body(closed=stopped)
        header, self._header = "".join(self._header), []
        return self._bodiless(header)

    def _bodiless(self, header: str) -> list[ReadPiece]:
        """A header that never got its message: a call that was begun, or perhaps text."""
        recipient = self._recipient_in(header)
        may_be_text = not self._form.channel and any(
            word.startswith(recipient or "") for word in self._form.no_tools
        )
        if recipient is not None and not may_be_text:
            return [ParsedToolCall(self._form.marks.plain(header), CallStatus.UNCLOSED)]
        return self._stray(header)

    def _open_body(self, header: str) -> list[ReadPiece]:
        pieces = self._stray(header)
        _, behind = self._halves(header)
        channel = behind.split()[0] if behind.split() else ""
        if not self._form.channel:
            channel = _addressed(header) or ""
        self._recipient = self._recipient_in(header)
        is_reasoning = channel == self._form.reasoning_channel
        self._kind = SpokenKind.REASONING if is_reasoning else SpokenKind.CONTENT
        if self._recipient is not None:
            self._kind = None
        self._in_body, self._is_fresh = True, True
        return pieces

    def _stray(self, header: str) -> list[ReadPiece]:
        """What is no header: text, where other words stand than the role, a recipient, a channel and a type."""
        parts = self._halves(header)
        roles, types = ([word for word in part.split() if "to=" not in word] for part in parts)
        is_header = not roles or (self._is_started and roles == [self._form.role])
        if is_header and len(types) <= _MOST_TYPES:
            return []
        self._kind, self._is_fresh = SpokenKind.CONTENT, True
        return self._said(header)

    def _halves(self, header: str) -> tuple[str, str]:
        """A header before and behind the channel's mark."""
        if not self._form.channel or self._form.channel not in header:
            return header, ""
        before, _, behind = header.rpartition(self._form.channel)
        return before, behind

    def _more(self, text: str) -> list[ReadPiece]:
        if self._kind is not None:
            return self._said(text)
        self._body.append(text)
        return []

    def _end_body(self, *, closed: bool) -> list[ReadPiece]:
        self._in_body = False
        if self._kind is not None:
            return []
        body, self._body = "".join(self._body), []
        name = (self._recipient or "").removeprefix(self._form.recipient_prefix)
        if self._form.block is not None:
            return self._block_calls(name, body, self._form.block, closed=closed)
        return [self._call(name, body, closed=closed)]

    def _recipient_in(self, header: str) -> str | None:
        found = _addressed(header)
        return found if found not in self._form.no_tools else None

    def _block_calls(self, name: str, body: str, block: CallBlock, *, closed: bool) -> list[ReadPiece]:
        text, marks = body.strip(), self._form.marks
        if not text.startswith(block.opener):
            return [
                ParsedToolCall(marks.plain(body), CallStatus.INVALID_JSON if closed else CallStatus.UNCLOSED, name)
            ]
        inner = text.removeprefix(block.opener)
        is_whole = closed or inner.endswith(block.closer)
        calls = block.body.read(inner.removesuffix(block.closer), marks, self._schemas, closed=is_whole)
        return [call if call.name is not None or is_whole else replace(call, name=name) for call in calls]

    def _call(self, name: str, body: str, *, closed: bool) -> ParsedToolCall:
        raw = self._form.marks.plain(body)
        if not closed and not is_ended_json(raw):
            return ParsedToolCall(raw, CallStatus.UNCLOSED, name or None)
        if not name:
            return ParsedToolCall(raw, CallStatus.MISSING_NAME)
        return called_with(raw, name, raw)

    def _said(self, text: str) -> list[ReadPiece]:
        if self._kind is None or not text:
            return []
        # A second message of one kind is a paragraph of its own.
        joint = "\n" if self._is_fresh and self._kind in self._had else ""
        self._is_fresh = False
        self._had.add(self._kind)
        return [Spoken(self._kind, joint + self._form.marks.plain(text))]


def _addressed(header: str) -> str | None:
    """The recipient that a header names."""
    match = re.search(r"(?:\A|\s|[\ud800-\udfff])to=([^\s\ud800-\udfff]+)", header)
    return match.group(1) if match is not None else None
