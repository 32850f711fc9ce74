"""Completions as *marked text*: every added token that a grammar knows is one character of its own.

Grammars are written over text, and yet markers are matched as ids: an id that is a marker becomes a lone
surrogate, which no decoded text can contain (decoding yields valid Unicode only), so text that merely spells
a marker is a different string. `Marks.plain` turns the characters back into the markers' spelling.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tokentrue.rendering.tokenizer import Tokenizer

_FIRST = 0xD800
_MOST = 0x800
_LOOK_BACK = 4
"""A character of UTF-8 has four bytes at most, so among four token boundaries one is between characters."""
_LONG_WINDOW = 64


@dataclass(frozen=True, slots=True)
class Marks:
    """The added tokens that are characters of their own, in a fixed order.

    At most 2,048 of them: the ones that a template writes, not the unused ones of a vocabulary.
    """

    spellings: tuple[tuple[int, str], ...] = ()
    _chars: dict[int, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    _table: dict[int, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for position, (token_id, text) in enumerate(self.spellings[:_MOST]):
            self._chars[token_id] = chr(_FIRST + position)
            self._table[_FIRST + position] = text

    def including(self, tokenizer: Tokenizer, ids: Iterable[int]) -> Marks:
        """These marks and, behind them, the added tokens among `ids`."""
        new = [
            (token_id, info.text)
            for token_id in dict.fromkeys(ids)
            if token_id not in self._chars and (info := tokenizer.added_token_of_id(token_id)) is not None
        ]
        return Marks((*self.spellings, *new)) if new else self

    def char(self, token_id: int) -> str | None:
        """The character that stands for a token; None when it is no mark."""
        return self._chars.get(token_id)

    def id_of(self, char: str) -> int:
        """The token that a mark stands for."""
        return self.spellings[ord(char) - _FIRST][0]

    def plain(self, text: str) -> str:
        """Marked text as it is spelled."""
        return text.translate(self._table)

    def of_ids(self, ids: Sequence[int], tokenizer: Tokenizer) -> str:
        """The marked text of `ids`, at once."""
        decoder = MarkedDecoder(self, tokenizer)
        return decoder.feed(ids) + decoder.finish()


def is_mark(text: str) -> bool:
    """Whether `text` is exactly one marker."""
    return len(text) == 1 and _FIRST <= ord(text) < _FIRST + _MOST


def has_mark(text: str) -> bool:
    """Whether a marker is in `text`."""
    return any(is_mark(char) for char in text)


class MarkedDecoder:
    """Ids to marked text, in pieces. Law: any split of the ids gives the same text.

    Nothing is given out that later ids could change: no half character, and no byte tokens (`<0x0A>`) before
    their run has ended, because one bad byte spoils a whole run for the tokenizers library.
    """

    def __init__(self, marks: Marks, tokenizer: Tokenizer, before: int | None = None) -> None:
        """
        Args:
            before: The last id of the prompt. SentencePiece drops a space at the beginning of a text, and
                where a completion continues plain text that space is real.
        """
        self._marks = marks
        self._tokenizer = tokenizer
        plain = before is not None and tokenizer.added_token_of_id(before) is None
        self._window: list[int] = [before] if plain and before is not None else []
        self._given = len(tokenizer.decode(self._window)) if self._window else 0
        # How much of the window was looked at, and where the byte tokens at its end begin.
        self._seen = self._run = 0

    def feed(self, ids: Iterable[int]) -> str:
        """The text that is certain now."""
        pieces: list[str] = []
        run: list[int] = []
        for token_id in ids:
            added = self._tokenizer.added_token_of_id(token_id)
            if added is None:
                run.append(token_id)
                continue
            self._window += run
            pieces += [self.finish(), self._marks.char(token_id) or added.text]
            run = []
        if run:
            self._window += run
            pieces.append(self._take())
        return "".join(pieces)

    def finish(self) -> str:
        """The rest: nothing can follow, so what is half stays half."""
        text = self._tokenizer.decode(self._window)[self._given :] if self._window else ""
        self._window, self._given, self._seen, self._run = [], 0, 0, 0
        return text

    def _take(self) -> str:
        end, length = len(self._window), len(self._window)
        while end > self._seen and self._tokenizer.is_byte(self._window[end - 1]):
            end -= 1
        if end == self._seen:
            self._seen = length
            if self._run < end or not end:
                return ""  # a run of bytes that only grew
        self._seen, self._run = length, end
        text = self._tokenizer.decode(self._window[:end])
        # The last character may be the replacement of a half one; every other one is final.
        whole = text[:-1] if text.endswith("\ufffd") else text
        new = whole[self._given :]
        self._given = max(self._given, len(whole))
        if whole == text and end > 1:
            # One id stays as the neighbour of what follows (SentencePiece's first space).
            self._window = self._window[end - 1 :]
            self._seen, self._run = len(self._window), 1
            self._given = len(self._tokenizer.decode(self._window[:1]))
        elif end > _LONG_WINDOW:
            self._cut_between_characters(end, text)
        return new

    def _cut_between_characters(self, end: int, text: str) -> None:
        # Only bytes that are no text get here; without a cut the work per id would grow with their number.
        for cut in range(end - 1, end - 1 - _LOOK_BACK, -1):
            behind = self._tokenizer.decode(self._window[cut:end])
            if self._tokenizer.decode(self._window[:cut]) + behind == text:
                given = len(behind) - (len(text) - self._given)
                if given >= 0:
                    self._window, self._given = self._window[cut:], given
                    self._seen, self._run = len(self._window), end - cut
                    return
