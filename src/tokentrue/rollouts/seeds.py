"""Seeds: every draw of a run follows from the run's seed and the place of the draw, and from nothing else."""

from __future__ import annotations

import hashlib

_SEED_BITS = 53  # the integers that every JSON reader keeps exactly


def derive_seed(seed: int, *place: int | str) -> int:
    """A seed in `0 .. 2**53 - 1` for one place in a run, such as `("turn", episode, turn)`.

    The same arguments give the same seed on every machine; different ones give unrelated seeds.
    """
    text = "/".join(map(str, (seed, *place)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> (64 - _SEED_BITS)
