"""Where a sampled message ends in what the template writes: the one place behind which a bridge may begin.

Four kinds of place are provable, each at the end of an added token, in the order in which they are looked for:

1. A stop stands between the sampled message and the new one: the close, or the next message's opener (GLM).
2. History spells the stop otherwise (harmony): `rewritten_stop`.
3. The next message's opener is no stop, and yet closes the message as the openers do that are stops: GLM's
   `<|system|>` stands where `<|user|>` would, and behind a user it opens that message in the same words.
4. History leaves the stop out (DeepSeek-V3, of a message with one call): the message ends with an added token, and
   with one call more the template writes the same text, then a stop, then the very same tail.

An inner token (Gemma's `<|"|>`, Cohere's `<|END_TEXT|>`) is none of them: where the stop set lacks the token that
truly ends a message, 3 finds no opener that is a stop, and 4 no stop behind one call more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from tokentrue.errors import TemplateRenderError
from tokentrue.messages import Message, ToolCall
from tokentrue.rendering.rewritten_stop import Render, begins_behind_a_user, find_rewritten_stop
from tokentrue.rendering.sentinels import Body, Masked, sentinel
from tokentrue.rendering.tokenizer import AddedTokenInfo, Tokenizer


class SeamKind(Enum):
    """What stands in history where the sampled message ends."""

    CLOSE = "close"
    OPENER = "opener"
    NO_STOP = "no stop"


@dataclass(frozen=True, slots=True)
class Seam:
    """Where the sampled message ends.

    Args:
        close: The token that ends it in history; the next role's opener, or the last token of its own, where
            nothing closes it.
        kind: Which of these.
        sampled: What a model samples to end the message, where history has another token there or none; else
            the close. For an opener that is no stop, the one that stands there before a user's message.
    """

    close: AddedTokenInfo
    kind: SeamKind
    sampled: AddedTokenInfo

    @property
    def is_opener(self) -> bool:
        """Whether the next message's opener ends it."""
        return self.kind is SeamKind.OPENER

    @property
    def restored(self) -> AddedTokenInfo:
        """What ends a message whose stop the engine left out: that stop, or the opener that takes its place."""
        return self.close if self.is_opener else self.sampled

    @property
    def added(self) -> AddedTokenInfo:
        """What ends a truncated message: the close, or the stop that history leaves out."""
        return self.sampled if self.kind is SeamKind.NO_STOP else self.close


@dataclass(frozen=True, slots=True)
class FoundSeam:
    """A seam, and the text from the sampled message's last sentinel up to the end of its token."""

    seam: Seam
    gap: str


@dataclass(frozen=True, slots=True)
class Around:
    """A sampled message in its conversation, and what the template writes behind it.

    Args:
        render: Renders messages, with the tools of the conversation.
        before: The messages in front of it.
        said, new: It, and the messages that follow, in sentinels.
        find_ended: Gives the text behind it when it is the last message; None when the template refuses that.
        between: The text from it to the first new message.
        tail: The text from it on.
    """

    render: Render
    before: tuple[Message, ...]
    said: Masked
    new: Masked
    find_ended: Callable[[], str | None]
    between: str
    tail: str


def find_seam(
    around: Around,
    tokenizer: Tokenizer,
    stop_ids: Sequence[int],
    *,
    left_off: Collection[int] = (),
    place_only: bool = False,
) -> FoundSeam | None:
    """The seam behind a sampled message, or None when none is certain.

    Args:
        left_off: Closes that the template leaves out behind the last message, as it does openers.
        place_only: Only close and gap are looked at: of which kind a close is, costs a rendering.
    """
    stops = [info for i in stop_ids if (info := tokenizer.added_token_of_id(i)) is not None]
    close = _first_of(stops, around.between)
    if close is not None:
        ended = None if place_only or close.id in left_off else around.find_ended()
        is_opener = ended is not None and close.text not in ended
        kind = SeamKind.OPENER if is_opener else SeamKind.CLOSE
        end = around.between.find(close.text) + len(close.text)
        return FoundSeam(Seam(close, kind, close), around.between[:end])
    ended = around.find_ended()
    if ended is None:
        return None
    rewritten = find_rewritten_stop(around.render, tokenizer, stops, ended, around.between, around.new)
    if rewritten is not None:
        return FoundSeam(Seam(rewritten.close, SeamKind.CLOSE, rewritten.stop), rewritten.gap)
    found = _opener_that_is_no_stop(around, ended, tokenizer, stops)
    return found or _stop_left_out(around, ended, tokenizer, stops)


def end_of(text: str, masked: Masked) -> int | None:
    """Where the last sentinel of `masked` ends in `text`; None when the template dropped all of them."""
    ends = [text.rfind(body.sentinel) + len(body.sentinel) for body in masked.bodies if body.sentinel in text]
    return max(ends, default=None)


def _first_of(stops: Sequence[AddedTokenInfo], text: str) -> AddedTokenInfo | None:
    """The stop that stands first in `text`; of two in one place the longer."""
    found = [(text.find(info.text), -len(info.text), info) for info in stops if info.text in text]
    if not found:
        return None
    _, _, close = min(found, key=lambda item: item[:2])
    return close


def _opener_that_is_no_stop(
    around: Around, ended: str, tokenizer: Tokenizer, stops: Sequence[AddedTokenInfo]
) -> FoundSeam | None:
    stop = _first_of(stops, ended)
    # A template may write the stop of the last message, the opener that a model samples, as its end.
    ended = ended[: ended.find(stop.text)] if stop is not None else ended
    if not around.between.startswith(ended):
        return None
    opening = around.between[len(ended) :]
    opener = tokenizer.added_token_at(opening, 0)
    if opener is None or not opener.text.strip():
        return None
    sampled = _opener_of_a_user(around, ended, stops)
    if sampled is None:
        return None
    begins = begins_behind_a_user(around.render, around.new)
    if begins is None or begins.opening != opening or begins.ended.endswith(opener.text):
        return None
    return FoundSeam(Seam(opener, SeamKind.OPENER, sampled), ended + opener.text)


def _opener_of_a_user(around: Around, ended: str, stops: Sequence[AddedTokenInfo]) -> AddedTokenInfo | None:
    """The stop with which a user's message in the place of the new ones begins; None when that is no stop."""
    word = sentinel("U", 0)
    user = Masked((Message(role="user", content=word),), (Body(word, "", 0),))
    text = _written((*around.before, *around.said.messages, *user.messages), around.render)
    end = end_of(text, around.said)
    if end is None or word not in text[end:]:
        return None
    found = (stop for stop in stops if text.startswith(ended + stop.text, end))
    return max(found, key=lambda stop: len(stop.text), default=None)


def _stop_left_out(
    around: Around, ended: str, tokenizer: Tokenizer, stops: Sequence[AddedTokenInfo]
) -> FoundSeam | None:
    said = around.said.messages[-1]
    if not ended or not around.between.startswith(ended) or not said.tool_calls:
        return None
    at_end = [info for info in tokenizer.added_tokens() if info.text.strip() and ended.endswith(info.text)]
    border = max(at_end, key=lambda info: len(info.text), default=None)
    if border is None:
        return None
    more = _with_one_call_more(around.said)
    text = _written((*around.before, *more.messages, *around.new.messages), around.render)
    end = end_of(text, more)
    if end is None or more.bodies[-1].sentinel not in text or not text.startswith(ended, end):
        return None
    behind = text[end + len(ended) :]
    stop = _first_of(stops, behind)
    if stop is None or behind[behind.find(stop.text) + len(stop.text) :] != around.tail[len(ended) :]:
        return None
    return FoundSeam(Seam(border, SeamKind.NO_STOP, stop), ended)


def _with_one_call_more(said: Masked) -> Masked:
    message, last = said.messages[-1], said.messages[-1].tool_calls[-1]
    word = sentinel("U", 1)
    call = ToolCall(name=last.name, arguments=f'{{"qz": "{word}"}}', id=last.id)
    longer = replace(message, tool_calls=(*message.tool_calls, call))
    return Masked((longer,), (*said.bodies, Body(word, "", said.bodies[-1].owner)))


def _written(messages: Sequence[Message], render: Render) -> str:
    """The rendering with a generation prompt; "" when the template refuses the messages."""
    try:
        return render(messages, True)
    except TemplateRenderError:
        return ""
