"""Control markers: the added tokens that steer a model, and the places where message text spells one.

An added token is matched wherever its spelling stands, whoever wrote it. Three kinds of it are *control
markers*: the ones that the tokenizer calls special, the ones that the chat template writes, and the ones
that a completion is read by. `<think>` and `<tool_call>` are often of the last two kinds only, and steer a
model no less. Other added tokens (runs of white space, `<table>`) are ordinary vocabulary.

To encode text so that what a message spells stays text, who wrote each marker must be known. Private-use
characters tell it: they are put around each marker in the message text, the template is rendered, and they
are taken out again. Then the markers that the *template* wrote are given other, unforgeable names, in the
text and in the tokenizer, and nothing else can be matched:

    encode_with_offsets(text, spelled) == encode(text), with the matches in `spelled` taken for plain text

The whole run of text between two markers of the template is encoded at once, so there is no seam at a
spelled marker that its own tokenizer would not make.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from tokentrue.errors import SpelledMarkerError
from tokentrue.rendering.tokenizer import AddedTokenMatcher, Match, RenamedTokenizer, Tokenizer

_PLANES = (0x100000, 0xF0000)
"""The private-use planes of Unicode; one of them is taken that the text at hand does not use."""
MOST_MARKERS = 0x7FF0
"""So many control markers can have two characters each of their own in a plane."""
_ALL_OF_PLANE = {plane: re.compile(f"[{chr(plane)}-{chr(plane + 0xFFFD)}]") for plane in _PLANES}
_EDGE = 0


@dataclass(frozen=True, slots=True)
class ControlMarkers:
    """The control markers of one tokenizer and template.

    Args:
        tokenizer: Whose added tokens they are.
        tokens: Their ids and spellings.
    """

    tokenizer: Tokenizer = field(repr=False)
    tokens: tuple[tuple[int, str], ...]
    _index: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    _edges: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    _first: list[re.Pattern[str]] = field(default_factory=list, init=False, repr=False, compare=False)
    _matchers: list[AddedTokenMatcher] = field(default_factory=list, init=False, repr=False, compare=False)
    _renamed: dict[int, RenamedTokenizer] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.tokenizer.normalizes_added_tokens:
            firsts = "".join(sorted({text[0] for _, text in self.tokens if text}))
            self._first.append(re.compile(f"[{re.escape(firsts)}]" if firsts else "(?!)"))
        for position, (token_id, text) in enumerate(self.tokens):
            self._index[token_id] = position
            # A proper beginning ends with a 0 here and a proper end begins with one: two sets in one.
            self._edges.update(text[:cut] + "\0" for cut in range(1, len(text)))
            self._edges.update("\0" + text[cut:] for cut in range(1, len(text)))

    @classmethod
    def of(cls, tokenizer: Tokenizer, written: Iterable[str], read_ids: Iterable[int]) -> ControlMarkers:
        """The control markers of a tokenizer.

        Args:
            written: Sources of the template, and texts that it rendered.
            read_ids: Ids that completions are ended and read by.
        """
        texts, ids = tuple(written), frozenset(read_ids)
        return cls(
            tokenizer,
            tuple(
                (info.id, info.text)
                for info in tokenizer.added_tokens()
                if info.special
                or info.id in ids
                or (not info.text.isspace() and any(info.text in text for text in texts))
            ),
        )

    def find(self, text: str) -> tuple[Match, ...]:
        """Where `text` spells control markers."""
        if self._first and self._first[0].search(text) is None:
            return ()
        if not self._matchers:
            self._matchers.append(self.tokenizer.matcher())
        return tuple(match for match in self._matchers[0].find(text) if match.id in self._index)

    def has_open_end(self, text: str) -> bool:
        """Whether a marker could stand across one of the ends of `text`."""
        return any(self._open_ends(text))

    def _open_ends(self, text: str) -> tuple[bool, bool]:
        core = text.strip()
        longest = min(len(core), max((len(each) for _, each in self.tokens), default=1) - 1)
        begins = any("\0" + core[:size] in self._edges for size in range(1, longest + 1))
        ends = any(core[len(core) - size :] + "\0" in self._edges for size in range(1, longest + 1))
        return begins, ends

    def marked(self, value: Any, plane: int) -> Any:
        """A JSON value, with private-use characters around each marker and at each open end of its texts."""
        if isinstance(value, str):
            return self._marked_text(value, plane)
        if isinstance(value, dict):
            return {self.marked(key, plane): self.marked(item, plane) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.marked(item, plane) for item in value]
        return value

    def _marked_text(self, text: str, plane: int) -> str:
        pieces: list[str] = []
        position = 0
        for match in self.find(text):
            before, after = self._pair(match.id, plane)
            pieces += [text[position : match.start], before, text[match.start : match.end], after]
            position = match.end
        whole = "".join([*pieces, text[position:]])
        begins, ends = self._open_ends(text)
        core = whole.strip()
        lead = whole[: len(whole) - len(whole.lstrip())]
        edge = chr(plane + _EDGE)
        marked = (edge if begins else "") + core + (edge if ends else "")
        return lead + marked + whole[len(lead) + len(core) :]

    def _pair(self, token_id: int, plane: int) -> tuple[str, str]:
        first = plane + 1 + 2 * self._index[token_id]
        return chr(first), chr(first + 1)

    def read_marks(self, marked: str, plain: str, plane: int) -> tuple[Match, ...]:
        """The markers in `plain` that message text wrote.

        Args:
            marked: The rendering of marked messages.
            plain: The rendering of the same messages without marks.

        Raises:
            SpelledMarkerError: The marks changed what the template writes, or one side of them is gone.
        """
        text, marks = _without_marks(marked, plane)
        if text != plain:
            at = next((i for i, (a, b) in enumerate(zip(text, plain, strict=False)) if a != b), len(plain))
            raise SpelledMarkerError(
                f"the template reads the text of a message that spells a special token, and writes something else "
                f"for it (near {plain[max(at - 20, 0) : at + 20]!r}), so who wrote what cannot be told; take the "
                f"spelling out of the message, or use spelled_markers='as_template'"
            )
        return tuple(match for match in self.find(plain) if self._is_message_text(match, marks, plane))

    def _is_message_text(self, match: Match, marks: dict[int, str], plane: int) -> bool:
        if any(position in marks for position in range(match.start + 1, match.end)):
            return True
        before, after = self._pair(match.id, plane)
        left, right = marks.get(match.start, ""), marks.get(match.end, "")
        begins, ends = before in left, after in right
        # Another marker's pair around it: the template put this one in the place of that one.
        replaced = any(chr(ord(mark) + 1) in right for mark in left if mark not in (before, chr(plane + _EDGE)))
        if begins != ends or replaced:
            raise SpelledMarkerError(
                f"the template takes the text of a message apart at a spelled special token and writes "
                f"{self.text_of(match.id)!r} there, so whose it is cannot be told; take the spelling out of the "
                f"message, or use spelled_markers='as_template'"
            )
        return begins

    def encode_with_offsets(self, text: str, spelled: Sequence[Match]) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of `text` and the characters they stand for, with the markers in `spelled` as plain text.

        Raises:
            SpelledMarkerError: The tokenizer makes a marker of plain text.
        """
        if not spelled:
            return self.tokenizer.encode_with_offsets(text)
        plane = plane_for(text)
        mine = set(spelled)
        written = [match for match in self.find(text) if match not in mine]
        renamed = self._renamed_for(plane)
        ids, offsets = renamed.encode_with_offsets(self._rename(text, written, plane))
        found = [token_id for token_id in ids if token_id in self._index]
        if found != [match.id for match in written]:
            shown = ", ".join(sorted({repr(self.text_of(match.id)) for match in spelled}))
            raise SpelledMarkerError(
                f"the tokenizer makes special tokens of plain text, so {shown} in a message cannot be kept text; "
                f"take the spelling out of the message, or use spelled_markers='as_template'"
            )
        # A name is one character: each one in front of a place moves that place by the rest of its spelling.
        places = list(accumulate((match.end - match.start - 1 for match in written), initial=0))
        starts = [match.start - moved for match, moved in zip(written, places, strict=False)]

        def back(position: int) -> int:
            return position + places[bisect_right(starts, position - 1)]

        return ids, [(back(start), back(end)) for start, end in offsets]

    def _rename(self, text: str, written: Sequence[Match], plane: int) -> str:
        pieces: list[str] = []
        position = 0
        for match in written:
            pieces += [text[position : match.start], self._pair(match.id, plane)[0]]
            position = match.end
        return "".join([*pieces, text[position:]])

    def _renamed_for(self, plane: int) -> RenamedTokenizer:
        if plane not in self._renamed:
            names = {token_id: self._pair(token_id, plane)[0] for token_id, _ in self.tokens}
            self._renamed[plane] = self.tokenizer.renamed(names)
        return self._renamed[plane]

    def text_of(self, token_id: int) -> str:
        """How one of the control markers is spelled."""
        return self.tokens[self._index[token_id]][1]


def plane_for(text: str) -> int:
    """A private-use plane of which `text` has no character.

    Raises:
        SpelledMarkerError: It uses both of them.
    """
    for plane in _PLANES:
        if _ALL_OF_PLANE[plane].search(text) is None:
            return plane
    raise SpelledMarkerError(
        "the text uses both private-use planes of Unicode (from U+F0000 and from U+100000), so none is left to "
        "mark spelled special tokens with"
    )


def _without_marks(marked: str, plane: int) -> tuple[str, dict[int, str]]:
    """The text without the characters of `plane`, and which of them stood in front of which place."""
    pieces: list[str] = []
    marks: dict[int, str] = {}
    position = taken = 0
    for found in _ALL_OF_PLANE[plane].finditer(marked):
        piece = marked[position : found.start()]
        pieces.append(piece)
        taken += len(piece)
        marks[taken] = marks.get(taken, "") + found.group()
        position = found.end()
    return "".join([*pieces, marked[position:]]), marks
