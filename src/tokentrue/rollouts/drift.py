"""Why a prompt rendered anew from text has other ids than the conversation had (pure).

A bridged prompt is pieces: a first prompt, then what was sampled and what a bridge added, in turn. A bridge is
what the template itself writes (law 2), so its text stands in the rendered text as well, and what lies between two
of them there is what the template makes of the sampled message. Each such pair of texts is compared. A spliced
prompt is the same, with what is left of each sampled message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from tokentrue.messages import Message
from tokentrue.rendering.reader import MALFORMED_KEY
from tokentrue.rendering.renderer import Renderer
from tokentrue.rollouts.trajectory import TurnRecord
from tokentrue.sessions.writers import prompt_writers
from tokentrue.turns import TokenKind


class DriftCause(Enum):
    """Why a prompt rendered anew has other ids than the conversation had."""

    REASONING_REWRITTEN = "the template drops or rewrites earlier reasoning"
    RESPACED = "white space or JSON is spaced in another way"
    CALL_LOST = "a call that could not be read is in no message"
    OTHER_SPLIT = "the same text, split into other tokens"
    TEXT_CHANGED = "the text differs in another way"
    TEMPLATE_REFUSES = "the template refuses the messages"


@dataclass(frozen=True, slots=True)
class RenderedText:
    """A conversation from text: the text, its ids, and the characters [start, end) of each id."""

    text: str
    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]]

    def ids_within(self, start: int, end: int) -> list[int]:
        """The ids that lie whole within characters `start` to `end` (excluded)."""
        pairs = zip(self.ids, self.offsets, strict=True)
        return [token_id for token_id, (begin, finish) in pairs if begin >= start and finish <= end]


@dataclass(frozen=True, slots=True)
class _SampledPiece:
    """What one turn sampled, as far as the next prompt kept it, and the ids added behind it."""

    sampled_ids: list[int]
    added_ids: list[int]
    message: Message


def find_causes(
    turn: TurnRecord, by_index: Mapping[int, TurnRecord], rendered: RenderedText, renderer: Renderer
) -> tuple[DriftCause, ...]:
    """The causes of a difference between a turn's prompt and `rendered`, in the order of the prompt.

    Args:
        by_index: The turns of the same episode, by the index of the turn.
    """
    first_prompt, pieces = _pieces_of(turn, by_index)
    decode = renderer.tokenizer.decode
    written = _written(rendered.text, decode(first_prompt), [decode(piece.added_ids) for piece in pieces])
    if written is None:
        return (_cause_of_whole(decode(turn.turn.tokens.prompt_ids), rendered.text),)
    causes: list[DriftCause] = []
    for piece, (start, end) in zip(pieces, written, strict=True):
        sampled_text, written_text = decode(piece.sampled_ids), rendered.text[start:end]
        if sampled_text != written_text:
            stop = decode(piece.sampled_ids[-1:]) if piece.sampled_ids[-1] in renderer.stop_ids else ""
            sampled_text, written_text = sampled_text.removesuffix(stop), written_text.removesuffix(stop)
            causes += _causes_of_piece(sampled_text, written_text, piece.message, renderer)
        elif rendered.ids_within(start, end) != piece.sampled_ids:
            causes.append(DriftCause.OTHER_SPLIT)
    # Ids may also differ only where two pieces meet: the text is the same, and the split is not.
    return tuple(dict.fromkeys(causes)) or (DriftCause.OTHER_SPLIT,)


def _pieces_of(turn: TurnRecord, by_index: Mapping[int, TurnRecord]) -> tuple[list[int], list[_SampledPiece]]:
    prompt = turn.turn.tokens.prompt_ids.tolist()
    turns = {index: record.turn for index, record in by_index.items()}
    # As owner of what was sampled here not the message, but the turn that sampled it.
    writers = prompt_writers(turn.turn.stitch, turn.turn.prompt_spans, turns.get, lambda index: index)
    sampled = [span for span in writers if span.kind is TokenKind.SAMPLED]
    ends = [*(span.start for span in sampled), len(prompt)][1:]
    pieces = [
        _SampledPiece(prompt[span.start : span.end], prompt[span.end : end], by_index[span.owner].message)
        for span, end in zip(sampled, ends, strict=True)
    ]
    return prompt[: sampled[0].start] if sampled else prompt, pieces


def _written(text: str, first: str, bridges: Sequence[str]) -> list[tuple[int, int]] | None:
    """Where, between the bridges, the template's version of each sampled message is; None when unclear."""
    if not text.startswith(first):
        return None
    position = len(first)
    found: list[tuple[int, int]] = []
    for index, bridge in enumerate(bridges):
        is_last = index == len(bridges) - 1
        start = len(text) - len(bridge) if is_last else text.find(bridge, position)
        if start < position or not text.startswith(bridge, start):
            return None
        found.append((position, start))
        position = start + len(bridge)
    return found if position == len(text) else None


def _cause_of_whole(exact_text: str, rendered_text: str) -> DriftCause:
    if exact_text == rendered_text:
        return DriftCause.OTHER_SPLIT
    if _without_space(exact_text) == _without_space(rendered_text):
        return DriftCause.RESPACED
    return DriftCause.TEXT_CHANGED


def _causes_of_piece(
    sampled_text: str, written_text: str, message: Message, renderer: Renderer
) -> list[DriftCause]:
    causes: list[DriftCause] = []
    sampled_reasoning, sampled_rest = _split_reasoning(sampled_text, renderer)
    written_reasoning, written_rest = _split_reasoning(written_text, renderer)
    if _without_space(sampled_reasoning) != _without_space(written_reasoning):
        causes.append(DriftCause.REASONING_REWRITTEN)
        # The gap behind reasoning goes with it.
        sampled_rest, written_rest = sampled_rest.lstrip(), written_rest.lstrip()
    elif sampled_reasoning != written_reasoning:
        causes.append(DriftCause.RESPACED)
    if sampled_rest == written_rest:
        return causes
    if _without_space(sampled_rest) == _without_space(written_rest):
        return [*causes, DriftCause.RESPACED]
    is_lost = bool(message.extra.get(MALFORMED_KEY))
    return [*causes, DriftCause.CALL_LOST if is_lost else DriftCause.TEXT_CHANGED]


def _split_reasoning(text: str, renderer: Renderer) -> tuple[str, str]:
    form = renderer.reader.reasoning
    if form is None:
        return "", text
    if form.closer.text in text:
        reasoning, _, rest = text.partition(form.closer.text)
        return reasoning.replace(form.opener.text, "", 1), rest
    if form.opener.text in text:
        before, _, reasoning = text.partition(form.opener.text)
        return reasoning, before
    return "", text


def _without_space(text: str) -> str:
    return "".join(text.split())
