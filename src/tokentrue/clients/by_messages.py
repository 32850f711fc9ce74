"""A turn by messages: the engine renders the prompt, and the ids that it tells enter the session."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from tokentrue.clients.client import finish_reason_of
from tokentrue.clients.reading import answered
from tokentrue.engines.engine import ManyServers, Server
from tokentrue.engines.logprobs import Ask, LogprobsModes
from tokentrue.engines.policy import Bracket, Mark
from tokentrue.errors import EngineError, EvidenceError, MaxTokensTooLargeError, TransportError
from tokentrue.generation import ChatRequest, Generation, LogprobsMode, with_logprobs_mode
from tokentrue.messages import Message
from tokentrue.sampling import SamplingParams
from tokentrue.sessions.session import Session
from tokentrue.sessions.stitch import NotExtended, StitchedPrompt, engine_rendered
from tokentrue.transports.openai_chat import ChatReply, ChatTransport
from tokentrue.transports.transport import HttpCall, HttpReply
from tokentrue.turns import Response

T = TypeVar("T")

AskFor = Callable[[SamplingParams], Awaitable[T]]
"""One request with these parameters."""

_QUESTIONS = ("Say any word.", "Tell me a story.", "What do you think?", "Name a colour.")
"""Messages that a model can begin to answer in many ways."""


async def ask_by_messages(
    server: Server,
    transport: ChatTransport,
    request: ChatRequest,
    clip_max_tokens: bool,
    bracket: Bracket | None = None,
) -> ChatReply:
    """One chat completion.

    Args:
        bracket: Says which policy version sampled it, where the engine does not.

    Raises:
        OverlongPromptError: The prompt leaves no room.
        MaxTokensTooLargeError: Only `max_tokens` is too large, and `clip_max_tokens` is off.
        UnsupportedParameterError, EngineError, TransportError: See `tokentrue.errors`.
    """

    async def ask(sampling: SamplingParams) -> ChatReply:
        asked = replace(request, sampling=sampling)
        call = transport.write_chat(asked)
        reply, endpoint = await exchange_at(
            server, call, lambda reply: transport.read_chat(asked, reply), request.headers
        )
        return replace(reply, answered_by=endpoint)

    return await within_room(bracketed(ask, bracket), request.sampling, clip_max_tokens)


async def exchange_at(
    server: Server, call: HttpCall, read: Callable[[HttpReply], T], headers: Mapping[str, str]
) -> tuple[T, str]:
    """What `read` gives, and which endpoint of a fleet answered; "" for a server that is no fleet."""

    def both(reply: HttpReply) -> tuple[T, str]:
        return read(reply), reply.answered_by

    return await server.exchange(call, both, headers)


def bracketed(ask: AskFor[ChatReply], bracket: Bracket | None) -> AskFor[ChatReply]:
    """`ask`, with the policy version read before and after it where there is a bracket."""
    if bracket is None:
        return ask

    async def ask_inside(sampling: SamplingParams) -> ChatReply:
        return await bracket.around(ask, sampling, _with_versions)

    return ask_inside


def _with_versions(reply: ChatReply, mark: Mark) -> ChatReply:
    if reply.generation is None:
        return reply
    return replace(reply, generation=mark(reply.generation))


async def within_room(ask: AskFor[T], sampling: SamplingParams, clip_max_tokens: bool) -> T:
    """What `ask` gives; where only `max_tokens` is too large, once more with what there is room for.

    Dynamo answers a prompt that it rendered itself with one and the same 400 whether the prompt or `max_tokens` is
    too long. Without clipping, one more request, for a single token, then tells which.

    Raises:
        OverlongPromptError: The prompt leaves no room.
        MaxTokensTooLargeError: Only `max_tokens` is too large, and `clip_max_tokens` is off.
    """
    try:
        return await ask(sampling)
    except MaxTokensTooLargeError as exc:
        if exc.partial is not None:
            raise  # of the rest of a resumed turn: asking anew would throw its ids away
        if clip_max_tokens:
            # Where the room is not known it is left out: an engine then fills what there is.
            return await ask(sampling.with_max_tokens(exc.room))
        if exc.prompt_len is None:
            with contextlib.suppress(EngineError, TransportError):
                await ask(sampling.with_max_tokens(1))
        raise


def chat_route(server: Server, transport: ChatTransport) -> Callable[[ChatRequest], Awaitable[ChatReply]]:
    """The chat route as it is, without a second try."""

    async def ask(request: ChatRequest) -> ChatReply:
        return await ask_by_messages(server, transport, request, clip_max_tokens=False)

    return ask


async def with_meaning(
    reply: ChatReply,
    modes: LogprobsModes | None,
    request: ChatRequest,
    server: Server,
    transport: ChatTransport,
) -> ChatReply:
    """The reply, of which the log-probabilities say what they mean; `modes` None measures nothing.

    Args:
        request: What was asked, whichever route it took.
        server: Who is asked, by its chat route: that is served wherever these clients are used. Of a fleet it is
            the endpoint that answered; two of them may mean two things.
    """
    if reply.generation is None:
        return reply
    if modes is None:
        return replace(
            reply, generation=with_logprobs_mode(reply.generation, request.sampling, LogprobsMode.UNKNOWN)
        )

    endpoint = reply.answered_by
    ask = chat_route(server.at(endpoint) if endpoint and isinstance(server, ManyServers) else server, transport)

    def question(text: str) -> Ask:
        async def sampled(shaped: SamplingParams) -> Generation:
            message = Message(role="user", content=text)
            answer = await ask(ChatRequest(request.model, (message,), shaped, headers=request.headers))
            if answer.generation is None:
                raise EvidenceError("the chat route tells no ids", detail=answer.tokens_missing)
            return answer.generation

        return sampled

    marked = await modes.marked(
        reply.generation,
        f"{request.model} at {endpoint}" if endpoint else request.model,
        request.sampling,
        lambda: [question(text) for text in _QUESTIONS],
    )
    return replace(reply, generation=marked)


def commit_reply(
    session: Session, prompt: StitchedPrompt | NotExtended, reply: ChatReply, call_id_prefix: str
) -> Response:
    """Enter an answer into the session, and make the response of it.

    Args:
        prompt: What was sent as ids; or why messages were sent instead, and then the ids are the engine's.
    """
    message = reply.answer.to_message(call_id_prefix)
    finish_reason = finish_reason_of(reply.finish_reason, reply.answer.parsed)
    turn = None
    if reply.generation is None:
        session.commit_without_ids(prompt.hashes, message)
    else:
        if isinstance(prompt, NotExtended):
            prompt_ids = reply.generation.tokens.prompt_ids
            prompt = engine_rendered(prompt.hashes, prompt_ids, prompt.why, prompt.detail)
        turn = session.commit(prompt, reply.generation, message, finish_reason, reply.answer.parsed.unread)
    response = Response(
        id=reply.id,
        model=reply.model,
        message=message,
        finish_reason=finish_reason,
        usage=reply.usage,
        tokens=reply.generation.tokens if reply.generation is not None else None,
        turn=turn,
        tokens_missing=reply.tokens_missing,
        prompt_logprobs=reply.generation.prompt_logprobs if reply.generation is not None else None,
    )
    return answered(response, reply.answer.parsed)
