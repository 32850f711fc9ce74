"""The bridge: the ids that extend `prompt_ids + completion_ids` by new messages, derived from the template.

Law 2 (faithful): with the conversation rendered as text in full, the text after the close of the last
sampled assistant message, encoded behind that close, is the bridge:

    bridge == encode(close + tail)[1:]      where   render(M + [a] + N) == … + close + tail

Why this is exact: added tokens split the text before merges are looked up, so
`encode(x + close + tail) == encode(x) + [close] + encode(close + tail)[1:]`; the close in front also
absorbs what depends on the neighbour (rstrip of the added token, SentencePiece's first space).

How the tail is found is the matter of `tail`; here it is joined to what was sampled.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tokentrue.errors import SpelledMarkerError
from tokentrue.generation import FinishReason
from tokentrue.rendering.formats.elements import Elements
from tokentrue.rendering.formats.reasoning import ReasoningFormat
from tokentrue.rendering.seams import Seam, SeamKind
from tokentrue.rendering.spans import character_spans, token_spans
from tokentrue.rendering.spelled import Written
from tokentrue.rendering.tail import BridgeRefused, FollowUp, Tail, TailFinder
from tokentrue.rendering.tokenizer import Match, Tokenizer
from tokentrue.tokens import TokenIds
from tokentrue.turns import Junction, TokenKind, TokenSpan, Why

_LOOKED_BACK = 64
"""How many characters at the end of a cut message tell that the template writes it so."""

_GENERATION_WINDOW = 128
"""How many ids at the end of a prompt are searched for a generation prompt, with what may be put behind it."""


@dataclass(frozen=True, slots=True)
class Bridge:
    """A prompt that extends a turn.

    Args:
        prompt_ids: Everything: previous prompt, completion, bridge (law 1).
        added_ids: Only what was added behind the completion. `prompt_ids` ends with them.
        junction: What happened at the seam.
        spans: Who wrote each added id; positions are absolute, they tile `added_ids`. Empty when the
            template changes message text in a way that was not recognised.
        known_len: Length of the part that was known: `len(prompt_ids) - len(added_ids)`.
    """

    prompt_ids: TokenIds
    added_ids: tuple[int, ...]
    junction: Junction
    spans: tuple[TokenSpan, ...]

    @property
    def known_len(self) -> int:
        """How many of `prompt_ids` were known before."""
        return len(self.prompt_ids) - len(self.added_ids)


@dataclass(frozen=True, slots=True)
class BridgeBuilder:
    """Builds bridges for one template and tokenizer.

    Args:
        generation_prompts: The ids of what the template adds for a generation prompt: there, and only
            there, a prompt can have opened reasoning.
        elements: How a template writes reasoning that stands between tags with names.
    """

    tails: TailFinder
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    reasoning: ReasoningFormat | None
    opener_ids: frozenset[int] = frozenset()
    generation_prompts: tuple[tuple[int, ...], ...] = ()
    elements: Elements | None = None

    def bridge(
        self,
        prompt_ids: TokenIds,
        completion_ids: TokenIds,
        follow_up: FollowUp,
        finish_reason: FinishReason | None,
    ) -> Bridge | BridgeRefused:
        """The bridge for `follow_up`, or why there is none."""
        refused = check_follow_up(follow_up) or check_stops(completion_ids, self.stop_ids)
        if refused is not None:
            return refused
        if self.tails.markers is not None:
            self.tails.markers.tell(follow_up.new, len(follow_up.history))
        tail = self.tails.tail(follow_up)
        if isinstance(tail, BridgeRefused):
            return tail
        return self._join(prompt_ids, completion_ids, tail, len(follow_up.history) - 1, finish_reason)

    def generation_tail(self, prompt_ids: TokenIds) -> tuple[int, ...]:
        """The last ids of `prompt_ids`, from the generation prompt on; empty when none is found.

        What stands in front of it, a user's text, cannot have opened reasoning. One that a stop follows is that of
        an older message: some templates write none behind a tool's result (DeepSeek-V3.1).
        """
        end: list[int] = prompt_ids.tail(max(len(prompt_ids) - _GENERATION_WINDOW, 0)).tolist()
        for start in range(len(end) - 1, -1, -1):
            for ids in self.generation_prompts:
                if tuple(end[start : start + len(ids)]) == ids:
                    is_older = any(token_id in self.stop_ids for token_id in end[start + len(ids) :])
                    return () if is_older else tuple(end[start:])
        return ()

    def encode_tail(self, tail: Tail) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of close and tail, and the characters that each stands for.

        Raises:
            SpelledMarkerError: A special token that a message spells cannot be kept plain text.
        """
        close = tail.seam.close.text
        if self.tails.markers is None:
            return self.tokenizer.encode_with_offsets(close + tail.text)
        moved = (Match(each.start + len(close), each.end + len(close), each.id) for each in tail.spelled)
        return self.tails.markers.encode_with_offsets(Written(close + tail.text, tuple(moved)))

    def _join(
        self,
        prompt_ids: TokenIds,
        completion_ids: TokenIds,
        tail: Tail,
        assistant_index: int,
        finish_reason: FinishReason | None,
    ) -> Bridge | BridgeRefused:
        close = tail.seam.close
        try:
            ids, offsets = self.encode_tail(tail)
        except SpelledMarkerError as error:
            return BridgeRefused(Why.MARKER_WRITER_UNKNOWN, str(error))
        if not ids or ids[0] != close.id:
            return BridgeRefused(
                Why.UNSTABLE_JOIN, f"{close.text!r} does not stay one token in front of {tail.text[:40]!r}"
            )
        junction = self._junction(completion_ids, tail.seam, finish_reason)
        inserted = self._inserted(junction, prompt_ids, completion_ids, tail)
        kept = completion_ids
        if junction is Junction.OPENER_DROPPED:
            kept = TokenIds(completion_ids[:-1])
        known = prompt_ids.extended(kept)
        added = (*inserted, *ids[1:])
        spans = self._spans(ids[1:], offsets[1:], tail, assistant_index + 1, len(known) + len(inserted))
        if inserted and spans:
            seam_span = TokenSpan(len(known), len(known) + len(inserted), assistant_index, TokenKind.SCAFFOLD)
            spans = (seam_span, *spans)
        return Bridge(known.extended(added), added, junction, spans)

    def _spans(
        self, ids: list[int], offsets: list[tuple[int, int]], tail: Tail, first_new: int, first_position: int
    ) -> tuple[TokenSpan, ...]:
        if tail.bodies is None:
            return ()
        stops = [info.text for i in self.stop_ids if (info := self.tokenizer.added_token_of_id(i)) is not None]
        characters = character_spans(tail.text, tail.bodies, stops, first_new)
        added = [self.tokenizer.added_token_of_id(token_id) is not None for token_id in ids]
        return token_spans(offsets, characters, first_position, shift=len(tail.seam.close.text), added=added)

    def _junction(self, completion_ids: TokenIds, seam: Seam, finish_reason: FinishReason | None) -> Junction:
        last = completion_ids[-1] if len(completion_ids) else None
        if last == seam.close.id and seam.kind is not SeamKind.NO_STOP:
            return Junction.OPENER_SHARED if seam.is_opener else Junction.EXACT
        if last is not None and last in self.stop_ids:
            # Some templates write the opener behind the last message as well (TRL's GLM), as if it were a close.
            is_opener = seam.is_opener or (seam.kind is SeamKind.CLOSE and seam.close.id in self.opener_ids)
            dropped = is_opener and (last in self.opener_ids or last == seam.sampled.id)
            return Junction.OPENER_DROPPED if dropped else Junction.STOP_REWRITTEN
        if finish_reason is FinishReason.STOP or finish_reason is FinishReason.TOOL_CALLS:
            return Junction.CLOSE_RESTORED
        return Junction.CLOSE_ADDED

    def _inserted(
        self, junction: Junction, prompt_ids: TokenIds, completion_ids: TokenIds, tail: Tail
    ) -> tuple[int, ...]:
        seam, close = tail.seam, tail.seam.close
        if junction is Junction.CLOSE_RESTORED:
            return (seam.restored.id,)
        if junction is Junction.OPENER_DROPPED:
            return (close.id,)
        if junction is Junction.STOP_REWRITTEN and (seam.is_opener or close.id in self.opener_ids):
            return (close.id,)
        if junction is not Junction.CLOSE_ADDED:
            return ()
        cut = self._cut_text(completion_ids) if seam.kind is SeamKind.CLOSE else ""
        left = self._left_of_message(prompt_ids, completion_ids, tail)
        if left is None:
            left = tail.left_of_gap(cut)
        ended = self.tokenizer.encode(left + seam.added.text) if left else []
        return tuple(ended) if ended and ended[-1] == seam.added.id else (seam.added.id,)

    def ends_of_reasoning(self, tail: Tail) -> tuple[str, str]:
        """What ends a message that was cut in its reasoning, and one cut right behind it; without the close."""
        form = self.reasoning
        if form is None:
            return "", ""
        shown = tail.space_behind(form.closer.text)
        if shown is not None:
            return form.trail + form.closer.text + shown, shown
        space = tail.gap if tail.seam.kind is SeamKind.CLOSE and not tail.gap.strip() else ""
        return form.closing_text + space, space

    def ends_of_elements(self) -> list[str]:
        """Everything that may end a message which was cut in an element or a tag of one; without the close."""
        whole = self.elements.marks.plain(self.elements.behind_reasoning) if self.elements is not None else ""
        return [whole[at:] for at in range(len(whole))]

    def _left_of_message(self, prompt_ids: TokenIds, completion_ids: TokenIds, tail: Tail) -> str | None:
        """What ends a message that was cut in its reasoning or an element; None where something else was cut."""
        if self.elements is not None:
            completion, prompt = (
                self.elements.marks.of_ids(ids, self.tokenizer)
                for ids in (completion_ids, self.generation_tail(prompt_ids))
            )
            return self.elements.left_of(completion, prompt)
        sampled = [*self.generation_tail(prompt_ids), *completion_ids]
        if self.reasoning is None or not sampled:
            return None
        is_open, is_closed = self.ends_of_reasoning(tail)
        if self.reasoning.is_open(sampled):
            return is_open or None
        return (is_closed or None) if sampled[-1] == self.reasoning.closer.id else None

    def _cut_text(self, completion_ids: TokenIds) -> str:
        """The end of a cut completion: its text behind the last added token, or that token where none follows."""
        ids = completion_ids[-_LOOKED_BACK:]
        added = [at for at, token_id in enumerate(ids) if self.tokenizer.added_token_of_id(token_id) is not None]
        behind = ids[added[-1] + 1 :] if added else ids
        text = self.tokenizer.decode(behind or ids[-1:])[-_LOOKED_BACK:]
        return text.lstrip() or text  # SentencePiece spells a space that nobody wrote behind an added token


def check_stops(completion_ids: TokenIds, stop_ids: Collection[int]) -> BridgeRefused | None:
    """Refuses a completion with a stop id anywhere but at its end."""
    for position, token_id in enumerate(completion_ids[:-1]):
        if token_id in stop_ids:
            return BridgeRefused(
                Why.STOP_IN_MIDDLE,
                f"stop id {token_id} is at position {position} of {len(completion_ids)} sampled ids; "
                f"trimming would lose what was sampled behind it",
            )
    return None


def check_follow_up(follow_up: FollowUp) -> BridgeRefused | None:
    """Refuses new messages that nothing can be bridged to."""
    if not follow_up.new:
        return BridgeRefused(Why.NOTHING_NEW, "there is no new message behind the sampled one")
    for offset, message in enumerate(follow_up.new):
        if message.role == "assistant":
            index = len(follow_up.history) + offset
            return BridgeRefused(
                Why.ASSISTANT_IN_NEW, f"message {index} is an assistant message that was not sampled here"
            )
        if message.parts:
            index = len(follow_up.history) + offset
            return BridgeRefused(Why.NOT_TEXT, f"message {index} has parts that are not text")
    return None
