"""The renderer client: renders and parses here, so the engine sees token ids only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from tokentrue.clients.client import Prompt
from tokentrue.engines.engine import Engine
from tokentrue.errors import EmptyCompletionError
from tokentrue.generation import FinishReason, GenerateRequest, Generation
from tokentrue.messages import Message, SupportsModelDump, tools_from
from tokentrue.rendering.reader import ParsedResponse
from tokentrue.rendering.renderer import Renderer
from tokentrue.sampling import SamplingParams
from tokentrue.sessions.session import Session
from tokentrue.sessions.stitch import StitchedPrompt
from tokentrue.turns import Response

SESSION_HEADER = "X-Session-ID"

_OFF_LOOP_CHARS = 20_000
"""Text longer than this is tokenized in a thread: 20,000 characters take about 10 ms."""


@dataclass(frozen=True, slots=True)
class RendererClient:
    """Token ids in, token ids out, whatever engine is behind it.

    Args:
        engine: Where completions are sampled; closed by `close`.
        renderer: The model's tokenizer and template; must belong to the model that the engine serves.
    """

    engine: Engine
    renderer: Renderer

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
        stitched = await self._stitch(session, messages, offered)
        request = GenerateRequest(
            model=model,
            prompt_ids=stitched.prompt_ids,
            sampling=SamplingParams.from_args(sampling_args).with_stop_token_ids(self.renderer.stop_ids),
            vocab_size=self.renderer.vocab_size,
            headers={SESSION_HEADER: session.id, **(headers or {})},
        )
        generation = await self.engine.generate(request)
        if not len(generation.tokens.completion_ids):
            raise EmptyCompletionError("the engine finished without sampling a single id")
        return self._respond(session, stitched, generation, offered)

    async def _stitch(
        self, session: Session, messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...]
    ) -> StitchedPrompt:
        if sum(len(message.content or "") for message in messages) > _OFF_LOOP_CHARS:
            return await asyncio.to_thread(session.stitch, self.renderer, messages, tools)
        return session.stitch(self.renderer, messages, tools)

    def _respond(
        self,
        session: Session,
        stitched: StitchedPrompt,
        generation: Generation,
        tools: tuple[dict[str, Any], ...],
    ) -> Response:
        parsed = self.renderer.parse_response(
            generation.tokens.completion_ids, prompt_ids=generation.tokens.prompt_ids, tools=tools
        )
        message = parsed.to_message(f"call_{len(session.turns)}")
        finish_reason = finish_reason_of(generation.finish_reason, parsed)
        turn = session.commit(stitched, generation, message, finish_reason)
        return Response(
            id=generation.request_id,
            model=generation.model,
            message=message,
            finish_reason=finish_reason,
            usage=generation.usage,
            tokens=generation.tokens,
            turn=turn,
        )

    async def close(self) -> None:
        """Close the engine; idempotent."""
        await self.engine.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


def finish_reason_of(engine_said: FinishReason, parsed: ParsedResponse) -> FinishReason:
    """`TOOL_CALLS` only when at least one call is `ok` and the engine said `stop`."""
    if engine_said is FinishReason.STOP and parsed.has_ok_call:
        return FinishReason.TOOL_CALLS
    return engine_said
