"""Encodings kept by the runs of text between added tokens, so that a full render costs what is new.

An added token splits the text before merges are looked up, so what stands between two of them has the same ids
wherever it stands behind the same token:

    encode(x + s + y) == encode(x) + encode(s + y)

System prompts and tool definitions, the long runs, are the same in every conversation of an environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

CHARACTERS_KEPT = 4_000_000
"""Characters of text that are kept at most: about 30 MB with their ids and offsets."""

Key = tuple[str, str]
"""The added token in front, as it stands in the text ("" at its beginning), and the run."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run and the added token in front of it, encoded.

    Args:
        ids: Shape (n,), int32.
        offsets: Shape (n, 2), int32, from the first character of the added token; None when nobody asked.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int32] | None

    @property
    def has_offsets(self) -> bool:
        """Whether the offsets are known."""
        return self.offsets is not None


def run_of(ids: Sequence[int], offsets: Sequence[tuple[int, int]] | None) -> Run:
    """A run from what the library gives."""
    places = None if offsets is None else np.asarray(offsets, dtype=np.int32).reshape(-1, 2)
    return Run(np.asarray(ids, dtype=np.int32), places)


@dataclass(slots=True)
class RunMemory:
    """A bounded memory of runs, used from several threads: single operations on a dict need no lock.

    Full, it is emptied: what is used then comes back at once, and there is nothing to keep in order.
    """

    limit: int = CHARACTERS_KEPT
    _runs: dict[Key, Run] = field(default_factory=dict, init=False, repr=False)
    _characters: int = field(default=0, init=False, repr=False)

    def get(self, key: Key) -> Run | None:
        """The run, if it is known."""
        return self._runs.get(key)

    def put(self, key: Key, run: Run) -> None:
        """Keep a run; one that is longer than the whole memory is not kept."""
        size = len(key[0]) + len(key[1])
        if size > self.limit:
            return
        if self._characters + size > self.limit:
            self._runs.clear()
            self._characters = 0
        self._runs[key] = run
        self._characters += size

    @property
    def characters(self) -> int:
        """How many characters of text are kept."""
        return self._characters
