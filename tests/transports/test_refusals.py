"""What is no sample: each spelling of each refusal becomes one error of the tree."""

from __future__ import annotations

import json

import pytest

from tokentrue.errors import (
    AbortedError,
    EngineBusyError,
    EngineFailureError,
    EngineRequestError,
    MalformedReplyError,
    MaxTokensTooLargeError,
    OverlongPromptError,
    RouteMissingError,
    UnknownModelError,
)
from tokentrue.generation import GenerateRequest
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.dynamo import DynamoTransport
from tokentrue.transports.transport import HttpReply, ModelCard
from tokentrue.transports.vllm import VllmTransport

VLLM, DYNAMO = VllmTransport(), DynamoTransport()
BOTH = pytest.mark.parametrize("transport", [VLLM, DYNAMO], ids=["vllm", "dynamo"])

OVERLONG = [
    # vLLM 0.32, generate and completions
    "The decoder prompt (length 2100) is longer than the maximum model length of 2048. Make sure that ...",
    "The decoder prompt (length 2048) plus the number of requested output tokens (at least 1) is longer than the "
    "maximum model length of 2048.",
    "This model's maximum context length is 2048 tokens. However, your prompt contains 2100 input tokens.",
    # older vLLM, SGLang, gateways
    "This model's maximum context length is 2048 tokens. However, your request has 2100 input tokens.",
    "The input (2100 tokens) is longer than the model's context length (2048 tokens).",
    "Requested token count exceeds the model's maximum context length of 2048 tokens.",
    "The prompt exceeds the configured limit of 2048 tokens",
]


def refused(transport, status, answer, *, prompt_len=3, max_tokens=None, headers=None):
    """The error that a reply becomes."""
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    request = GenerateRequest("m", TokenIds([1] * prompt_len), SamplingParams(max_tokens=max_tokens))
    with pytest.raises(Exception) as raised:  # noqa: PT011 - the caller compares the type
        transport.read_generate(request, HttpReply(status, headers or {}, body))
    return raised.value


@BOTH
@pytest.mark.parametrize("words", OVERLONG)
@pytest.mark.parametrize("shape", ["wrapped", "flat", "detail", "event"])
def test_a_long_prompt_is_told_with_both_numbers(transport, words, shape) -> None:
    inner = {"message": words, "type": "BadRequestError", "code": 400}
    body = {
        "wrapped": {"error": inner},
        "flat": inner,
        "detail": {"detail": words},
        "event": b"data: " + json.dumps({"error": inner}).encode() + b"\n\ndata: [DONE]\n\n",
    }[shape]
    error = refused(transport, 200 if shape == "event" else 400, body, prompt_len=2100)
    assert type(error) is OverlongPromptError
    assert (error.prompt_len, error.limit) == (2100, 2048)


@BOTH
@pytest.mark.parametrize(
    "answer",
    [
        {
            "message": "Invalid request",
            "code": 400,
            "details": {"type": "context_length", "limit": 2048, "actual": 2050},
        },
        {
            "error": {
                "message": "'max_tokens' is too large: 4. This model's maximum context length is 2048 tokens and "
                "your request has 2046 input tokens"
            }
        },
    ],
)
def test_a_large_max_tokens_is_not_a_long_prompt(transport, answer) -> None:
    error = refused(transport, 400, answer, prompt_len=2046, max_tokens=4)
    assert type(error) is MaxTokensTooLargeError
    assert error.room == 2
    assert "max_tokens=4" in str(error)
    assert "room for 2" in str(error)


def test_a_long_prompt_whose_limit_is_not_told() -> None:
    error = refused(
        VLLM, 400, {"error": {"message": "prompt is too long", "code": "prompt_too_long"}}, prompt_len=9
    )
    assert type(error) is OverlongPromptError
    assert type(refused(VLLM, 400, {"error": {"message": "context_length_exceeded"}})) is EngineRequestError


@pytest.mark.parametrize(
    ("transport", "status", "answer", "expected", "says"),
    [
        (VLLM, 404, {"error": {"message": "The model `x` does not exist. Valid: m."}}, UnknownModelError, "Valid"),
        (VLLM, 404, {"error": {"message": "Model not found: x", "code": 404}}, UnknownModelError, "x"),
        (DYNAMO, 404, {"message": "Model not found", "code": 404}, UnknownModelError, "not found"),
        (VLLM, 404, {"message": "Route not found: POST /v1/model"}, RouteMissingError, "DYN_VLLM_ENABLE"),
        (VLLM, 404, {"detail": "Not Found"}, RouteMissingError, "--enable-scale-out"),
        (VLLM, 403, {"error": "Scale-out endpoints are disabled."}, RouteMissingError, "--enable-scale-out"),
        (VLLM, 403, {"error": {"message": "Forbidden for this tenant"}}, EngineRequestError, "tenant"),
        (VLLM, 405, {"detail": "Method Not Allowed"}, RouteMissingError, "Method"),
        (VLLM, 501, {"error": {"message": "not implemented"}}, RouteMissingError, "--enable-scale-out"),
        (VLLM, 401, {"error": "Unauthorized"}, EngineRequestError, "API key"),
        (DYNAMO, 499, {"message": "Request cancelled", "code": 499}, AbortedError, "cancelled"),
        (DYNAMO, 500, {"message": "Internal server error", "code": 500}, EngineFailureError, "Internal"),
        (DYNAMO, 504, {"message": "Request deadline exceeded"}, EngineFailureError, "deadline"),
        (DYNAMO, 502, b"<html><h1>Bad Gateway</h1></html>", EngineFailureError, "Bad Gateway"),
        (DYNAMO, 307, b"", EngineRequestError, "redirects to '/elsewhere'"),
        (DYNAMO, 422, {"detail": [{"loc": ["x"], "msg": "required"}]}, EngineRequestError, "required"),
        (DYNAMO, 204, b"", MalformedReplyError, "200"),
        (VLLM, 200, {"error": {"message": "boom", "code": 500}}, EngineFailureError, "boom"),
        (VLLM, 200, {"message": "boom", "type": "x"}, EngineFailureError, "boom"),
        (VLLM, 200, {"error": {"message": "busy", "code": 503}}, EngineBusyError, "busy"),
        (VLLM, 200, b"", MalformedReplyError, "no readable reply"),
        (VLLM, 200, b"\xff\xfe\x00", MalformedReplyError, "no readable reply"),
        (VLLM, 200, b"[" * 100_000, MalformedReplyError, "no readable reply"),
        (VLLM, 200, {"choices": 3}, MalformedReplyError, "choices"),
    ],
)  # fmt: skip
def test_a_refusal(transport, status, answer, expected, says) -> None:
    error = refused(transport, status, answer, headers={"location": "/elsewhere"})
    assert type(error) is expected
    assert says in str(error)
    assert len(str(error)) < 700
    assert getattr(error, "status", None) is not None


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "date": "Wed, 21 Oct 2026 07:27:30 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "date": "Wed, 21 Oct 2026 07:29:00 GMT"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "date": "Wed, 21 Oct 2026 07:27:30"}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_may_say_when(headers, wait_s, status) -> None:
    error = refused(DYNAMO, status, {"message": "Too Many Requests"}, headers=headers)
    assert type(error) is EngineBusyError
    assert error.retryable
    assert error.retry_after_s == wait_s


@pytest.mark.parametrize(
    ("folder", "name", "cards"),
    [
        ("vllm", "get_v1_models", (ModelCard("tiny", 2048, "vllm"),)),
        ("dynamo", "mk_models", (ModelCard("tiny", None, "nvidia"),)),
        ("dynamo", "wkb_models_after_9006", (ModelCard("tiny", 2048, "nvidia"),)),
        ("dynamo_vllm", "models", (ModelCard("tiny", 2048, "nvidia"),)),
    ],
)
def test_recorded_model_lists(captures_folder, folder, name, cards) -> None:
    recorded = json.loads((captures_folder / folder / f"{name}.json").read_text())
    reply = HttpReply(200, {}, json.dumps(recorded["response"]["body"]).encode())
    transport = VLLM if folder == "vllm" else DYNAMO
    assert transport.read_models(reply) == cards
    assert (transport.write_models().method, transport.write_models().path) == ("GET", "/v1/models")


def test_a_model_list_that_is_none() -> None:
    for status, body, expected in [
        (401, b'{"error":"Unauthorized"}', EngineRequestError),
        (200, b'{"object":"list"}', MalformedReplyError),
        (200, b"<html>", MalformedReplyError),
    ]:
        with pytest.raises(expected):
            VLLM.read_models(HttpReply(status, {}, body))
