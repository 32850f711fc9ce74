"""A faster tokenizer library behind the same door, held against the truth before it is used.

`tokenizers` is the truth. Another library is used for ids alone, and only when it gives the same ids on a corpus
that is written to be difficult: unicode and combining marks, control characters, long white space, special tokens,
whole, cut and side by side. Where one id differs it is switched off with a warning. Offsets come from the truth.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokentrue.errors import ConfigError, FastTokenizerWarning
from tokentrue.rendering.tokenizer import IdsOnly, Tokenizer

_PIECES = (
    *("", " ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", " \n ", "\u00a0", "\u3000", "\u200b", "\u200d", "\ufeff"),
    *("Hello", " world", "HELLO", "don't", "'S", "naïve", "e\u0301\u0323", "A\u030a", "Å", "ﬁ", "ß", "İ", "ǅ"),
    *("漢字", "ひらがな", "한국어", "नि", "ก็", "עִברִית", "العَرَبيّة", "🙂", "👩\u200d👧"),
    *("🇫🇷", "👍🏽", "\U0010ffff", "\ue000", "²", "½", "▁", "Ġ", "Ċ"),
    *("0", "7", "42", "1234567", "3.14", "1,000", "٣", "\x00", "\x07", "\x1b[0m", "\x7f", "\x85", "\u2028"),
    *(".", ":", "...", "!?", '"', "\\", "\\n", "{", "}", "[", "]", "<", ">", "</", "|>", "<|", "<0x0A>", "_", "#"),
    *(" " * 33, "\n" * 9, "=" * 40, "a" * 70, "xyzzy" * 9, "def f(x):\n    return x\n"),
)  # fmt: skip
_TOKENS = 64
_STEP = 61
"""Every so manyth code point is in the corpus; a prime, so that no block's layout is in step with it."""


@dataclass(frozen=True, slots=True)
class _Gigatoken:
    backend: Any

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.backend.encode(text).tolist()
        return ids

    @classmethod
    def load(cls, folder: Path) -> _Gigatoken:
        # Imported where it is used: it takes 0.4 s, and most never ask for it.
        library = importlib.import_module("gigatoken")
        return cls(library.Tokenizer.from_json((folder / "tokenizer.json").read_bytes()))


_LIBRARIES = {"gigatoken": _Gigatoken.load}


def with_fast(tokenizer: Tokenizer, folder: Path, name: str) -> Tokenizer:
    """`tokenizer`, with the library `name` for ids where it proves equal.

    Args:
        name: "off", the name of a library, or "auto": the first that is installed, if one is.

    Raises:
        ConfigError: No such library is known, or it is not installed.
    """
    if name == "off":
        return tokenizer
    if name != "auto" and name not in _LIBRARIES:
        allowed = ", ".join(repr(each) for each in ("off", "auto", *_LIBRARIES))
        raise ConfigError(f"fast_tokenizer={name!r} is wrong; allowed is one of {allowed}")
    installed = [each for each in _LIBRARIES if name in ("auto", each) and find_spec(each) is not None]
    if not installed:
        if name == "auto":
            return tokenizer
        raise ConfigError(
            f"fast_tokenizer={name!r} is not installed: pip install 'tokentrue[fast]', or use 'off' or 'auto'"
        )
    chosen = installed[0]
    try:
        fast = _LIBRARIES[chosen](folder)
        differs = difference(tokenizer, fast)
    except Exception as error:  # noqa: BLE001  (whatever it raises, the truth is there to be used)
        differs = f"it cannot read this tokenizer: {type(error).__name__}: {error}"
    else:
        if not differs:
            return replace(tokenizer, fast=fast)
    text = f"{chosen} is not used for {str(folder)!r}, and tokenizers is: {differs}"
    warnings.warn(text, FastTokenizerWarning, stacklevel=3)
    return tokenizer


def difference(tokenizer: Tokenizer, fast: IdsOnly) -> str:
    """The first text of the corpus of which `fast` gives other ids, with both; "" when there is none."""
    texts = tuple(corpus([info.text for info in tokenizer.added_tokens()]))
    for text, wanted in zip(texts, tokenizer.encode_all(texts), strict=True):
        found = fast.encode(text)
        if found != wanted:
            at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), len(wanted))
            return (
                f"of {text[:60]!r} its ids from position {at} are {found[at : at + 4]}, not {wanted[at : at + 4]}"
            )
    return ""


def corpus(added: Sequence[str]) -> Iterator[str]:
    """Texts to compare two tokenizers on; the same for the same added tokens.

    Args:
        added: Spellings of added tokens; 64 of them are taken, from both ends.
    """
    chosen = [*added[: _TOKENS // 2], *added[max(len(added) - _TOKENS // 2, _TOKENS // 2) :]]
    for left in _PIECES:
        yield left
        yield "".join(left + right for right in _PIECES)
        yield "".join(right + left + " " for right in reversed(_PIECES))
    for number, token in enumerate(chosen):
        left, right = _PIECES[number % len(_PIECES)], _PIECES[-1 - number % len(_PIECES)]
        other = chosen[(number * 7 + 1) % len(chosen)]
        cut = f"{token[:-1]}{left}{token[1:]}{other[: len(other) // 2]}"
        yield f"{left}{token}{right}{cut}{other}{token}\n {token} "
    points = [point for point in range(1, 0x20000, _STEP) if not 0xD800 <= point < 0xE000]
    for start in range(0, len(points), 24):
        yield "".join(map(chr, points[start : start + 24]))
        yield " ".join("a" + chr(point) for point in points[start : start + 24])
