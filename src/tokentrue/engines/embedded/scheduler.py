"""Continuous batching: many sequences, at most `DECODE_ROWS` in work, one step at a time. No threads, no clock.

A step does some blocks of prompt and then decodes one id for every sequence whose prompt is done. Sequences enter
and leave between steps; by the arrangement of `transformer` none of this changes what any of them samples.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from tokentrue.engines.embedded.kv_blocks import BlockCache, Ids, block_keys
from tokentrue.engines.embedded.sampler import Draw, Sampler
from tokentrue.engines.embedded.transformer import BLOCK_TOKENS, DECODE_ROWS, KeyValues, Transformer
from tokentrue.engines.embedded.weights import Array, LlamaConfig
from tokentrue.errors import EngineFailureError

PREFILL_BLOCKS_PER_STEP = 8
"""How much prompt one step computes at most, so that a long prompt does not hold up those who decode."""


class Phase(Enum):
    """Where a sequence is on its way."""

    WAITING = "waiting"
    RUNNING = "running"
    STOPPED = "stopped"
    OUT_OF_ROOM = "out of room"
    FAILED = "failed"
    CANCELLED = "cancelled"


_OVER = (Phase.STOPPED, Phase.OUT_OF_ROOM, Phase.FAILED, Phase.CANCELLED)


@dataclass(eq=False, slots=True)
class Sequence:
    """One completion in the making. The scheduler writes the fields below `max_tokens`; callers only read them.

    Args:
        prompt_ids: At least one id, all inside the vocabulary.
        stop_ids: Ids that end the completion; the one that did is its last id.
        min_tokens: So many ids are sampled before a stop id may be.
        max_tokens: At most so many ids; prompt and completion fit the context.
        priority: Higher is sooner, among those that wait.
        salt: Separates prefixes that must not be shared.
    """

    prompt_ids: Ids
    sampler: Sampler
    stop_ids: frozenset[int]
    min_tokens: int
    max_tokens: int
    priority: int = 0
    salt: str | None = None
    completion_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    cached_tokens: int = 0
    phase: Phase = Phase.WAITING
    failure: EngineFailureError | None = None

    def is_over(self) -> bool:
        """True when the scheduler is done with it."""
        return self.phase in _OVER

    def draw(self, logits: Array) -> None:
        """Sample the next id and see whether it was the last one."""
        is_too_early = len(self.completion_ids) < self.min_tokens
        try:
            draw: Draw = self.sampler.draw(logits, self.stop_ids if is_too_early else ())
        except EngineFailureError as error:
            self.failure, self.phase = error, Phase.FAILED
            return
        self.completion_ids.append(draw.token_id)
        self.logprobs.append(draw.logprob)
        if draw.token_id in self.stop_ids:
            self.phase = Phase.STOPPED
        elif len(self.completion_ids) == self.max_tokens:
            self.phase = Phase.OUT_OF_ROOM


class _Row:
    """A sequence in work with its keys and values."""

    def __init__(self, sequence: Sequence, config: LlamaConfig, cache: BlockCache) -> None:
        self.sequence = sequence
        # The last sampled id is never computed, so it needs no room.
        self.kv = KeyValues.empty(config, len(sequence.prompt_ids) + sequence.max_tokens - 1)
        sequence.cached_tokens = cache.restore(sequence.prompt_ids, sequence.salt, self.kv)
        self._block_keys: Iterator[bytes] = iter(list(block_keys(sequence.prompt_ids, sequence.salt)))
        for _ in range(0, sequence.cached_tokens, BLOCK_TOKENS):
            next(self._block_keys)

    def has_prompt_left(self) -> bool:
        return self.kv.length < len(self.sequence.prompt_ids)

    def prefill(self, model: Transformer, cache: BlockCache) -> None:
        """Compute one block of prompt; behind the last one, sample the first id."""
        start = self.kv.length
        logits = model.prefill_block(self.sequence.prompt_ids[start : start + BLOCK_TOKENS], self.kv)
        if self.kv.length - start == BLOCK_TOKENS:
            cache.keep(next(self._block_keys), self.kv)
        if not self.has_prompt_left():
            self.sequence.draw(logits)


class Scheduler:
    """Owns the rows and the prefix cache of one model. Not safe for use from two threads at once."""

    def __init__(self, model: Transformer, config: LlamaConfig, *, rows: int, cache_bytes: int) -> None:
        if not 0 < rows <= DECODE_ROWS:
            raise ValueError(f"rows={rows!r} is outside 1..{DECODE_ROWS}")
        self._model = model
        self._config = config
        self._row_limit = rows
        self._cache = BlockCache(cache_bytes)
        self._waiting: list[tuple[int, int, Sequence]] = []
        self._submitted = 0
        self._rows: list[_Row] = []

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; it is computed by later steps."""
        heapq.heappush(self._waiting, (-sequence.priority, self._submitted, sequence))
        self._submitted += 1

    def cancel(self, sequence: Sequence) -> None:
        """Give a sequence up; its row is free in the next step."""
        if not sequence.is_over():
            sequence.phase = Phase.CANCELLED

    def has_work(self) -> bool:
        """True while any sequence is waiting or in work."""
        return bool(self._waiting or self._rows)

    def step(self) -> list[Sequence]:
        """Do one step; returns the sequences that are over, cancelled ones among them."""
        over = self._admit()
        blocks_left = PREFILL_BLOCKS_PER_STEP
        ready: list[_Row] = []
        for row in self._rows:
            if row.sequence.is_over():
                continue
            if not row.has_prompt_left():
                ready.append(row)
            while blocks_left and row.has_prompt_left():
                row.prefill(self._model, self._cache)
                blocks_left -= 1
        if ready:
            self._decode(ready)
        over += [row.sequence for row in self._rows if row.sequence.is_over()]
        self._rows = [row for row in self._rows if not row.sequence.is_over()]
        return over

    def _decode(self, rows: list[_Row]) -> None:
        last_ids = [row.sequence.completion_ids[-1] for row in rows]
        logits = self._model.decode(last_ids, [row.kv for row in rows])
        for row, row_logits in zip(rows, logits, strict=True):
            row.sequence.draw(row_logits)

    def _admit(self) -> list[Sequence]:
        cancelled = []
        while self._waiting and len(self._rows) < self._row_limit:
            sequence = heapq.heappop(self._waiting)[2]
            if sequence.is_over():
                cancelled.append(sequence)
                continue
            sequence.phase = Phase.RUNNING
            self._rows.append(_Row(sequence, self._config, self._cache))
        return cancelled


def as_ids(values: list[int]) -> Ids:
    """Ids in the form the scheduler takes."""
    return np.array(values, dtype=np.int32)
