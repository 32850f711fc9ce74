"""Where a token client sends ids, and who parses what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from tokentrue.clients.by_messages import exchange_at
from tokentrue.clients.reading import read_completion
from tokentrue.engines.engine import Server
from tokentrue.errors import RouteMissingError
from tokentrue.generation import GenerateRequest, Generation
from tokentrue.messages import Message
from tokentrue.rendering.contract import RendererContract
from tokentrue.sampling import SamplingParams
from tokentrue.transports import dynamo
from tokentrue.transports.dynamo import DynamoTransport
from tokentrue.transports.openai_chat import (
    CHAT_TOKENS_PATH,
    ChatReply,
    EngineAnswer,
    VllmChat,
    read_answer,
)
from tokentrue.transports.parameters import OnUnsupported
from tokentrue.transports.sglang import SglangTransport
from tokentrue.transports.tokenize import (
    DERENDER_PATH,
    read_derender,
    read_probe,
    write_derender,
    write_probe,
)
from tokentrue.transports.transport import HttpReply
from tokentrue.transports.vllm import GENERATE_PATH, VllmTransport


class TokenRoute(Protocol):
    """Samples from ids and gives the answer as the engine parses it, or the renderer where it cannot."""

    async def sample(self, request: GenerateRequest, messages: Sequence[Message]) -> ChatReply:
        """One completion of exactly `request.prompt_ids`.

        Args:
            messages: The conversation that the ids stand for; it travels only where a route needs it.

        Raises:
            EvidenceError: The engine did not use the ids.
            RouteMissingError: The route is not served any more.
            CallerError, EngineError, TransportError: See `tokentrue.errors`.
        """
        ...


class TokenRoutes(Protocol):
    """Finds the token route of one endpoint."""

    async def chosen(self, model: str) -> TokenRoute | None:
        """The route, or None when the endpoint serves none.

        Raises:
            EngineError, TransportError: The endpoint cannot be asked; nothing is remembered then.
        """
        ...

    def forget(self) -> None:
        """Ask anew the next time: the route has turned out to be gone."""
        ...


@dataclass(frozen=True, slots=True)
class DynamoTokenRoute:
    """`nvext.token_data` on Dynamo's chat route: one round trip, parsed by the frontend; its own `TokenRoutes`."""

    server: Server
    transport: DynamoTransport = field(default_factory=lambda: DynamoTransport(send_tools=True))

    async def chosen(self, model: str) -> TokenRoute:  # async: another endpoint has to be asked
        """This route: whether it is served shows in the evidence of each reply."""
        del model
        return self

    def forget(self) -> None:
        """Nothing is remembered."""

    async def sample(self, request: GenerateRequest, messages: Sequence[Message]) -> ChatReply:
        """See `TokenRoute`; a placeholder travels in place of the messages."""
        del messages
        call = self.transport.write_generate(request)

        def read(reply: HttpReply) -> ChatReply:
            generation = self.transport.read_generate(request, reply)
            return _chat_reply(generation, read_answer(request, reply, dynamo.WORDS))

        reply, endpoint = await exchange_at(self.server, call, read, request.headers)
        return replace(reply, answered_by=endpoint)


@dataclass(frozen=True, slots=True)
class _ChatTokensRoute:
    """`/v1/chat/completions/tokens`."""

    server: Server
    transport: VllmChat

    async def sample(self, request: GenerateRequest, messages: Sequence[Message]) -> ChatReply:
        call = self.transport.write_chat_tokens(request, messages)
        reply, endpoint = await exchange_at(
            self.server, call, lambda reply: self.transport.read_chat_tokens(request, reply), request.headers
        )
        return replace(reply, answered_by=endpoint)


@dataclass(frozen=True, slots=True)
class GenerateRoute:
    """`/inference/v1/generate`, parsed by vLLM's derender route, or by `renderer` when that is not None."""

    server: Server
    transport: VllmTransport
    renderer: RendererContract | None

    async def chosen(self, model: str) -> TokenRoute:  # async: another endpoint has to be asked
        """This route: whoever chose it knows that it is served."""
        del model
        return self

    def forget(self) -> None:
        """Nothing is remembered."""

    async def sample(self, request: GenerateRequest, messages: Sequence[Message]) -> ChatReply:
        """See `TokenRoute`."""
        bare = replace(request, sampling=_for_generate(request.sampling))
        call = self.transport.write_generate(bare)

        def read(reply: HttpReply) -> tuple[Generation, bytes]:
            return self.transport.read_generate(bare, reply), reply.body

        (generation, body), endpoint = await exchange_at(self.server, call, read, request.headers)
        if self.renderer is not None:
            return replace(_parsed_here(self.renderer, request, generation), answered_by=endpoint)
        answer = await self.server.exchange(
            write_derender(request, messages, body), lambda reply: read_derender(request, reply), request.headers
        )
        return replace(_chat_reply(generation, answer), answered_by=endpoint)


@dataclass(frozen=True, slots=True)
class SglangTokenRoute:
    """SGLang's `/generate`, parsed by the renderer; its own `TokenRoutes`.

    SGLang has to be told how far to sample, so the context limit is asked for where a turn has no `max_tokens`,
    and remembered once it was told.
    """

    server: Server
    renderer: RendererContract
    transport: SglangTransport
    _limits: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    async def chosen(self, model: str) -> TokenRoute:  # async: another endpoint has to be asked
        """This route: every SGLang serves it."""
        del model
        return self

    def forget(self) -> None:
        """Ask for the context limit anew."""
        self._limits.clear()

    async def sample(self, request: GenerateRequest, messages: Sequence[Message]) -> ChatReply:
        """See `TokenRoute`; the messages do not travel."""
        del messages
        sampling = _for_generate(request.sampling)
        limit = await self._limit(request.model) if sampling.max_tokens is None else None
        bare = replace(request, sampling=sampling, vocab_size=self.renderer.vocab_size, context_limit=limit)
        generation, endpoint = await exchange_at(
            self.server,
            self.transport.write_generate(bare),
            lambda reply: self.transport.read_generate(bare, reply),
            request.headers,
        )
        return replace(_parsed_here(self.renderer, request, generation), answered_by=endpoint)

    async def _limit(self, model: str) -> int | None:
        if model not in self._limits:
            cards = await self.server.exchange(self.transport.write_models(), self.transport.read_models)
            told = {card.id: card.context_limit for card in cards if card.context_limit is not None}
            self._limits.update(told)
        return self._limits.get(model)


@dataclass(slots=True)
class VllmTokenRoutes:
    """Asks one vLLM, once, which token route it serves.

    `/v1/chat/completions/tokens` where it is served, else `/inference/v1/generate` with vLLM's own parsers where
    the derender route is served, else with the renderer's. What the server answered is remembered; that it could
    not be asked is not.
    """

    server: Server
    renderer: RendererContract | None = None
    on_unsupported: OnUnsupported = OnUnsupported.RAISE
    _known: list[TokenRoute | None] = field(default_factory=list, init=False, repr=False)
    _asking: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = field(default=None, init=False, repr=False)

    async def chosen(self, model: str) -> TokenRoute | None:
        """See `TokenRoutes`."""
        del model
        if not self._known:
            async with self._lock():
                if not self._known:
                    self._known.append(await self._ask())
        return self._known[0]

    def forget(self) -> None:
        """See `TokenRoutes`."""
        self._known.clear()

    def _lock(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._asking is None or self._asking[0] is not loop:
            self._asking = (loop, asyncio.Lock())
        return self._asking[1]

    async def _ask(self) -> TokenRoute | None:
        if await self._serves(CHAT_TOKENS_PATH):
            return _ChatTokensRoute(self.server, VllmChat(on_unsupported=self.on_unsupported))
        if not await self._serves(GENERATE_PATH):
            return None
        transport = VllmTransport(on_unsupported=self.on_unsupported)
        if await self._serves(DERENDER_PATH):
            return GenerateRoute(self.server, transport, None)
        if self.renderer is not None:
            return GenerateRoute(self.server, transport, self.renderer)
        return None

    async def _serves(self, path: str) -> bool:
        return await self.server.exchange(write_probe(path), read_probe)


async def sample_by_ids(routes: TokenRoutes, request: GenerateRequest, messages: Sequence[Message]) -> ChatReply:
    """One completion by the endpoint's token route, which is asked for again when it turns out to be gone.

    Raises:
        RouteMissingError: The endpoint serves no token route.
        CallerError, EngineError, TransportError: See `tokentrue.errors`.
    """
    route = await routes.chosen(request.model)
    if route is None:
        raise RouteMissingError("the endpoint serves no token route")
    try:
        return await route.sample(request, messages)
    except RouteMissingError:
        routes.forget()
        raise


def _for_generate(sampling: SamplingParams) -> SamplingParams:
    """The parameters without what a chat route takes and a bare token route has no need of.

    Template kwargs have done their work in the bridge. The others ask for what happens anyway: free text, in which
    tool calls are read, or not, by who parses it.
    """
    moot = {
        "tool_choice": ("auto", "none"),
        "parallel_tool_calls": (True,),
        "response_format": ({"type": "text"},),
    }
    kept = {
        name: value
        for name, value in sampling.extra.items()
        if name != "chat_template_kwargs" and value not in moot.get(name, ())
    }
    return replace(sampling, extra=kept)


def _parsed_here(renderer: RendererContract, request: GenerateRequest, generation: Generation) -> ChatReply:
    parsed = read_completion(renderer, generation.tokens, request.tools)
    return _chat_reply(generation, EngineAnswer(parsed, ()))


def _chat_reply(generation: Generation, answer: EngineAnswer) -> ChatReply:
    return ChatReply(
        answer=answer,
        finish_reason=generation.finish_reason,
        generation=generation,
        tokens_missing="",
        id=generation.request_id,
        model=generation.model,
        usage=generation.usage,
    )
