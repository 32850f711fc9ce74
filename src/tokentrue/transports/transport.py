"""The seam of every wire codec: bytes out, bytes in, no socket anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tokentrue.generation import GenerateRequest, Generation


@dataclass(frozen=True, slots=True)
class HttpCall:
    """One HTTP request to make. `path` starts with "/" and is appended to the server's root URL.

    `idempotent` says that doing it twice changes nothing but the load: a stateless token route samples
    anew, and the first sample was seen by nobody. Only then is it sent again after a lost connection.
    """

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    idempotent: bool = False


@dataclass(frozen=True, slots=True)
class HttpReply:
    """One whole HTTP reply. Header names are in lower case; `answered_by` is the endpoint of a fleet, by name."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    answered_by: str = ""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One entry of `GET /v1/models`; `context_limit` is None when the server does not know it."""

    id: str
    context_limit: int | None
    owner: str = ""


class Transport(Protocol):
    """Writes requests for one engine's API and reads its replies; pure, stateless, shared by all."""

    @property
    def name(self) -> str:
        """The value of `renderer_transport` that selects it."""
        ...

    def write_generate(self, request: GenerateRequest) -> HttpCall:
        """The bytes that ask for one completion of exactly `request.prompt_ids`.

        Raises:
            UnsupportedParameterError: The engine has no place for a parameter.
            InvalidTokenIdError: The prompt is empty or has an id outside the vocabulary.
        """
        ...

    def read_generate(self, request: GenerateRequest, reply: HttpReply) -> Generation:
        """The completion in `reply`, with laws 3 and 4 checked against `request`.

        Raises:
            EngineError, OverlongPromptError: Whatever else the reply is; see `tokentrue.errors`.
        """
        ...

    def write_models(self) -> HttpCall:
        """The request for the list of served models."""
        ...

    def read_models(self, reply: HttpReply) -> tuple[ModelCard, ...]:
        """The served models.

        Raises:
            EngineError: The reply is no model list.
        """
        ...
