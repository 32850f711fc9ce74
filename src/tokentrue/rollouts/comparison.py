"""What rendering every prompt anew from text would have done to recorded conversations (pure).

For a turn with prompt ids `P` and the messages `M` behind it, the other way is `R = render_ids(M, tools)`: the
sampled text, read into messages, written again by the template and encoded again. Where `R != P`, the engine would
have been given ids that nobody sampled. Three things follow from that, and each is counted on the same turns:

- why the ids differ (`DriftCause`), found by laying the template's text beside what was sampled;
- what it costs the prefix cache: with `seen = previous prompt + previous completion`, a prompt reuses the whole
  blocks of `BLOCK_TOKENS` ids of `common_prefix(prompt, seen)`;
- how many sequences the rollout becomes for a trainer: one more wherever the prompt does not begin with `seen`.

The samples are taken as they were: what a model would have sampled behind other ids cannot be known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any

import numpy as np

from tokentrue.errors import RecordError, TemplateRenderError
from tokentrue.messages import Message
from tokentrue.rendering.renderer import Renderer
from tokentrue.rollouts.drift import DriftCause, RenderedText, find_causes
from tokentrue.rollouts.trajectory import EpisodeRecord, TurnRecord, told_time
from tokentrue.sessions.samples import training_samples
from tokentrue.tokens import IntArray, TokenIds

BLOCK_TOKENS = 16
"""Ids per block of a prefix cache; vLLM's default."""

_SHOWN_BEFORE, _SHOWN_AFTER = 3, 9
_NO_IDS = TokenIds()


@dataclass(frozen=True, slots=True)
class TurnComparison:
    """One turn, as it was and as it would have been.

    Args:
        record: The turn; `record.turn.tokens.prompt_ids` is what was sent.
        rerendered_ids: The prompt from text; empty when the template refuses the messages.
        previous: Index of the turn whose ids came before: the anchor of a bridge, else the turn before; None for
            a first turn.
        first_difference: Position of the first id that differs; None when all are the same.
        causes: Why, in the order of the prompt; empty when all ids are the same.
        exact_reused, rerendered_reused: Prompt ids in whole blocks that the previous turn left in a cache.
        breaks: The exact prompt begins with everything seen before, and the one from text does not.
    """

    record: TurnRecord
    rerendered_ids: TokenIds
    previous: int | None
    first_difference: int | None
    causes: tuple[DriftCause, ...]
    exact_reused: int
    rerendered_reused: int
    breaks: bool

    @property
    def exact_ids(self) -> TokenIds:
        """The prompt that was sent."""
        return self.record.turn.tokens.prompt_ids


@dataclass(frozen=True, slots=True)
class DriftExample:
    """The first difference of one turn: a few ids around `position` on both sides, from `start` on."""

    episode: int
    turn: int
    cause: DriftCause
    position: int
    start: int
    exact_ids: tuple[int, ...]
    exact_text: str
    rerendered_ids: tuple[int, ...]
    rerendered_text: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """What rendering anew would have done to a whole run.

    Args:
        turns: Turns compared, first turns included.
        follow_ups: Those with a turn before them: only these can reuse or break anything.
        differing: Turns whose ids differ.
        causes: Turns by cause; a turn with several causes is in several counts.
        first_causes: Turns by the cause of their first difference; these add up to `differing`.
        examples: For each first cause, its first turn.
        exact_prompt, rerendered_prompt: Prompt ids of the follow-up turns.
        exact_reused, rerendered_reused: Those of them in whole cached blocks.
        exact_sequences, rerendered_sequences: Training sequences.
        causes_by_episode: All causes in each episode; empty for a comparison that joins several runs.
    """

    turns: int
    follow_ups: int
    differing: int
    causes: Mapping[DriftCause, int]
    first_causes: Mapping[DriftCause, int]
    examples: tuple[DriftExample, ...]
    exact_prompt: int
    rerendered_prompt: int
    exact_reused: int
    rerendered_reused: int
    exact_sequences: int
    rerendered_sequences: int
    causes_by_episode: Mapping[int, frozenset[DriftCause]]

    @property
    def exact_prefilled(self) -> int:
        """Prompt ids of follow-up turns that are in no cached block."""
        return self.exact_prompt - self.exact_reused

    @property
    def rerendered_prefilled(self) -> int:
        """The same for prompts from text."""
        return self.rerendered_prompt - self.rerendered_reused


def compare_episode(
    turns: Sequence[TurnRecord], tools: Sequence[Mapping[str, Any]], renderer: Renderer
) -> tuple[TurnComparison, ...]:
    """Compare each turn of one episode; `turns` are all of them, in order."""
    by_index = {record.turn.index: record for record in turns}
    rendered: dict[int, TokenIds] = {}
    compared: list[TurnComparison] = []
    conversation: tuple[Message, ...] = ()
    for record in turns:
        conversation = record.conversation(conversation)
        text = _render(conversation[:-1], tools, renderer)
        rendered[record.turn.index] = TokenIds(text.ids) if text is not None else _NO_IDS
        compared.append(_compare(record, by_index, text, rendered, renderer))
    return tuple(compared)


def renderer_at(episode: EpisodeRecord, renderer: Renderer) -> Renderer:
    """`renderer` at the time that the template was told in an episode, wherever that was: when it began.

    A record before schema version 4 does not say in which time zone: then it is taken to be the one here.
    """
    if episode.began_at is not None:
        return renderer.at(told_time(episode.began_at))
    return renderer.at(datetime.fromtimestamp(episode.started_at)) if episode.started_at else renderer


def compare_run(episodes: Iterable[EpisodeRecord], turns: Iterable[TurnRecord], renderer: Renderer) -> Comparison:
    """Compare a whole run, one episode in memory at a time.

    Args:
        turns: Those of the same run, episode by episode and in order.

    Raises:
        RecordError: A turn belongs to no episode.
    """
    known = {episode.index: episode for episode in episodes}
    totals = _Totals()
    for index, group in groupby(turns, key=lambda record: record.episode):
        if index not in known:
            raise RecordError(f"there are turns of episode {index}, but no such episode")
        episode, records = known[index], list(group)
        dated = renderer_at(episode, renderer)
        totals.add(compare_episode(records, episode.tools, dated), dated)
    return totals.result()


def joined_comparison(parts: Sequence[Comparison]) -> Comparison:
    """Several runs as one; the example of a cause is that of the first run that has one."""
    examples = {example.cause: example for part in reversed(parts) for example in part.examples}
    return Comparison(
        turns=sum(part.turns for part in parts),
        follow_ups=sum(part.follow_ups for part in parts),
        differing=sum(part.differing for part in parts),
        causes=_added(part.causes for part in parts),
        first_causes=_added(part.first_causes for part in parts),
        examples=tuple(examples.values()),
        exact_prompt=sum(part.exact_prompt for part in parts),
        rerendered_prompt=sum(part.rerendered_prompt for part in parts),
        exact_reused=sum(part.exact_reused for part in parts),
        rerendered_reused=sum(part.rerendered_reused for part in parts),
        exact_sequences=sum(part.exact_sequences for part in parts),
        rerendered_sequences=sum(part.rerendered_sequences for part in parts),
        causes_by_episode={},
    )


def _added(counts: Iterable[Mapping[DriftCause, int]]) -> dict[DriftCause, int]:
    total: Counter[DriftCause] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def shared_len(left: IntArray, right: IntArray) -> int:
    """How many leading ids are the same."""
    shorter = min(len(left), len(right))
    different = np.flatnonzero(left[:shorter] != right[:shorter])
    return int(different[0]) if len(different) else shorter


def drift_example(compared: TurnComparison, renderer: Renderer) -> DriftExample | None:
    """The first difference of a turn, both sides decoded; None when there is none."""
    if compared.first_difference is None:
        return None
    start = max(compared.first_difference - _SHOWN_BEFORE, 0)
    end = compared.first_difference + _SHOWN_AFTER
    exact, rerendered = compared.exact_ids[start:end], compared.rerendered_ids[start:end]
    return DriftExample(
        episode=compared.record.episode,
        turn=compared.record.turn.index,
        cause=compared.causes[0],
        position=compared.first_difference,
        start=start,
        exact_ids=tuple(exact),
        exact_text=renderer.tokenizer.decode(exact),
        rerendered_ids=tuple(rerendered),
        rerendered_text=renderer.tokenizer.decode(rerendered),
    )


def _render(
    messages: tuple[Message, ...], tools: Sequence[Mapping[str, Any]], renderer: Renderer
) -> RenderedText | None:
    try:
        written = renderer.write(messages, tools=tools)
        ids, offsets = renderer.encode_written(written)
    except TemplateRenderError:
        return None
    return RenderedText(written.text, ids, offsets)


def _compare(
    record: TurnRecord,
    by_index: Mapping[int, TurnRecord],
    text: RenderedText | None,
    rendered: Mapping[int, TokenIds],
    renderer: Renderer,
) -> TurnComparison:
    exact_ids, rerendered_ids = record.turn.tokens.prompt_ids, rendered[record.turn.index]
    shared = shared_len(exact_ids.array(), rerendered_ids.array())
    is_same = shared == len(exact_ids) == len(rerendered_ids)
    causes: tuple[DriftCause, ...] = ()
    if not is_same:
        causes = (
            find_causes(record, by_index, text, renderer) if text is not None else (DriftCause.TEMPLATE_REFUSES,)
        )
    previous = _previous(record, by_index)
    exact_shared = rerendered_shared = 0
    breaks = False
    if previous is not None:
        completion = previous.turn.tokens.completion_ids
        seen = previous.turn.tokens.all_ids()
        seen_anew = rendered[previous.turn.index].extended(completion)
        exact_shared = shared_len(exact_ids.array(), seen.array())
        rerendered_shared = shared_len(rerendered_ids.array(), seen_anew.array())
        breaks = exact_shared == len(seen) and rerendered_shared < len(seen_anew)
    return TurnComparison(
        record=record,
        rerendered_ids=rerendered_ids,
        previous=previous.turn.index if previous is not None else None,
        first_difference=None if is_same else shared,
        causes=causes,
        exact_reused=_whole_blocks(exact_shared),
        rerendered_reused=_whole_blocks(rerendered_shared),
        breaks=breaks,
    )


def _previous(record: TurnRecord, by_index: Mapping[int, TurnRecord]) -> TurnRecord | None:
    stitch = record.turn.stitch
    before = stitch.anchor_turn if stitch.builds_on_anchor else record.turn.index - 1
    return by_index.get(before) if before is not None else None


def _whole_blocks(shared: int) -> int:
    return shared // BLOCK_TOKENS * BLOCK_TOKENS


@dataclass(slots=True)
class _Totals:
    turns: int = 0
    follow_ups: int = 0
    causes: Counter[DriftCause] = field(default_factory=Counter)
    first_causes: Counter[DriftCause] = field(default_factory=Counter)
    examples: dict[DriftCause, DriftExample] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    causes_by_episode: dict[int, frozenset[DriftCause]] = field(default_factory=dict)

    def add(self, compared: Sequence[TurnComparison], renderer: Renderer) -> None:
        self.turns += len(compared)
        samples = len(training_samples([one.record.turn for one in compared]))
        self.counts["exact_sequences"] += samples
        self.counts["rerendered_sequences"] += samples + sum(one.breaks for one in compared)
        for one in compared:
            self.causes.update(one.causes)
            known = self.causes_by_episode.get(one.record.episode, frozenset())
            self.causes_by_episode[one.record.episode] = known.union(one.causes)
            example = drift_example(one, renderer)
            if example is not None:
                self.first_causes[example.cause] += 1
                self.examples.setdefault(example.cause, example)
            if one.previous is not None:
                self.follow_ups += 1
                self.counts["exact_prompt"] += len(one.exact_ids)
                self.counts["rerendered_prompt"] += len(one.rerendered_ids)
                self.counts["exact_reused"] += one.exact_reused
                self.counts["rerendered_reused"] += one.rerendered_reused

    def result(self) -> Comparison:
        return Comparison(
            turns=self.turns,
            follow_ups=self.follow_ups,
            differing=self.first_causes.total(),
            causes=dict(self.causes),
            first_causes=dict(self.first_causes),
            examples=tuple(self.examples.values()),
            exact_prompt=self.counts["exact_prompt"],
            rerendered_prompt=self.counts["rerendered_prompt"],
            exact_reused=self.counts["exact_reused"],
            rerendered_reused=self.counts["rerendered_reused"],
            exact_sequences=self.counts["exact_sequences"],
            rerendered_sequences=self.counts["rerendered_sequences"],
            causes_by_episode=dict(self.causes_by_episode),
        )
