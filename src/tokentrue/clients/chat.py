"""The messages-in client: the engine renders every prompt and parses every answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from tokentrue.clients.by_messages import ask_by_messages, commit_reply, with_meaning
from tokentrue.clients.client import Prompt, call_headers
from tokentrue.engines.engine import Server
from tokentrue.engines.logprobs import LogprobsModes
from tokentrue.engines.policy import Bracket
from tokentrue.generation import ChatRequest
from tokentrue.messages import SupportsModelDump, tools_from
from tokentrue.sampling import SamplingParams
from tokentrue.sessions.session import Session
from tokentrue.sessions.stitch import NotExtended
from tokentrue.transports.openai_chat import ChatTransport, VllmChat
from tokentrue.turns import Response, Why

ENGINE_TEMPLATE = "the engine's own template"
"""Stands for the template in a session whose prompts are rendered by the engine."""


@dataclass(frozen=True, slots=True)
class OpenAIChatCompletionsClient:
    """Messages in, tokens out: each turn is rendered anew by the engine, and says so (`ENGINE_RENDERED`).

    Where the engine tells no ids, `Response.tokens` and `Response.turn` are None and `Response.tokens_missing`
    says why; there is never half of them.

    Args:
        server: Where completions are sampled; closed by `close`.
        transport: The codec of its chat route.
        clip_max_tokens: Lower `max_tokens` to the room that is left, where the engine refuses it.
        logprobs: Finds out what the log-probabilities mean; None leaves it unknown.
        bracket: Reads the policy version before and after each turn.
    """

    server: Server
    transport: ChatTransport = field(default_factory=VllmChat)
    clip_max_tokens: bool = False
    logprobs: LogprobsModes | None = None
    bracket: Bracket | None = None

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
        offered = tools_from(tools)
        messages = session.read_messages(prompt)
        request = ChatRequest(
            model=model,
            messages=messages,
            sampling=SamplingParams.from_args(sampling_args),
            tools=offered,
            headers=call_headers(session, headers),
        )
        reply = await ask_by_messages(self.server, self.transport, request, self.clip_max_tokens, self.bracket)
        reply = await with_meaning(reply, self.logprobs, request, self.server, self.transport)
        is_first = all(message.role != "assistant" for message in messages)
        placed = NotExtended(
            why=Why.FIRST_TURN if is_first else Why.MESSAGES_ONLY,
            detail="" if is_first else "this client sends messages on every turn",
            hashes=session.hashes_of(ENGINE_TEMPLATE, messages, offered),
        )
        return commit_reply(session, placed, reply, f"call_{len(messages)}")

    async def close(self) -> None:
        """Close the server's connections; idempotent."""
        await self.server.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
