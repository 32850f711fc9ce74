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


@dataclass(frozen=True, slots=True)
class BehindAUser:
    """How a user's message ends where nothing follows it, and what then opens the next one."""

    ended: str
    opening: str


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
    begins = begins_behind_a_user(render, new)
    if begins is None or not begins.ended.endswith(close.text):
        return None
    if between[at + len(close.text) :] != begins.opening:
        return None
    return RewrittenStop(stop, close, between[: at + len(close.text)])


def begins_behind_a_user(render: Render, new: Masked) -> BehindAUser | None:
    """How the first of `new` begins behind a user's message; None when the template shows no such thing."""
    word = sentinel("U", 0)
    user = Message(role="user", content=word)
    try:
        alone = render((user,), False)
        followed = render((user, *new.messages), False)
    except TemplateRenderError:
        return None
    if word not in alone or word not in followed:
        return None
    ended = alone[alone.rfind(word) + len(word) :]
    start = followed.find(word) + len(word)
    begins = followed.find(new.bodies[0].sentinel)
    gap = followed[start:begins] if begins > start else ""
    return BehindAUser(ended, gap[len(ended) :]) if gap.startswith(ended) else None
