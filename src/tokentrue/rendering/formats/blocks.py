"""Calls in blocks: text, then calls between an opening and a closing marker, perhaps in a section of their own.

    TEXT before_first [section] opener BODY closer [between] opener BODY closer [section] [text]

What is around the calls is the same for every grammar, so it is read here once; what is in a block is read
by the grammar's `CallBody`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokentrue.rendering.formats.held_text import held_length
from tokentrue.rendering.formats.marks import Marks, has_mark
from tokentrue.rendering.formats.parsed import CallStatus, ParsedToolCall, ReadPiece, Schemas, Spoken, SpokenKind
from tokentrue.rendering.formats.tool_format import CallBody

_LONGEST_SPACE = 64
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class Blocks:
    """One template's blocks, as marked text.

    Args:
        opener: Opens a block: a marker, or a tag with one in it. Ordinary text where the tokenizer has no token
            for it: then text which spells it is a call as well, because nothing in the ids tells the two apart.
        closer: Closes a block; None where only the next opener, or the end, does.
        before_first: White space between text and the first block.
        lead: White space before the first block where there is no text.
        dropped: White space that the template writes between and behind blocks.
        sections: Markers around all blocks; they carry nothing.
        body: The grammar inside a block.
        continued_by: How a body begins, where the template opens only the first of several blocks; else empty.
        quote: What opens and what closes text inside a block that may spell its closer; None where nothing does.
    """

    marks: Marks
    opener: str
    closer: str | None
    before_first: str
    lead: str
    dropped: frozenset[str]
    sections: frozenset[str]
    body: CallBody
    continued_by: str = ""
    quote: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        spelled = self.marks.plain(self.opener).strip()
        end = self.marks.plain(self.closer).strip() if self.closer is not None else ""
        kind = "" if has_mark(self.opener) else " (plain text)"
        return f"{self.body.name} in {spelled}…{end}{kind}"

    def start(self, schemas: Schemas, prompt: str = "") -> _BlockReader:
        """A reader for one completion."""
        return _BlockReader(self, schemas)


class _BlockReader:
    def __init__(self, form: Blocks, schemas: Schemas) -> None:
        self._form = form
        self._schemas = schemas
        self._held = ""
        self._block: list[str] = []
        self._in_block = self._in_quote = False
        self._is_first = True
        self._released = not form.lead
        self._outer = (form.opener, *sorted(form.sections))
        # A text opener inside a block is text of an argument; a marker there means that the block was left.
        reopens = form.closer is None or has_mark(form.opener)
        inner = [t for t in (form.closer, form.opener if reopens else None) if t is not None]
        quote = form.quote or ()
        self._split = max(map(len, [*inner, *quote])) - 1
        self._find_outer, self._find_inner = _any_of(self._outer), _any_of([*inner, *quote[:1]])
        self._find_unquote = _any_of(quote[1:])

    @property
    def reasoning_is_open(self) -> bool:
        return False

    def feed(self, text: str) -> list[ReadPiece]:
        held = self._held + text
        pieces: list[ReadPiece] = []
        position = 0
        while True:
            if not self._in_block and self._is_continued(held, position):
                self._in_block = True
            match = self._find().search(held, position)
            if match is None:
                break
            before, marker, position = held[position : match.start()], match.group(), match.end()
            if self._in_quote or (self._form.quote is not None and marker == self._form.quote[0]):
                self._block.append(before + marker)
                self._in_quote = not self._in_quote
                continue
            if self._in_block:
                closed = self._form.closer is None or marker == self._form.closer
                pieces += self._read_block(before, closed=closed)
                self._in_block = marker == self._form.opener and marker != self._form.closer
            else:
                pieces += self._text_before_marker(before)
                self._in_block = marker == self._form.opener
            self._is_first, self._released = False, False
        self._held = held[position:]
        if not self._in_block:
            return pieces + self._certain_text()
        certain = max(len(self._held) - self._split, 0)
        self._block.append(self._held[:certain])
        self._held = self._held[certain:]
        return pieces

    def finish(self, *, stopped: bool) -> list[ReadPiece]:
        held, self._held = self._held, ""
        if self._in_block:
            return self._unclosed("".join([*self._block, held]), stopped=stopped)
        if not self._is_first and not self._released and held in self._form.dropped:
            return []
        return self._said(held)

    def _find(self) -> re.Pattern[str]:
        """What is looked for where the completion stands."""
        if self._in_quote:
            return self._find_unquote
        return self._find_inner if self._in_block else self._find_outer

    def _is_continued(self, held: str, position: int) -> bool:
        """Whether a block begins here that the template opens only once."""
        begin = self._form.continued_by
        if not begin or self._is_first or self._released:
            return False
        space = _SPACE.match(held, position)
        return held.startswith(begin, space.end() if space is not None else position)

    def _unclosed(self, body: str, *, stopped: bool) -> list[ReadPiece]:
        self._block = []
        if self._form.closer is None:
            return self._read_block(body, closed=stopped)
        # Half of a closer that is ordinary text is no argument; where nothing could be read it is kept as well.
        half = held_length(body, [self._form.closer])
        whole, half_text = body[: len(body) - half], self._form.marks.plain(body[len(body) - half :])
        pieces = self._read_block(whole, closed=False)
        last = pieces[-1] if pieces else None
        if isinstance(last, ParsedToolCall) and last.status is CallStatus.UNCLOSED:
            pieces[-1] = replace(last, raw=last.raw + half_text)
        return pieces

    def _read_block(self, rest: str, *, closed: bool) -> list[ReadPiece]:
        body, self._block = "".join([*self._block, rest]), []
        return list(self._form.body.read(body, self._form.marks, self._schemas, closed=closed))

    def _text_before_marker(self, text: str) -> list[ReadPiece]:
        if not self._released and text in self._droppable():
            return []
        return self._said(text.removesuffix(self._form.before_first) if self._is_first else text)

    def _droppable(self) -> frozenset[str]:
        return frozenset({self._form.lead}) if self._is_first else self._form.dropped

    def _certain_text(self) -> list[ReadPiece]:
        if not self._released:
            if any(dropped.startswith(self._held) for dropped in self._droppable()):
                return []
            if self._form.continued_by and self._held.isspace() and len(self._held) <= _LONGEST_SPACE:
                return []
            keep = held_length(self._held, [d + m for d in self._droppable() for m in self._outer])
            if keep == len(self._held):
                return []
            self._released = True
        endings = list(self._outer)
        if self._is_first:
            endings += [self._form.before_first + marker for marker in self._outer]
        keep = held_length(self._held, endings)
        certain = self._held[: len(self._held) - keep]
        self._held = self._held[len(certain) :]
        return self._said(certain)

    def _said(self, text: str) -> list[ReadPiece]:
        return [Spoken(SpokenKind.CONTENT, self._form.marks.plain(text))] if text else []


def _any_of(markers: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(markers))))
