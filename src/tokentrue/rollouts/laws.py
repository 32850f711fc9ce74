"""The laws of DESIGN that recorded turns can be held against, after the fact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from tokentrue.errors import AlignmentError, LogprobsMeaningError
from tokentrue.messages import Message
from tokentrue.rollouts.trajectory import TurnRecord
from tokentrue.sessions.samples import training_samples
from tokentrue.tokens import LOGPROB_ROUNDING, TokenIds
from tokentrue.turns import FALLBACKS, How, Junction, Turn, Why, without

_SHOWN_VIOLATIONS = 5

_Episodes: TypeAlias = Mapping[int, list[Turn]]
_TurnCheck: TypeAlias = Callable[[Turn, Mapping[int, Turn]], str | None]
"""None: the turn keeps the law. "": the law does not speak of it. A text: how the turn breaks it."""


class Law(Enum):
    """The laws that a record can be held against, by their number in DESIGN; `proof.py` checks 2, 4 and 6."""

    VERBATIM = 1
    FAITHFUL = 2
    ALIGNED = 3
    EVIDENCE = 4
    NO_SILENT_FALLBACK = 5
    INVERSE = 6
    NOTHING_LOST = 7


@dataclass(frozen=True, slots=True)
class LawCheck:
    """What one law looked at.

    Args:
        law: Which one.
        checked: How many turns (law 7: sampled ids) it was held against.
        broken: How many turns (law 7: episodes) broke it.
        violations: The first few, each with its place.
    """

    law: Law
    checked: int
    broken: int
    violations: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing broke the law."""
        return self.broken == 0


def check_laws(turns: Iterable[TurnRecord]) -> tuple[LawCheck, ...]:
    """Hold every turn against laws 1, 3, 5 and 7."""
    records: dict[int, list[TurnRecord]] = {}
    for record in turns:
        records.setdefault(record.episode, []).append(record)
    episodes = {episode: [record.turn for record in found] for episode, found in records.items()}
    return (
        _check_each(Law.VERBATIM, episodes, _verbatim),
        _check_each(Law.ALIGNED, episodes, _aligned),
        _check_explained(records),
        _check_nothing_lost(episodes),
    )


def _verbatim(turn: Turn, by_index: Mapping[int, Turn]) -> str | None:
    if not turn.stitch.builds_on_anchor:
        return ""
    anchor = by_index.get(-1 if turn.stitch.anchor_turn is None else turn.stitch.anchor_turn)
    if anchor is None:
        return f"is a bridge from turn {turn.stitch.anchor_turn}, which is not there"
    known = anchor.tokens.all_ids()
    if turn.stitch.how is How.SPLICED:
        return _spliced(turn, anchor)
    if turn.stitch.junction is Junction.OPENER_DROPPED:
        kept = turn.stitch.known_len
        dropped_only_sampled = len(anchor.tokens.prompt_ids) <= kept <= len(known)
        if dropped_only_sampled and turn.tokens.prompt_ids.starts_with(known[:kept]):
            return None
        return f"does not begin with the {kept} ids that it says it keeps of turn {anchor.index}"
    if turn.tokens.prompt_ids.starts_with(known):
        return None
    return f"does not begin with the {len(known)} ids of turn {anchor.index}"


def _spliced(turn: Turn, anchor: Turn) -> str | None:
    """Law 1 of a splice: the ids of the anchor without the removed ones, and nothing lost but those."""
    stitch, known = turn.stitch, anchor.tokens.all_ids()
    wanted = len(known) - (stitch.junction is Junction.OPENER_DROPPED)
    if not stitch.removed or stitch.anchor_len != wanted:
        return f"is a splice of {stitch.anchor_len} of the {wanted} ids of turn {anchor.index}"
    try:
        kept = without(TokenIds(known[:wanted]), stitch.removed)
    except AlignmentError as exc:
        return f"is a splice of turn {anchor.index} that cannot be: {exc}"
    if turn.tokens.prompt_ids.starts_with(kept.tolist()):
        return None
    return f"does not begin with the {len(kept)} ids that are left of turn {anchor.index}"


def _aligned(turn: Turn, by_index: Mapping[int, Turn]) -> str | None:
    del by_index
    ids, logprobs = turn.tokens.completion_ids, turn.tokens.completion_logprobs.tolist()
    if len(ids) != len(logprobs):
        return f"has {len(ids)} sampled ids and {len(logprobs)} log-probabilities"
    wrong = [value for value in logprobs if not math.isfinite(value) or value > LOGPROB_ROUNDING]
    return f"has the log-probability {wrong[0]!r}" if wrong else None


def _check_explained(records: Mapping[int, list[TurnRecord]]) -> LawCheck:
    """Law 5. `FIRST_TURN` explains only a conversation in which nothing has been sampled yet, `KNOWN_PREFIX`
    only a bridge, `HISTORY_REWRITE` a splice, and a retry keeps the prompt that it repeats, with what made it.
    """
    violations: list[str] = []
    for episode, found in records.items():
        conversation: tuple[Message, ...] = ()
        for record in found:
            conversation = record.conversation(conversation)
            is_new = all(message.role != "assistant" for message in conversation[:-1])
            stitch = record.turn.stitch
            if not _explains(stitch.how, stitch.why, is_new):
                violations.append(
                    f"turn {record.turn.index} of episode {episode} is {stitch.how.value} because of "
                    f"{stitch.why.value}, which does not explain it"
                )
    checked = sum(map(len, records.values()))
    return LawCheck(Law.NO_SILENT_FALLBACK, checked, len(violations), tuple(violations[:_SHOWN_VIOLATIONS]))


def _explains(how: How, why: Why, is_new: bool) -> bool:
    if why is Why.RETRY_SAME_PROMPT:
        return True
    if how is How.BRIDGED:
        return why is Why.KNOWN_PREFIX
    if how is How.SPLICED:
        return why is Why.HISTORY_REWRITE
    return is_new if why is Why.FIRST_TURN else why in FALLBACKS


def _check_each(law: Law, episodes: _Episodes, check: _TurnCheck) -> LawCheck:
    checked = 0
    violations: list[str] = []
    for episode, turns in episodes.items():
        by_index = {turn.index: turn for turn in turns}
        for turn in turns:
            outcome = check(turn, by_index)
            checked += outcome != ""
            if outcome:
                violations.append(f"turn {turn.index} of episode {episode} {outcome}")
    return LawCheck(law, checked, len(violations), tuple(violations[:_SHOWN_VIOLATIONS]))


def _check_nothing_lost(episodes: _Episodes) -> LawCheck:
    """Law 7: what counts in the training samples, ids with their log-probabilities, is what was sampled."""
    sampled_total = 0
    violations: list[str] = []
    for episode, turns in episodes.items():
        sampled_total += sum(len(turn.tokens.completion_ids) for turn in turns)
        broken = _lost_or_invented(turns)
        if broken:
            violations.append(f"episode {episode}: {broken}")
    return LawCheck(Law.NOTHING_LOST, sampled_total, len(violations), tuple(violations[:_SHOWN_VIOLATIONS]))


def _lost_or_invented(turns: Sequence[Turn]) -> str:
    try:
        samples = training_samples(turns)
    except (AlignmentError, LogprobsMeaningError, IndexError) as exc:
        return f"no training samples can be built: {exc}"
    sampled = sorted(
        pair
        for turn in turns
        for pair in zip(turn.tokens.completion_ids, turn.tokens.completion_logprobs, strict=True)
    )
    counted = sorted(
        pair
        for sample in samples
        for pair in zip(
            sample.token_ids[sample.loss_mask].tolist(), sample.logprobs[sample.loss_mask].tolist(), strict=True
        )
    )
    if sampled == counted:
        return ""
    return f"{len(sampled)} ids were sampled and {len(counted)} count in its training samples, or they differ"
