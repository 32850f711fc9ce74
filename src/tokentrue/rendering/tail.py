"""The tail: the text that a template writes behind the close of the sampled assistant message.

It is found in a rendering of the conversation in which the sampled message has sentinels for text, so
that no model byte can be mistaken for a marker. The new messages are rendered as they are. At last
the real conversation must end with what was found: a template may look at what was sampled.

Rendering a long conversation to read its last few lines costs what the conversation costs (law 8), so
a *short* history is rendered where that was proved to be enough: the leading system messages, the last
question, and the sampled message. New messages, tools, call ids and system prompt stay real, so nothing
that differs between sessions is remembered from one to the next. What the short history leaves out, the
middle, was varied when the template was probed (`independence`), and the full rendering is compared
again on first use of a shape and every so often.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokentrue.errors import FastPathWarning, TemplateRenderError
from tokentrue.messages import Message, tools_digest
from tokentrue.rendering.chat_template import ChatTemplate
from tokentrue.rendering.glue import Stretch, common_length, locate_bodies, split_at_sentinels
from tokentrue.rendering.seams import Around, FoundSeam, Seam, end_of, find_seam
from tokentrue.rendering.sentinels import Body, Masked, mask_assistant, mask_new, unmasked
from tokentrue.rendering.spelled import SpelledMarkers
from tokentrue.rendering.template_messages import MessageForm
from tokentrue.rendering.tokenizer import Match, Tokenizer
from tokentrue.turns import Why

RECHECK_EVERY = 64
"""A shape's short rendering is compared with the full one on first use and then every so many uses."""

_SALTS = 8
_SHOWN = 100
"""How many characters of each of two differing texts are kept."""


@dataclass(frozen=True, slots=True)
class BridgeRefused:
    """No bridge can be proved; `why` is the reason, `detail` the evidence for a person.

    Args:
        expected: What a bridge would have to find in the template's text, shortened; "" where the refusal is not
            about two texts.
        template: What the template writes instead, shortened.
    """

    why: Why
    detail: str
    expected: str = ""
    template: str = ""

    @classmethod
    def of_texts(cls, why: Why, sentence: str, expected: str, template: str) -> BridgeRefused:
        """A refusal that shows both texts in its `detail` as well."""
        expected, template = _shortened(expected), _shortened(template)
        detail = f"{sentence}: expected {expected!r}, the template writes {template!r}"
        return cls(why, detail, expected, template)


@dataclass(frozen=True, slots=True)
class Tail:
    """The text behind the close.

    `bodies` are the stretches of it that are message text; None when the template changes the text in
    a way that was not recognised, so that nobody can say which character is whose. `spelled` are the special
    tokens in it that message text spells and that are to stay text. `dropped_calls` are those of the sampled
    message that the template does not write in history: only a bridge keeps them. `gap` is what stands between the
    sampled text and its close, and `before` the end of the real text up to the close.
    """

    seam: Seam
    text: str
    bodies: tuple[Stretch, ...] | None
    spelled: tuple[Match, ...] = ()
    dropped_calls: tuple[str, ...] = ()
    gap: str = ""
    before: str = field(default="", compare=False)

    def left_of_gap(self, sampled: str) -> str:
        """What the template writes between a cut text and its close; "" where something else than text was cut.

        Args:
            sampled: The end of what was sampled; of the gap a part may be in it already.
        """
        said = len(self.before) - len(self.gap)
        cuts = range(said, len(self.before) + 1) if sampled else ()
        return next((self.before[cut:] for cut in cuts if self.before[:cut].endswith(sampled)), "")

    def space_behind(self, closer: str) -> str | None:
        """What the template writes between reasoning and the close; None where it does not show that."""
        _, found, space = self.before.rpartition(closer)
        return space if found and not space.strip() else None


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

    Args:
        left_off: What `left_off` found.
        markers: Without them, text that spells a special token is not told from the token.
    """

    template: ChatTemplate
    form: MessageForm
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    short_is_enough: bool = False
    left_off: frozenset[int] = frozenset()
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
        return replace(tail, bodies=moved)

    def derive(
        self, follow_up: FollowUp, *, as_said: bool = True, place_only: bool = False
    ) -> Tail | BridgeRefused:
        """The tail by rendering exactly this follow-up; nothing is remembered.

        Args:
            as_said: Hold it against the real words of the sampled message as well, which costs one rendering more.
            place_only: The seam's kind is not looked at, which costs one less.
        """
        for salt in range(_SALTS):
            found = self._derive(follow_up, salt, place_only)
            if found is not None:
                return self._as_really_said(follow_up, found) if as_said and isinstance(found, Tail) else found
        return BridgeRefused(Why.REORDERED, "the messages are full of this package's own sentinel words")

    def generation_prompt(self, messages: Sequence[Message], tools: tuple[dict[str, Any], ...] = ()) -> str:
        """What the template adds to `messages` for a generation prompt; "" when that cannot be told."""
        listed = self.form.to_templates(messages)
        try:
            without = self.template.render_text(listed, tools)
            with_prompt = self.template.render_text(listed, tools, add_generation_prompt=True)
        except TemplateRenderError:
            return ""
        # Some templates end a conversation that asks for no answer with their end of text (phi-3).
        without = without if with_prompt.startswith(without) else without.removesuffix(self._eos())
        return with_prompt[len(without) :] if with_prompt.startswith(without) else ""

    def _eos(self) -> str:
        return self.template.special_tokens.get("eos_token", "")

    def _derive(self, follow_up: FollowUp, salt: int, place_only: bool) -> Tail | BridgeRefused | None:
        """As `derive`; None when a message holds one of the sentinels of this salt."""
        texts = self._rendered(follow_up, salt)
        if not isinstance(texts, _Texts):
            return texts
        dropped = texts.end is None and not follow_up.history[-1].content
        return self._behind_text(texts, salt) if dropped else self._tail_of(texts, place_only)

    def _as_really_said(self, follow_up: FollowUp, found: Tail) -> Tail | BridgeRefused:
        """`found`, where the template ends the real conversation with it as well.

        A template may read what was sampled (whether it is empty, or holds a word), which sentinels do not show.
        """
        try:
            text = self._render((*follow_up.history, *follow_up.new), follow_up.tools)
        except TemplateRenderError:
            return found  # it writes no text for these very words (arguments that are no JSON object, say)
        wanted = found.seam.close.text + found.text
        if text.endswith(wanted):
            behind = len(text) - len(wanted)
            return replace(found, before=text[max(behind - 2 * _SHOWN, 0) : behind])
        same = common_length(wanted[::-1], text[::-1])
        shown = (each[: len(each) - same][-_SHOWN:] for each in (wanted, text))
        sentence = "what the sampled message says changes what the template writes behind it"
        return BridgeRefused.of_texts(Why.REORDERED, sentence, *shown)

    def _behind_text(self, dropped: _Texts, salt: int) -> Tail | BridgeRefused | None:
        """The tail where the template writes nothing of the sampled message: the one behind a message with text.

        Close and tail are the template's for this conversation too where the real rendering ends with them.
        """
        texts = self._rendered(dropped.follow_up, salt, with_text=True)
        if texts is None:
            return None
        if isinstance(texts, BridgeRefused):
            return dropped.refused_as_dropped(self._history)
        found = self._tail_of(texts)
        if isinstance(found, Tail) and not dropped.real.endswith(found.seam.close.text + found.text):
            return dropped.refused_as_dropped(self._history)
        return found

    def _rendered(
        self, follow_up: FollowUp, salt: int, *, with_text: bool = False
    ) -> _Texts | BridgeRefused | None:
        """The renderings in which the tail is looked for; None when a message holds a sentinel of this salt."""
        history = follow_up.history
        said = mask_assistant(history[-1], len(history) - 1, salt, with_text=with_text)
        before = (*history[:-1], *said.messages)
        new = mask_new(follow_up.new, len(history), salt)
        try:
            masked = self._render((*before, *new.messages), follow_up.tools)
            real = self._render((*before, *follow_up.new), follow_up.tools)
        except TemplateRenderError as error:
            return BridgeRefused(Why.TEMPLATE_RAISED, str(error))
        texts = _Texts(follow_up, said, new, masked, real)
        return texts if texts.words_are_unique() else None

    def _tail_of(self, texts: _Texts, place_only: bool = False) -> Tail | BridgeRefused:
        between = texts.between(self._history)
        if isinstance(between, BridgeRefused):
            return between
        found = self._find_seam(texts, between, place_only)
        if isinstance(found, BridgeRefused):
            return found
        masked_tail, real_tail = texts.behind(texts.masked, found.gap), texts.behind(texts.real, found.gap)
        parts = split_at_sentinels(masked_tail or "", [body.sentinel for body in texts.new.bodies])
        if masked_tail is None or real_tail is None or parts is None:
            return texts.refused_as_changed()
        tools, listed = texts.follow_up.tools, (*texts.before, *texts.follow_up.new)
        try:
            spelled = self._spelled(listed, tools, texts.real, real_tail)
        except TemplateRenderError as error:
            return BridgeRefused(Why.MARKER_WRITER_UNKNOWN, str(error))
        bodies = locate_bodies(parts, real_tail, texts.new.bodies)
        gap = found.gap.removesuffix(found.seam.close.text)
        return Tail(found.seam, real_tail, bodies, spelled, texts.dropped_calls(), gap)

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

    def _render(
        self,
        messages: Sequence[Message],
        tools: tuple[dict[str, Any], ...],
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        listed = self.form.to_templates(messages)
        return self.template.render_text(listed, tools, add_generation_prompt=add_generation_prompt)

    def _history(self, messages: Sequence[Message], tools: tuple[dict[str, Any], ...]) -> str:
        return self._render(messages, tools, add_generation_prompt=False)

    def _find_seam(self, texts: _Texts, between: str, place_only: bool) -> FoundSeam | BridgeRefused:
        """The seam; `between` is the text from the sampled message to the first new one."""
        tools = texts.follow_up.tools

        def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
            return self._render(messages, tools, add_generation_prompt=add_generation_prompt)

        around = Around(
            render=render,
            before=texts.follow_up.history[:-1],
            said=texts.said,
            new=texts.new,
            find_ended=lambda: self._ended(texts),
            between=between,
            tail=texts.masked[texts.end or 0 :],
        )
        found = find_seam(around, self.tokenizer, self.stop_ids, left_off=self.left_off, place_only=place_only)
        if found is not None:
            return found
        stops = " or ".join(self.tokenizer.id_text(stop_id) for stop_id in self.stop_ids)
        sentence = "no stop token stands between the sampled message and the new one"
        return BridgeRefused.of_texts(Why.NO_ATOMIC_CLOSE, sentence, stops, between)

    def _ended(self, texts: _Texts) -> str | None:
        """The text behind the sampled message when nothing follows it."""
        try:
            text = self._history(texts.before, texts.follow_up.tools)
        except TemplateRenderError:
            return None
        end = end_of(text, texts.said)
        return text[end:] if end is not None else None


_Written = Callable[[Sequence[Message], tuple[dict[str, Any], ...]], str]


@dataclass(frozen=True, slots=True)
class _Texts:
    """What the template writes for a follow-up, in sentinels and with the real new messages.

    Args:
        said, new: The sampled message and the new ones, in sentinels.
        masked: The rendering with sentinels for both.
        real: The rendering with a sentinel for the sampled message only.
    """

    follow_up: FollowUp
    said: Masked
    new: Masked
    masked: str
    real: str

    @property
    def before(self) -> tuple[Message, ...]:
        """The conversation up to and including the sampled message, which is in sentinels."""
        return (*self.follow_up.history[:-1], *self.said.messages)

    @property
    def end(self) -> int | None:
        """Where the sampled message's last sentinel ends; None when the template dropped all of them."""
        return end_of(self.masked, self.said)

    def dropped_calls(self) -> tuple[str, ...]:
        """The calls of the sampled message that the template does not write."""
        calls = self.follow_up.history[-1].tool_calls
        bodies = self.said.bodies[len(self.said.bodies) - len(calls) :]
        pairs = zip(calls, bodies, strict=True)
        return tuple(f"{call.name} {call.arguments}" for call, body in pairs if body.sentinel not in self.masked)

    def words_are_unique(self) -> bool:
        """Whether each sentinel stands only where this package put it."""
        for body in self.said.bodies:
            if self.masked.count(body.sentinel) > 1 or self.real.count(body.sentinel) > 1:
                return False
        return all(
            not (self.masked.count(body.sentinel) > 1 or body.sentinel in self.real) for body in self.new.bodies
        )

    def between(self, render: _Written) -> str | BridgeRefused:
        """The text from the sampled message to the first new one."""
        end = self.end
        if end is None:
            return self.refused_as_dropped(render)
        missing = [body for body in self.new.bodies if body.sentinel not in self.masked]
        if missing:
            sentence = f"the template leaves out the text of {self._named(missing[0])}"
            behind = self.real[end_of(self.real, self.said) or 0 :]
            return BridgeRefused.of_texts(Why.NEW_MESSAGE_DROPPED, sentence, missing[0].text, behind)
        start = self.masked.find(self.new.bodies[0].sentinel)
        if start >= end:
            return self.masked[end:start]
        early = min(self.new.bodies, key=lambda body: self.masked.find(body.sentinel))
        sentence = f"the template writes {self._named(early)} in front of the end of the sampled message"
        return self._refused(Why.REORDERED, sentence, _or_nothing(render, self.before, self.follow_up.tools))

    def behind(self, text: str, gap: str) -> str | None:
        """The text behind the close; `gap` is what stands between the last sentinel and that."""
        end = end_of(text, self.said)
        if end is None or not text.startswith(gap, end):
            return None
        return text[end + len(gap) :]

    def refused_as_changed(self) -> BridgeRefused:
        """The real new messages change what stands between the sampled one and them."""
        sentence = "the text of the new messages changes what the template writes before it"
        return self._refused(Why.REORDERED, sentence, self.masked)

    def refused_as_dropped(self, render: _Written) -> BridgeRefused:
        """The template writes nothing of the sampled message."""
        said, asked = self.follow_up.history[-1], self.follow_up.history[:-1]
        texts = [said.content or "", *(f"{call.name} {call.arguments}" for call in said.tool_calls)]
        written = _or_nothing(render, asked, self.follow_up.tools)
        sentence = "the template leaves out the sampled assistant message"
        behind = self.real[common_length(written, self.real) :]
        return BridgeRefused.of_texts(Why.ASSISTANT_DROPPED, sentence, "; ".join(filter(None, texts)), behind)

    def _refused(self, why: Why, sentence: str, wanted: str) -> BridgeRefused:
        """A refusal with both texts, from the first character in which the real rendering is not `wanted`."""
        shown = unmasked(wanted, self.said, self.new), unmasked(self.real, self.said)
        at = common_length(*shown)
        return BridgeRefused.of_texts(why, sentence, shown[0][at:], shown[1][at:])

    def _named(self, body: Body) -> str:
        return f"message {body.owner} ({self.follow_up.new[body.owner - len(self.follow_up.history)].role})"


def _or_nothing(render: _Written, messages: Sequence[Message], tools: tuple[dict[str, Any], ...]) -> str:
    """A rendering that is shown only; "" where the template refuses these messages."""
    try:
        return render(messages, tools)
    except TemplateRenderError:
        return ""


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
