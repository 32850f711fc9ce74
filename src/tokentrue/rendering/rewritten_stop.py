"""A stop that history spells otherwise: harmony samples `<|return|>`, and writes `<|end|>` once a message follows.

The last message of a conversation shows what a model stops with. When history shows another token in that
very place, this one is the close, if it can be nothing else: it must also end a conversation, where nothing
follows that it could open, and what stands behind it must be how the next message begins behind a message
of another role. A token that opens the next message (GLM's `<|user|>`) fails both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokentrue.errors import TemplateRenderError
from tokentrue.messages import Message
from tokentrue.rendering.sentinels import Masked, sentinel
from tokentrue.rendering.tokenizer import AddedTokenInfo, Tokenizer

Render = Callable[[Sequence[Message], bool], str]
"""Renders messages; the flag asks for a generation prompt."""


@dataclass(frozen=True, slots=True)
class RewrittenStop:
    """What history writes (`close`) where the model samples `stop`; `gap` ends with the close."""

    stop: AddedTokenInfo
    close: AddedTokenInfo
    gap: str


def find_rewritten_stop(
    render: Render, tokenizer: Tokenizer, stops: Sequence[AddedTokenInfo], ended: str, between: str, new: Masked
) -> RewrittenStop | None:
    """The rewritten stop behind a sampled message, or None when there is none, or it is not certain.

    Args:
        ended: The text behind the sampled message when it is the last one.
        between: The text from the sampled message to the first of `new`, in history.
    """
    stop = next((info for info in stops if info.text in ended), None)
    if stop is None:
        return None
    at = ended.find(stop.text)
    close = tokenizer.added_token_at(between, at)
    if close is None or ended[:at] != between[:at] or ended[:at].strip():
        return None
    opening = between[at + len(close.text) :]
    if opening != _opening_behind_a_user(render, close, new):
        return None
    return RewrittenStop(stop, close, between[: at + len(close.text)])


def _opening_behind_a_user(render: Render, close: AddedTokenInfo, new: Masked) -> str | None:
    """How the first new message begins behind a user's, when `close` ends that one with nothing behind it."""
    word = sentinel("U", 0)
    user = Message(role="user", content=word)
    try:
        alone = render((user,), False)
        followed = render((user, *new.messages), False)
    except TemplateRenderError:
        return None
    end = alone[alone.rfind(word) + len(word) :]
    start = followed.find(word) + len(word)
    if word not in alone or word not in followed or not end.endswith(close.text):
        return None
    begins = followed.find(new.bodies[0].sentinel)
    gap = followed[start:begins] if begins > start else ""
    return gap[len(end) :] if gap.startswith(end) else None
