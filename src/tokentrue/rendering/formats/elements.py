"""A completion as a row of elements: reasoning, content and the section of calls each have one (Kimi-K3).

    [open NAME end] TEXT close NAME end   open NAME end TEXT close NAME end …

`open`, `close` and `end` are markers, so that text which spells a tag is text. The generation prompt leaves an
element open; which one is read off its end. The names of the elements are read off the template. A tag that is
not known, or was cut, is text of the element in which it stands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tokentrue.rendering.formats.marks import Marks
from tokentrue.rendering.formats.parameters import ParameterTags, Spacing, derive_type_word
from tokentrue.rendering.formats.parsed import (
    CallStatus,
    ParsedToolCall,
    ReadPiece,
    Schemas,
    Spoken,
    SpokenKind,
)
from tokentrue.rendering.formats.probing import KEY, NAME, TEXT, THOUGHT, VALUE, Probes
from tokentrue.rendering.formats.tool_format import CallBody

_LONGEST_TAG = 256
"""So long may the tag of an element be, white space included; a longer one is text."""


@dataclass(frozen=True, slots=True)
class Elements:
    """The elements of one template, as marked text.

    Args:
        opener: Begins the tag that opens an element.
        closer: Begins the tag that closes one.
        end: Ends a tag.
        reasoning, content, calls: The names of the elements; calls are read by `body`.
        outer: Names of elements around all of them, whose closing tags carry nothing.
        left_open: The element that the generation prompt leaves open, where a prompt is not at hand.
        behind_reasoning: What the template writes behind reasoning that no content follows, stop excluded.
    """

    marks: Marks
    opener: str
    closer: str
    end: str
    reasoning: str
    content: str
    calls: str
    outer: frozenset[str]
    left_open: str
    body: CallBody
    behind_reasoning: str = ""

    @property
    def name(self) -> str:
        return f"elements ({self.reasoning} is reasoning, {self.body.name} in {self.calls})"

    @property
    def known(self) -> frozenset[str]:
        """The names of the elements that are read."""
        return frozenset({self.reasoning, self.content, self.calls})

    def start(self, schemas: Schemas, prompt: str = "") -> _ElementReader:
        """A reader for one completion."""
        return _ElementReader(self, schemas, prompt)

    def left_of(self, completion: str, prompt: str = "") -> str | None:
        """What ends a message that was cut in or behind its reasoning or content, as text; None for any other.

        The half tag of a cut end is gone on with, where what ends the message begins so.

        Args:
            completion, prompt: Marked text; of the prompt its end, from the generation prompt on.
        """
        reader = self.start({}, prompt)
        reader.feed(completion)
        if reader.element == self.reasoning:
            left = self.behind_reasoning
        elif reader.element == self.content:
            closer = self.closer + self.content + self.end
            left = closer + self.behind_reasoning.partition(closer)[2]
        elif reader.element is None and reader.closed:
            left = self.behind_reasoning.partition(self.closer + reader.closed + self.end)[2]
        else:
            return None
        if left.startswith(reader.half_tag):
            return self.marks.plain(left[len(reader.half_tag) :])
        return self.marks.plain(left) if reader.element is not None else None


class _ElementReader:
    def __init__(self, form: Elements, schemas: Schemas, prompt: str) -> None:
        self._form = form
        self._schemas = schemas
        self._find_mark = re.compile(f"[{form.opener}{form.closer}{form.end}]")
        self.element = _left_open(form, prompt)
        """The element in which the text stands; None between elements."""
        self.closed = ""
        """The element behind whose closing tag nothing stands yet; "" for none."""
        self._tag: list[str] = []
        self._section: list[str] = []
        self._is_fresh = True
        self._had: set[SpokenKind] = set()

    @property
    def reasoning_is_open(self) -> bool:
        return self.element == self._form.reasoning

    @property
    def half_tag(self) -> str:
        """The begin of a tag that has no end yet, as marked text."""
        return "".join(self._tag)

    def feed(self, text: str) -> list[ReadPiece]:
        pieces: list[ReadPiece] = []
        position = 0
        for match in self._find_mark.finditer(text):
            before, mark, position = text[position : match.start()], match.group(), match.end()
            if not self._tag:
                pieces += self._said(before)
            else:
                self._tag.append(before)
            if mark != self._form.end:
                pieces += self._said(self._taken())  # a tag that was never ended
                self._tag = [mark]
            elif self._tag:
                pieces += self._read_tag(self._taken())
            else:
                pieces += self._said(mark)
        if not self._tag:
            return pieces + self._said(text[position:])
        self._tag.append(text[position:])
        # What cannot become a known tag is text, and text is not held back.
        return pieces if self._may_be_known() else pieces + self._said(self._taken())

    def finish(self, *, stopped: bool) -> list[ReadPiece]:
        half = self._taken()
        if self.element != self._form.calls:
            return self._said(half)
        # Half of the section's closer is no argument; where nothing could be read it is kept as well.
        *pieces, last = self._end_section(closed=False)
        if isinstance(last, ParsedToolCall) and last.status is CallStatus.UNCLOSED:
            last = replace(last, raw=last.raw + self._form.marks.plain(half))
        return [*pieces, last]

    def _may_be_known(self) -> bool:
        self._tag = ["".join(self._tag)]
        begun = _name_in(self._tag[0])
        return begun is not None and any(name.startswith(begun) for name in (*self._form.known, *self._form.outer))

    def _taken(self) -> str:
        tag, self._tag = "".join(self._tag), []
        return tag

    def _read_tag(self, tag: str) -> list[ReadPiece]:
        """What a whole tag, without its end, changes."""
        form, name = self._form, _name_in(tag)
        if name is None:
            return self._said(tag + form.end)
        if tag[0] == form.opener and name in form.known:
            pieces = self._end_section(closed=False)
            self.element, self._is_fresh, self.closed = name, True, ""
            return pieces
        if tag[0] == form.closer and name == self.element:
            pieces = self._end_section(closed=True)
            self.element, self.closed = None, name
            return pieces
        if tag[0] == form.closer and self.element is None and name in form.known | form.outer:
            self.closed = name
            return []
        return self._said(tag + form.end)

    def _end_section(self, *, closed: bool) -> list[ReadPiece]:
        if self.element != self._form.calls:
            return []
        body, self._section, self.element = "".join(self._section), [], None
        return list(self._form.body.read(body, self._form.marks, self._schemas, closed=closed))

    def _said(self, text: str) -> list[ReadPiece]:
        if not text:
            return []
        if self.element == self._form.calls:
            self._section.append(text)
            return []
        kind = SpokenKind.REASONING if self.reasoning_is_open else SpokenKind.CONTENT
        # A second element of one kind is a paragraph of its own.
        joint = "\n" if self._is_fresh and kind in self._had else ""
        self._is_fresh, self.closed = False, ""
        self._had.add(kind)
        return [Spoken(kind, joint + self._form.marks.plain(text))]


def _name_in(tag: str) -> str | None:
    """The name in a tag, without its end; None in one that is too long for any."""
    return tag[1:].strip() if len(tag) <= _LONGEST_TAG else None


def _left_open(form: Elements, prompt: str) -> str | None:
    """The element that is open where the completion begins."""
    at = prompt.rfind(form.opener)
    if at < 0:
        return form.left_open
    name, ended, behind = prompt[at + 1 :].partition(form.end)
    is_open = ended and form.closer not in behind and name.strip() in form.known
    return name.strip() if is_open else None


def elements(probes: Probes) -> Elements | None:
    """The elements that a template writes, found in known messages; None where it writes none."""
    thinking = probes.said_with_reasoning()
    one = probes.ended(probes.message(None, {KEY: VALUE}))
    mark, word = r"[\ud800-\udfff]", r"[^\ud800-\udfff]*"
    spoken = thinking and re.match(
        rf"{THOUGHT}(?P<closer>{mark})(?P<reasoning>\w+)(?P<end>{mark})(?P<opener>{mark})(?P<content>\w+)(?P=end)"
        rf"{TEXT}(?P=closer)(?P=content)(?P=end)",
        thinking,
    )
    if not spoken or one is None:
        return None
    opener, closer, end = spoken["opener"], spoken["closer"], spoken["end"]
    called = re.search(
        rf"{opener}(?P<calls>\w+){end}(?P<call_open>{opener}{word}){NAME}(?P<name_close>{word}{end})"
        rf"(?P<key_open>{opener}{word}){KEY}(?P<key_close>{word}{end}){VALUE}(?P<value_close>{closer}{word}{end})"
        rf"(?P<call_close>{closer}{word}{end}){closer}(?P=calls){end}(?P<outer>.*)",
        one,
        re.DOTALL,
    )
    if called is None:
        return None
    escaped = probes.said(probes.message(None, {f'{KEY}"&': VALUE}))
    number = re.search(r"\d+", called["name_close"])
    body = ParameterTags(
        call_open=called["call_open"],
        call_close=called["call_close"],
        name_close=called["name_close"],
        key_open=called["key_open"],
        key_close=called["key_close"],
        value_close=called["value_close"],
        spacing=Spacing("", "", "", "", ""),
        type_word=derive_type_word(probes, called["key_open"], called["key_close"]),
        counter=number.group() if number is not None else "",
        is_escaped=escaped is not None and f"{KEY}&quot;&amp;" in escaped,
        raw=_raw_arguments(probes, opener, closer, end),
    )
    outer = frozenset(re.findall(rf"{closer}(\w+){end}", called["outer"]))
    names = spoken["reasoning"], spoken["content"], called["calls"]
    behind = (thinking or "").partition(THOUGHT)[2].replace(TEXT, "")
    return Elements(probes.marks, opener, closer, end, *names, outer, spoken["reasoning"], body, behind)


def _raw_arguments(probes: Probes, opener: str, closer: str, end: str) -> tuple[str, str] | None:
    """The tags around arguments that are written as they are: where they are no object, or were given as text."""
    known = probes.message(None, {KEY: VALUE})
    raw = replace(known, tool_calls=tuple(replace(call, arguments=VALUE) for call in known.tool_calls))
    word = r"[^\ud800-\udfff]*"
    found = re.search(rf"({opener}{word}{end}){VALUE}({closer}{word}{end})", probes.ended(raw) or "")
    return (found[1], found[2]) if found is not None else None
