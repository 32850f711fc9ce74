"""The token client: exact ids go to the engine from the second turn on, and the engine parses the answers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from tokentrue.clients.bridging import Bridging, Conversation, LocalBridging
from tokentrue.clients.by_messages import (
    ask_by_messages,
    bracketed,
    commit_reply,
    with_meaning,
    within_room,
)
from tokentrue.clients.client import Prompt, call_headers
from tokentrue.clients.token_routes import TokenRoutes, sample_by_ids
from tokentrue.engines.engine import Server
from tokentrue.engines.logprobs import LogprobsModes
from tokentrue.engines.policy import Bracket
from tokentrue.generation import ChatRequest, GenerateRequest
from tokentrue.messages import SupportsModelDump, tools_from
from tokentrue.rendering.contract import RendererContract
from tokentrue.sampling import SamplingParams
from tokentrue.sessions.session import Session
from tokentrue.sessions.stitch import NotExtended, StitchedPrompt
from tokentrue.transports.openai_chat import ChatReply, ChatTransport
from tokentrue.turns import FALLBACKS, Response, Why

_LOGGER = logging.getLogger(__name__)

_EXPECTED = frozenset({Why.FIRST_TURN, Why.NOT_TEXT})
"""Reasons to send messages that are no surprise: counted, and not warned about."""


@dataclass(frozen=True, slots=True)
class OpenAIChatCompletionsTokenClient:
    """Tokens in, tokens out, with the engine's own parsers.

    A first turn goes by messages, and its ids are taken as the engine tells them. Later turns are stitched from
    those ids. Where that cannot be done the turn goes by messages again: with a warning, with its reason on the
    turn, and counted in `fallbacks`.

    Args:
        server: Where completions are sampled; closed by `close`.
        transport: The codec of its chat route, for turns by messages.
        routes: Its token route.
        bridging: Who makes the prompts of later turns.
        clip_max_tokens: Lower `max_tokens` to the room that is left, where the engine refuses it.
        logprobs: Finds out what the log-probabilities mean; None leaves it unknown.
        bracket: Reads the policy version before and after each turn.
    """

    server: Server
    transport: ChatTransport
    routes: TokenRoutes
    bridging: Bridging
    clip_max_tokens: bool = False
    logprobs: LogprobsModes | None = None
    bracket: Bracket | None = None
    _fallbacks: Counter[Why] = field(default_factory=Counter, init=False, repr=False, compare=False)

    @property
    def fallbacks(self) -> Mapping[Why, int]:
        """How many turns went by messages although they could perhaps have been stitched, by reason."""
        return dict(self._fallbacks)

    async def get_response(
        self,
        prompt: Prompt,
        model: str,
        sampling_args: Mapping[str, Any] | SamplingParams | None = None,
        tools: Sequence[Mapping[str, Any] | SupportsModelDump] | None = None,
        *,
        session: Session | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Sample the next assistant message of `prompt`; see `Client.get_response`."""
        session = session if session is not None else Session()
        sampling = SamplingParams.from_args(sampling_args)
        asked = Conversation(
            model=model,
            messages=session.read_messages(prompt),
            tools=tools_from(tools),
            template_kwargs=sampling.extra.get("chat_template_kwargs") or {},
            headers=call_headers(session, headers),
        )
        renderer = self._renderer
        if renderer is not None:
            sampling = sampling.with_stop_token_ids(renderer.get_stop_token_ids())
        placed = await self._placed(session, asked)
        request = ChatRequest(model, asked.messages, sampling, asked.tools, asked.headers)
        if isinstance(placed, StitchedPrompt):
            reply = await self._by_ids(asked, placed, sampling)
        else:
            self._note(session, placed)
            reply = await ask_by_messages(self.server, self.transport, request, self.clip_max_tokens, self.bracket)
        reply = await with_meaning(reply, self.logprobs, request, self.server, self.transport)
        return commit_reply(session, placed, reply, f"call_{len(asked.messages)}")

    @property
    def _renderer(self) -> RendererContract | None:
        return self.bridging.renderer if isinstance(self.bridging, LocalBridging) else None

    async def _placed(self, session: Session, asked: Conversation) -> StitchedPrompt | NotExtended:
        """The prompt as ids, or why this turn goes by messages."""
        if any(message.parts for message in asked.messages):
            at = next(index for index, message in enumerate(asked.messages) if message.parts)
            return self._by_messages(session, asked, Why.NOT_TEXT, f"message {at} has parts that are not text")
        placed = await self.bridging.extend(session, asked)
        if isinstance(placed, StitchedPrompt) and await self.routes.chosen(asked.model) is None:
            return self._by_messages(session, asked, Why.NO_TOKEN_ROUTE, "the endpoint serves no token route")
        return placed

    def _by_messages(self, session: Session, asked: Conversation, why: Why, detail: str) -> NotExtended:
        template_hash = self.bridging.template_hash(asked)
        return NotExtended(why, detail, session.hashes_of(template_hash, asked.messages, asked.tools))

    async def _by_ids(self, asked: Conversation, prompt: StitchedPrompt, sampling: SamplingParams) -> ChatReply:
        renderer = self._renderer

        async def ask(chosen: SamplingParams) -> ChatReply:
            request = GenerateRequest(
                model=asked.model,
                prompt_ids=prompt.prompt_ids,
                sampling=chosen,
                vocab_size=renderer.vocab_size if renderer is not None else None,
                tools=asked.tools,
                headers=asked.headers,
            )
            return await sample_by_ids(self.routes, request, asked.messages)

        return await within_room(bracketed(ask, self.bracket), sampling, self.clip_max_tokens)

    def _note(self, session: Session, placed: NotExtended) -> None:
        if placed.why in FALLBACKS:
            self._fallbacks[placed.why] += 1
        if placed.why not in _EXPECTED:
            _LOGGER.warning(
                "session %s: a turn goes by messages and not by ids (%s): %s",
                session.id,
                placed.why.value,
                placed.detail,
            )

    async def close(self) -> None:
        """Close the server's connections; idempotent."""
        await self.server.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
