"""The one seam between Tokentrue and whatever samples tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Protocol, TypeVar, runtime_checkable

from tokentrue.errors import UnsupportedParameterError
from tokentrue.generation import Delta, EngineInfo, GenerateRequest, Generation
from tokentrue.transports.transport import HttpCall, HttpReply

T = TypeVar("T")


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


@runtime_checkable
class StreamingEngine(Engine, Protocol):
    """An engine that also tells ids while they are sampled."""

    def stream(self, request: GenerateRequest) -> AsyncGenerator[Delta | Generation, None]:
        """Sample one completion; deltas as they come, and last the same `Generation` as `generate` gives.

        Leave it early only by closing it (`async with contextlib.aclosing(engine.stream(request)) as parts`):
        that stops the sampling.

        Raises:
            TokentrueError: As `generate`. A stream that breaks off is an error whose `partial` holds what came.
        """
        ...


def stream_of(engine: Engine, request: GenerateRequest) -> AsyncGenerator[Delta | Generation, None]:
    """`engine.stream(request)`; leave it early only by closing it.

    Raises:
        UnsupportedParameterError: This engine has no stream.
    """
    if not isinstance(engine, StreamingEngine):
        raise UnsupportedParameterError(
            "stream", type(engine).__name__, "it has no method `stream`; use `generate`"
        )
    return engine.stream(request)


class Server(Protocol):
    """A server that takes more than one kind of call; `HttpEngine` is one, and so is any fake of it."""

    async def exchange(
        self, call: HttpCall, read: Callable[[HttpReply], T], headers: Mapping[str, str] | None = None
    ) -> T:
        """Make one call and give what `read` makes of its reply.

        Raises:
            EngineError, TransportError: See `tokentrue.errors`.
        """
        ...

    async def close(self) -> None:
        """Release connections; idempotent."""
        ...


@runtime_checkable
class ManyServers(Protocol):
    """Several endpoints behind one `Server`, as a fleet is; `HttpReply.answered_by` says which one replied."""

    def at(self, name: str) -> Server:
        """The endpoint of that name, whose calls go nowhere else. Not to be closed.

        Raises:
            ConfigError: There is no endpoint of that name.
        """
        ...


class EngineServer(Engine, Server, Protocol):
    """Both of them; `HttpEngine` is one, and so is a fleet."""
