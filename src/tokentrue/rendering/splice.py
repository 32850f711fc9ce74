"""The splice: a bridged prompt without the ids of what the template removes from history, and nothing else (pure).

A template cuts old reasoning when the next question comes. Rendering the conversation anew gives the text that the
model was trained to see, and other ids than those that were sampled wherever a model splits or spells otherwise. A
splice gives that text, and keeps every sampled id that the template does not remove:

    text_of(splice(ids).prompt_ids) == text_of(ids) without the removed stretches == what the template writes now,
    up to what was sampled and the template never wrote (JSON of a call that it respaces)

Three texts are laid side by side, from one message of a caller to the next, which all three have: `then`, what the
template wrote when the message between was sampled; `now`; and `ours`, what the ids spell.

1. `now` must be `then` without one stretch. It is not where text was added, moved or changed.
2. `ours` must be `then` but for what was sampled: every run of ids that the template or a caller wrote is in it.
3. The stretch is found in `ours` by its visible characters, which must be the same: white space of a sample is its
   own. What white space stays where the two ends meet must be the white space that `now` has there.
4. Both ends must be borders of ids, so that the ids of the stretch spell the stretch, no more and no less.

Nothing is inserted: where the template writes something in place of what it removes, that is no removal. Where any
of this cannot be shown there is no splice, and the reason is told. The cost is that of a verdict, and of up
to six full renderings more: three texts, each twice, to find in it what callers wrote.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tokentrue.errors import TemplateRenderError, UnsupportedParameterError
from tokentrue.messages import Message
from tokentrue.rendering.contract import RendererContract, TellsText
from tokentrue.rendering.glue import common_length
from tokentrue.rendering.rendered import MaskedConversation
from tokentrue.rendering.token_borders import TokenBorders
from tokentrue.rendering.verdict import SampledStep
from tokentrue.tokens import TokenIds
from tokentrue.turns import CutSpan, TokenKind, TokenSpan, without

_SHOWN = 60
"""How many characters of a text that is in the way are shown."""

_LEAD = 8
"""How many characters in front of a message's text are looked at: an id that begins it may have some of them."""

_LONGEST_END = 256
"""More characters than a template writes behind a message that is the last one."""


@dataclass(frozen=True, slots=True)
class Spliced:
    """The ids without the removed spans, which are in positions of the ids that were given."""

    prompt_ids: TokenIds
    removed: tuple[CutSpan, ...]


@dataclass(frozen=True, slots=True)
class NotSpliced:
    """Removing ids does not give what the template writes now, or that cannot be shown; `detail` says where."""

    detail: str


def splice(
    renderer: RendererContract,
    messages: Sequence[Message],
    tools: tuple[dict[str, Any], ...],
    prompt_ids: TokenIds,
    writers: Sequence[TokenSpan],
    step: SampledStep,
) -> Spliced | NotSpliced:
    """`prompt_ids`, a bridged prompt for `messages`, as the template writes its history now.

    Args:
        writers: Who wrote each of `prompt_ids`, as far as known; every id that was sampled must be told.
        step: The last sampled message. Where its prompt was bridged, that prompt was no rewrite.

    Raises:
        TemplateRenderError: The template refuses the messages.
        UnsupportedParameterError: A plugged-in renderer does not tell what its ids spell.
    """
    if not isinstance(renderer, TellsText):
        raise UnsupportedParameterError(
            "on_rewrite", type(renderer).__name__, "it has no method text_of(ids); leave it at 'extend'"
        )
    case = _Case(
        _Template(renderer, renderer.text_of, tools),
        tuple(messages),
        _Ours(prompt_ids, renderer.text_of, writers),
        step,
    )
    cuts = [_cut(part, case.ours) for gap in case.gaps() for part in _parts(gap, case.ours)]
    refused = next((cut for cut in cuts if isinstance(cut, NotSpliced)), None)
    if refused is not None:
        return refused
    removed = tuple(cut for cut in cuts if isinstance(cut, CutSpan))
    if not removed:
        return NotSpliced("nothing that the template removes was found")
    if removed[-1].end > case.ours.close(renderer.get_stop_token_ids()):
        return NotSpliced("the template removes how the last sampled message ends")
    kept = TokenIds(without(prompt_ids, removed))
    if renderer.text_of(kept) != case.ours.text_without(removed):
        return NotSpliced("the ids that are kept spell something else where they meet")
    return Spliced(kept, removed)


@dataclass(frozen=True, slots=True)
class _Written:
    """What the template writes, and where in it the text of each message of a caller is: [start, end)."""

    text: str
    bodies: Mapping[int, tuple[int, int]]

    def begins(self, owner: int) -> int:
        return self.bodies[owner][0] if owner in self.bodies else 0


@dataclass(frozen=True, slots=True)
class _Template:
    renderer: RendererContract
    text_of: Callable[[TokenIds], str]
    tools: tuple[dict[str, Any], ...]

    def written(self, messages: tuple[Message, ...], add_generation_prompt: bool) -> _Written:
        text = self._text(messages, add_generation_prompt)
        masked = MaskedConversation.of_callers(messages)
        try:
            bodies = masked.locate(self._text(masked.messages, add_generation_prompt), text)
        except TemplateRenderError:
            bodies = None
        return _Written(
            text, {body.owner: (body.start, body.end) for body in bodies or () if body.start < body.end}
        )

    def _text(self, messages: tuple[Message, ...], add_generation_prompt: bool) -> str:
        ids = self.renderer.render_ids(messages, tools=self.tools, add_generation_prompt=add_generation_prompt)
        return self.text_of(ids)


class _Ours:
    """The ids that are spliced, with what they spell and who wrote them."""

    def __init__(self, ids: TokenIds, text_of: Callable[[TokenIds], str], writers: Sequence[TokenSpan]) -> None:
        self.ids = ids.tolist()
        self.borders = TokenBorders(ids, text_of)
        bodies = [span for span in writers if span.kind is TokenKind.BODY]
        self._bodies = {span.owner: span.start for span in reversed(bodies)}
        self._sampled = [span for span in writers if span.kind is TokenKind.SAMPLED]

    @property
    def text(self) -> str:
        return self.borders.text

    def begins(self, owner: int, lead: str, body: str) -> int | None:
        """Where the text of a message begins behind `lead`: its first id may have some of that."""
        place = self.borders.place_of(self._bodies[owner]) if owner in self._bodies else None
        if place is None:
            return None
        begin = max(place - len(lead), 0)
        found = self.text.find(lead + body, begin, place + len(lead) + len(body))
        return found + len(lead) if found >= 0 else None

    def close(self, stops: Sequence[int]) -> int:
        """Position of the id that ends the last sampled message, sampled or put behind it."""
        start = max(self._sampled[-1].end - 1, 0) if self._sampled else 0
        return next((at for at in range(start, len(self.ids)) if self.ids[at] in stops), len(self.ids))

    def last_sampled(self) -> tuple[int, int] | None:
        """The last id that was sampled, and where it ends."""
        end = self._sampled[-1].end if self._sampled else 0
        place = self.borders.place_of(end)
        return (self.ids[end - 1], place) if end and place is not None else None

    @cached_property
    def sampled(self) -> tuple[tuple[int, int], ...]:
        """The stretches of characters that were sampled."""
        place = self.borders.place_of
        ends = [(place(span.start), place(span.end)) for span in self._sampled]
        return tuple((start, end) for start, end in ends if start is not None and end is not None)

    def text_without(self, removed: Sequence[CutSpan]) -> str:
        kept, at = "", 0
        for span in removed:
            start, end = self.borders.place_of(span.start), self.borders.place_of(span.end)
            kept += self.text[at:start]
            at = end if end is not None else at
        return kept + self.text[at:]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the text of one message begins in both texts; `owner` is -1 for the beginning of all."""

    owner: int
    now: int
    ours: int


@dataclass(frozen=True, slots=True)
class _Gap:
    """The same part of the three texts; `at` is where it begins in the whole of `ours`.

    `then` is None where it is not known what else than `ours` the template wrote.
    """

    then: str | None
    now: str
    ours: str
    at: int


@dataclass(frozen=True, slots=True)
class _Case:
    template: _Template
    messages: tuple[Message, ...]
    ours: _Ours
    step: SampledStep

    def gaps(self) -> Iterator[_Gap]:
        """The whole conversation, from one text of a caller to the next."""
        now = self.template.written(self.messages, True)
        at, rendered = self.step.message, self.step.prompt_ids
        places = [*self._shared_places(now), _Place(len(self.messages), len(now.text), len(self.ours.text))]
        if rendered is None:
            prompt = self.template.written(self.messages[:at], True)
            ended = self._ended(prompt.text)
        else:  # What was rendered is what the template wrote, and `ours` begins with it.
            prompt = _Written(self.ours.text, {place.owner: (place.ours, place.ours) for place in places})
            ended = self._ended(self.template.text_of(rendered))
        thens = [prompt] if ended is None else [prompt, ended]
        left = _Place(-1, 0, 0)
        for place in places:
            if place.owner < at and all(place.owner in then.bodies for then in thens):
                then = prompt.text[prompt.begins(left.owner) : prompt.begins(place.owner)]
                yield self._between(now, left, place, then)
                left = place
        right = next(place for place in places if place.owner > at)
        yield self._last(now, ended, left, right)
        yield self._between(now, right, places[-1], self.ours.text[right.ours :])

    def _ended(self, prompt: str) -> _Written | None:
        """What the template wrote when the last sampled message was the last one, if its prompt begins it."""
        try:
            ended = self.template.written(self.messages[: self.step.message + 1], False)
        except TemplateRenderError:
            return None
        return ended if ended.text.startswith(prompt) else None

    def _last(self, now: _Written, ended: _Written | None, left: _Place, right: _Place) -> _Gap:
        """The last part of `ended`, with the end that the message has where others follow it."""
        gap = self._between(now, left, right, None)
        last = self.ours.last_sampled()
        if ended is None or last is None:
            return gap
        written, behind = ended.text[ended.begins(left.owner) :], self.ours.text[last[1] : right.ours]
        if last[0] in self.template.renderer.get_stop_token_ids():
            behind = self._stop_in(gap.now.removesuffix(behind)) + behind
        sizes = range(min(len(behind), len(written), _LONGEST_END), -1, -1)
        ends = (written[: len(written) - size] + behind for size in sizes if written.endswith(behind[:size]))
        whole = list(ends)
        fits = (then for then in whole if then == gap.now or _removed_stretches(then, gap.now))
        return replace(gap, then=next(fits, whole[0]))

    def _stop_in(self, text: str) -> str:
        """The stop at the end of a text; a template may write another one than was sampled."""
        stops = (self.template.text_of(TokenIds([i])) for i in self.template.renderer.get_stop_token_ids())
        return next((stop for stop in stops if text.endswith(stop)), "")

    def _shared_places(self, now: _Written) -> Iterator[_Place]:
        for owner, (start, end) in sorted(now.bodies.items()):
            ours = self.ours.begins(owner, now.text[max(start - _LEAD, 0) : start], now.text[start:end])
            if ours is not None:
                yield _Place(owner, start, ours)

    def _between(self, now: _Written, left: _Place, right: _Place, then: str | None) -> _Gap:
        return _Gap(then, now.text[left.now : right.now], self.ours.text[left.ours : right.ours], left.ours)


def _cut(gap: _Gap, ours: _Ours) -> CutSpan | NotSpliced | None:
    """The ids that go; None where the template writes what it wrote."""
    sampled = _within(ours.sampled, gap)
    then = gap.then if gap.then is not None else gap.ours
    if not _stands_in(_around(gap.ours, sampled), then):
        return NotSpliced(f"the prompt has what the template did not write: {_excerpt(gap.ours, then)}")
    if then == gap.now:
        return None
    stretches = _removed_stretches(then, gap.now)
    if not stretches:
        return NotSpliced(f"text is not only removed: {_excerpt(then, gap.now)}")
    for begins, ends in _Laid(gap.ours, then, gap.now).places(stretches):
        first, last = ours.borders.index_at(gap.at + begins), ours.borders.index_at(gap.at + ends)
        is_sampled = any(low <= begins and ends <= high for low, high in sampled)
        if first is not None and last is not None and first < last and not (gap.then is None and is_sampled):
            return CutSpan(first, last)
    return NotSpliced(f"no ids spell just the text that is removed: {_excerpt(then, gap.now)}")


def _parts(gap: _Gap, ours: _Ours) -> Iterator[_Gap]:
    """A gap in which several messages were sampled, cut at the end of each where the texts can be told apart."""
    sampled = _within(ours.sampled, gap)
    first, *runs = _around(gap.ours, sampled)[: max(len(sampled), 1)]
    written = gap.then if gap.then is not None else gap.ours
    then = _in_order(runs, written, common_length(first, written))
    # A run ends with a generation prompt, of which the end may be what the template no longer writes.
    heads = [run[: (len(run) + 1) // 2] for run in runs]
    now = _in_order(heads, gap.now, common_length(first, gap.now))
    if then is None or now is None:
        yield gap
        return
    ends = [end for _, end in sampled[:-1]]
    for (a, b), (c, d), (e, f) in zip(
        *(itertools.pairwise([0, *places, None]) for places in (then, now, ends)), strict=True
    ):
        yield _Gap(gap.then[a:b] if gap.then is not None else None, gap.now[c:d], gap.ours[e:f], gap.at + (e or 0))


def _within(stretches: Sequence[tuple[int, int]], gap: _Gap) -> list[tuple[int, int]]:
    """The stretches that are in a gap, in its own places."""
    moved = [(max(start - gap.at, 0), min(end - gap.at, len(gap.ours))) for start, end in stretches]
    return [(start, end) for start, end in moved if start < end]


def _in_order(pieces: Sequence[str], text: str, at: int = 0) -> list[int] | None:
    """Where the pieces are in a text from `at` on, each behind the one before; None when they are not."""
    found: list[int] = []
    for piece in pieces:
        place = text.find(piece, at)
        if place < 0:
            return None
        found.append(place)
        at = place + len(piece)
    return found


def _around(text: str, stretches: Sequence[tuple[int, int]]) -> list[str]:
    """What stands around stretches of a text: one piece more than there are stretches."""
    ends = [0, *(end for _, end in stretches)]
    return [
        text[end:start] for end, start in zip(ends, [*(start for start, _ in stretches), len(text)], strict=True)
    ]


def _stands_in(pieces: Sequence[str], text: str) -> bool:
    """Whether a text begins with the first piece and ends with the last, and has the others between, in order."""
    if len(pieces) == 1:
        return pieces[0] == text
    first, last = pieces[0], pieces[-1]
    inner = text[len(first) : len(text) - len(last)]
    is_long_enough = len(text) >= len(first) + len(last)
    return (
        text.startswith(first)
        and text.endswith(last)
        and is_long_enough
        and _in_order(pieces[1:-1], inner) is not None
    )


def _removed_stretches(then: str, now: str) -> list[tuple[int, int]]:
    """Every stretch of `then` without which it is `now`; they all are as long, and lie side by side."""
    size = len(then) - len(now)
    same_start = common_length(then, now)
    same_end = common_length(then[::-1], now[::-1])
    if size <= 0:
        return []
    return [(start, start + size) for start in range(max(len(now) - same_end, 0), same_start + 1)]


class _Laid:
    """The same part of the three texts, laid side by side by their visible characters."""

    def __init__(self, ours: str, then: str, now: str) -> None:
        self._ours, self._now = ours, now
        self._in_ours, self._in_then, self._in_now = _visible(ours), _visible(then), _visible(now)
        self._agreed = common_length(
            "".join(ours[place] for place in self._in_ours), "".join(then[place] for place in self._in_then)
        )

    def places(self, stretches: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Where the stretches of `then` can be in `ours`, such that the ends meet as they do in `now`."""
        counts = [
            (bisect.bisect_left(self._in_then, start), bisect.bisect_left(self._in_then, end))
            for start, end in stretches
        ]
        for before, through in dict.fromkeys(counts):
            if through <= self._agreed:
                yield from self._meeting(before, through)

    def _meeting(self, before: int, through: int) -> Iterator[tuple[int, int]]:
        """As `places`, for the visible characters `before` to `through`."""
        low, high = _space(self._in_ours, before, len(self._ours))
        behind, last = _space(self._in_ours, through, len(self._ours))
        wanted = self._now[slice(*_space(self._in_now, before, len(self._now)))]
        # The white space in front is the template's own: as much of it as can stay does.
        for begins in range(min(high, low + len(wanted)), low - 1, -1):
            ends = last - (len(wanted) - (begins - low))
            if ends >= max(behind, begins) and self._ours[low:begins] + self._ours[ends:last] == wanted:
                yield begins, ends


def _space(visible: Sequence[int], count: int, length: int) -> tuple[int, int]:
    """The white space behind the first `count` visible characters of a text."""
    low = visible[count - 1] + 1 if count else 0
    return low, visible[count] if count < len(visible) else length


def _visible(text: str) -> list[int]:
    return [place for place, character in enumerate(text) if not character.isspace()]


def _excerpt(ours: str, template: str) -> str:
    at = common_length(ours, template)
    return f"{ours[at : at + _SHOWN]!r} where the template writes {template[at : at + _SHOWN]!r}"
