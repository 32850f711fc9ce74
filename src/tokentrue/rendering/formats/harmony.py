"""Harmony (gpt-oss): a completion is a row of messages, each with a channel, and perhaps a recipient.

    [start ROLE] header channel NAME … message TEXT end [start ROLE header channel NAME … message TEXT end] …

What the analysis channel says is reasoning; a message to a recipient is a call with JSON arguments, written
`to=functions.NAME` before or behind the channel; everything else is content. Which channel is reasoning, and
how a recipient is written, is read off the template.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tokentrue.rendering.formats.marks import Marks
from tokentrue.rendering.formats.parsed import (
    CallStatus,
    ParsedToolCall,
    ReadPiece,
    Schemas,
    Spoken,
    SpokenKind,
    is_json,
)


@dataclass(frozen=True, slots=True)
class Channels:
    """The markers of one template, as marked text.

    Args:
        start: Begins a further message; its role follows.
        channel: Before the channel's name in a header.
        message: Ends the header.
        ends: Each of them ends a message.
        reasoning_channel: The channel of reasoning.
        recipient_prefix: Before a tool's name in a recipient (`functions.`).
    """

    marks: Marks
    start_mark: str
    channel: str
    message: str
    ends: frozenset[str]
    reasoning_channel: str
    recipient_prefix: str

    @property
    def name(self) -> str:
        return f"channels ({self.reasoning_channel} is reasoning, calls to={self.recipient_prefix}…)"

    def start(self, schemas: Schemas) -> _ChannelReader:
        """A reader for one completion."""
        return _ChannelReader(self)


class _ChannelReader:
    def __init__(self, form: Channels) -> None:
        self._form = form
        self._held = ""
        self._kind: SpokenKind | None = None
        self._recipient: str | None = None
        self._in_body = False
        self._is_fresh = True
        self._scanned = 0
        self._had: set[SpokenKind] = set()
        self._body_stops = re.compile("|".join(map(re.escape, sorted({*form.ends, form.start_mark}))))

    @property
    def reasoning_is_open(self) -> bool:
        return self._in_body and self._kind is SpokenKind.REASONING

    def feed(self, text: str) -> list[ReadPiece]:
        self._held += text
        pieces: list[ReadPiece] = []
        while self._held:
            if not self._in_body:
                if not self._open_body():
                    break
                continue
            match = self._body_stops.search(self._held, self._scanned)
            if match is None:
                self._scanned = len(self._held)
                if self._kind is not None:
                    pieces += self._said(self._held)
                    self._held, self._scanned = "", 0
                break
            self._scanned = 0
            body, self._held = self._held[: match.start()], self._held[match.end() :]
            if match.group() == self._form.start_mark:
                self._held = match.group() + self._held
            pieces += self._said(body) if self._kind is not None else [self._call(body, closed=True)]
            self._in_body = False
        return pieces

    def finish(self, *, stopped: bool) -> list[ReadPiece]:
        held, self._held = self._held, ""
        if self._in_body:
            return self._said(held) if self._kind is not None else [self._call(held, closed=stopped)]
        recipient = self._recipient_in(held)
        if recipient is not None:
            return [ParsedToolCall(self._form.marks.plain(held), CallStatus.UNCLOSED)]
        # A header that never got its message: nothing was said yet, unless the format was not followed at all.
        framed = not held.strip() or self._form.start_mark in held or self._form.channel in held
        return [] if framed or self._had else self._plain(held)

    def _open_body(self) -> bool:
        at = self._held.find(self._form.message)
        if at < 0:
            return False
        header, self._held = self._held[:at], self._held[at + len(self._form.message) :]
        _, _, behind = header.rpartition(self._form.channel)
        channel = behind.split()[0] if self._form.channel in header and behind.split() else ""
        self._recipient = self._recipient_in(header)
        is_reasoning = channel == self._form.reasoning_channel
        self._kind = SpokenKind.REASONING if is_reasoning else SpokenKind.CONTENT
        if self._recipient is not None:
            self._kind = None
        self._in_body, self._is_fresh = True, True
        return True

    def _recipient_in(self, header: str) -> str | None:
        match = re.search(r"(?:\A|\s|[\ud800-\udfff])to=([^\s\ud800-\udfff]+)", header)
        found = match.group(1) if match is not None else None
        # A tool's result is addressed to the assistant; a completion that writes one is no call.
        return found if found != "assistant" else None

    def _call(self, body: str, *, closed: bool) -> ParsedToolCall:
        raw = self._form.marks.plain(body)
        name = (self._recipient or "").removeprefix(self._form.recipient_prefix)
        if not closed and not is_json(raw):
            return ParsedToolCall(raw, CallStatus.UNCLOSED)
        if not name:
            return ParsedToolCall(raw, CallStatus.MISSING_NAME)
        if not is_json(raw):
            return ParsedToolCall(raw, CallStatus.INVALID_JSON, name)
        return ParsedToolCall(raw, CallStatus.OK, name, raw)

    def _said(self, text: str) -> list[ReadPiece]:
        if self._kind is None or not text:
            return []
        # A second message of one kind is a paragraph of its own.
        joint = "\n" if self._is_fresh and self._kind in self._had else ""
        self._is_fresh = False
        self._had.add(self._kind)
        return [Spoken(self._kind, joint + self._form.marks.plain(text))]

    def _plain(self, text: str) -> list[ReadPiece]:
        return [Spoken(SpokenKind.CONTENT, self._form.marks.plain(text))]
