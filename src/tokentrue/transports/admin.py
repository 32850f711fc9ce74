"""The seam of every engine's control plane: pause, resume, load and label weights, reset the prefix cache (pure).

Each operation is one call and its reader. A reader gives the value or raises; that an engine says "ok" to
something it did not do is held against it wherever its reply shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from tokentrue.errors import EngineFailureError, MalformedReplyError
from tokentrue.transports.bodies import JSON_HEADERS, json_bytes
from tokentrue.transports.refusals import ServerWords, excerpt, refusal
from tokentrue.transports.transport import HttpCall, HttpReply

T = TypeVar("T")


class PauseMode(Enum):
    """What happens to requests in flight when an engine is paused. New ones are held until it resumes."""

    ABORT = "abort"
    """They end at once, with the ids sampled so far; a client can resume them token-exactly."""
    WAIT = "wait"
    """They are sampled to their end first."""
    KEEP = "keep"
    """They stop where they are and go on after the resumption, their keys and values computed anew."""


@dataclass(frozen=True, slots=True)
class AdminCall(Generic[T]):
    """One operation: what to send, and what to make of the reply."""

    call: HttpCall
    read: Callable[[HttpReply], T]


class AdminCodec(Protocol):
    """Writes the control calls of one engine and reads their replies; pure, stateless, shared by all."""

    @property
    def name(self) -> str:
        """The value of `renderer_transport` of the same engine."""
        ...

    def pause(self, mode: PauseMode) -> AdminCall[None]:
        """Hold new requests, deal with those in flight as `mode` says, and drop their keys and values.

        Raises:
            UnsupportedParameterError: The engine has no such mode.
        """
        ...

    def resume(self) -> AdminCall[None]:
        """Sample again."""
        ...

    def load(self, path: str, version: str) -> AdminCall[None]:
        """Replace the weights by those of a checkpoint folder that the engine can read."""
        ...

    def set_version(self, version: str) -> AdminCall[None]:
        """Label the weights; replies and `version` name the label from now on."""
        ...

    def reset_prefix_cache(self) -> AdminCall[None]:
        """Forget all keys and values, those of held requests included."""
        ...

    def version(self) -> AdminCall[str]:
        """The label of the weights.

        The reader raises `EvidenceError` where the engine has none.
        """
        ...


def admin_call(
    method: str,
    path: str,
    words: ServerWords,
    read: Callable[[Mapping[str, Any]], T],
    body: Mapping[str, Any] | None = None,
) -> AdminCall[T]:
    """A call whose reply is a JSON object with status 200, which `read` looks at.

    Doing any of them twice is the same as doing it once, so a connection that had gone stale is no failure.
    """
    headers = JSON_HEADERS if body is not None else {"accept": "application/json"}
    call = HttpCall(
        method, path, body=b"" if body is None else json_bytes(body, words.name), headers=headers, idempotent=True
    )
    return AdminCall(call, lambda reply: read(read_object(reply, words)))


def read_object(reply: HttpReply, words: ServerWords) -> Mapping[str, Any]:
    """The JSON object that a reply holds.

    Raises:
        RouteMissingError: The route is not switched on; says how it is.
        EngineError: It is an error, or no JSON object.
    """
    refused = refusal(reply, None, words)
    if refused is not None:
        raise refused
    try:
        return msgspec.json.decode(reply.body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedReplyError(
            f"{words.name} sent no readable reply ({exc})", status=200, detail=excerpt(reply.body)
        ) from exc


def expect(said: Mapping[str, Any], key: str, wanted: object, words: ServerWords, what: str) -> None:
    """Hold a reply against what it should say.

    Raises:
        EngineFailureError: It says something else, or nothing; `what` was not done.
    """
    if said.get(key) != wanted:
        detail = str(said.get("message", said))
        raise EngineFailureError(f"{words.name} did not {what}", status=200, detail=excerpt(detail.encode()))
