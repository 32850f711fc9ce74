"""An episode as tokens to look at: text, writer, and what rendering from text would do to each (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import Enum

import numpy as np

from tokentrue.errors import InvalidTokenIdError
from tokentrue.rendering.tokenizer import Tokenizer
from tokentrue.rollouts.comparison import TurnComparison, shared_len
from tokentrue.rollouts.trajectory import TurnRecord
from tokentrue.turns import TokenKind

_MOST_PAIRS = 4_000_000
"""Longer stretches are marked as a whole: laying them side by side would take seconds."""


class Writer(Enum):
    """Who wrote a token, and in which kind of prompt."""

    SCAFFOLD = "scaffold"
    """The template, in a prompt rendered from nothing."""
    BODY = "body"
    """A caller's message, in a prompt rendered from nothing."""
    BRIDGE_SCAFFOLD = "bridge scaffold"
    """The template, in the ids that a bridge added."""
    BRIDGE_BODY = "bridge body"
    """A caller's message, in the ids that a bridge added."""
    SAMPLED = "sampled"
    """The model."""
    UNKNOWN = "unknown"
    """The record does not tell."""


@dataclass(slots=True)
class PaintedToken:
    """One token where it first appears.

    Args:
        owner: Index of the message that it belongs to, -1 for none.
        logprob: Only where it was sampled, in nats.
        lost_at: The first turn whose prompt, rendered from text, has another id here; None when there is none.
        gap_at: The first turn whose prompt, rendered from text, has further ids in front of this one.
    """

    id: int
    text: str
    writer: Writer
    owner: int
    logprob: float | None = None
    lost_at: int | None = None
    gap_at: int | None = None


@dataclass(frozen=True, slots=True)
class PaintedRun:
    """Tokens in a row that one writer wrote for one message."""

    writer: Writer
    owner: int
    tokens: tuple[PaintedToken, ...]

    @property
    def text(self) -> str:
        """Their text."""
        return "".join(token.text for token in self.tokens)


@dataclass(frozen=True, slots=True)
class PaintedTurn:
    """What one turn added: the prompt behind what was known, then what was sampled."""

    record: TurnRecord
    prompt: tuple[PaintedToken, ...]
    completion: tuple[PaintedToken, ...]
    compared: TurnComparison | None = None

    @property
    def known_len(self) -> int:
        """How many prompt ids are not in `prompt`, because an earlier turn has them."""
        return len(self.record.turn.tokens.prompt_ids) - len(self.prompt)

    def runs(self) -> tuple[PaintedRun, ...]:
        """All tokens, grouped."""
        grouped: list[list[PaintedToken]] = []
        for token in (*self.prompt, *self.completion):
            if grouped and (grouped[-1][0].writer, grouped[-1][0].owner) == (token.writer, token.owner):
                grouped[-1].append(token)
            else:
                grouped.append([token])
        return tuple(PaintedRun(tokens[0].writer, tokens[0].owner, tuple(tokens)) for tokens in grouped)


def paint_episode(
    turns: Sequence[TurnRecord], tokenizer: Tokenizer, compared: Sequence[TurnComparison] = ()
) -> tuple[PaintedTurn, ...]:
    """All turns of one episode, in order.

    Args:
        compared: `compare_episode` of the same turns; without it nothing is marked as lost.

    Raises:
        InvalidTokenIdError: An id is not of this tokenizer.
    """
    cells: dict[int, list[PaintedToken]] = {}
    painted: list[PaintedTurn] = []
    by_turn = {one.record.turn.index: one for one in compared}
    message_count = 0
    for record in turns:
        turn = record.turn
        message_count = record.messages_kept + len(record.new_messages) + 1
        anchor = turn.stitch.anchor_turn if turn.stitch.builds_on_anchor else None
        known = cells[anchor][: turn.stitch.anchor_len] if anchor is not None and anchor in cells else []
        for span in reversed(turn.stitch.removed):
            del known[span.start : span.end]
        prompt = _prompt(record, len(known), tokenizer)
        completion = _completion(record, message_count - 1, tokenizer)
        cells[turn.index] = [*known, *prompt, *completion]
        comparison = by_turn.get(turn.index)
        if comparison is not None:
            _mark(cells[turn.index], comparison)
        painted.append(PaintedTurn(record, tuple(prompt), tuple(completion), comparison))
    return tuple(painted)


def _prompt(record: TurnRecord, known_len: int, tokenizer: Tokenizer) -> list[PaintedToken]:
    turn = record.turn
    is_bridge = turn.stitch.builds_on_anchor
    ids = turn.tokens.prompt_ids[known_len:]
    writers = [(Writer.UNKNOWN, -1)] * len(ids)
    for span in turn.prompt_spans:
        writer = _writer(span.kind, is_bridge)
        for position in range(max(span.start - known_len, 0), min(span.end - known_len, len(ids))):
            writers[position] = (writer, span.owner)
    texts = token_texts(ids, tokenizer)
    return [
        PaintedToken(token_id, text, writer, owner)
        for token_id, text, (writer, owner) in zip(ids, texts, writers, strict=True)
    ]


def _completion(record: TurnRecord, owner: int, tokenizer: Tokenizer) -> list[PaintedToken]:
    tokens = record.turn.tokens
    ids = tokens.completion_ids.tolist()
    return [
        PaintedToken(token_id, text, Writer.SAMPLED, owner, logprob)
        for token_id, text, logprob in zip(
            ids, token_texts(ids, tokenizer), tokens.completion_logprobs.tolist(), strict=True
        )
    ]


def _writer(kind: TokenKind, is_bridge: bool) -> Writer:
    if kind is TokenKind.SAMPLED:
        return Writer.SAMPLED
    if kind is TokenKind.BODY:
        return Writer.BRIDGE_BODY if is_bridge else Writer.BODY
    return Writer.BRIDGE_SCAFFOLD if is_bridge else Writer.SCAFFOLD


def token_texts(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The text of each id behind the one before it; a part of a character is shown as U+FFFD.

    Raises:
        InvalidTokenIdError: An id is not of this tokenizer.
    """
    texts: list[str] = []
    for position, token_id in enumerate(ids):
        if token_id >= tokenizer.vocab_size:
            raise InvalidTokenIdError(f"token id {token_id} is outside the vocabulary of {tokenizer.vocab_size}")
        alone = tokenizer.decode([token_id])
        if position:
            # SentencePiece drops the space in front of what it decodes: behind another token it is there.
            before = tokenizer.decode([ids[position - 1]])
            both = tokenizer.decode([ids[position - 1], token_id])
            if both.startswith(before) and len(both) - len(before) > len(alone):
                alone = both[len(before) :]
        texts.append(alone)
    return texts


def _mark(cells: Sequence[PaintedToken], compared: TurnComparison) -> None:
    """Mark what this turn's prompt would have lost, unless an earlier turn would have lost it already."""
    if compared.first_difference is None:
        return
    turn = compared.record.turn.index
    exact, text = compared.exact_ids.array(), compared.rerendered_ids.array()
    start = compared.first_difference
    end = min(shared_len(exact[::-1], text[::-1]), len(exact) - start, len(text) - start)
    middle, middle_text = exact[start : len(exact) - end], text[start : len(text) - end]
    for low, high, is_gap in _differences(middle.astype(np.int64).tolist(), middle_text.tolist()):
        for token in cells[start + low : start + high]:
            token.lost_at = turn if token.lost_at is None else token.lost_at
        if is_gap and start + low < len(cells):
            token = cells[start + low]
            token.gap_at = turn if token.gap_at is None else token.gap_at


def _differences(exact: list[int], text: list[int]) -> list[tuple[int, int, bool]]:
    """Stretches of `exact` that are not in `text`; True marks a place where `text` has more instead."""
    if len(exact) * len(text) > _MOST_PAIRS:
        return [(0, len(exact), False)]
    matcher = SequenceMatcher(None, exact, text, autojunk=False)
    return [(i1, i2, tag == "insert") for tag, i1, i2, _, _ in matcher.get_opcodes() if tag != "equal"]
