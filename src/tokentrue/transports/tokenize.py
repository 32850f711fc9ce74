"""Helper routes: `/tokenize` (vLLM, SGLang) renders to ids, `/v1/chat/completions/derender` (vLLM) parses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tokentrue.errors import EvidenceError, MalformedReplyError
from tokentrue.generation import GenerateRequest
from tokentrue.messages import Message
from tokentrue.tokens import TokenIds
from tokentrue.transports.bodies import JSON_HEADERS, json_bytes, with_ids
from tokentrue.transports.openai_chat import EngineAnswer, read_answer, wire_messages
from tokentrue.transports.refusals import ServerWords, refusal, unreadable
from tokentrue.transports.transport import HttpCall, HttpReply

TOKENIZE_PATH = "/tokenize"
DERENDER_PATH = "/v1/chat/completions/derender"

_WORDS = ServerWords("the engine", "this path is served by vLLM and SGLang; give the client a renderer instead")


class _Tokens(msgspec.Struct):
    tokens: list[int]
    count: int | None = None


_DECODER = msgspec.json.Decoder(_Tokens)


def write_tokenize(
    model: str,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    template_kwargs: Mapping[str, Any],
) -> HttpCall:
    """The bytes that ask for the prompt's ids of a conversation, rendered as the chat route would."""
    body: dict[str, Any] = {
        "model": model,
        "messages": wire_messages(messages),
        "add_generation_prompt": True,
        "add_special_tokens": False,
    }
    if tools:
        body["tools"] = list(tools)
    if template_kwargs:
        body["chat_template_kwargs"] = dict(template_kwargs)
    return HttpCall("POST", TOKENIZE_PATH, json_bytes(body, "vllm"), JSON_HEADERS, idempotent=True)


def read_tokenize(reply: HttpReply) -> TokenIds:
    """The ids.

    Raises:
        MalformedReplyError: They are no ids, or not as many as the server counts.
        EngineError: The reply is an error.
    """
    refused = refusal(reply, None, _WORDS)
    if refused is not None:
        raise refused
    try:
        answer = _DECODER.decode(reply.body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise unreadable(reply, None, _WORDS, str(exc)) from exc
    if answer.count is not None and answer.count != len(answer.tokens):
        raise MalformedReplyError(f"{len(answer.tokens)} ids came, {answer.count} are counted", status=200)
    return TokenIds(answer.tokens)


def write_derender(request: GenerateRequest, messages: Sequence[Message], generated: bytes) -> HttpCall:
    """The bytes that ask vLLM to parse a completion of `/inference/v1/generate`.

    Args:
        generated: The body of that route's reply, unchanged.
    """
    chat: dict[str, Any] = {"model": request.model, "messages": wire_messages(messages)}
    if request.tools:
        chat["tools"] = list(request.tools)
    for name in ("tool_choice", "chat_template_kwargs"):
        if name in request.sampling.extra:
            chat[name] = request.sampling.extra[name]
    body = {"model": request.model, "prompt_tokens": len(request.prompt_ids), "chat_request": chat}
    rest = with_ids("prompt_token_ids", request.prompt_ids.json_items(), json_bytes(body, "vllm"))
    full = b'{"generate_response":' + generated + b"," + rest[1:]
    return HttpCall("POST", DERENDER_PATH, full, JSON_HEADERS, idempotent=True)


def read_derender(request: GenerateRequest, reply: HttpReply) -> EngineAnswer:
    """The message.

    Raises:
        EngineError: The reply is an error, or no chat completion.
    """
    return read_answer(request, reply, _WORDS)


def write_probe(path: str) -> HttpCall:
    """A request that no server carries out and that tells whether it serves `path`: an empty object."""
    return HttpCall("POST", path, b"{}", JSON_HEADERS, idempotent=True)


def read_probe(reply: HttpReply) -> bool:
    """Whether the path is served: its own complaint about the empty object says so.

    Raises:
        EngineError: The reply tells neither (authentication, a server that fails or is busy, a redirect).
        EvidenceError: The server accepts an empty request.
    """
    if reply.status in (400, 422):
        return True
    if reply.status in (404, 405, 501):
        return False
    refused = refusal(reply, None, _WORDS)
    if reply.status == 403 and b"isabled" in reply.body:
        return False
    if refused is None:
        raise EvidenceError("the server takes an empty request for a completion", status=reply.status)
    raise refused
