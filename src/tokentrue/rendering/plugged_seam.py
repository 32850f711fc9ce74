"""Where the sampled message ends in a plug-in's full rendering: what a bridge must add, to the id.

That the rendering ends with what was added is too little: a bridge that leaves out the first of two new messages
ends like it as well, behind the close of the message left out. So the messages are rendered once more, with
another text for the sampled one: what both renderings end with begins where the sampled message ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from tokentrue.messages import Message
from tokentrue.rendering.tail import FollowUp
from tokentrue.turns import Junction

_WORDS = ("qz", "7")


def behind_said(
    render: Callable[[Sequence[Message]], list[int]], asked: FollowUp, closes: Collection[int]
) -> list[int]:
    """What the full rendering has from the close of the sampled message on; empty when it shows no close.

    Args:
        render: The plug-in's full rendering of these messages, with the tools of `asked`.
        closes: The ids that may end a message.

    Raises:
        TemplateRenderError: The plug-in refuses the messages.
    """
    said = asked.history[-1]
    other = next(each for each in (_in_word(said, word) for word in _WORDS) if each != said)
    full = render((*asked.history, *asked.new))
    same = shared_end(full, render((*asked.history[:-1], other, *asked.new)))
    if len(same) == len(full):
        return []  # it leaves the sampled message out
    at = next((at for at, each in enumerate(same) if each in closes), len(same))
    return same[at:]


def seam_of(
    last: int | None, added: list[int], behind: list[int], stop_ids: Collection[int]
) -> tuple[int, Junction] | None:
    """How many of `added` were put in to end the message, and the junction; None unless all of it is `behind`.

    Args:
        last: The last id that was sampled.
        behind: What `behind_said` found, the close first.
    """
    if not behind:
        return None
    if last in stop_ids:
        if added == behind[1:]:
            return 0, Junction.EXACT if last == behind[0] else Junction.STOP_REWRITTEN
        # Another stop was sampled than the rendering has, and the close was written behind it.
        return (0, Junction.STOP_REWRITTEN) if added == behind and last != behind[0] else None
    if added[-len(behind) :] != behind:
        return None
    return len(added) - len(behind) + 1, Junction.CLOSE_ADDED


def shared_end(one: list[int], other: list[int]) -> list[int]:
    """The longest list that both end with."""
    length = 0
    for mine, theirs in zip(reversed(one), reversed(other), strict=False):
        if mine != theirs:
            break
        length += 1
    return one[len(one) - length :]


def _in_word(said: Message, word: str) -> Message:
    """The message with `word` for every text that it has; as content where it has none and calls nothing."""
    calls = tuple(replace(call, arguments=f'{{"s": "{word}"}}') for call in said.tool_calls)
    content = word if said.content or not calls else said.content
    thought = word if said.reasoning_content else said.reasoning_content
    return replace(said, content=content, reasoning_content=thought, tool_calls=calls)
