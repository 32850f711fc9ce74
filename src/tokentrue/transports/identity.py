"""Which engine answers, in which version: questions that every server takes, and what the answers tell."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from tokentrue.transports.transport import HttpCall, HttpReply

_VLLM_PATH = "/version"
_SGLANG_PATH = "/server_info"
_OPENAPI_PATH = "/openapi.json"
_DYNAMO_TITLE = "NVIDIA Dynamo"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a server says that it is.

    Args:
        engine: "vllm", "dynamo" or "sglang".
        version: As reported.
    """

    engine: str
    version: str


class _Version(msgspec.Struct):
    version: str


class _OpenApiInfo(msgspec.Struct):
    title: str = ""
    version: str = ""


class _OpenApi(msgspec.Struct):
    info: _OpenApiInfo


_VERSION = msgspec.json.Decoder(_Version)
_OPENAPI = msgspec.json.Decoder(_OpenApi)


def identity_calls(expected: str) -> tuple[HttpCall, ...]:
    """The questions, in the order in which to ask them until one answer tells.

    Dynamo tells its version in `/openapi.json` only, and SGLang among its settings.

    Args:
        expected: The engine that the server is thought to be: its own question comes first.
    """
    own = {"sglang": _SGLANG_PATH, "dynamo": _OPENAPI_PATH}.get(expected, _VLLM_PATH)
    paths = dict.fromkeys((own, _VLLM_PATH, _OPENAPI_PATH, _SGLANG_PATH))
    return tuple(HttpCall("GET", path, headers={"accept": "application/json"}, idempotent=True) for path in paths)


def read_identity(call: HttpCall, reply: HttpReply) -> Identity | None:
    """What the answer to one of `identity_calls` tells, or None when it tells nothing."""
    if reply.status != 200:
        return None
    try:
        if call.path == _OPENAPI_PATH:
            info = _OPENAPI.decode(reply.body).info
            return Identity("dynamo", info.version) if info.title.startswith(_DYNAMO_TITLE) else None
        version = _VERSION.decode(reply.body).version
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return Identity("sglang" if call.path == _SGLANG_PATH else "vllm", version)
