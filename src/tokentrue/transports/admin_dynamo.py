"""Dynamo's control plane: `GET /v1/rl/workers` on the frontend's RL port, and each worker's own `/engine/` routes.

The routes and their bodies are those of `dynamo.vllm` in 1.6.1. What differs from a vLLM of one's own: a worker
answers 200 with `{"status": "error"}` when it failed; its pause keeps the keys and values unless it is told
otherwise; its `flush_cache` says "ok" whether or not anything was flushed, so that the pause has to do it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from tokentrue.errors import EvidenceError, MalformedReplyError, RouteMissingError
from tokentrue.transports.admin import AdminCall, PauseMode, admin_call, expect
from tokentrue.transports.refusals import ServerWords, refusal
from tokentrue.transports.transport import HttpCall, HttpReply

WORKERS_PATH = "/v1/rl/workers"

FRONTEND_WORDS = ServerWords(
    name="Dynamo",
    route_advice=(
        "start the frontend with DYN_ENABLE_RL=1 and DYN_RL_PORT=port, and use the URL of that port, which is not "
        "the one that completions are asked at"
    ),
    route=WORKERS_PATH,
)
WORKER_WORDS = ServerWords(
    name="a Dynamo worker",
    route_advice="start it with --enable-rl and DYN_SYSTEM_PORT=port",
    route="this control route",
)


@dataclass(frozen=True, slots=True)
class RlWorker:
    """One worker that can be controlled: its own server, and the routes that it registered."""

    instance: str
    system_url: str
    model: str
    routes: frozenset[str]


class _WorkerWire(msgspec.Struct):
    instance_id: int | None = None
    system_url: str | None = None
    model: str | None = None
    routes: list[str] = []


class _WorkersWire(msgspec.Struct):
    workers: list[_WorkerWire]


_DECODER = msgspec.json.Decoder(_WorkersWire)


def workers_call() -> AdminCall[tuple[RlWorker, ...]]:
    """The request for the workers that can be controlled.

    The reader raises `RouteMissingError` where the RL port is not switched on, or a worker has no server of its
    own.
    """
    return AdminCall(
        HttpCall("GET", WORKERS_PATH, headers={"accept": "application/json"}, idempotent=True), _workers
    )


def _workers(reply: HttpReply) -> tuple[RlWorker, ...]:
    refused = refusal(reply, None, FRONTEND_WORDS)
    if refused is not None:
        raise refused
    try:
        found = _DECODER.decode(reply.body).workers
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise MalformedReplyError(f"Dynamo's list of workers cannot be read: {exc}", status=200) from exc
    workers = []
    for wire in found:
        if not wire.system_url:
            raise RouteMissingError(
                f"the worker {wire.instance_id} of {wire.model!r} has no server of its own; "
                f"{WORKER_WORDS.route_advice}",
                status=200,
            )
        workers.append(RlWorker(str(wire.instance_id), wire.system_url, wire.model or "", frozenset(wire.routes)))
    return tuple(workers)


@dataclass(frozen=True, slots=True)
class DynamoAdminCodec:
    """The `/engine/` routes of one worker."""

    name: str = "dynamo"

    def pause(self, mode: PauseMode) -> AdminCall[None]:
        """See `AdminCodec.pause`."""
        return _ok("pause_generation", "pause", {"mode": mode.value, "clear_cache": True})

    def resume(self) -> AdminCall[None]:
        """See `AdminCodec.resume`."""
        return _ok("resume_generation", "resume", {})

    def load(self, path: str, version: str) -> AdminCall[None]:
        """See `AdminCodec.load`.

        The worker must be paused, resets its prefix cache, and takes the label with it.
        """
        return _ok("update_weights_from_disk", "load the weights", {"model_path": path, "weight_version": version})

    def set_version(self, version: str) -> AdminCall[None]:
        """See `AdminCodec.set_version`."""
        return _ok("set_weight_version", "label its weights", {"weight_version": version})

    def reset_prefix_cache(self) -> AdminCall[None]:
        """See `AdminCodec.reset_prefix_cache`."""
        return _ok("flush_cache", "reset its prefix cache", {})

    def version(self) -> AdminCall[str]:
        """See `AdminCodec.version`."""
        return admin_call("POST", "/engine/get_weight_version", WORKER_WORDS, _version, {})


def _ok(route: str, what: str, body: Mapping[str, Any]) -> AdminCall[None]:
    return admin_call(
        "POST",
        f"/engine/{route}",
        WORKER_WORDS,
        lambda said: expect(said, "status", "ok", WORKER_WORDS, what),
        body,
    )


def _version(said: Mapping[str, Any]) -> str:
    expect(said, "status", "ok", WORKER_WORDS, "tell its weight version")
    version = said.get("version")
    if not isinstance(version, str) or not version:
        raise EvidenceError("a Dynamo worker tells no weight version: nobody labelled its weights", status=200)
    return version
