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
from tokentrue.rendering.renderer import Renderer, make_renderer
from tokentrue.sessions.session import Session
from tokentrue.sessions.stitch import Anchor, NotExtended, StitchedPrompt, bridged_prompt
from tokentrue.tokens import TokenIds
from tokentrue.transports.tokenize import read_tokenize, write_tokenize
from tokentrue.turns import Junction, Turn, Why

_OFF_LOOP_CHARS = 20_000
"""Text longer than this is tokenized in a thread: 20,000 characters take about 10 ms."""

_CLOSE_IDS = 8
"""How near to the end of a rendered assistant message its close must stand: white space may follow it."""


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
    """Bridges by the renderer: no round trip. Template kwargs of a call get a renderer of their own, kept."""

    renderer: Renderer
    _variants: dict[str, Renderer] = field(default_factory=dict, init=False, repr=False, compare=False)

    def renderer_for(self, template_kwargs: Mapping[str, Any]) -> Renderer:
        """The renderer whose template gets `template_kwargs` too.

        Raises:
            TemplateRenderError: The template is not usable with them.
        """
        if not template_kwargs:
            return self.renderer
        key = json.dumps(template_kwargs, sort_keys=True, default=repr)
        if key not in self._variants:
            own = self.renderer
            template = replace(own.template, kwargs={**own.template.kwargs, **template_kwargs})
            self._variants[key] = make_renderer(own.tokenizer, template, own.stop_ids, own.folder)
        return self._variants[key]

    async def extend(self, session: Session, asked: Conversation) -> StitchedPrompt | NotExtended:
        """See `Bridging`. Long texts, and new template kwargs, are worked on in a thread."""
        is_new = bool(asked.template_kwargs) and not self._variants
        if is_new or sum(len(message.content or "") for message in asked.messages) > _OFF_LOOP_CHARS:
            return await asyncio.to_thread(self._extend, session, asked)
        return self._extend(session, asked)

    def _extend(self, session: Session, asked: Conversation) -> StitchedPrompt | NotExtended:
        return session.extend(self.renderer_for(asked.template_kwargs), asked.messages, asked.tools)

    def template_hash(self, asked: Conversation) -> str:
        """The hash of the renderer's template."""
        return self.renderer_for(asked.template_kwargs).template.content_hash


@dataclass(frozen=True, slots=True)
class EngineBridging:
    """Bridges by the engine's `/tokenize`: two round trips, and no tokenizer here.

    The real conversation is rendered twice, up to the sampled message and in full. What the full one adds behind
    the close of the sampled message is the bridge (law 2), provided that the first is the beginning of the second
    and that the last sampled id stands where the template closes the message.
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
            base = await self._tokenize(asked, asked.messages[: placed.depth], add_generation_prompt=False)
            full = await self._tokenize(asked, asked.messages, add_generation_prompt=True)
        except (EngineError, TransportError, CallerError) as exc:
            return NotExtended(Why.TOKENIZE_FAILED, str(exc), placed.hashes)
        return _bridged(placed, base, full)

    def template_hash(self, asked: Conversation) -> str:
        """The engine's template is not known here; its kwargs are."""
        return ENGINE_TEMPLATE + json.dumps(dict(asked.template_kwargs), sort_keys=True, default=repr)

    async def _tokenize(
        self, asked: Conversation, messages: Sequence[Message], *, add_generation_prompt: bool
    ) -> TokenIds:
        call = write_tokenize(
            asked.model,
            messages,
            asked.tools,
            asked.template_kwargs,
            add_generation_prompt=add_generation_prompt,
        )
        return await self.server.exchange(call, read_tokenize, asked.headers)


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


def _bridged(anchor: Anchor, base: TokenIds, full: TokenIds) -> StitchedPrompt | NotExtended:
    turn: Turn = anchor.turn
    if not full.starts_with(base):
        detail = f"message {anchor.depth - 1} is rendered otherwise once messages follow it"
        return NotExtended(Why.HISTORY_REWRITE, detail, anchor.hashes)
    ended = base[max(len(base) - _CLOSE_IDS, 0) :]
    last_id = turn.tokens.completion_ids[-1]
    if isinstance(turn.stop_reason, str) or last_id not in ended:
        detail = f"the last sampled id {last_id} does not stand where the template closes the message: {ended}"
        return NotExtended(Why.NO_ATOMIC_CLOSE, detail, anchor.hashes)
    behind = ended[::-1].index(last_id)
    added = tuple(full[len(base) - behind :])
    return bridged_prompt(anchor, Bridge(turn.tokens.all_ids().extended(added), added, Junction.EXACT, ()))
