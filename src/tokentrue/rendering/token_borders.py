"""Where in a text the borders between its ids are, from nothing but a function from ids to text (pure).

    borders.text[: borders.place_of(k)] is what the ids in front of id k spell

An id may stand for a part of a character, and some tokenizers write a token otherwise at the beginning of a text
than behind another token. So every border is found by laying what ids spell beside the text: where that is not the
text, there is no border. Ids are spelled in blocks, so that a long text costs what it is long.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from functools import cached_property

from tokentrue.tokens import TokenIds

_BLOCK = 64
"""How many ids are spelled at once; a border asked for inside a block spells a part of it again."""

_TRIES = 8
"""How many ids a block grows where its end is inside a character: more than one has bytes."""


class TokenBorders:
    """The borders of `ids`; nothing is spelled before it is asked for."""

    def __init__(self, ids: TokenIds, text_of: Callable[[TokenIds], str]) -> None:
        self._ids = ids.tolist()
        self._text_of = text_of

    @cached_property
    def text(self) -> str:
        """What all ids spell."""
        return self._text_of(TokenIds(self._ids))

    def place_of(self, index: int) -> int | None:
        """How many characters stand in front of id `index`; None where that is inside a character."""
        block = bisect.bisect_right(self._blocks, index, key=lambda known: known[0]) - 1
        return self._place(*self._blocks[block], index)

    def index_at(self, place: int) -> int | None:
        """The first id that begins at character `place`; None where an id straddles it."""
        block = max(bisect.bisect_left(self._blocks, place, key=lambda known: known[1]) - 1, 0)
        start, begins = self._blocks[block]
        stop = self._blocks[block + 1][0] if block + 1 < len(self._blocks) else len(self._ids)
        return next((i for i in range(start, stop + 1) if self._place(start, begins, i) == place), None)

    @cached_property
    def _blocks(self) -> list[tuple[int, int]]:
        """Some borders, as (id, place), from the first one on."""
        found = [(0, 0)]
        while found[-1][0] < len(self._ids):
            start, begins = found[-1]
            ends = range(min(start + _BLOCK, len(self._ids)), min(start + _BLOCK + _TRIES, len(self._ids)) + 1)
            border = next(((end, at) for end in ends if (at := self._place(start, begins, end)) is not None), None)
            if border is None:
                break
            found.append(border)
        return found

    def _place(self, start: int, begins: int, index: int) -> int | None:
        """The place in front of `index`, from a border in front of it."""
        lead = self._ids[max(start - 1, 0) : start]
        ahead = len(self._text_of(TokenIds(lead)))
        spelled = self._text_of(TokenIds([*lead, *self._ids[start:index]]))[ahead:]
        if self.text.startswith(spelled, begins):
            return begins + len(spelled)
        # SentencePiece spells a run of bytes as a whole or not at all, so the ids in front can make a difference.
        spelled = self._text_of(TokenIds(self._ids[:index]))
        return len(spelled) if self.text.startswith(spelled) else None
