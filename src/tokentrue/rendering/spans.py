"""From stretches of characters to spans of ids: who wrote each id, and for which message."""

from __future__ import annotations

from collections.abc import Sequence

from tokentrue.rendering.glue import Stretch
from tokentrue.turns import TokenKind, TokenSpan


def character_spans(
    text: str, bodies: Sequence[Stretch], close_texts: Sequence[str], lead_owner: int
) -> tuple[TokenSpan, ...]:
    """Spans that tile the characters of `text`.

    Scaffold up to the first close behind a body belongs to that body's message, the rest of it to the
    next message; behind the last body the rest is the generation prompt and belongs to nobody (-1).

    Args:
        bodies: Stretches of message text, in order.
        close_texts: Spellings of the tokens that end a message.
        lead_owner: Owner of scaffold that ends a message in front of the first body (BOS, tools, a
            default system prompt: -1).
    """
    spans: list[TokenSpan] = []

    def add(start: int, end: int, owner: int, kind: TokenKind) -> None:
        if end > start:
            spans.append(TokenSpan(start, end, owner, kind))

    position, owner = 0, lead_owner
    for body in (*bodies, None):
        end = body.start if body is not None else len(text)
        next_owner = body.owner if body is not None else -1
        cut = end if next_owner == owner else _cut(text, position, end, close_texts, at_start=position == 0)
        add(position, cut, owner, TokenKind.SCAFFOLD)
        add(cut, end, next_owner, TokenKind.SCAFFOLD)
        if body is not None:
            add(body.start, body.end, body.owner, TokenKind.BODY)
            position, owner = body.end, body.owner
    return tuple(spans)


def _cut(text: str, start: int, end: int, close_texts: Sequence[str], *, at_start: bool) -> int:
    # In front of the first body everything up to the *last* close is preamble; behind a body the first
    # close ends its message.
    if at_start:
        ends = [text.rfind(close, start, end) + len(close) for close in close_texts if close in text[start:end]]
        return max(ends, default=start)
    ends = [text.find(close, start, end) + len(close) for close in close_texts if close in text[start:end]]
    return min(ends, default=start)


def token_spans(
    offsets: Sequence[tuple[int, int]],
    characters: Sequence[TokenSpan],
    first_position: int,
    *,
    shift: int = 0,
    added: Sequence[bool] = (),
) -> tuple[TokenSpan, ...]:
    """Spans that tile ids, from the spans of the characters that each id stands for.

    An id that overlaps a body, even by one character, is body; an added token belongs to whoever wrote
    its first character (phi-3's swallow the white space of the body behind them).

    Args:
        offsets: Characters [start, end) of each id, in order.
        characters: What `character_spans` returned.
        first_position: Position of the first of these ids in the prompt.
        shift: Characters in front of the text that `characters` speaks of.
        added: Whether each id is an added token; empty: none is.
    """
    spans: list[TokenSpan] = []
    current = 0
    for index, (start, end) in enumerate(offsets):
        while current + 1 < len(characters) and characters[current].end + shift <= start:
            current += 1
        chosen = characters[current]
        following = len(characters) if added and added[index] else current
        while chosen.kind is not TokenKind.BODY and following + 1 < len(characters):
            following += 1
            if characters[following].start + shift >= end:
                break
            if characters[following].kind is TokenKind.BODY:
                chosen = characters[following]
        position = first_position + index
        if spans and spans[-1].owner == chosen.owner and spans[-1].kind is chosen.kind:
            spans[-1] = TokenSpan(spans[-1].start, position + 1, chosen.owner, chosen.kind)
        else:
            spans.append(TokenSpan(position, position + 1, chosen.owner, chosen.kind))
    return tuple(spans)
