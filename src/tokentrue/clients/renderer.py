"""The renderer client: renders and parses here, so the engine sees token ids only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from tokentrue.clients.by_messages import within_room
from tokentrue.clients.client import Prompt, call_headers, finish_reason_of
from tokentrue.clients.reading import answered, read_completion
from tokentrue.engines.engine import Engine
from tokentrue.errors import EmptyCompletionError
from tokentrue.generation import GenerateRequest, Generation
from tokentrue.messages import Message, SupportsModelDump, tools_from
from tokentrue.rendering.contract import RendererContract
from tokentrue.rendering.verdict import OnRewrite
from tokentrue.sampling import SamplingParams
from tokentrue.sessions.session import Session
from tokentrue.sessions.stitch import StitchedPrompt
from tokentrue.turns import Response

_OFF_LOOP_CHARS = 20_000
"""Text longer than this is tokenized in a thread: 20,000 characters take about 10 ms."""


@dataclass(frozen=True, slots=True)
class RendererClient:
    """Token ids in, token ids out, whatever engine is behind it.

    Args:
        engine: Where completions are sampled; closed by `close`.
        renderer: The model's tokenizer and template; must belong to the model that the engine serves.
        clip_max_tokens: Lower `max_tokens` to the room that is left, where the engine refuses it.
        on_rewrite: What becomes of a turn whose history the template would now write otherwise.
        clock: Tells a session that begins what its date is, for templates that ask.
    """

    engine: Engine
    renderer: RendererContract
    clip_max_tokens: bool = False
    on_rewrite: OnRewrite = OnRewrite.EXTEND
    clock: Callable[[], datetime] = field(default=datetime.now, repr=False)

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

        async def ask(sampling: SamplingParams) -> Generation:
            request = GenerateRequest(
                model=model,
                prompt_ids=stitched.prompt_ids,
                sampling=sampling,
                vocab_size=self.renderer.vocab_size,
                headers=call_headers(session, headers),
            )
            return await self.engine.generate(request)

        asked = SamplingParams.from_args(sampling_args).with_stop_token_ids(self.renderer.get_stop_token_ids())
        generation = await within_room(ask, asked, self.clip_max_tokens)
        if not len(generation.tokens.completion_ids):
            raise EmptyCompletionError("the engine finished without sampling a single id")
        return self._respond(session, stitched, generation, offered)

    async def _stitch(
        self, session: Session, messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...]
    ) -> StitchedPrompt:
        renderer = session.clocked(self.renderer, self.clock())
        # What a bridge encodes is what follows the last assistant message; a first prompt is encoded whole.
        last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)
        new = messages[last + 1 :] if session.turns else messages
        if self.on_rewrite is not OnRewrite.EXTEND:
            new = messages  # a verdict renders all of it
        if sum(len(message.content or "") for message in new) > _OFF_LOOP_CHARS:
            return await asyncio.to_thread(session.stitch, renderer, messages, tools, self.on_rewrite)
        return session.stitch(renderer, messages, tools, self.on_rewrite)

    def _respond(
        self,
        session: Session,
        stitched: StitchedPrompt,
        generation: Generation,
        tools: tuple[dict[str, Any], ...],
    ) -> Response:
        parsed = read_completion(self.renderer, generation.tokens, tools)
        message = parsed.to_message(turn=len(session.turns))
        finish_reason = finish_reason_of(generation.finish_reason, parsed)
        turn = session.commit(stitched, generation, message, finish_reason, parsed.unread)
        response = Response(
            id=generation.request_id,
            model=generation.model,
            message=message,
            finish_reason=finish_reason,
            usage=generation.usage,
            tokens=generation.tokens,
            turn=turn,
            prompt_logprobs=generation.prompt_logprobs,
        )
        return answered(response, parsed)

    async def close(self) -> None:
        """Close the engine; idempotent."""
        await self.engine.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
