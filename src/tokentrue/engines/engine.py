"""The one seam between Tokentrue and whatever samples tokens."""

from __future__ import annotations

from typing import Protocol

from tokentrue.generation import EngineInfo, GenerateRequest, Generation


class Engine(Protocol):
    """Samples completions. Implementations are used from one event loop at a time."""

    async def generate(self, request: GenerateRequest) -> Generation:
        """Sample one completion; cancelling the task stops the sampling.

        Raises:
            OverlongPromptError: The prompt leaves no room.
            InvalidTokenIdError: An id is outside the vocabulary.
            EngineError, TransportError: See `tokentrue.errors`.
        """
        ...

    async def describe(self, model: str | None = None) -> EngineInfo:
        """Ask the engine what it is; a failure is raised and never remembered.

        Args:
            model: The model whose context limit is asked for; None means the first one served.

        Raises:
            UnknownModelError: The engine does not serve `model`.
        """
        ...

    async def close(self) -> None:
        """Release connections and threads; idempotent."""
        ...
