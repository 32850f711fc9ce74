"""Which error each fault becomes; asserted by the tests on real servers and told by docs/faults.md."""

from __future__ import annotations

EXPECTED: dict[str, str] = {
    "half a reply": "ConnectionLostError",
    "half a reply, then a reset": "ConnectionLostError",
    "no byte, though the engine answered": "ConnectionLostError",
    "silence": "EngineTimeoutError",
    "a slow reply, in time": "",
    "random bytes in HTTP": "MalformedReplyError",
    "random bytes, no HTTP": "MalformedReplyError",
    "JSON cut off": "MalformedReplyError",
    "gzip that is none": "ConnectionLostError",
    "a login page with status 200": "MalformedReplyError",
    "502 from a gateway": "EngineFailureError",
    "a redirect": "EngineRequestError",
    "503 and Retry-After, once": "",
    "429, once": "",
    "a reset before the engine was asked": "ConnectionLostError",
    "a TLS alert": "MalformedReplyError",
    "connection refused": "ConnectionFailedError",
    "https to a plain port": "ConnectionFailedError",
    "SIGSTOP of the engine": "EngineTimeoutError",
    "kill -9 of the engine": "EngineFailureError or EngineBusyError or ConnectionLostError",
    "kill -9 of the frontend": "ConnectionLostError",
    "9001 ValueError": "EngineRequestError",
    "9002 InvalidArgument": "EngineRequestError",
    "9003 HTTP 422": "EngineRequestError",
    "9004 RuntimeError": "EngineFailureError",
    "9005 unknown": "EngineFailureError",
    "9006 EngineShutdown": "EngineBusyError",
    "9007 HTTP 503": "EngineBusyError",
    "9008 HTTP 429": "EngineBusyError",
    "9009 WorkerUnavailable": "EngineBusyError",
    "9010 TimeoutError": "EngineFailureError",
    "9011 cancelled": "AbortedError",
    "9012 HTTP 400": "EngineRequestError",
    "9020 error inside the stream": "EngineFailureError",
    "9021 raises after two ids": "EngineFailureError",
    "9022 no finish reason": "AbortedError",
    "9023 one log-probability too few": "AlignmentError",
    "9024 waits before the first id": "EngineTimeoutError",
    "9025 aborted after two ids": "AbortedError",
}

DECLARED: dict[int, str] = {int(name[:4]): name for name in EXPECTED if name[:4].isdecimal()}
"""Faults that the deterministic Dynamo worker declares, by the sampling seed that asks for them."""

BY_GENERATE: dict[str, str] = {
    **EXPECTED,
    "9006 EngineShutdown": "EngineFailureError",
    "9008 HTTP 429": "EngineFailureError",
    "9022 no finish reason": "EngineFailureError",
    "9023 one log-probability too few": "EngineFailureError",
}
"""The same by Dynamo's `/inference/v1/generate`, which says "internal server error" of more of them."""
