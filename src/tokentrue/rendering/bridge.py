"""The bridge: the ids that extend `prompt_ids + completion_ids` by new messages, derived from the template.

Law 2 (faithful): with the conversation rendered as text in full, the text after the close of the last
sampled assistant message, encoded behind that close, is the bridge:

    bridge == encode(close + tail)[1:]      where   render(M + [a] + N) == … + close + tail

Why this is exact: added tokens split the text before merges are looked up, so
`encode(x + close + tail) == encode(x) + [close] + encode(close + tail)[1:]`; the close in front also
absorbs what depends on the neighbour (rstrip of the added token, SentencePiece's first space).

The assistant message `a` is rendered with sentinels in place of the model's text, so no model byte can
be mistaken for a marker; the history `M` is the real one, so default systems, alternation, last-user
logic, grouping and look-ups of call ids are right by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokentrue.errors import TemplateRenderError
from tokentrue.generation import FinishReason
from tokentrue.messages import Message
from tokentrue.rendering.chat_template import ChatTemplate
from tokentrue.rendering.formats.reasoning import ReasoningFormat
from tokentrue.rendering.glue import (
    Glue,
    Stretch,
    find_treatments,
    locate_bodies,
    split_at_sentinels,
    telling_text,
)
from tokentrue.rendering.sentinels import Body, Masked, mask_assistant, mask_new, with_content
from tokentrue.rendering.spans import character_spans, token_spans
from tokentrue.rendering.template_messages import MessageForm
from tokentrue.rendering.tokenizer import AddedTokenInfo, Tokenizer
from tokentrue.tokens import TokenIds
from tokentrue.turns import Junction, TokenKind, TokenSpan, Why

RECHECK_EVERY = 64
"""A cached shape is compared with a full render on first use and then every so many uses."""


@dataclass(frozen=True, slots=True)
class Bridge:
    """A prompt that extends a turn.

    Args:
        prompt_ids: Everything: previous prompt, completion, bridge (law 1).
        added_ids: Only what was added behind the completion. `prompt_ids` ends with them.
        junction: What happened at the seam.
        spans: Who wrote each added id; positions are absolute, they tile `added_ids`.
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
class BridgeRefused:
    """No bridge can be proved; `why` is the reason, `detail` the evidence for a person."""

    why: Why
    detail: str


@dataclass(frozen=True, slots=True)
class Seam:
    """Where the sampled message ends: its close, and whether that is the next role's opener."""

    close: AddedTokenInfo
    is_opener: bool


@dataclass(frozen=True, slots=True)
class Tail:
    """The text behind the close, and which stretches of it are message bodies."""

    seam: Seam
    text: str
    bodies: tuple[Stretch, ...]


@dataclass(frozen=True, slots=True)
class FollowUp:
    """What a bridge is asked for: `history` up to and including the sampled message, then `new`."""

    history: tuple[Message, ...]
    new: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()

    def shape(self) -> tuple[object, ...]:
        """What the glue of this follow-up may depend on; the cache key of `GlueCache`."""
        last = self.history[-1]
        return (
            tuple((m.role, m.name, tuple(sorted(m.extra))) for m in self.new),
            bool(last.content),
            last.name,
            tuple(call.name for call in last.tool_calls),
            repr(self.tools) if self.tools else "",
        )

    def call_ids(self) -> set[str]:
        """Every call id that could be printed into the glue."""
        ids = {m.tool_call_id for m in self.new} | {c.id for c in self.history[-1].tool_calls}
        return {call_id for call_id in ids if call_id}


@dataclass(slots=True)
class _CachedGlue:
    seam: Seam
    glue: Glue
    uses: int = 0


@dataclass(slots=True)
class GlueCache:
    """Glue by shape. `disproved` counts shapes whose glue turned out not to be constant."""

    known: dict[tuple[object, ...], _CachedGlue] = field(default_factory=dict)
    slow: set[tuple[object, ...]] = field(default_factory=set)
    hits: int = 0
    rechecks: int = 0
    disproved: int = 0


@dataclass(frozen=True, slots=True)
class BridgeBuilder:
    """Derives bridges for one template and tokenizer."""

    template: ChatTemplate
    form: MessageForm
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    reasoning: ReasoningFormat | None
    opener_ids: frozenset[int] = frozenset()
    cache: GlueCache = field(default_factory=GlueCache)

    def bridge(
        self,
        prompt_ids: TokenIds,
        completion_ids: TokenIds,
        follow_up: FollowUp,
        finish_reason: FinishReason | None,
    ) -> Bridge | BridgeRefused:
        """The bridge for `follow_up`, or why there is none."""
        refused = _check_follow_up(follow_up) or self._check_completion(completion_ids)
        if refused is not None:
            return refused
        tail = self.tail(follow_up)
        if isinstance(tail, BridgeRefused):
            return tail
        return self._join(prompt_ids, completion_ids, tail, len(follow_up.history) - 1, finish_reason)

    def tail(self, follow_up: FollowUp) -> Tail | BridgeRefused:
        """The tail from cached glue where that was proved, else from a full render."""
        shape = follow_up.shape()
        cached = self.cache.known.get(shape)
        if cached is None or cached.uses % RECHECK_EVERY == 0:
            return self._checked_tail(follow_up, shape, cached)
        cached.uses += 1
        self.cache.hits += 1
        text, stretches = cached.glue.fill(_bodies_of(follow_up))
        return Tail(cached.seam, text, stretches)

    def _checked_tail(
        self, follow_up: FollowUp, shape: tuple[object, ...], cached: _CachedGlue | None
    ) -> Tail | BridgeRefused:
        tail, glue = self.derive_tail(follow_up)
        if isinstance(tail, BridgeRefused):
            return tail
        if cached is not None:
            self.cache.rechecks += 1
            filled = cached.glue.fill(_bodies_of(follow_up))[0]
            if filled == tail.text and cached.seam == tail.seam:
                cached.uses += 1
            else:
                del self.cache.known[shape]
                self.cache.slow.add(shape)
                self.cache.disproved += 1
        elif glue is not None and shape not in self.cache.slow:
            if any(call_id in part for call_id in follow_up.call_ids() for part in glue.parts):
                self.cache.slow.add(shape)
            else:
                self.cache.known[shape] = _CachedGlue(tail.seam, glue, uses=1)
        return tail

    def derive_tail(self, follow_up: FollowUp) -> tuple[Tail | BridgeRefused, Glue | None]:
        """The tail by rendering the real conversation; and its glue, when the text goes in a known way."""
        history = follow_up.history
        assistant = mask_assistant(history[-1], len(history) - 1)
        before = (*history[:-1], *assistant.messages)
        new = mask_new(follow_up.new, len(history))
        try:
            masked_text = self._render((*before, *new.messages), follow_up.tools)
            real_text = self._render((*before, *follow_up.new), follow_up.tools)
        except TemplateRenderError as error:
            return BridgeRefused(Why.TEMPLATE_RAISED, str(error)), None
        found = self._find_seam(masked_text, assistant, new)
        if isinstance(found, BridgeRefused):
            return found, None
        seam, between = found
        masked_tail = _behind(masked_text, assistant, between)
        real_tail = _behind(real_text, assistant, between)
        parts = split_at_sentinels(masked_tail or "", [body.sentinel for body in new.bodies])
        if masked_tail is None or real_tail is None or parts is None:
            return BridgeRefused(
                Why.REORDERED, "the text of the new messages changes what the template writes before it"
            ), None
        seam = Seam(seam.close, self._is_opener(before, follow_up.tools, assistant, seam.close))
        glue = self._glue(parts, (*before, *_telling(follow_up, new)), follow_up.tools, new, assistant, found)
        if glue is not None:
            filled, stretches = glue.fill(new.bodies)
            if filled == real_tail:
                return Tail(seam, real_tail, stretches), glue
        located = locate_bodies(parts, real_tail, new.bodies)
        if located is None:
            return BridgeRefused(
                Why.REORDERED, "the template writes other text around the new messages when their text changes"
            ), None
        return Tail(seam, real_tail, located), None

    def _render(self, messages: Sequence[Message], tools: tuple[dict[str, Any], ...]) -> str:
        return self.template.render_text(self.form.to_templates(messages), tools, add_generation_prompt=True)

    def _find_seam(self, text: str, assistant: Masked, new: Masked) -> tuple[Seam, str] | BridgeRefused:
        end = _end_of(text, assistant)
        if end is None:
            return BridgeRefused(Why.ASSISTANT_DROPPED, "the template drops the sampled assistant message")
        missing = [body.owner for body in new.bodies if body.sentinel not in text]
        if missing:
            return BridgeRefused(Why.NEW_MESSAGE_DROPPED, f"the template drops the text of message {missing[0]}")
        start = text.find(new.bodies[0].sentinel)
        if start < end:
            return BridgeRefused(
                Why.REORDERED, "the template writes new text before the end of the sampled message"
            )
        between = text[end:start]
        stops = [info for i in self.stop_ids if (info := self.tokenizer.added_token_of_id(i)) is not None]
        found = [(between.find(info.text), -len(info.text), info) for info in stops if info.text in between]
        if not found:
            return BridgeRefused(
                Why.NO_ATOMIC_CLOSE,
                f"no stop token stands between the sampled message and the new one: {between!r}",
            )
        position, _, close = min(found, key=lambda item: item[:2])
        return Seam(close, is_opener=False), between[: position + len(close.text)]

    def _is_opener(
        self,
        before: Sequence[Message],
        tools: tuple[dict[str, Any], ...],
        assistant: Masked,
        close: AddedTokenInfo,
    ) -> bool:
        try:
            ended = self.template.render_text(self.form.to_templates(before), tools)
        except TemplateRenderError:
            return False
        end = _end_of(ended, assistant)
        return end is not None and close.text not in ended[end:]

    def _glue(
        self,
        parts: tuple[str, ...],
        told_messages: Sequence[Message],
        tools: tuple[dict[str, Any], ...],
        new: Masked,
        assistant: Masked,
        found: tuple[Seam, str],
    ) -> Glue | None:
        try:
            told = self._render(told_messages, tools)
        except TemplateRenderError:
            return None
        told_tail = _behind(told, assistant, found[1])
        treatments = find_treatments(parts, told_tail, new.bodies) if told_tail is not None else None
        return Glue(parts, treatments) if treatments is not None else None

    def _check_completion(self, completion_ids: TokenIds) -> BridgeRefused | None:
        middle = completion_ids[:-1]
        for position, token_id in enumerate(middle):
            if token_id in self.stop_ids:
                return BridgeRefused(
                    Why.STOP_IN_MIDDLE,
                    f"stop id {token_id} is at position {position} of {len(completion_ids)} sampled ids; "
                    f"trimming would lose what was sampled behind it",
                )
        return None

    def _join(
        self,
        prompt_ids: TokenIds,
        completion_ids: TokenIds,
        tail: Tail,
        assistant_index: int,
        finish_reason: FinishReason | None,
    ) -> Bridge | BridgeRefused:
        close = tail.seam.close
        ids, offsets = self.tokenizer.encode_with_offsets(close.text + tail.text)
        if not ids or ids[0] != close.id:
            return BridgeRefused(
                Why.UNSTABLE_JOIN, f"{close.text!r} does not stay one token in front of {tail.text[:40]!r}"
            )
        junction = self._junction(completion_ids, tail.seam, finish_reason)
        inserted = self._inserted(junction, prompt_ids, completion_ids, close)
        kept = completion_ids
        if junction is Junction.OPENER_DROPPED:
            kept = TokenIds(completion_ids[:-1])
        known = prompt_ids.extended(kept)
        added = (*inserted, *ids[1:])
        stops = [info.text for i in self.stop_ids if (info := self.tokenizer.added_token_of_id(i)) is not None]
        characters = character_spans(tail.text, tail.bodies, stops, assistant_index + 1)
        spans = token_spans(offsets[1:], characters, len(known) + len(inserted), shift=len(close.text))
        if inserted:
            seam_span = TokenSpan(len(known), len(known) + len(inserted), assistant_index, TokenKind.SCAFFOLD)
            spans = (seam_span, *spans)
        return Bridge(known.extended(added), added, junction, spans)

    def _junction(self, completion_ids: TokenIds, seam: Seam, finish_reason: FinishReason | None) -> Junction:
        last = completion_ids[-1] if len(completion_ids) else None
        if last == seam.close.id:
            return Junction.OPENER_SHARED if seam.is_opener else Junction.EXACT
        if last is not None and last in self.stop_ids:
            return Junction.OPENER_DROPPED if last in self.opener_ids else Junction.STOP_REWRITTEN
        if finish_reason is FinishReason.STOP or finish_reason is FinishReason.TOOL_CALLS:
            return Junction.CLOSE_RESTORED
        return Junction.CLOSE_ADDED

    def _inserted(
        self, junction: Junction, prompt_ids: TokenIds, completion_ids: TokenIds, close: AddedTokenInfo
    ) -> tuple[int, ...]:
        if junction in (Junction.CLOSE_RESTORED, Junction.OPENER_DROPPED):
            return (close.id,)
        if junction is Junction.STOP_REWRITTEN and close.id in self.opener_ids:
            return (close.id,)
        if junction is not Junction.CLOSE_ADDED:
            return ()
        if self.reasoning is not None and self.reasoning.is_open(
            [*prompt_tail(prompt_ids, self.stop_ids), *completion_ids]
        ):
            return tuple(self.tokenizer.encode(self.reasoning.closing_text + close.text))
        return (close.id,)


def prompt_tail(prompt_ids: TokenIds, stop_ids: Sequence[int]) -> list[int]:
    """The last prompt ids behind the last stop id: the generation prompt, and a role header at most."""
    tail: list[int] = prompt_ids.tail(max(len(prompt_ids) - 64, 0)).tolist()
    cuts = [position for position, token_id in enumerate(tail) if token_id in stop_ids]
    return tail[cuts[-1] + 1 :] if cuts else tail


def _bodies_of(follow_up: FollowUp) -> tuple[Body, ...]:
    return mask_new(follow_up.new, len(follow_up.history)).bodies


def _behind(text: str, assistant: Masked, between: str) -> str | None:
    """The text behind the close; `between` is what stands between the last sentinel and that."""
    end = _end_of(text, assistant)
    if end is None or not text.startswith(between, end):
        return None
    return text[end + len(between) :]


def _end_of(text: str, masked: Masked) -> int | None:
    """Where the last sentinel of `masked` ends in `text`; None when the template dropped all of them."""
    ends = [text.rfind(body.sentinel) + len(body.sentinel) for body in masked.bodies if body.sentinel in text]
    return max(ends, default=None)


def _telling(follow_up: FollowUp, new: Masked) -> list[Message]:
    return [
        with_content(message, telling_text(body.sentinel))
        for message, body in zip(follow_up.new, new.bodies, strict=True)
    ]


def _check_follow_up(follow_up: FollowUp) -> BridgeRefused | None:
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
