"""Messages to recipients (functionary): text is for everybody, and a call is a message to the tool that it names.

    NAME separator BODY [next NAME separator BODY] …

The generation prompt ends where a name stands, so that a completion begins with one. Which name is everybody's
is read off the template. What does not begin so is content, as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tokentrue.rendering.formats.held_text import held_length
from tokentrue.rendering.formats.marks import Marks, has_mark
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

_LONGEST_NAME = 256
_NAME = rf"[\w.\-]{{1,{_LONGEST_NAME}}}"


@dataclass(frozen=True, slots=True)
class Recipients:
    """One template's headers, as marked text.

    Args:
        everybody: The recipient of text.
        separator: Between a recipient and the body.
        next_header: Between a body and the next recipient. Where it is ordinary text, text that spells it, a
            name and the separator is a header as well, because nothing in the ids tells the two apart.
    """

    marks: Marks
    everybody: str
    separator: str
    next_header: str

    @property
    def name(self) -> str:
        kind = "" if has_mark(self.next_header) else " (plain text)"
        return f"messages to recipients ({self.everybody} is content){kind}"

    def start(self, schemas: Schemas, prompt: str = "") -> _RecipientReader:
        """A reader for one completion."""
        return _RecipientReader(self)


class _RecipientReader:
    def __init__(self, form: Recipients) -> None:
        self._form = form
        header = rf"(?P<name>{_NAME}){re.escape(form.separator)}"
        self._first = re.compile(header)
        self._next = re.compile(re.escape(form.next_header) + header)
        self._held = ""
        self._at_start = True
        self._recipient = form.everybody
        self._body: list[str] = []
        self._said, self._is_fresh = False, True

    @property
    def reasoning_is_open(self) -> bool:
        return False

    def feed(self, text: str) -> list[ReadPiece]:
        held = self._held + text
        pieces: list[ReadPiece] = []
        position = 0
        if self._at_start:
            match = self._first.match(held)
            if match is None and self._may_be_header(held):
                self._held = held
                return pieces
            self._at_start = False
            if match is not None:
                self._recipient, position = match["name"], match.end()
        while (match := self._next.search(held, position)) is not None:
            pieces += self._more(held[position : match.start()]) + self._end_body(closed=True)
            self._recipient, self._is_fresh, position = match["name"], True, match.end()
        certain = len(held) - self._undecided(held, position)
        self._held = held[certain:]
        return pieces + self._more(held[position:certain])

    def finish(self, *, stopped: bool) -> list[ReadPiece]:
        held, self._held = self._held, ""
        body, found, header = held.partition(self._form.next_header)
        if not found or not has_mark(found):
            return self._more(held) + self._end_body(closed=stopped)
        status = CallStatus.MISSING_NAME if stopped else CallStatus.UNCLOSED
        pieces = self._more(body) + self._end_body(closed=True)
        return [*pieces, ParsedToolCall(self._form.marks.plain(header), status)]

    def _may_be_header(self, text: str) -> bool:
        name = re.match(r"[\w.\-]*", text)
        behind = text[name.end() :] if name is not None else text
        name_length = len(text) - len(behind)
        return name_length <= _LONGEST_NAME and (not behind or (name_length > 0 and self._begins(behind)))

    def _begins(self, text: str) -> bool:
        return self._form.separator.startswith(text)

    def _undecided(self, held: str, start: int) -> int:
        """How many characters at the end may still become a header."""
        opener = self._form.next_header
        window = max(start, len(held) - len(opener) - _LONGEST_NAME - len(self._form.separator))
        at = held.find(opener, window)
        while at >= 0:
            if self._may_be_header(held[at + len(opener) :]):
                return len(held) - at
            at = held.find(opener, at + 1)
        return held_length(held[window:], [opener])

    def _more(self, text: str) -> list[ReadPiece]:
        if not text:
            return []
        if self._recipient != self._form.everybody:
            self._body.append(text)
            return []
        # A second message of one kind is a paragraph of its own.
        joint = "\n" if self._is_fresh and self._said else ""
        self._said, self._is_fresh = True, False
        return [Spoken(SpokenKind.CONTENT, joint + self._form.marks.plain(text))]

    def _end_body(self, *, closed: bool) -> list[ReadPiece]:
        if self._recipient == self._form.everybody:
            return []
        raw = self._form.marks.plain("".join(self._body))
        self._body = []
        if not closed and not is_ended_json(raw):
            return [ParsedToolCall(raw, CallStatus.UNCLOSED, self._recipient)]
        return [called_with(raw, self._recipient, raw.strip())]
