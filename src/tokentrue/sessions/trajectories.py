"""A whole session as training samples under a length limit, with every sampled id accounted for (pure).

Law 7 with a limit: `sampled == trained + masked + cut`. A sampled id is trained in one sample, or masked because
the episode is not to be trained on, or cut off by the limit; nothing leaves without being counted.

A turn continues an earlier one when its prompt begins with all of that turn's ids. A bridge is made so; a prompt
that an engine rendered may happen to be so, and then it, too, is no sample of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from tokentrue.errors import AlignmentError, CallerError
from tokentrue.generation import LogprobsMode, check_logprobs_mode
from tokentrue.sessions.samples import TrainingSample, bridged_anchors, training_samples
from tokentrue.tokens import Logprobs, TokenIds, TurnTokens
from tokentrue.turns import Turn

_LOGGER = logging.getLogger(__name__)


class Cut(Enum):
    """What a limit on the length of a sequence did to one turn."""

    WHOLE = "whole"
    COMPLETION = "completion"
    PROMPT = "prompt"


@dataclass(frozen=True, slots=True)
class CutTokens:
    """The tokens of one turn, within a limit.

    Args:
        tokens: What is kept.
        cut: `COMPLETION` when sampled ids were cut off, `PROMPT` when the prompt alone is too long: then it is
            cut, and nothing sampled is kept.
        dropped: How many sampled ids were cut off.
    """

    tokens: TurnTokens
    cut: Cut
    dropped: int

    @property
    def is_truncated(self) -> bool:
        """Whether anything was cut."""
        return self.cut is not Cut.WHOLE

    @property
    def overlong_prompt(self) -> bool:
        """Whether the prompt alone is longer than the limit."""
        return self.cut is Cut.PROMPT


def cut_tokens(tokens: TurnTokens, max_seq_len: int) -> CutTokens:
    """The first `max_seq_len` tokens of a turn.

    Raises:
        CallerError: The limit is below 1.
    """
    if max_seq_len < 1:
        raise CallerError(f"max_seq_len={max_seq_len!r} must be at least 1")
    prompt_len, sampled = len(tokens.prompt_ids), len(tokens.completion_ids)
    room = max_seq_len - prompt_len
    if room >= sampled:
        return CutTokens(tokens, Cut.WHOLE, 0)
    if room < 0:
        kept = TurnTokens(TokenIds(tokens.prompt_ids[:max_seq_len]), TokenIds(), Logprobs(()))
        return CutTokens(kept, Cut.PROMPT, sampled)
    ids, logprobs = tokens.completion_ids[:room], tokens.completion_logprobs[:room]
    kept = TurnTokens(tokens.prompt_ids, TokenIds(ids), Logprobs(logprobs))
    return CutTokens(kept, Cut.COMPLETION, sampled - room)


@dataclass(frozen=True, slots=True)
class SampledCounts:
    """Where the sampled ids of a session are.

    Args:
        sampled: All of them.
        trained: With loss mask 1 in one sample.
        masked: In a sample, with loss mask 0.
        cut: Behind the limit, in no sample.
        turns_without_ids: Turns whose ids the engine did not tell; how many it sampled is not known.

    Raises:
        AlignmentError: They do not add up.
    """

    sampled: int
    trained: int
    masked: int
    cut: int
    turns_without_ids: int = 0

    def __post_init__(self) -> None:
        if self.sampled != self.trained + self.masked + self.cut:
            raise AlignmentError(
                f"{self.sampled} ids were sampled; {self.trained} trained, {self.masked} masked and {self.cut} "
                f"cut do not add up to that"
            )


@dataclass(frozen=True, slots=True)
class SessionSamples:
    """The training samples of a session.

    Args:
        samples: One per branch, each at most as long as the limit.
        cuts: What the limit did to each turn, in the order of the turns.
        counts: Where every sampled id is.
    """

    samples: tuple[TrainingSample, ...]
    cuts: tuple[Cut, ...]
    counts: SampledCounts

    @property
    def is_truncated(self) -> bool:
        """Whether the limit cut anything."""
        return any(cut is not Cut.WHOLE for cut in self.cuts)

    @property
    def overlong_prompt(self) -> bool:
        """Whether a prompt alone is longer than the limit."""
        return any(cut is Cut.PROMPT for cut in self.cuts)


def session_samples(
    turns: Sequence[Turn],
    *,
    max_seq_len: int | None = None,
    is_trained: bool = True,
    turns_without_ids: int = 0,
    logprobs_mode: LogprobsMode | None = None,
) -> SessionSamples:
    """The samples of a session, each turn in the fewest and longest sequences that hold its exact ids.

    Args:
        turns: All of them; `turns[i].index == i`.
        max_seq_len: Longest sample in tokens; None for no limit.
        is_trained: False masks every id, as for an episode that ended in an error.
        turns_without_ids: `Session.turns_without_ids`; only counted.
        logprobs_mode: What the trainer takes log-probabilities for; None takes what there is, which
            `TrainingSample.logprobs_mode` says, and a warning is logged where nobody knows what that is.

    Raises:
        LogprobsMeaningError: Log-probabilities do not mean `logprobs_mode`, or not all the same.
        AlignmentError: The turns are not what the samples say (law 7).
        CallerError: The limit is below 1.
    """
    if logprobs_mode is not None:
        for turn in turns:
            check_logprobs_mode(turn.logprobs_mode, logprobs_mode, f"turn {turn.index}")
    whole = training_samples(turns, prefix_anchors(turns))
    if any(sample.logprobs_mode is LogprobsMode.UNKNOWN for sample in whole):
        _LOGGER.warning(
            "a training sample has log-probabilities of unknown meaning: measure the endpoint (measure_logprobs), "
            "or sample at temperature 1 with all parameters given"
        )
    cuts = tuple(Cut.WHOLE for _ in turns)
    if max_seq_len is not None:
        cuts = tuple(cut_tokens(turn.tokens, max_seq_len).cut for turn in turns)
        whole = tuple(_cut_sample(sample, max_seq_len) for sample in whole)
    sampled = sum(len(turn.tokens.completion_ids) for turn in turns)
    kept = sum(int(sample.loss_mask.sum()) for sample in whole)
    if not is_trained:
        whole = tuple(_masked(sample) for sample in whole)
    counts = SampledCounts(
        sampled=sampled,
        trained=kept if is_trained else 0,
        masked=0 if is_trained else kept,
        cut=sum(cut_tokens(turn.tokens, max_seq_len).dropped for turn in turns) if max_seq_len is not None else 0,
        turns_without_ids=turns_without_ids,
    )
    return SessionSamples(whole, cuts, counts)


def prefix_anchors(turns: Sequence[Turn]) -> dict[int, int]:
    """The turn that each turn continues: its bridge's, else the longest one that its prompt begins with."""
    anchors = bridged_anchors(turns)
    for turn in turns:
        if turn.index in anchors:
            continue
        known = [earlier for earlier in turns[: turn.index] if _begins_with(turn, earlier)]
        if known:
            longest = max(known, key=lambda earlier: len(earlier.tokens.all_ids()))
            anchors[turn.index] = longest.index
    return anchors


def _begins_with(turn: Turn, earlier: Turn) -> bool:
    return turn.tokens.prompt_ids.starts_with(earlier.tokens.all_ids())


def _cut_sample(sample: TrainingSample, max_seq_len: int) -> TrainingSample:
    return replace(
        sample,
        token_ids=sample.token_ids[:max_seq_len],
        loss_mask=sample.loss_mask[:max_seq_len],
        logprobs=sample.logprobs[:max_seq_len],
        weight_spans=tuple(
            replace(span, end=min(span.end, max_seq_len))
            for span in sample.weight_spans
            if span.start < max_seq_len
        ),
    )


def _masked(sample: TrainingSample) -> TrainingSample:
    return replace(
        sample,
        loss_mask=np.zeros(len(sample.token_ids), dtype=np.bool_),
        logprobs=np.full(len(sample.token_ids), np.nan),
        weight_spans=(),
    )
