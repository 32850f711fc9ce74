"""Who makes the bridge of a token client: the renderer here, or the engine's `/tokenize`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
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
"""Texts put in place of the sampled one; they end in different tokens whatever the vocabulary."""


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
    """Bridges by the engine's `/tokenize`: two round trips, and no tokenizer here.

    The real conversation is rendered twice, with two different texts in place of the sampled one. What both
    renderings end with begins inside the sampled message and is the same whatever was sampled. The first close in
    it ends the sampled message, and what stands behind that is the bridge (law 2). The close is the last sampled
    id: a turn that was cut does not tell it, and is not bridged.
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
        try:
            one, other = [await self._tokenize(asked, placed.depth - 1, text) for text in _STAND_INS]
        except (EngineError, TransportError, CallerError) as exc:
            return NotExtended(Why.TOKENIZE_FAILED, str(exc), placed.hashes)
        return _bridged(placed, one, other)

    def template_hash(self, asked: Conversation) -> str:
        """The engine's template is not known here; its kwargs are."""
        return ENGINE_TEMPLATE + _key(asked.template_kwargs)

    async def _tokenize(self, asked: Conversation, sampled_at: int, stand_in: str) -> TokenIds:
        sampled = asked.messages[sampled_at]
        said = replace(sampled, content=stand_in, reasoning_content=None)
        messages = [*asked.messages[:sampled_at], said, *asked.messages[sampled_at + 1 :]]
        call = write_tokenize(asked.model, messages, asked.tools, asked.template_kwargs)
        return await self.server.exchange(call, read_tokenize, asked.headers)


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


def _bridged(anchor: Anchor, one: TokenIds, other: TokenIds) -> StitchedPrompt | NotExtended:
    turn, where = anchor.turn, f"message {anchor.depth - 1}"
    shared = _shared_end(one.tolist(), other.tolist())
    if len(shared) == len(one) or len(shared) == len(other):
        return NotExtended(Why.ASSISTANT_DROPPED, f"{where} is not in what the engine renders", anchor.hashes)
    last_id = turn.tokens.completion_ids[-1]
    if isinstance(turn.stop_reason, str) or last_id not in shared:
        detail = f"the last sampled id {last_id} is not how the engine's template closes {where}"
        return NotExtended(Why.NO_ATOMIC_CLOSE, detail, anchor.hashes)
    added = tuple(shared[shared.index(last_id) + 1 :])
    return bridged_prompt(anchor, Bridge(turn.tokens.all_ids().extended(added), added, Junction.EXACT, ()))


def _shared_end(one: list[int], other: list[int]) -> list[int]:
    """The longest list that both end with."""
    length = 0
    for mine, theirs in zip(reversed(one), reversed(other), strict=False):
        if mine != theirs:
            break
        length += 1
    return one[len(one) - length :]
