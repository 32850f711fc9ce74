"""Control calls are written as they were recorded from real servers, and their recorded replies are read."""

from __future__ import annotations

import json
from urllib.parse import parse_qsl, urlsplit

import pytest

from tokentrue.errors import (
    EngineFailureError,
    EngineRequestError,
    EvidenceError,
    RouteMissingError,
    UnsupportedParameterError,
)
from tokentrue.transports.admin import PauseMode
from tokentrue.transports.admin_dynamo import DynamoAdminCodec, workers_call
from tokentrue.transports.admin_sglang import SglangAdminCodec
from tokentrue.transports.admin_vllm import VllmAdminCodec
from tokentrue.transports.transport import HttpReply

VLLM, SGLANG, DYNAMO = VllmAdminCodec(), SglangAdminCodec(), DynamoAdminCodec()

RECORDED = [
    ("vllm/dev_pause_abort", VLLM.pause(PauseMode.ABORT)),
    ("vllm/dev_pause_keep", VLLM.pause(PauseMode.KEEP)),
    ("vllm/dev_pause_wait", VLLM.pause(PauseMode.WAIT)),
    ("vllm/dev_resume_keep", VLLM.resume()),
    ("vllm/dev_collective_rpc_reload", VLLM.load("model-dir", "v1")),
    ("vllm/DP_reload", VLLM.load("model-dir", "v1")),
    ("vllm/dev_update_weight_version", VLLM.set_version("step-1")),
    ("vllm/dev_reset_prefix_cache2", VLLM.reset_prefix_cache()),
    ("vllm/dev_weight_info", VLLM.version()),
    ("sglang/pause_abort", SGLANG.pause(PauseMode.ABORT)),
    ("sglang/pause_retract", SGLANG.pause(PauseMode.KEEP)),
    ("sglang/continue_retract", SGLANG.resume()),
    ("sglang/update_weights_from_disk_back", SGLANG.load("model-dir", "v3")),
    ("sglang/update_weight_version", SGLANG.set_version("v1")),
    ("sglang/flush_cache", SGLANG.reset_prefix_cache()),
    ("sglang/get_model_info", SGLANG.version()),
]
TOLD = {"vllm/dev_weight_info": "default", "sglang/get_model_info": "default"}


def read_capture(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def reply_of(response) -> HttpReply:
    body = response.get("body")
    raw = body["text"] if isinstance(body, dict) and set(body) == {"text"} else json.dumps(body)
    return HttpReply(response["status"], {}, raw.encode())


@pytest.mark.parametrize(("name", "made"), RECORDED, ids=[name for name, _ in RECORDED])
def test_a_call_is_the_recorded_one_and_its_reply_is_read(captures_folder, name, made) -> None:
    recorded = read_capture(captures_folder, name)
    asked, parts = recorded["request"], urlsplit(made.call.path)
    assert (made.call.method, parts.path) == (asked["method"], asked["path"])
    params = dict(parse_qsl(parts.query))
    if "pause" in name and name.startswith("vllm"):
        assert params.pop("clear_cache") == "true"  # the recorded default, said aloud
    assert params == (asked["params"] or {})
    assert (json.loads(made.call.body) if made.call.body else None) == asked["body"]
    assert made.read(reply_of(recorded["response"])) == TOLD.get(name)


@pytest.mark.parametrize(
    ("name", "made", "error", "words"),
    [
        ("vllm/E_pause_404", VLLM.pause(PauseMode.ABORT), RouteMissingError, "VLLM_SERVER_DEV_MODE=1"),
        ("vllm/E_reset_404", VLLM.reset_prefix_cache(), RouteMissingError, "VLLM_SERVER_DEV_MODE=1"),
        ("vllm/dev_collective_rpc_bad", VLLM.load("x", "y"), EngineFailureError, "not implemented"),
        ("vllm/dev_pause_bad", VLLM.pause(PauseMode.ABORT), EngineRequestError, "literal_error"),
        ("sglang/update_bad_path", SGLANG.load("/nope", "v"), EngineRequestError, "nope"),
        ("dynamo/rl_engine_nope", DYNAMO.pause(PauseMode.ABORT), RouteMissingError, "--enable-rl"),
        ("dynamo/env_dyn_enable_rl_get_v1_rl_workers", workers_call(), RouteMissingError, "DYN_RL_PORT"),
    ],
    ids=lambda each: each if isinstance(each, str) and "/" in each else "",
)
def test_a_recorded_refusal_says_what_to_switch_on(captures_folder, name, made, error, words) -> None:
    with pytest.raises(error, match=words):
        made.read(reply_of(read_capture(captures_folder, name)["response"]))


def test_the_recorded_workers_of_dynamo_are_read(captures_folder) -> None:
    made = workers_call()
    recorded = read_capture(captures_folder, "dynamo/rl_workers")
    assert made.call.path == recorded["request"]["path"]
    (worker,) = made.read(reply_of(recorded["response"]))
    assert (worker.system_url, worker.model) == ("http://127.0.0.1:18402", "tiny")
    assert "pause_generation" in worker.routes


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("rl_engine_pause_generation", DYNAMO.pause(PauseMode.KEEP)),
        ("rl_engine_resume_generation", DYNAMO.resume()),
        ("rl_engine_set_weight_version", DYNAMO.set_version("v1")),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_the_recorded_routes_of_a_dynamo_worker(captures_folder, name, made) -> None:
    recorded = read_capture(captures_folder, f"dynamo/{name}")
    assert (made.call.method, made.call.path) == (recorded["request"]["method"], recorded["request"]["path"])
    made.read(reply_of(recorded["response"]))


def test_the_recorded_version_of_a_dynamo_worker(captures_folder) -> None:
    recorded = read_capture(captures_folder, "dynamo/rl_engine_get_weight_version")
    assert DYNAMO.version().read(reply_of(recorded["response"])) == "v0"


def ok(**body) -> HttpReply:
    return HttpReply(200, {}, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("made", "reply", "words"),
    [
        (VLLM.reset_prefix_cache(), ok(success=False), "did not reset its prefix cache"),
        (VLLM.set_version("v2"), ok(success=True, new_version="v1"), "'v2'"),
        (VLLM.load("x", "y"), ok(results=[]), "does not say that its workers loaded"),
        (VLLM.pause(PauseMode.KEEP), ok(status="resumed"), "did not pause"),
        (SGLANG.load("x", "y"), ok(success=False, message="no such file"), "no such file"),
        (SGLANG.reset_prefix_cache(), HttpReply(200, {}, b"Cache not flushed"), "did not flush"),
        (DYNAMO.pause(PauseMode.KEEP), ok(status="error", message="engine is dead"), "engine is dead"),
        (DYNAMO.load("x", "y"), ok(status="error", message="must be paused"), "must be paused"),
        (DYNAMO.reset_prefix_cache(), ok(), "did not reset"),
    ],
)
def test_a_200_that_says_it_was_not_done_is_an_error(made, reply, words) -> None:
    with pytest.raises(EngineFailureError, match=words):
        made.read(reply)


@pytest.mark.parametrize(
    ("made", "reply"),
    [
        (VLLM.version(), ok(weight_version=None)),
        (SGLANG.version(), ok(model_path="x")),
        (DYNAMO.version(), ok(status="ok", version=None, version_declared=False)),
    ],
)
def test_an_engine_without_a_version_is_no_evidence(made, reply) -> None:
    with pytest.raises(EvidenceError, match="version"):
        made.read(reply)


def test_a_dynamo_worker_keeps_no_keys_and_values_over_a_pause() -> None:
    """Its own default is to keep them, and its `flush_cache` does not say whether it flushed."""
    assert json.loads(DYNAMO.pause(PauseMode.KEEP).call.body) == {"mode": "keep", "clear_cache": True}


def test_sglang_cannot_wait() -> None:
    with pytest.raises(UnsupportedParameterError, match="not wait"):
        SGLANG.pause(PauseMode.WAIT)


def test_a_worker_without_a_server_of_its_own_says_what_it_lacks() -> None:
    with pytest.raises(RouteMissingError, match="DYN_SYSTEM_PORT"):
        workers_call().read(ok(workers=[{"instance_id": 1, "model": "tiny", "routes": []}]))
