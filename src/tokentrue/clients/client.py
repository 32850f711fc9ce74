"""What every client promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

from tokentrue.generation import FinishReason
from tokentrue.messages import Message, SupportsModelDump
from tokentrue.rendering.reader import ParsedResponse
from tokentrue.sampling import SamplingParams
from tokentrue.sessions.session import Session
from tokentrue.turns import Response

SESSION_HEADER = "X-Session-ID"

Prompt = str | Sequence[Message | Mapping[str, Any] | SupportsModelDump]


class Client(Protocol):
    """Messages in, one assistant message with its exact tokens out. Use as `async with`."""

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
        """Sample the next assistant message of `prompt`.

        Args:
            prompt: The whole conversation so far, in OpenAI chat shape, or one user message as text.
            model: The name under which the engine serves the model.
            sampling_args: OpenAI-style arguments, `extra_body` included, or `SamplingParams`.
            tools: Tool definitions in OpenAI shape.
            session: The conversation; its known turns are extended by their exact ids. Without one,
                every call starts from nothing.
            headers: Further request headers.

        Raises:
            UnreadCompletionError: The renderer raised while it read the completion, and tells no text of it. The
                session has the turn, and so has the error.
            TokentrueError: See `tokentrue.errors`. Nothing is committed to the session then.
        """
        ...

    async def close(self) -> None:
        """Close the engine; idempotent."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...


def call_headers(session: Session, headers: Mapping[str, str] | None) -> dict[str, str]:
    """The headers of one call: the caller's, and the session's id unless the caller names another one."""
    given = dict(headers or {})
    if any(name.lower() == SESSION_HEADER.lower() for name in given):
        return given
    return {SESSION_HEADER: session.id, **given}


def finish_reason_of(engine_said: FinishReason, parsed: ParsedResponse) -> FinishReason:
    """`TOOL_CALLS` only when at least one call is `ok` and the engine said `stop`."""
    if engine_said is FinishReason.STOP and parsed.has_ok_call:
        return FinishReason.TOOL_CALLS
    return engine_said
