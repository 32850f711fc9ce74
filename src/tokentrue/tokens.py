"""Token ids and their log-probabilities: the values that must never change on their way.

`TokenIds` is a rope: each piece knows its parent, so a conversation of a hundred turns keeps every
id once, a prompt of 100,000 ids is extended by a bridge without copying what is known, and the JSON
of a piece is written once and joined as bytes afterwards (law 8).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from tokentrue.errors import AlignmentError, InvalidTokenIdError

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

MAX_TOKEN_ID = 2**31 - 1
LOGPROB_ROUNDING = 1e-4
"""How far above zero rounding may lift a log-probability (fp32 log-softmax of a certain token)."""


def _check_each(ids: Sequence[Any]) -> None:
    for position, value in enumerate(ids):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise InvalidTokenIdError(f"token id {value!r} at position {position} is not an integer")
        if not 0 <= value <= MAX_TOKEN_ID:
            raise InvalidTokenIdError(f"token id {value!r} at position {position} is outside 0..{MAX_TOKEN_ID}")


def _id_array(ids: Iterable[int]) -> IntArray:
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise InvalidTokenIdError(f"token ids must be a flat integer array, not {ids.dtype} {ids.shape}")
        wide = ids.astype(np.int64)
    else:
        listed = list(ids)
        # Prompts are long: plain integers are looked at one by one only to name a bad one.
        is_plain = set(map(type, listed)) <= {int}
        if not is_plain or (listed and (min(listed) < 0 or max(listed) > MAX_TOKEN_ID)):
            _check_each(listed)
        wide = np.array(listed, dtype=np.int64)
    if wide.size and (wide.min() < 0 or wide.max() > MAX_TOKEN_ID):
        worst = int(wide.min()) if wide.min() < 0 else int(wide.max())
        raise InvalidTokenIdError(f"token id {worst} is outside 0..{MAX_TOKEN_ID}")
    array = wide.astype(np.int32)
    array.flags.writeable = False
    return array


class TokenIds(Sequence[int]):
    """An immutable run of token ids, extended without copying what came before.

    Compares equal to any sequence of the same integers. Slices are `list[int]`.
    """

    __slots__ = ("_json", "_length", "_own", "_parent")

    def __init__(self, ids: Iterable[int] = (), *, parent: TokenIds | None = None) -> None:
        self._own: IntArray = _id_array(ids)
        self._parent: TokenIds | None = parent if parent is not None and len(parent) else None
        self._length: int = len(self._own) + (len(parent) if parent is not None else 0)
        self._json: bytes | None = None

    def extended(self, more: Iterable[int]) -> TokenIds:
        """`self` followed by `more`; shares `self`'s memory."""
        return TokenIds(more, parent=self)

    def _pieces(self) -> list[TokenIds]:
        pieces: list[TokenIds] = []
        piece: TokenIds | None = self
        while piece is not None:
            pieces.append(piece)
            piece = piece._parent
        pieces.reverse()
        return pieces

    def array(self) -> IntArray:
        """The ids as a flat, read-only int32 array."""
        if self._parent is None:
            return self._own
        joined: IntArray = np.concatenate([piece._own for piece in self._pieces()])
        joined.flags.writeable = False
        return joined

    def tail(self, start: int) -> IntArray:
        """The ids from position `start` on, reading only the pieces that hold them."""
        kept: list[IntArray] = []
        piece: TokenIds | None = self
        while piece is not None:
            begin = piece._length - len(piece._own)
            kept.append(piece._own[max(start - begin, 0) :])
            if begin <= start:
                break
            piece = piece._parent
        return np.concatenate(kept[::-1])

    def json_items(self) -> bytes:
        """The ids in decimal, joined by commas, without brackets; each piece is written once."""
        return b",".join(text for piece in self._pieces() if (text := piece._own_json()))

    def _own_json(self) -> bytes:
        if self._json is None:
            self._json = ",".join(map(str, self._own.tolist())).encode()
        return self._json

    def starts_with(self, prefix: Sequence[int]) -> bool:
        """Law 1's question: are the first ids exactly `prefix`?"""
        if isinstance(prefix, TokenIds):
            piece: TokenIds | None = self
            while piece is not None and piece._length >= prefix._length:
                if piece is prefix:
                    return True
                piece = piece._parent
            wanted = prefix.array()
        else:
            wanted = _id_array(prefix)
        return len(wanted) <= self._length and bool(np.array_equal(self.array()[: len(wanted)], wanted))

    def tolist(self) -> list[int]:
        """The ids as Python integers."""
        listed: list[int] = self.array().tolist()
        return listed

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return iter(self.tolist())

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            part: list[int] = self.array()[index].tolist()
            return part
        if index in (-1, self._length - 1) and len(self._own):
            return int(self._own[-1])
        return int(self.array()[index])

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, TokenIds):
            return self._length == other._length and bool(np.array_equal(self.array(), other.array()))
        if isinstance(other, (list, tuple, np.ndarray)):
            return self._length == len(other) and self.tolist() == list(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.array().tobytes())

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self.tolist()[:8]))
        return f"TokenIds([{shown}{', …' if self._length > 8 else ''}], length={self._length})"


class Logprobs(Sequence[float]):
    """Log-probabilities in nats, one per sampled id, each finite and <= 0 within rounding."""

    __slots__ = ("_values",)

    def __init__(self, values: Iterable[float]) -> None:
        listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
        for position, value in enumerate(listed):
            if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)):
                raise AlignmentError(f"log-probability {value!r} at position {position} is not a number")
            if not math.isfinite(value) or value > LOGPROB_ROUNDING:
                raise AlignmentError(
                    f"log-probability {value!r} at position {position} is not a finite number <= 0"
                )
        self._values: FloatArray = np.array(listed, dtype=np.float64)
        self._values.flags.writeable = False

    def array(self) -> FloatArray:
        """The values as a flat, read-only float64 array."""
        return self._values

    def tolist(self) -> list[float]:
        """The values as Python floats."""
        listed: list[float] = self._values.tolist()
        return listed

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[float]:
        return iter(self.tolist())

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> list[float]: ...
    def __getitem__(self, index: int | slice) -> float | list[float]:
        return self.tolist()[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Logprobs):
            return bool(np.array_equal(self._values, other._values))
        if isinstance(other, (list, tuple, np.ndarray)):
            return self.tolist() == list(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._values.tobytes())

    def __repr__(self) -> str:
        return f"Logprobs({self.tolist()[:4]}{'…' if len(self) > 4 else ''}, length={len(self)})"


@dataclass(frozen=True, slots=True)
class TurnTokens:
    """The tokens of one turn: what the engine was given and what it sampled.

    Law 3, checked here: `len(completion_ids) == len(completion_logprobs)`.

    Raises:
        AlignmentError: The lengths differ.
    """

    prompt_ids: TokenIds
    completion_ids: TokenIds
    completion_logprobs: Logprobs

    def __post_init__(self) -> None:
        if len(self.completion_ids) != len(self.completion_logprobs):
            raise AlignmentError(
                f"{len(self.completion_ids)} sampled ids came with {len(self.completion_logprobs)} "
                f"log-probabilities"
            )

    @property
    def prompt_mask(self) -> BoolArray:
        """False for every prompt id: none of them was sampled in this turn. Shape (P,)."""
        return np.zeros(len(self.prompt_ids), dtype=np.bool_)

    @property
    def completion_mask(self) -> BoolArray:
        """True for every completion id: each one was sampled. Shape (C,)."""
        return np.ones(len(self.completion_ids), dtype=np.bool_)

    def all_ids(self) -> TokenIds:
        """`prompt_ids + completion_ids`: what the next prompt must begin with (law 1)."""
        return self.prompt_ids.extended(self.completion_ids)
