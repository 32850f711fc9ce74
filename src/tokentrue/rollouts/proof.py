"""All seven laws that a record can be held against, with the renderer that made it (pure).

`laws.py` needs the recorded turns only. The three laws here need more: law 2 the template, rendered in full and
without any cache; law 4 the engine's own counts; law 6 the reader.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby
from typing import Any

from tokentrue.errors import RecordError, TemplateRenderError
from tokentrue.messages import Message
from tokentrue.rendering.reader import MALFORMED_KEY
from tokentrue.rendering.renderer import Renderer
from tokentrue.rendering.seams import SeamKind
from tokentrue.rendering.splice import NotSpliced, splice
from tokentrue.rendering.tail import BridgeRefused, FollowUp, Tail
from tokentrue.rendering.verdict import SampledStep
from tokentrue.rollouts.laws import Law, LawCheck, check_laws
from tokentrue.rollouts.trajectory import EpisodeRecord, TurnRecord
from tokentrue.sessions.writers import prompt_writers
from tokentrue.tokens import TokenIds
from tokentrue.turns import CutSpan, How, Junction, TokenKind, Turn

_SHOWN_VIOLATIONS = 5


class Normalised(Enum):
    """Why a template cannot write a message back as it was sampled: law 6 is held to what it can write."""

    UNREADABLE_CALL = "a call that could not be read has no place in a message"
    SPELLED_MARKER = "text that spells a marker becomes the marker"
    TRIMMED = "the template trims white space"
    REASONING_LEFT_OUT = "the template leaves the reasoning of such a message out"
    REFUSED = "the template does not write such a message behind its generation prompt"


@dataclass(frozen=True, slots=True)
class Proof:
    """What was checked and found.

    Args:
        checks: One per law, by its number.
        normalised: Of law 6: sampled messages that the template itself cannot write back, by the reason. They are
            checked in one direction only: the recorded message is what the sampled ids say.
    """

    checks: tuple[LawCheck, ...]
    normalised: Mapping[Normalised, int]

    @property
    def holds(self) -> bool:
        """Whether no law was broken."""
        return all(check.holds for check in self.checks)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A turn with the whole conversation that its prompt stands for."""

    record: TurnRecord
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    by_index: Mapping[int, _Asked]

    @property
    def place(self) -> str:
        return f"turn {self.record.turn.index} of episode {self.record.episode}"


def prove(episodes: Iterable[EpisodeRecord], turns: Iterable[TurnRecord], renderer: Renderer) -> Proof:
    """Hold every turn of a run against laws 1 to 7.

    Args:
        renderer: The one that made the prompts: same tokenizer, template and date.

    Raises:
        RecordError: A turn belongs to no episode.
    """
    recorded = tuple(turns)
    asked = tuple(_asked(episodes, recorded))
    inverse, normalised = _check_inverse(asked, renderer)
    checks = (
        *check_laws(recorded),
        _check(Law.FAITHFUL, (_faithful(one, renderer) for one in asked), asked),
        _check(Law.EVIDENCE, (_evidence(one) for one in asked), asked),
        inverse,
    )
    return Proof(tuple(sorted(checks, key=lambda check: check.law.value)), normalised)


def joined_proof(parts: Sequence[Proof]) -> Proof:
    """Several runs as one."""
    joined: dict[Law, LawCheck] = {}
    normalised: Counter[Normalised] = Counter()
    for part in parts:
        normalised.update(part.normalised)
        for check in part.checks:
            known = joined.get(check.law, LawCheck(check.law, 0, 0))
            joined[check.law] = LawCheck(
                law=check.law,
                checked=known.checked + check.checked,
                broken=known.broken + check.broken,
                violations=(known.violations + check.violations)[:_SHOWN_VIOLATIONS],
            )
    return Proof(tuple(sorted(joined.values(), key=lambda check: check.law.value)), dict(normalised))


def _asked(episodes: Iterable[EpisodeRecord], turns: Sequence[TurnRecord]) -> Iterator[_Asked]:
    tools = {episode.index: episode.tools for episode in episodes}
    for episode, records in groupby(turns, key=lambda record: record.episode):
        if episode not in tools:
            raise RecordError(f"there are turns of episode {episode}, but no such episode")
        by_index: dict[int, _Asked] = {}
        conversation: tuple[Message, ...] = ()
        for record in records:
            conversation = record.conversation(conversation)
            one = _Asked(record, conversation[:-1], tools[episode], by_index)
            by_index[record.turn.index] = one
            yield one


def _check(law: Law, outcomes: Iterable[str | None], asked: Sequence[_Asked]) -> LawCheck:
    """None: kept. "": the law does not speak of this turn. A text: how it is broken."""
    listed = list(zip(outcomes, asked, strict=True))
    broken = [f"{one.place} {outcome}" for outcome, one in listed if outcome]
    checked = sum(outcome != "" for outcome, _ in listed)
    return LawCheck(law, checked, len(broken), tuple(broken[:_SHOWN_VIOLATIONS]))


def _faithful(asked: _Asked, renderer: Renderer) -> str | None:
    """Law 2: `bridge == encode(close + tail)[1:]`, where the full rendering of the real messages ends so."""
    stitch, prompt_ids = asked.record.turn.stitch, asked.record.turn.tokens.prompt_ids
    if not stitch.builds_on_anchor:
        return ""
    anchor = asked.by_index.get(-1 if stitch.anchor_turn is None else stitch.anchor_turn)
    if anchor is None:
        return f"is a bridge from turn {stitch.anchor_turn}, which is not there"
    depth = len(anchor.messages) + 1
    tail = renderer.bridges.tails.derive(FollowUp(asked.messages[:depth], asked.messages[depth:], asked.tools))
    if isinstance(tail, BridgeRefused):
        return f"is a bridge, and none can be derived: {tail.detail}"
    written = tail.seam.close.text + tail.text
    try:
        full_text = renderer.render_text(asked.messages, tools=asked.tools)
    except TemplateRenderError as error:
        return f"cannot be rendered in full: {error}"
    if not full_text.endswith(written):
        return "has a bridge of which the full rendering does not have the text"
    expected = renderer.bridges.encode_tail(tail)[0][1:]
    added = prompt_ids[stitch.known_len :]
    inserted = len(added) - len(expected)
    if inserted < 0 or added[inserted:] != expected:
        return f"has a bridge of {len(added)} ids that is not what the template writes ({len(expected)} ids)"
    if added[:inserted] not in _inserts(stitch.junction, tail, renderer):
        return f"has ids {added[:inserted]} between the completion and the bridge, at junction {stitch.junction}"
    if stitch.how is not How.SPLICED:
        return None
    return _spliced(asked, anchor, renderer, _inserts(stitch.junction, tail, renderer), expected)


def _spliced(
    asked: _Asked, anchor: _Asked, renderer: Renderer, inserts: Sequence[list[int]], behind: list[int]
) -> str | None:
    """Law 2 of a splice: made again, of the same ids, it removes the same; else the text has what nobody sampled.

    The second only where the record does not tell who wrote the ids, because turns of the episode are missing.

    Args:
        inserts: What may have stood between the sampled ids and `behind`; a splice may remove a part of it.
    """
    if not _is_whole(asked):
        is_written = _is_written(asked, renderer)
        return (
            None if is_written else "is a splice that the full rendering does not have, but for what was sampled"
        )
    turn, given = asked.record.turn, anchor.record.turn
    stitch, end = turn.stitch, turn.stitch.anchor_len
    prompt_ids = None if given.stitch.builds_on_anchor else given.tokens.prompt_ids
    step = SampledStep(len(anchor.messages), given.tokens.completion_ids, prompt_ids)
    bridged = replace(stitch, how=How.BRIDGED, known_len=end, removed=())
    reasons: list[str] = []
    for inserted in inserts:
        extended = TokenIds([*given.tokens.all_ids()[:end], *inserted, *behind])
        back = len(extended) - len(turn.tokens.prompt_ids)
        spans = [replace(span, start=span.start + back, end=span.end + back) for span in turn.prompt_spans]
        writers = prompt_writers(bridged, spans, *_turns_of(asked))
        found = splice(renderer, asked.messages, asked.tools, extended, writers, step)
        if isinstance(found, NotSpliced):
            reasons.append(found.detail)
            continue
        removed = tuple(CutSpan(cut.start, min(cut.end, end)) for cut in found.removed if cut.start < end)
        if removed == stitch.removed and found.prompt_ids == turn.tokens.prompt_ids:
            return None
        reasons.append("the template removes " + ", ".join(f"{cut.start}-{cut.end}" for cut in removed))
    cuts = ", ".join(f"{cut.start}-{cut.end}" for cut in stitch.removed)
    return f"is a splice without the ids {cuts}, which cannot be proved: {'; '.join(dict.fromkeys(reasons))}"


def _is_whole(asked: _Asked) -> bool:
    """Whether the record has every turn that the prompt is made of."""
    turn: Turn | None = asked.record.turn
    while turn is not None and turn.stitch.builds_on_anchor:
        known = asked.by_index.get(-1 if turn.stitch.anchor_turn is None else turn.stitch.anchor_turn)
        turn = known.record.turn if known is not None else None
    return turn is not None


def _turns_of(asked: _Asked) -> tuple[Callable[[int], Turn | None], Callable[[int], int]]:
    """The turn of an index, and the index of the message that it sampled."""
    by_index = asked.by_index
    return (
        lambda index: by_index[index].record.turn if index in by_index else None,
        lambda index: len(by_index[index].messages),
    )


def _is_written(asked: _Asked, renderer: Renderer) -> bool:
    """Whether a spliced prompt is the full rendering, but for what the template makes of sampled messages.

    All that nobody sampled stands in it, in order, from its beginning to its end; and where both have something
    between, a sampled message that could be read begins as the template's version of it does.
    """
    turn = asked.record.turn
    # Not as text: a tokenizer that normalises spells other characters than the template wrote.
    full_text = renderer.text_of(renderer.render_ids(asked.messages, tools=asked.tools))
    writers = prompt_writers(turn.stitch, turn.prompt_spans, *_turns_of(asked))
    ids, at, place = turn.tokens.prompt_ids, 0, 0
    sampled_text = ""
    for span in [*(span for span in writers if span.kind is TokenKind.SAMPLED), None]:
        fixed = renderer.text_of(ids[at : span.start if span is not None else len(ids)])
        found = full_text.find(fixed, place) if span is not None else len(full_text) - len(fixed)
        between = full_text[place:found].lstrip()
        if found < place or not full_text.startswith(fixed, found) or (at == 0 and found):
            return False
        if between and sampled_text and between[0] != sampled_text[0]:
            return False
        if span is not None:
            at, place = span.end, found + len(fixed)
            is_read = not asked.messages[span.owner].extra.get(MALFORMED_KEY)
            sampled_text = renderer.text_of(ids[span.start : span.end]).lstrip() if is_read else ""
    return True


def _inserts(junction: Junction | None, tail: Tail, renderer: Renderer) -> list[list[int]]:
    """What may stand between the last sampled id and the text behind the close."""
    close = tail.seam.close
    if junction in (Junction.EXACT, Junction.OPENER_SHARED):
        return [[]]
    if junction is Junction.STOP_REWRITTEN:
        is_opener = tail.seam.is_opener or close.id in renderer.bridges.opener_ids
        return [[close.id] if is_opener else []]
    if junction is Junction.CLOSE_RESTORED:
        return [[tail.seam.restored.id]]
    if junction is not Junction.CLOSE_ADDED:
        return [[close.id]]
    added = tail.seam.added
    # A cut text is ended with what is left of the white space or the frame that the template writes behind it.
    left = [tail.gap[at:] for at in range(len(tail.gap))] if tail.seam.kind is SeamKind.CLOSE else []
    left += [text for text in renderer.bridges.ends_of_reasoning(tail) if text]
    left += renderer.bridges.ends_of_elements()
    return [[added.id], *(renderer.tokenizer.encode(text + added.text) for text in left)]


def _evidence(asked: _Asked) -> str | None:
    """Law 4: the token counts that the engine told are those of what was sent and what came back."""
    usage, tokens = asked.record.turn.usage, asked.record.turn.tokens
    if usage.prompt_tokens is None and usage.completion_tokens is None:
        return ""
    if usage.prompt_tokens not in (None, len(tokens.prompt_ids)):
        return f"sent {len(tokens.prompt_ids)} prompt ids, and the engine counted {usage.prompt_tokens}"
    if usage.completion_tokens not in (None, len(tokens.completion_ids)):
        return f"has {len(tokens.completion_ids)} sampled ids, and the engine counted {usage.completion_tokens}"
    return None


def _check_inverse(asked: Sequence[_Asked], renderer: Renderer) -> tuple[LawCheck, dict[Normalised, int]]:
    """Law 6, in both directions: the ids say the message, and the message written again reads the same."""
    normalised: Counter[Normalised] = Counter()
    outcomes: list[str | None] = []
    for one in asked:
        tokens, said = one.record.turn.tokens, one.record.message
        if one.record.turn.unread:
            outcomes.append("")  # its message is no reading of its ids, and says so
            continue
        parsed = renderer.parse_response(tokens.completion_ids, prompt_ids=tokens.prompt_ids, tools=one.tools)
        outcome: str | None = None
        if _plain(parsed.to_message()).digest != _plain(said).digest:
            outcome = "recorded another message than its sampled ids say"
        else:
            found = _written_and_read(said, one.tools, renderer)
            if isinstance(found, Normalised):
                normalised[found] += 1
            elif found.digest != _plain(said).digest:
                reason = _why_normalised(one, found, renderer)
                outcome = None if reason is not None else f"reads back as another message: {found.to_openai()!r}"
                normalised.update([reason] if reason is not None else [])
        outcomes.append(outcome)
    return _check(Law.INVERSE, outcomes, asked), dict(normalised)


def _written_and_read(
    said: Message, tools: tuple[dict[str, Any], ...], renderer: Renderer
) -> Message | Normalised:
    if said.extra.get(MALFORMED_KEY):
        return Normalised.UNREADABLE_CALL
    try:
        ids = renderer.render_assistant(said, tools=tools)
    except TemplateRenderError:
        return Normalised.REFUSED
    prompt_ids = renderer.render_ids((Message(role="user", content="?"),), tools=tools)
    return _plain(renderer.parse_response(ids, prompt_ids=prompt_ids, tools=tools).to_message())


def _plain(message: Message) -> Message:
    """The message without call ids: a reader invents them, a completion does not hold them."""
    calls = tuple(replace(call, id=None) for call in message.tool_calls)
    return replace(message, tool_calls=calls, extra=dict(message.extra))


def _why_normalised(one: _Asked, found: Message, renderer: Renderer) -> Normalised | None:
    said = one.record.message
    texts = [said.content or "", said.reasoning_content or "", *(call.arguments for call in said.tool_calls)]
    spelled = [info.text for info in renderer.tokenizer.added_tokens()]
    if any(word in text for word in spelled for text in texts):
        return Normalised.SPELLED_MARKER
    if _trimmed(said).digest == _trimmed(found).digest:
        return Normalised.TRIMMED
    without = replace(said, reasoning_content=None, extra=dict(said.extra))
    if _trimmed(without).digest == _trimmed(found).digest and _are_written_alike(said, without, one, renderer):
        return Normalised.REASONING_LEFT_OUT
    return None


def _are_written_alike(said: Message, other: Message, one: _Asked, renderer: Renderer) -> bool:
    """Whether the template writes one text for both messages, so that no reader could tell them apart."""
    asked = Message(role="user", content="?")
    texts = (
        renderer.render_text((asked, each), tools=one.tools, add_generation_prompt=False) for each in (said, other)
    )
    return len(set(texts)) == 1


def _trimmed(message: Message) -> Message:
    reasoning = (message.reasoning_content or "").strip()
    return replace(
        _plain(message),
        content=(message.content or "").strip() or None,
        reasoning_content=reasoning or None,
    )
