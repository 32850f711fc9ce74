"""What servers say when they do not answer with a sample, mapped to `tokentrue.errors`.

Shapes met on vLLM, Dynamo, SGLang and proxies in front of them: `{"error": {...}}`, a flat
`{"message", "type", "code", "details"}`, `{"error": "..."}`, FastAPI's `{"detail": ...}`,
an event stream whose first event is an error, HTML, and nothing at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from tokentrue.errors import (
    AbortedError,
    EngineBusyError,
    EngineFailureError,
    EngineRequestError,
    MalformedReplyError,
    MaxTokensTooLargeError,
    OverlongPromptError,
    RouteMissingError,
    TokentrueError,
    UnknownModelError,
)
from tokentrue.generation import ChatRequest, GenerateRequest
from tokentrue.transports.transport import HttpReply

AnyRequest = GenerateRequest | ChatRequest

EXCERPT_CHARS = 300

_LIMIT = re.compile(
    r"(?:(?:context|model|sequence|allowed) (?:length|window)|max_model_len|configured limit)"
    r"(?: is| of)?[\s(:=]*(\d{1,9})",
    re.IGNORECASE,
)
_PROMPT_COUNT = re.compile(
    r"(?:prompt contains(?: at least)?|prompt \(length|(?:prompt|request) has|the input \()\s*(\d{1,9})\b"
    r"|(\d{1,9}) (?:in the messages|tokens from the input messages)",
    re.IGNORECASE,
)
_OVERLONG_WORDS = (
    "maximum context length is",
    "maximum context length of",
    "maximum model length",
    "model's context length",
    "exceed the configured limit",
    "exceeds the configured limit",
    "exceeded model",
    "context_length_exceeded",
    "prompt_too_long",
    "prompt is too long",
    "maximum allowed length",
)
# Not "Route not found: GET /v1/models", which is Dynamo's word for a path.
_NO_SUCH_MODEL = re.compile(r"\bmodel\b.*(?:not exist|not found)", re.IGNORECASE)
_PROMPT_IS_TO_BLAME = ("prompt_too_long", "prompt is too long", "prompt contains", "decoder prompt")
_ROUTE_IS_OFF = ("scale-out", "endpoints are disabled", "not enabled")


@dataclass(frozen=True, slots=True)
class ServerWords:
    """What one server's errors mean for its user.

    Args:
        name: The server, for the message.
        route_advice: How the route is switched on.
        route: Which route the advice is about.
    """

    name: str
    route_advice: str
    route: str = "the token route"


@dataclass(frozen=True, slots=True)
class _Complaint:
    """One error object, whatever its envelope."""

    message: str
    kind: str = ""
    code: int | None = None
    is_context_length: bool = False
    limit: int | None = None
    actual: int | None = None


def excerpt(body: bytes) -> str:
    """The beginning of `body` as one line, for a message."""
    text = " ".join(body[: 4 * EXCERPT_CHARS].decode("utf-8", "replace").split())
    return text if len(text) <= EXCERPT_CHARS else text[: EXCERPT_CHARS - 1] + "…"


def _short(value: object) -> str:
    return excerpt(value.encode("utf-8", "replace") if isinstance(value, str) else repr(value).encode())


def _integer(value: object) -> int | None:
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _json_object(body: bytes) -> Mapping[str, Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _complaint_from(value: Mapping[str, Any]) -> _Complaint | None:
    """The error that `value` is or wraps, or None when it is something else."""
    inner = value.get("error", value)
    if isinstance(inner, str):
        return _Complaint(inner)
    if "detail" in value and "error" not in value:
        return _Complaint(_short(value["detail"]))
    if not isinstance(inner, dict) or ("message" not in inner and inner is value):
        return None
    details = inner.get("details")
    details = details if isinstance(details, dict) else {}
    return _Complaint(
        message=_short(inner.get("message", inner)),
        kind=str(inner.get("type", "")),
        code=_integer(inner.get("code")),
        is_context_length=details.get("type") == "context_length",
        limit=_integer(details.get("limit")),
        actual=_integer(details.get("actual")),
    )


def _streamed_objects(body: bytes) -> list[Mapping[str, Any]]:
    """The JSON objects of an event stream; empty when `body` is none."""
    if not body.lstrip().startswith((b"data:", b"event:", b":", b"id:")):
        return []
    lines = (line[5:] for line in body.splitlines() if line.startswith(b"data:"))
    return [value for line in lines if (value := _json_object(line)) is not None]


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of a `Retry-After` header; a date is measured from the reply's own `Date`."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text):
        return float(text)
    try:
        return _until(text, headers)
    except (ValueError, TypeError, OverflowError):
        return None


def _until(text: str, headers: Mapping[str, str]) -> float | None:
    if not text or "date" not in headers:
        return None
    wait = parsedate_to_datetime(text) - parsedate_to_datetime(headers["date"])
    return max(wait.total_seconds(), 0.0)


def _overlong(complaint: _Complaint, request: AnyRequest, status: int) -> TokentrueError | None:
    """The error for a length complaint, or None when `complaint` is about something else.

    One and the same 400 means "the prompt is too long" and "prompt plus max_tokens is too long" (Dynamo
    1.6.1 always, older vLLM by its words), so it is decided by the length of the prompt where that is known.
    """
    words = f"{complaint.message} {complaint.kind}".lower()
    if not complaint.is_context_length and not any(phrase in words for phrase in _OVERLONG_WORDS):
        return None
    found = _LIMIT.search(complaint.message)
    limit = complaint.limit if complaint.limit is not None else int(found.group(1)) if found else None
    prompt_len = request.prompt_len if request.prompt_len is not None else _told_prompt_len(complaint, request)
    if limit is None:
        if any(phrase in words for phrase in _PROMPT_IS_TO_BLAME) and prompt_len is not None:
            # Not told, but a prompt of this length was refused, so it cannot be larger.
            return OverlongPromptError(prompt_len, prompt_len)
        return EngineRequestError(
            "the request is longer than the context", status=status, detail=complaint.message
        )
    if prompt_len is not None and prompt_len >= limit:
        return OverlongPromptError(prompt_len, limit)
    if prompt_len is None and request.sampling.max_tokens is None:
        return OverlongPromptError(limit, limit)
    if prompt_len is None:
        count, advice = "an unknown number of", "lower max_tokens or leave it out"
    else:
        room = limit - prompt_len
        count, advice = str(prompt_len), f"which leaves room for {room}; lower max_tokens to that or leave it out"
    return MaxTokensTooLargeError(
        f"max_tokens={request.sampling.max_tokens} is too large: the prompt has {count} tokens and the "
        f"context limit is {limit}, {advice}",
        limit=limit,
        prompt_len=prompt_len,
        status=status,
        detail=complaint.message,
    )


def _told_prompt_len(complaint: _Complaint, request: AnyRequest) -> int | None:
    """The length of a prompt that the engine rendered, where its complaint tells it without doubt.

    Dynamo's `actual` is the prompt alone when that is too long, else prompt and `max_tokens` together; it is
    told apart only where one of the two readings contradicts itself.
    """
    found = _PROMPT_COUNT.search(complaint.message)
    if found:
        return int(found.group(1) or found.group(2))
    actual, limit, asked = complaint.actual, complaint.limit, request.sampling.max_tokens
    if actual is None or limit is None:
        return None
    if asked is None or actual <= asked or actual - asked >= limit:
        return actual
    return None if actual > limit else actual


def _not_found(complaint: _Complaint, status: int, words: ServerWords) -> TokentrueError:
    if _NO_SUCH_MODEL.search(complaint.message):
        return UnknownModelError(
            f"{words.name} does not serve this model", status=status, detail=complaint.message
        )
    return _route_missing(complaint, status, words)


def _route_missing(complaint: _Complaint, status: int, words: ServerWords) -> TokentrueError:
    return RouteMissingError(
        f"{words.name} does not serve {words.route}; {words.route_advice}",
        status=status,
        detail=complaint.message,
    )


def _client_error(
    complaint: _Complaint, status: int, request: AnyRequest | None, words: ServerWords
) -> TokentrueError:
    detail = complaint.message
    if status == 401:
        return EngineRequestError("the API key is missing or not accepted", status=status, detail=detail)
    if status == 404:
        return _not_found(complaint, status, words)
    if status == 405 or (status == 403 and any(word in detail.lower() for word in _ROUTE_IS_OFF)):
        return _route_missing(complaint, status, words)
    if status == 499:
        return AbortedError("the request was cancelled on the server's side", status=status, detail=detail)
    overlong = _overlong(complaint, request, status) if request is not None else None
    if overlong is not None:
        return overlong
    return EngineRequestError(f"{words.name} refuses the request", status=status, detail=detail)


def _by_status(
    complaint: _Complaint, status: int, reply: HttpReply, request: AnyRequest | None, words: ServerWords
) -> TokentrueError:
    detail = complaint.message
    if status in (429, 503):
        wait_s = retry_after_s(reply.headers)
        return EngineBusyError(
            f"{words.name} cannot take the request now", status=status, detail=detail, retry_after_s=wait_s
        )
    if status == 501:
        return _route_missing(complaint, status, words)
    if 400 <= status < 500:
        return _client_error(complaint, status, request, words)
    if 300 <= status < 400:
        target = reply.headers.get("location", "")
        return EngineRequestError(
            f"{words.name} redirects to {target!r}; set the base URL to where it really is", status=status
        )
    return EngineFailureError(f"{words.name} failed", status=status, detail=detail)


def refusal(reply: HttpReply, request: AnyRequest | None, words: ServerWords) -> TokentrueError | None:
    """The error that `reply` is, or None when it is a 200 that carries no error object.

    Args:
        request: What was asked, to tell a long prompt from a large `max_tokens`; None for other calls.
    """
    if reply.status != 200:
        value = _json_object(reply.body)
        complaint = (_complaint_from(value) if value is not None else None) or _streamed_complaint(reply.body)
        if complaint is None:
            complaint = _Complaint(excerpt(reply.body))
        if 200 < reply.status < 300 or reply.status < 200:
            return MalformedReplyError(
                "a reply must have status 200", status=reply.status, detail=complaint.message
            )
        return _by_status(complaint, reply.status, reply, request, words)
    streamed = _streamed_complaint(reply.body)
    if streamed is not None:
        return _inside_200(streamed, reply, request, words)
    return None


def _streamed_complaint(body: bytes) -> _Complaint | None:
    for value in _streamed_objects(body):
        if "error" in value:
            return _complaint_from(value)
    return None


def _inside_200(
    complaint: _Complaint, reply: HttpReply, request: AnyRequest | None, words: ServerWords
) -> TokentrueError:
    if complaint.code is not None and 400 <= complaint.code < 600:
        return _by_status(complaint, complaint.code, reply, request, words)
    return EngineFailureError(f"{words.name} reports an error inside a 200", status=200, detail=complaint.message)


def reported_inside(
    message: str, code: int, reply: HttpReply, request: AnyRequest | None, words: ServerWords
) -> TokentrueError:
    """The error that a 200 reports in a place of its own, with the HTTP status that it should have had."""
    return _inside_200(_Complaint(_short(message), code=code), reply, request, words)


def unreadable(reply: HttpReply, request: AnyRequest | None, words: ServerWords, why: str) -> TokentrueError:
    """The error for a 200 whose body is not the promised object: an error inside it, a stream, or garbage."""
    value = _json_object(reply.body)
    complaint = _complaint_from(value) if value is not None and not value.get("choices") else None
    if complaint is not None:
        return _inside_200(complaint, reply, request, words)
    if _streamed_objects(reply.body):
        why = "an event stream came although none was asked for"
    return MalformedReplyError(
        f"{words.name} sent no readable reply ({why})", status=200, detail=excerpt(reply.body)
    )
