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
    turn_of: Callable[[int], Turn],
    message_of: Callable[[int], int],
) -> tuple[TokenSpan, ...]:
    """The writers of all ids of a prompt, in order; ids of which nobody knows are in no span.

    Args:
        stitch, spans: Of the prompt.
        turn_of: The turn of an index.
        message_of: The index of the message that a turn sampled.
    """
    links = [(stitch, spans)]
    anchors: list[int] = []
    while links[-1][0].builds_on_anchor and links[-1][0].anchor_turn is not None:
        anchors.append(links[-1][0].anchor_turn)
        turn = turn_of(anchors[-1])
        links.append((turn.stitch, turn.prompt_spans))
    found = list(links.pop()[1])
    for (link, added), index in zip(reversed(links), reversed(anchors), strict=True):
        tokens = turn_of(index).tokens
        found.append(
            TokenSpan(len(tokens.prompt_ids), len(tokens.all_ids()), message_of(index), TokenKind.SAMPLED)
        )
        found = [*shifted(found, link.removed, link.anchor_len), *added]
    return tuple(found)


def shifted(spans: Sequence[TokenSpan], removed: Sequence[CutSpan], end: int) -> list[TokenSpan]:
    """The spans of the first `end` ids when the removed ones are left out."""

    def place(index: int) -> int:
        return index - sum(max(min(index, cut.end) - cut.start, 0) for cut in removed)

    moved = (TokenSpan(place(s.start), place(min(s.end, end)), s.owner, s.kind) for s in spans if s.start < end)
    return [span for span in moved if span.start < span.end]
