"""Who wrote each id of a prompt, along the turns that it is made of (pure).

A turn keeps the writers of the ids that it added itself; the ids in front of them are those of its anchor turn,
what that sampled included, without the ones that a splice removed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokentrue.turns import CutSpan, Stitch, TokenKind, TokenSpan, Turn


def prompt_writers(
    stitch: Stitch,
    spans: Sequence[TokenSpan],
    turn_of: Callable[[int], Turn | None],
    message_of: Callable[[int], int],
) -> tuple[TokenSpan, ...]:
    """The writers of all ids of a prompt, in order; ids of which nobody knows are in no span.

    Args:
        stitch, spans: Of the prompt.
        turn_of: The turn of an index; None where it is not known, and so who wrote what it gave.
        message_of: The index of the message that a turn sampled.
    """
    links = [(stitch, spans)]
    anchors: list[tuple[int, Turn]] = []
    while links[-1][0].builds_on_anchor and (index := links[-1][0].anchor_turn) is not None:
        turn = turn_of(index)
        if turn is None:
            break
        anchors.append((index, turn))
        links.append((turn.stitch, turn.prompt_spans))
    found = list(links.pop()[1])
    for (link, added), (index, turn) in zip(reversed(links), reversed(anchors), strict=True):
        given, end = len(turn.tokens.prompt_ids), len(turn.tokens.all_ids())
        found.append(TokenSpan(given, end, message_of(index), TokenKind.SAMPLED))
        found = [*shifted(found, link.removed, link.anchor_len), *added]
    return tuple(found)


def shifted(spans: Sequence[TokenSpan], removed: Sequence[CutSpan], end: int) -> list[TokenSpan]:
    """The spans of the first `end` ids when the removed ones are left out."""

    def place(index: int) -> int:
        return index - sum(max(min(index, cut.end) - cut.start, 0) for cut in removed)

    moved = (TokenSpan(place(s.start), place(min(s.end, end)), s.owner, s.kind) for s in spans if s.start < end)
    return [span for span in moved if span.start < span.end]
