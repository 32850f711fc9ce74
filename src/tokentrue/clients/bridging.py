"""Who makes the bridge of a token client: the renderer here, or the engine's `/tokenize`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tokentrue.clients.chat import ENGINE_TEMPLATE
from tokentrue.engines.engine import Server
from tokentrue.errors import CallerError, EngineError, TransportError
from tokentrue.generation import FinishReason
from tokentrue.messages import Message
from tokentrue.rendering.bridge import Bridge
from tokentrue.rendering.contract import RendererContract
from tokentrue.rendering.verdict import OnRewrite
from tokentrue.sessions.session import Session
from tokentrue.sessions.stitch import Anchor, NotExtended, StitchedPrompt, bridged_prompt
from tokentrue.tokens import TokenIds
from tokentrue.transports.tokenize import read_tokenize, write_tokenize
from tokentrue.turns import Junction, Why

_OFF_LOOP_CHARS = 20_000
"""Text longer than this is tokenized in a thread: 20,000 characters take about 10 ms."""

_STAND_INS = ("qz", "7")
"""Texts put in place of another one, of which one ends otherwise than that, whatever the vocabulary."""

_CLOSING_IDS = 2
"""How many ids at the end of a completion must be how the template closes the message, where more than one do."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is asked in one turn.

    Args:
        template_kwargs: The call's own `chat_template_kwargs`.
        headers: Sent with every request of the turn, `/tokenize` included.
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    template_kwargs: Mapping[str, Any]
    headers: Mapping[str, str]


class Bridging(Protocol):
    """Makes the prompt of a turn from ids that the session knows, or says why it cannot."""

    async def extend(self, session: Session, asked: Conversation) -> StitchedPrompt | NotExtended:
        """The prompt, or the reason; no failure to bridge is an error."""
        ...

    def template_hash(self, asked: Conversation) -> str:
        """What stands for the template in the session's paths."""
        ...


@dataclass(frozen=True, slots=True)
class LocalBridging:
    """Bridges by the renderer: no round trip. Template kwargs of a call get a renderer of their own, kept.

    `on_rewrite` says what becomes of a turn whose history the template would now write otherwise.
    """

    renderer: RendererContract
    on_rewrite: OnRewrite = OnRewrite.EXTEND
    _variants: dict[str, RendererContract] = field(default_factory=dict, init=False, repr=False, compare=False)

    def renderer_for(self, template_kwargs: Mapping[str, Any]) -> RendererContract:
        """The renderer whose template gets `template_kwargs` too.

        Raises:
            TemplateRenderError: The template is not usable with them.
        """
        if not template_kwargs:
            return self.renderer
        key = _key(template_kwargs)
        if key not in self._variants:
            self._variants[key] = self.renderer.with_template_kwargs(template_kwargs)
        return self._variants[key]

    async def extend(self, session: Session, asked: Conversation) -> StitchedPrompt | NotExtended:
        """See `Bridging`. Long texts, and new template kwargs, are worked on in a thread."""
        is_new = bool(asked.template_kwargs) and _key(asked.template_kwargs) not in self._variants
        if is_new or sum(len(message.content or "") for message in asked.messages) > _OFF_LOOP_CHARS:
            return await asyncio.to_thread(self._extend, session, asked)
        return self._extend(session, asked)

    def _extend(self, session: Session, asked: Conversation) -> StitchedPrompt | NotExtended:
        renderer = self.renderer_for(asked.template_kwargs)
        return session.extend(renderer, asked.messages, asked.tools, self.on_rewrite)

    def template_hash(self, asked: Conversation) -> str:
        """The identity of the renderer: its template, tokenizer and clock."""
        return self.renderer_for(asked.template_kwargs).identity


@dataclass(frozen=True, slots=True)
class EngineBridging:
    """Bridges by the engine's `/tokenize`: two requests, and one for each new message, at once; no tokenizer here.

    The real conversation is rendered, then with another text in place of the sampled one. What both renderings end
    with begins inside the sampled message, and is what the template writes for these very words. Then it is
    rendered with another text in place of each new one: in front of the first id that differs the sampled message
    must have been closed, and where none differs the template leaves the new message out. The close is the last
    sampled id: a turn that was cut does not tell it, and is not bridged. Behind it stands the bridge (law 2).
    """

    server: Server

    async def extend(self, session: Session, asked: Conversation) -> StitchedPrompt | NotExtended:
        """See `Bridging`."""
        placed = session.place(self.template_hash(asked), asked.messages, asked.tools)
        if not isinstance(placed, Anchor):
            return placed
        refused = _refused_before_asking(placed, asked.messages)
        if refused is not None:
            return refused
        at = placed.depth - 1
        otherwise = {at: _said_otherwise(asked.messages[at])}
        for index, message in enumerate(asked.messages[at + 1 :], start=at + 1):
            otherwise[index] = _with_text(message, message.content or "")
        try:
            real, said, *new = await _all_of(
                [self._tokenize(asked), *(self._tokenize(asked, *each) for each in otherwise.items())]
            )
        except (EngineError, TransportError, CallerError) as exc:
            return NotExtended(Why.TOKENIZE_FAILED, str(exc), placed.hashes)
        if said == real:
            detail = f"message {at} is not in what the engine renders"
            return NotExtended(Why.ASSISTANT_DROPPED, detail, placed.hashes)
        return _bridged(placed, _Rendered(real.tolist(), said.tolist(), [each.tolist() for each in new]))

    def template_hash(self, asked: Conversation) -> str:
        """The engine's template is not known here; its kwargs are."""
        return ENGINE_TEMPLATE + _key(asked.template_kwargs)

    async def _tokenize(
        self, asked: Conversation, index: int | None = None, instead: Message | None = None
    ) -> TokenIds:
        messages = [instead if at == index and instead else each for at, each in enumerate(asked.messages)]
        call = write_tokenize(asked.model, messages, asked.tools, asked.template_kwargs)
        return await self.server.exchange(call, read_tokenize, asked.headers)


async def _all_of(asked: Sequence[Coroutine[Any, Any, TokenIds]]) -> list[TokenIds]:
    """What all of them give; where some fail, the first one's error, once none is under way any more."""
    told = await asyncio.gather(*asked, return_exceptions=True)
    failed = [each for each in told if isinstance(each, BaseException)]
    if failed:
        raise failed[0]
    return [each for each in told if not isinstance(each, BaseException)]


@dataclass(frozen=True, slots=True)
class _Rendered:
    """What the engine renders: the conversation; it with other sampled words; and with each new text another."""

    real: list[int]
    said_otherwise: list[int]
    new_otherwise: list[list[int]]


def _stand_in(text: str) -> str:
    """A text that ends otherwise than `text`, with or without the white space that a template may trim."""
    return next(each for each in _STAND_INS if each[-1:] != text.rstrip()[-1:])


def _with_text(message: Message, text: str) -> Message:
    return replace(message, content=_stand_in(text))


def _said_otherwise(said: Message) -> Message:
    """The sampled message with other words; a template may ask whether it has content, or calls."""
    calls = tuple(
        replace(call, arguments=json.dumps({"qz": _stand_in(call.arguments)})) for call in said.tool_calls
    )
    if said.content or not calls:
        said = _with_text(said, said.content or "")
    return replace(said, tool_calls=calls)


def _key(template_kwargs: Mapping[str, Any]) -> str:
    return json.dumps(dict(template_kwargs), sort_keys=True, default=repr)


def _refused_before_asking(anchor: Anchor, messages: Sequence[Message]) -> NotExtended | None:
    new = messages[anchor.depth :]
    if anchor.turn.finish_reason is FinishReason.LENGTH:
        detail = f"turn {anchor.turn.index} was cut by max_tokens, so it does not end with its close"
        return NotExtended(Why.TRUNCATED_ANCHOR, detail, anchor.hashes)
    if not new:
        return NotExtended(Why.NOTHING_NEW, "no message follows the sampled one", anchor.hashes)
    if any(message.role == "assistant" for message in new):
        return NotExtended(Why.ASSISTANT_IN_NEW, "an assistant message was not sampled here", anchor.hashes)
    return None


def _bridged(anchor: Anchor, rendered: _Rendered) -> StitchedPrompt | NotExtended:
    turn, at, real = anchor.turn, anchor.depth - 1, rendered.real
    behind_said = len(real) - _shared(real[::-1], rendered.said_otherwise[::-1])
    begins = [_shared(real, other) for other in rendered.new_otherwise]
    for index, (begin, other) in enumerate(zip(begins, rendered.new_otherwise, strict=True), start=anchor.depth):
        if other == real:
            detail = f"the text of message {index} is not in what the engine renders"
            return NotExtended(Why.NEW_MESSAGE_DROPPED, detail, anchor.hashes)
        if begin < behind_said:
            detail = f"the engine renders message {index} in front of the end of message {at}"
            return NotExtended(Why.REORDERED, detail, anchor.hashes)
    between = real[behind_said : min(begins)]
    closed = _closed_at(turn.tokens.completion_ids.tolist(), between)
    if isinstance(turn.stop_reason, str) or closed is None:
        last_ids = turn.tokens.completion_ids[-1:]
        detail = f"the last sampled id {last_ids} is not how the engine's template closes message {at}"
        return NotExtended(Why.NO_ATOMIC_CLOSE, detail, anchor.hashes)
    added = tuple(real[behind_said + closed :])
    return bridged_prompt(anchor, Bridge(turn.tokens.all_ids().extended(added), added, Junction.EXACT, ()))


def _closed_at(completion: list[int], between: list[int]) -> int | None:
    """How many of the ids between the sampled message and the new one close it; None when that is not certain.

    Where others stand in front of the close (the end of a call), the model must have written the last of them:
    else an id of the caller's own stops is taken for it, a line break, say, that the template writes behind it.
    """
    if not completion or completion[-1] not in between:
        return None
    end = between.index(completion[-1]) + 1
    closing = between[max(end - _CLOSING_IDS, 0) : end]
    return end if completion[-len(closing) :] == closing else None


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (mine, theirs) in enumerate(pairs) if mine != theirs), min(len(one), len(other)))
