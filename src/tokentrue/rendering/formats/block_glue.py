"""The markers and the white space around calls, found by comparing renderings of one call, of two, and of text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tokentrue.rendering.formats.blocks import Blocks
from tokentrue.rendering.formats.marks import Marks, has_mark, is_mark
from tokentrue.rendering.formats.tool_format import CallBody


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a template writes around the cores of calls, as marked text.

    Args:
        before: Before the core of a lone call.
        after: Behind it.
        between: Between two cores; None where the template takes one call only.
        after_two: Behind the second of two cores.
        behind_text: From the end of the text to the core, for a call with text; None where text is not kept.
    """

    before: str
    after: str
    between: str | None
    after_two: str
    behind_text: str | None


@dataclass(frozen=True, slots=True)
class BlockGlue:
    """The same, taken apart: `lead opener open_rest CORE close_rest closer between … trail`.

    Args:
        opens_once: Between two cores a block is closed, and none is opened.
    """

    opener: str
    open_rest: str
    close_rest: str
    closer: str | None
    lead: str
    spaces: tuple[str, ...]
    sections: frozenset[str]
    before_first: str
    opens_once: bool = False

    def blocks(self, marks: Marks, body: CallBody) -> Blocks:
        """The format with this glue around `body`."""
        dropped = frozenset({"", *self.spaces})
        return Blocks(marks, self.opener, self.closer, self.before_first, self.lead, dropped, self.sections, body)


def take_apart(around: Surroundings) -> BlockGlue | None:
    """The glue, or None when it is no block: no opener, or text that is neither marker nor white space."""
    open_text, close_text = around.before, around.after
    gaps = []
    opens_once = False
    if around.between is not None:
        open_text = _aligned(common_suffix(around.before, around.between), around.before)
        rest = around.between[: len(around.between) - len(open_text)]
        close_text = common_prefix(rest, around.after).rstrip()
        gaps = [rest[len(close_text) :], around.after_two[len(close_text) :]]
        if not open_text and close_text.strip() and not "".join(gaps).strip():
            open_text, opens_once = around.before, True
    lead = around.before[: len(around.before) - len(open_text)]
    stripped = open_text.lstrip()
    space, open_text = open_text[: len(open_text) - len(stripped)], stripped
    lead, gaps = lead + space, [gap + space for gap in gaps[:1]] + gaps[1:]
    trail = around.after[len(close_text) :]
    if open_text and not is_mark(open_text[0]) and has_mark(lead) and has_mark(trail):
        return _section(lead, open_text, close_text, trail, around)
    if not open_text:
        return None
    opener, open_rest = _first_word(open_text)
    close_rest, closer = _last_word(close_text)
    outer = [lead, trail, *gaps]
    sections = frozenset(char for text in outer for char in text if is_mark(char))
    spaces = tuple(piece for text in [trail, *gaps] for piece in _pieces(text, sections))
    lead_pieces = _pieces(lead, sections)
    if any(piece.strip() for piece in (*spaces, *lead_pieces)) or closer in sections:
        return None
    before = _before_first(around, (opener, *sections))
    if before is None:
        return None
    spaces += tuple(lead_pieces[1:])
    return BlockGlue(opener, open_rest, close_rest, closer, lead_pieces[0], spaces, sections, before, opens_once)


def _section(lead: str, open_text: str, close_text: str, trail: str, around: Surroundings) -> BlockGlue | None:
    """Calls that are opened by text inside a section that is opened by a marker: the section is the block."""
    space, opener, inner = _split_at_tag(lead)
    tail_inner, closer, behind = _split_at_tag(trail)
    before = _before_first(around, (opener,))
    if (space + behind).strip() or before is None:
        return None
    open_rest, close_rest = inner + open_text, close_text + tail_inner
    return BlockGlue(opener, open_rest, close_rest, closer, space, (behind,), frozenset(), before)


def _before_first(around: Surroundings, markers: Iterable[str]) -> str | None:
    """White space between text and the first marker; None when it is not white space only."""
    text = around.behind_text
    if text is None:
        return ""
    found = [position for marker in markers if (position := text.find(marker)) >= 0]
    before = text[: min(found)] if found else ""
    return None if before.strip() else before


def _pieces(text: str, sections: Iterable[str]) -> list[str]:
    marks = "".join(sections)
    return re.split(f"[{re.escape(marks)}]", text) if marks else [text]


_TAG = re.compile(r"</?[\ud800-\udfff][^<>\s\ud800-\udfff]*>|[\ud800-\udfff]")
"""A marker, or a tag that begins with one: `<｜DSML｜tool_calls>` (DeepSeek V4)."""


def _split_at_tag(text: str) -> tuple[str, str, str]:
    found = _TAG.search(text)
    at, end = found.span() if found is not None else (0, 0)
    return text[:at], text[at:end], text[end:]


def _first_word(text: str) -> tuple[str, str]:
    if is_mark(text[0]):
        return text[0], text[1:]
    match = re.match(r"\S+", text)
    end = match.end() if match is not None else len(text)
    first_mark = next((i for i, char in enumerate(text) if is_mark(char)), end)
    end = min(end, first_mark)
    return text[:end], text[end:]


def _last_word(text: str) -> tuple[str, str | None]:
    """What closes a block: the last marker, else the last word; and what is before it."""
    at = max((i for i, char in enumerate(text) if is_mark(char)), default=None)
    if at is not None:
        return text[:at], text[at]
    words = list(re.finditer(r"\S+", text))
    if not words:
        return text, None
    # Of tags without white space between them, the last one (MiniCPM5).
    tag = re.search(r"</[^<>]*>\Z", words[-1].group())
    start = words[-1].start() + (tag.start() if tag is not None else 0)
    return text[:start], text[start : words[-1].end()]


def _aligned(shared: str, whole: str) -> str:
    """A common suffix, beginning with a tag: two tags that end alike share their last character as well."""
    if shared == whole:
        return shared
    match = re.search(r"[<\[\ud800-\udfff]", shared)
    return shared[match.start() :] if match is not None else shared.lstrip()


def common_prefix(left: str, right: str) -> str:
    """The longest text that both begin with."""
    length = 0
    while length < min(len(left), len(right)) and left[length] == right[length]:
        length += 1
    return left[:length]


def common_suffix(left: str, right: str) -> str:
    """The longest text that both end with."""
    return common_prefix(left[::-1], right[::-1])[::-1]
