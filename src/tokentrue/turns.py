"""What a turn is made of: how its prompt came about, who wrote which id, what the caller gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from tokentrue.errors import AlignmentError
from tokentrue.generation import (
    FinishReason,
    LogprobsMode,
    PromptLogprobs,
    Usage,
    VersionSource,
    WeightSpan,
    check_logprobs_mode,
)
from tokentrue.messages import Message
from tokentrue.tokens import IntArray, Logprobs, TokenIds, TurnTokens
from tokentrue.weights import source_of


class Junction(Enum):
    """What happened between the last sampled id and the bridge (DESIGN, Vocabulary).

    - exact: the completion ends with the close, and the bridge stands behind it.
    - close_added: it was cut off; the close was put behind it, or the stop where history shows no close.
    - close_restored: the engine left its stop out, and it was put back.
    - stop_rewritten: the sampled stop is kept, and history spells it otherwise, or leaves it out.
    - opener_shared: it ends with the next message's opener, which is not written twice.
    - opener_dropped: it ends with another message's opener, which gave way to that of the message that came.
    """

    EXACT = "exact"
    CLOSE_ADDED = "close_added"
    CLOSE_RESTORED = "close_restored"
    STOP_REWRITTEN = "stop_rewritten"
    OPENER_SHARED = "opener_shared"
    OPENER_DROPPED = "opener_dropped"


class How(Enum):
    """How a prompt was made."""

    RENDERED = "rendered"
    BRIDGED = "bridged"
    SPLICED = "spliced"
    """A bridge without the ids of what the template no longer writes; every other one is kept."""
    ENGINE_RENDERED = "engine_rendered"


class Why(Enum):
    """Why a prompt was made the way it was (law 5). `FIRST_TURN` and `KNOWN_PREFIX` are no fallbacks."""

    KNOWN_PREFIX = "known_prefix"
    FIRST_TURN = "first_turn"
    NO_SHARED_PREFIX = "no_shared_prefix"
    NOTHING_NEW = "nothing_new"
    ASSISTANT_IN_NEW = "assistant_in_new"
    STOP_IN_MIDDLE = "stop_in_middle"
    NO_ATOMIC_CLOSE = "no_atomic_close"
    ASSISTANT_DROPPED = "assistant_dropped"
    NEW_MESSAGE_DROPPED = "new_message_dropped"
    REORDERED = "reordered"
    TEMPLATE_RAISED = "template_raised"
    NOT_TEXT = "not_text"
    OPEN_REASONING = "open_reasoning"
    UNSTABLE_JOIN = "unstable_join"
    HISTORY_NEEDED = "history_needed"
    HISTORY_REWRITE = "history_rewrite"
    NOT_SPLICED = "not_spliced"
    RETRY_SAME_PROMPT = "retry_same_prompt"
    MESSAGES_ONLY = "messages_only"
    TOKENS_MISSING = "tokens_missing"
    TRUNCATED_ANCHOR = "truncated_anchor"
    TOKENIZE_FAILED = "tokenize_failed"
    NO_TOKEN_ROUTE = "no_token_route"
    TEMPLATE_DIFFERS = "template_differs"
    MARKER_WRITER_UNKNOWN = "marker_writer_unknown"
    PLUG_IN_REFUSED = "plug_in_refused"
    PLUG_IN_BREACH = "plug_in_breach"


FALLBACKS = frozenset(Why) - {Why.KNOWN_PREFIX, Why.FIRST_TURN, Why.RETRY_SAME_PROMPT}
"""Reasons that mean: this turn could perhaps have been bridged, and was not."""


class TokenKind(Enum):
    """Who wrote a token: the template, a caller's message, or the model."""

    SCAFFOLD = 0
    BODY = 1
    SAMPLED = 2


@dataclass(frozen=True, slots=True)
class CutSpan:
    """The ids `start` to `end` (excluded) are left out; there is at least one."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise AlignmentError(f"ids {self.start} to {self.end} are no ids that can be left out")


def without(ids: TokenIds, removed: Sequence[CutSpan]) -> IntArray:
    """The ids that are left.

    Raises:
        AlignmentError: The spans are not within the ids, or not in order.
    """
    edges = [edge for span in removed for edge in (span.start, span.end)]
    if edges != sorted(edges) or (edges and edges[-1] > len(ids)):
        raise AlignmentError(f"the spans {removed} cannot be left out of {len(ids)} ids")
    kept = np.ones(len(ids), dtype=np.bool_)
    for span in removed:
        kept[span.start : span.end] = False
    left: IntArray = ids.array()[kept]
    return left


@dataclass(frozen=True, slots=True)
class Stitch:
    """How the prompt of one turn was made, and why (law 5).

    Args:
        how: Bridged, spliced, or rendered from nothing.
        why: The reason; a member of `FALLBACKS` when a bridge was possible in principle.
        detail: The first differing message, byte or marker, for a person; "" when there is nothing to tell.
        junction: Only for a bridge, spliced or not.
        anchor_turn: Index of the turn that the bridge extends, or None.
        known_len: How many prompt ids were known before this turn (0 for a render).
        removed: Only for a splice: the ids of the anchor turn, prompt and completion, that are not in the prompt.
            `prompt_ids[:known_len]` are the others.
    """

    how: How
    why: Why
    detail: str = ""
    junction: Junction | None = None
    anchor_turn: int | None = None
    known_len: int = 0
    removed: tuple[CutSpan, ...] = ()

    @property
    def builds_on_anchor(self) -> bool:
        """Whether the prompt is made of the anchor turn's ids, all of them or without the removed ones."""
        return self.how in (How.BRIDGED, How.SPLICED)

    @property
    def anchor_len(self) -> int:
        """How many leading ids of the anchor turn the prompt was made of, those that were removed counted."""
        return self.known_len + sum(span.end - span.start for span in self.removed)


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """A run of ids of one writer: ids `start` to `end` (excluded) belong to message `owner`.

    `owner` is an index into the conversation of the prompt, or -1 for what belongs to no message
    (BOS, a tools header, the generation prompt).
    """

    start: int
    end: int
    owner: int
    kind: TokenKind


@dataclass(frozen=True, slots=True)
class Turn:
    """One engine call, as a record keeps it.

    `logprobs_mode` says what `tokens.completion_logprobs` mean. `unread` says why the completion could not be read
    as a message: the ids are what was sampled all the same, and the message is their text, where that is known.
    """

    index: int
    tokens: TurnTokens
    stitch: Stitch
    finish_reason: FinishReason
    stop_reason: int | str | None
    usage: Usage
    prompt_spans: tuple[TokenSpan, ...] = ()
    request_id: str = ""
    weight_spans: tuple[WeightSpan, ...] = ()
    logprobs_mode: LogprobsMode = LogprobsMode.UNKNOWN
    resumed_at: tuple[int, ...] = ()
    unread: str = ""

    @property
    def version_source(self) -> VersionSource:
        """How well it is known which policy version sampled this turn's ids; see `source_of`."""
        return source_of(self.weight_spans)

    def logprobs_as(self, mode: LogprobsMode) -> Logprobs:
        """The log-probabilities, meaning `mode`: those that were sampled with, where they are the same.

        Raises:
            LogprobsMeaningError: They mean something else. Nothing is converted: going from one temperature to
                another, or over truncation, takes the whole distribution, and a turn has one number of it.
        """
        check_logprobs_mode(self.logprobs_mode, mode, f"turn {self.index}")
        return self.tokens.completion_logprobs


@dataclass(frozen=True, slots=True)
class Response:
    """What `get_response` gives back.

    `tokens` is None only when the engine cannot give ids, and then `tokens_missing` says why.
    `prompt_logprobs` has one item for each of `tokens.prompt_ids`, the first of them None, when the sampling
    parameter of that name was given; a record does not keep it.
    """

    id: str
    model: str
    message: Message
    finish_reason: FinishReason
    usage: Usage
    tokens: TurnTokens | None
    turn: Turn | None
    tokens_missing: str = ""
    prompt_logprobs: PromptLogprobs | None = None
