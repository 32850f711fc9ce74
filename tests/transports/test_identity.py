"""Every recorded server is known by one of a few questions, and so is its version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokentrue.transports.identity import Identity, identity_calls, read_identity
from tokentrue.transports.transport import HttpReply

CAPTURES = Path(__file__).resolve().parents[3] / "shared" / "captures"

RECORDED = {
    "vllm": (["vllm/get_version"], Identity("vllm", "0.32.0")),
    "vllm 0.31": (["vllm/v031_version"], Identity("vllm", "0.31.0")),
    "sglang": (["sglang/get_server_info"], Identity("sglang", "0.5.23")),
    "dynamo": (["dynamo/mk_openapi"], Identity("dynamo", "1.6.1")),
    "dynamo with generate": (["dynamo/gen_openapi"], Identity("dynamo", "1.6.1")),
    "vllm in dev mode": (["vllm/get_version", "vllm/dev_server_info"], Identity("vllm", "0.32.0")),
}


def answers(captures):
    """A server that answers what was recorded, and 404 to everything else."""
    known = {}
    for name in captures:
        path = CAPTURES / f"{name}.json"
        if not path.exists():
            pytest.skip("the recorded exchanges are not on this machine (../shared/captures)")
        capture = json.loads(path.read_text())
        body = json.dumps(capture["response"]["body"]).encode()
        known[capture["request"]["path"]] = HttpReply(capture["response"]["status"], {}, body)
    return lambda call: known.get(call.path, HttpReply(404, {}, b'{"detail":"Not Found"}'))


@pytest.mark.parametrize("expected", ["vllm", "dynamo", "sglang", "whatever"])
@pytest.mark.parametrize("server", RECORDED)
def test_a_recorded_server_is_known_whatever_it_was_thought_to_be(server, expected):
    captures, identity = RECORDED[server]
    answer = answers(captures)
    told = [read_identity(call, answer(call)) for call in identity_calls(expected)]
    assert next(found for found in told if found is not None) == identity


@pytest.mark.parametrize(
    "body", [b"", b"ok", b"[]", b"{}", b'{"version": 3}', b'{"info": {}}', b"\xff", b"{" * 9999]
)
def test_what_is_no_answer_tells_nothing(body):
    assert {read_identity(call, HttpReply(200, {}, body)) for call in identity_calls("vllm")} == {None}
