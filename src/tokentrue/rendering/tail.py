"""The tail: the text that a template writes behind the close of the sampled assistant message.

It is found in a rendering of the conversation in which the sampled message has sentinels for text, so
that no model byte can be mistaken for a marker. The new messages are rendered as they are.

Rendering a long conversation to read its last few lines costs what the conversation costs (law 8), so
a *short* history is rendered where that was proved to be enough: the leading system messages, the last
question, and the sampled message. New messages, tools, call ids and system prompt stay real, so nothing
that differs between sessions is remembered from one to the next. What the short history leaves out, the
middle, was varied when the template was probed (`independence`), and the full rendering is compared
again on first use of a shape and every so often.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokentrue.errors import FastPathWarning, TemplateRenderError
from tokentrue.messages import Message, tools_digest
from tokentrue.rendering.chat_template import ChatTemplate
from tokentrue.rendering.glue import Stretch, locate_bodies, split_at_sentinels
from tokentrue.rendering.rewritten_stop import find_rewritten_stop
from tokentrue.rendering.sentinels import Masked, mask_assistant, mask_new
from tokentrue.rendering.spelled import SpelledMarkers
from tokentrue.rendering.template_messages import MessageForm
from tokentrue.rendering.tokenizer import AddedTokenInfo, Match, Tokenizer
from tokentrue.turns import Why

RECHECK_EVERY = 64
"""A shape's short rendering is compared with the full one on first use and then every so many uses."""

_SALTS = 8


@dataclass(frozen=True, slots=True)
class BridgeRefused:
    """No bridge can be proved; `why` is the reason, `detail` the evidence for a person."""

    why: Why
    detail: str


@dataclass(frozen=True, slots=True)
class Seam:
    """Where the sampled message ends.

    Args:
        close: The token that ends it in history.
        is_opener: Whether that is the next role's opener.
        sampled: What a model samples in its place, where history spells the stop otherwise; else the close.
    """

    close: AddedTokenInfo
    is_opener: bool
    sampled: AddedTokenInfo


@dataclass(frozen=True, slots=True)
class Tail:
    """The text behind the close.

    `bodies` are the stretches of it that are message text; None when the template changes the text in
    a way that was not recognised, so that nobody can say which character is whose. `spelled` are the special
    tokens in it that message text spells and that are to stay text.
    """

    seam: Seam
    text: str
    bodies: tuple[Stretch, ...] | None
    spelled: tuple[Match, ...] = ()


@dataclass(frozen=True, slots=True)
class FollowUp:
    """What a bridge is asked for: `history` up to and including the sampled message, then `new`."""

    history: tuple[Message, ...]
    new: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()

    def shortened(self) -> FollowUp | None:
        """The same with a short history; None when there is nothing to leave out."""
        leading = 0
        while leading < len(self.history) and self.history[leading].role in ("system", "developer"):
            leading += 1
        last = len(self.history) - 2
        while last >= leading and self.history[last].role != "user":
            last -= 1
        short = (*self.history[:leading], *self.history[last : last + 1], self.history[-1])
        if last < leading or len(short) >= len(self.history):
            return None
        return FollowUp(short, self.new, self.tools)

    def shape(self) -> tuple[object, ...]:
        """What the comparison with a full rendering is remembered by."""
        system = self.history[0].digest if self.history[0].role in ("system", "developer") else b""
        roles = tuple((message.role, message.name) for message in self.new)
        calls = tuple(call.name for call in self.history[-1].tool_calls)
        return roles, calls, bool(self.history[-1].content), system, tools_digest(self.tools)

    def shape_text(self) -> str:
        """The shape for a person."""
        calls = ", ".join(call.name for call in self.history[-1].tool_calls)
        said = f"calls of {calls}" if calls else "text"
        roles = ", ".join(message.role for message in self.new)
        return f"{said}, then {roles}, with {len(self.tools)} tools"


@dataclass(frozen=True, slots=True)
class Disproof:
    """A short history that gave another tail than the whole conversation.

    Args:
        shape: The kind of follow-up, for a person: the roles, calls and tools by which it is known.
        short_text: What the short history gave.
        full_text: What the template writes; this was used, and is from now on for this shape.
        unchecked: How many bridges of the shape were made of a short history since it was last found right;
            0 when it was found wrong on first use, so that no wrong bridge left the renderer.
    """

    shape: str
    short_text: str
    full_text: str
    unchecked: int

    def __str__(self) -> str:
        return (
            f"the template depends on the middle of a conversation: for {self.shape} a short history gives "
            f"{self.short_text!r}, the whole one {self.full_text!r}; the whole one is used from now on, and "
            f"{self.unchecked} bridges of this kind since the last comparison may be wrong"
        )


@dataclass(slots=True)
class TailMemory:
    """Which shapes were compared with a full rendering, and which need one each time.

    `disproofs` stays empty unless a template depends on the middle of a conversation in a way that the
    probes did not find.
    """

    uses: dict[tuple[object, ...], int] = field(default_factory=dict)
    slow: set[tuple[object, ...]] = field(default_factory=set)
    short_renderings: int = 0
    full_renderings: int = 0
    disproofs: list[Disproof] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TailFinder:
    """Finds tails for one template; `short_is_enough` is what `independence` found.

    Without `markers`, text that spells a special token is not told from the token.
    """

    template: ChatTemplate
    form: MessageForm
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    short_is_enough: bool = False
    markers: SpelledMarkers | None = None
    memory: TailMemory = field(default_factory=TailMemory)

    def tail(self, follow_up: FollowUp) -> Tail | BridgeRefused:
        """The tail by a short rendering where that is enough, else by the full one."""
        short = follow_up.shortened() if self.short_is_enough else None
        shape = follow_up.shape() if short is not None else ()
        if short is None or shape in self.memory.slow:
            return self.full_tail(follow_up)
        found = self._placed(self.derive(short), len(follow_up.history) - len(short.history))
        uses = self.memory.uses.get(shape, 0)
        self.memory.uses[shape] = uses + 1
        self.memory.short_renderings += 1
        if uses % RECHECK_EVERY and not isinstance(found, BridgeRefused):
            return found
        full = self.full_tail(follow_up)
        if full != found and not (isinstance(full, BridgeRefused) and isinstance(found, BridgeRefused)):
            self.memory.slow.add(shape)
            if not isinstance(found, BridgeRefused):
                self._report(follow_up, found, full, unchecked=max(uses - 1, 0) % RECHECK_EVERY)
        return full

    def _report(self, follow_up: FollowUp, short: Tail, full: Tail | BridgeRefused, *, unchecked: int) -> None:
        found = full.detail if isinstance(full, BridgeRefused) else full.seam.close.text + full.text
        disproof = Disproof(follow_up.shape_text(), short.seam.close.text + short.text, found, unchecked)
        self.memory.disproofs.append(disproof)
        warnings.warn(str(disproof), FastPathWarning, stacklevel=2)

    def full_tail(self, follow_up: FollowUp) -> Tail | BridgeRefused:
        """The tail by rendering the whole conversation."""
        self.memory.full_renderings += 1
        return self.derive(follow_up)

    @staticmethod
    def _placed(tail: Tail | BridgeRefused, shift: int) -> Tail | BridgeRefused:
        """The same tail with owners counted in the whole conversation."""
        if isinstance(tail, BridgeRefused) or tail.bodies is None:
            return tail
        moved = tuple(Stretch(body.start, body.end, body.owner + shift) for body in tail.bodies)
        return Tail(tail.seam, tail.text, moved, tail.spelled)

    def derive(self, follow_up: FollowUp) -> Tail | BridgeRefused:
        """The tail by rendering exactly this follow-up; nothing is remembered."""
        for salt in range(_SALTS):
            found = self._derive(follow_up, salt)
            if found is not None:
                return found
        return BridgeRefused(Why.REORDERED, "the messages are full of this package's own sentinel words")

    def generation_prompt(self, messages: Sequence[Message], tools: tuple[dict[str, Any], ...] = ()) -> str:
        """What the template adds to `messages` for a generation prompt; "" when that cannot be told."""
        listed = self.form.to_templates(messages)
        try:
            without = self.template.render_text(listed, tools)
            with_prompt = self.template.render_text(listed, tools, add_generation_prompt=True)
        except TemplateRenderError:
            return ""
        return with_prompt[len(without) :] if with_prompt.startswith(without) else ""

    def _derive(self, follow_up: FollowUp, salt: int) -> Tail | BridgeRefused | None:
        """As `derive`; None when a message holds one of the sentinels of this salt."""
        history = follow_up.history
        assistant = mask_assistant(history[-1], len(history) - 1, salt)
        before = (*history[:-1], *assistant.messages)
        new = mask_new(follow_up.new, len(history), salt)
        try:
            masked_text = self._render((*before, *new.messages), follow_up.tools)
            real_text = self._render((*before, *follow_up.new), follow_up.tools)
        except TemplateRenderError as error:
            return BridgeRefused(Why.TEMPLATE_RAISED, str(error))
        if not _words_are_unique(masked_text, real_text, assistant, new):
            return None
        between = _between(masked_text, assistant, new)
        if isinstance(between, BridgeRefused):
            return between
        ended = self._ended(before, follow_up.tools, assistant)
        found = self._find_seam(between, ended, new, follow_up.tools)
        if isinstance(found, BridgeRefused):
            return found
        seam, between = found
        masked_tail = _behind(masked_text, assistant, between)
        real_tail = _behind(real_text, assistant, between)
        parts = split_at_sentinels(masked_tail or "", [body.sentinel for body in new.bodies])
        if masked_tail is None or real_tail is None or parts is None:
            return BridgeRefused(
                Why.REORDERED, "the text of the new messages changes what the template writes before it"
            )
        try:
            spelled = self._spelled((*before, *follow_up.new), follow_up.tools, real_text, real_tail)
        except TemplateRenderError as error:
            return BridgeRefused(Why.MARKER_WRITER_UNKNOWN, str(error))
        return Tail(seam, real_tail, locate_bodies(parts, real_tail, new.bodies), spelled)

    def _spelled(
        self, messages: Sequence[Message], tools: tuple[dict[str, Any], ...], text: str, tail: str
    ) -> tuple[Match, ...]:
        """The markers in `tail`, the end of `text`, that message text wrote and that are to stay text."""
        marks = self.markers.mark(messages, tools, text) if self.markers is not None else None
        if marks is None:
            return ()
        marked = self.template.render_text(marks.messages, marks.tools, add_generation_prompt=True)
        start = len(text) - len(tail)
        found = [match for match in marks.read(marked, text) if match.start >= start]
        return tuple(Match(match.start - start, match.end - start, match.id) for match in found)

    def _render(self, messages: Sequence[Message], tools: tuple[dict[str, Any], ...]) -> str:
        return self.template.render_text(self.form.to_templates(messages), tools, add_generation_prompt=True)

    def _find_seam(
        self, between: str, ended: str | None, new: Masked, tools: tuple[dict[str, Any], ...]
    ) -> tuple[Seam, str] | BridgeRefused:
        """The seam, and the text from the sampled message up to its end.

        Args:
            between: The text from the sampled message to the first new one.
            ended: The text behind the sampled message when it is the last one; None when that is not rendered.
        """
        stops = [info for i in self.stop_ids if (info := self.tokenizer.added_token_of_id(i)) is not None]
        found = [(between.find(info.text), -len(info.text), info) for info in stops if info.text in between]
        if found:
            position, _, close = min(found, key=lambda item: item[:2])
            is_opener = ended is not None and close.text not in ended
            return Seam(close, is_opener, close), between[: position + len(close.text)]

        def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
            listed = self.form.to_templates(messages)
            return self.template.render_text(listed, tools, add_generation_prompt=add_generation_prompt)

        rewritten = find_rewritten_stop(render, self.tokenizer, stops, ended or "", between, new)
        if rewritten is not None:
            return Seam(rewritten.close, False, rewritten.stop), rewritten.gap
        return BridgeRefused(
            Why.NO_ATOMIC_CLOSE,
            f"no stop token stands between the sampled message and the new one: {between!r}",
        )

    def _ended(
        self, before: Sequence[Message], tools: tuple[dict[str, Any], ...], assistant: Masked
    ) -> str | None:
        """The text behind the sampled message when nothing follows it."""
        try:
            text = self.template.render_text(self.form.to_templates(before), tools)
        except TemplateRenderError:
            return None
        end = _end_of(text, assistant)
        return text[end:] if end is not None else None


def _between(text: str, assistant: Masked, new: Masked) -> str | BridgeRefused:
    """The text from the sampled message to the first new one."""
    end = _end_of(text, assistant)
    if end is None:
        return BridgeRefused(Why.ASSISTANT_DROPPED, "the template drops the sampled assistant message")
    missing = [body.owner for body in new.bodies if body.sentinel not in text]
    if missing:
        return BridgeRefused(Why.NEW_MESSAGE_DROPPED, f"the template drops the text of message {missing[0]}")
    start = text.find(new.bodies[0].sentinel)
    if start < end:
        return BridgeRefused(Why.REORDERED, "the template writes new text before the end of the sampled message")
    return text[end:start]


def _words_are_unique(masked_text: str, real_text: str, assistant: Masked, new: Masked) -> bool:
    """Whether each sentinel stands only where this package put it."""
    for body in assistant.bodies:
        if masked_text.count(body.sentinel) > 1 or real_text.count(body.sentinel) > 1:
            return False
    return all(not (masked_text.count(body.sentinel) > 1 or body.sentinel in real_text) for body in new.bodies)


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
