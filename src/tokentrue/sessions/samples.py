"""From the turns of a session to training samples (pure).

Law 7: every sampled id is in exactly one training sample with loss mask 1, and no id that was not
sampled ever has loss mask 1. A chain of bridged turns is one sample; a turn that several branches
share is trained in the first of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tokentrue.errors import AlignmentError
from tokentrue.generation import LogprobsMode, VersionSource, WeightSpan, common_logprobs_mode
from tokentrue.tokens import BoolArray, FloatArray, IntArray
from tokentrue.turns import How, Junction, Turn
from tokentrue.weights import moved, source_of


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One sequence to train on.

    Args:
        token_ids: Shape (T,), int32: exactly what the engine saw and sampled.
        loss_mask: Shape (T,), bool: True where the id was sampled and is trained here.
        logprobs: Shape (T,), float64, nats: the engine's log-probability where `loss_mask` is True,
            NaN elsewhere: there is none.
        turns: Indices of the turns along the branch, first to last.
        weight_spans: Which policy version sampled the ids that are trained here, in positions of `token_ids`. They
            cover exactly those ids; where nobody knows, a span says that.
        logprobs_mode: What `logprobs` mean; `UNKNOWN` where nobody measured it.
    """

    token_ids: IntArray
    loss_mask: BoolArray
    logprobs: FloatArray
    turns: tuple[int, ...]
    weight_spans: tuple[WeightSpan, ...] = ()
    logprobs_mode: LogprobsMode = LogprobsMode.UNKNOWN

    def __post_init__(self) -> None:
        lengths = {len(self.token_ids), len(self.loss_mask), len(self.logprobs)}
        if len(lengths) != 1:
            raise AlignmentError(f"ids, loss mask and log-probabilities differ in length: {sorted(lengths)}")
        if bool(np.isnan(self.logprobs[self.loss_mask]).any()):
            raise AlignmentError("a trained id has no log-probability")
        covered = np.zeros(len(self.token_ids), dtype=np.bool_)
        for span in self.weight_spans:
            covered[span.start : span.end] = True
        if self.weight_spans and not np.array_equal(covered, self.loss_mask):
            raise AlignmentError("the weight spans do not cover exactly the ids that are trained")

    @property
    def policy_versions(self) -> tuple[str | None, ...]:
        """The policy version that sampled each id.

        None where the id was not sampled or is not trained here, and where its version is not known:
        `version_source` and the spans tell these apart.
        """
        versions: list[str | None] = [None] * len(self.token_ids)
        for span in self.weight_spans:
            versions[span.start : span.end] = [span.version] * (span.end - span.start)
        return tuple(versions)

    @property
    def version_source(self) -> VersionSource:
        """How well the versions of the trained ids are known, at worst; see `source_of`."""
        return source_of(self.weight_spans)


def training_samples(
    turns: Sequence[Turn], anchors: Mapping[int, int] | None = None
) -> tuple[TrainingSample, ...]:
    """One sample per branch of a session; `turns[i].index == i`.

    Args:
        anchors: The turn that each turn continues, by index; None means `bridged_anchors`.

    Raises:
        AlignmentError: A turn does not begin with the ids of the turn that it continues.
        LogprobsMeaningError: The log-probabilities of the turns mean different things.
    """
    mode = common_logprobs_mode(turn.logprobs_mode for turn in turns)
    continued = bridged_anchors(turns) if anchors is None else anchors
    extended = set(continued.values())
    trained: set[int] = set()
    samples: list[TrainingSample] = []
    for turn in turns:
        if turn.index not in extended:
            samples.append(replace(_sample(_branch(turns, turn, continued), trained), logprobs_mode=mode))
    return tuple(samples)


def bridged_anchors(turns: Sequence[Turn]) -> dict[int, int]:
    """The turn that each bridged turn continues, where all of its ids are in the prompt."""
    return {
        turn.index: turn.stitch.anchor_turn
        for turn in turns
        if turn.stitch.how is How.BRIDGED
        and turn.stitch.junction is not Junction.OPENER_DROPPED
        and turn.stitch.anchor_turn is not None
    }


def _branch(turns: Sequence[Turn], leaf: Turn, anchors: Mapping[int, int]) -> list[Turn]:
    path = [leaf]
    while path[-1].index in anchors:
        path.append(turns[anchors[path[-1].index]])
    path.reverse()
    return path


def _sample(path: Sequence[Turn], trained: set[int]) -> TrainingSample:
    ids = path[-1].tokens.all_ids().array()
    mask = np.zeros(len(ids), dtype=np.bool_)
    logprobs = np.full(len(ids), np.nan, dtype=np.float64)
    spans: list[WeightSpan] = []
    for turn in path:
        if turn.index in trained:
            continue
        trained.add(turn.index)
        start = len(turn.tokens.prompt_ids)
        end = start + len(turn.tokens.completion_ids)
        if not np.array_equal(ids[start:end], turn.tokens.completion_ids.array()):
            raise AlignmentError(
                f"turn {turn.index}: its sampled ids are not at {start}..{end} of the branch (law 1)"
            )
        mask[start:end] = True
        logprobs[start:end] = turn.tokens.completion_logprobs.array()
        said = turn.weight_spans or (WeightSpan(None, 0, end - start, VersionSource.UNKNOWN),)
        spans.extend(moved(said, start))
    return TrainingSample(ids, mask, logprobs, tuple(turn.index for turn in path), tuple(spans))
