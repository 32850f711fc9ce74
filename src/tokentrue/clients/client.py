"""What every client promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

from tokentrue.messages import Message, SupportsModelDump
from tokentrue.sampling import SamplingParams
from tokentrue.sessions.session import Session
from tokentrue.turns import Response

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
            TokentrueError: See `tokentrue.errors`. Nothing is committed to the session then.
        """
        ...

    async def close(self) -> None:
        """Close the engine; idempotent."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...
