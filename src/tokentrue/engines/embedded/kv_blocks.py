"""The prefix cache: keys and values of whole prompt blocks, found by a chain of hashes.

A block's key covers the salt, every id before it and its own ids, so equal keys mean equal prefixes. Only
blocks that `Transformer.prefill_block` wrote are kept. Decoding writes the same positions by another route,
with other rounding, and which route a position took must not depend on luck; so what decoding wrote ends
with its request. A cached block is thus bit for bit what computing it again would give.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tokentrue.engines.embedded.transformer import BLOCK_TOKENS, KeyValues
from tokentrue.engines.embedded.weights import Array

Ids = NDArray[np.int32]


def block_keys(ids: Ids, salt: str | None) -> Iterator[bytes]:
    """The key of each whole block of `ids`, in order."""
    digest = hashlib.sha256(b"" if salt is None else b"salt:" + salt.encode()).digest()
    for start in range(0, len(ids) - len(ids) % BLOCK_TOKENS, BLOCK_TOKENS):
        block = ids[start : start + BLOCK_TOKENS].astype("<i4").tobytes()
        digest = hashlib.sha256(digest + block).digest()
        yield digest


class BlockCache:
    """Least-recently-used blocks, bounded by bytes. Zero bytes means that nothing is kept."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._blocks: OrderedDict[bytes, tuple[Array, Array]] = OrderedDict()
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def restore(self, ids: Ids, salt: str | None, kv: KeyValues) -> int:
        """Copy the longest known prefix into an empty `kv`; returns its length in tokens, in whole blocks.

        At least one id is always left to compute: sampling needs the logits behind the last one.
        """
        for key in block_keys(ids[:-1], salt):
            found = self._blocks.get(key)
            if found is None:
                break
            self._blocks.move_to_end(key)
            end = kv.length + BLOCK_TOKENS
            kv.keys[:, :, kv.length : end], kv.values[:, :, kv.length : end] = found
            kv.length = end
        return kv.length

    def keep(self, key: bytes, kv: KeyValues) -> None:
        """Remember the last whole block of `kv`, which must be fresh from prefill, under its key."""
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return
        block = slice(kv.length - BLOCK_TOKENS, kv.length)
        keys, values = kv.keys[:, :, block].copy(), kv.values[:, :, block].copy()
        self._blocks[key] = (keys, values)
        self.held_bytes += keys.nbytes + values.nbytes
        while self.held_bytes > self._limit_bytes:
            _, (old_keys, old_values) = self._blocks.popitem(last=False)
            self.held_bytes -= old_keys.nbytes + old_values.nbytes
