"""SGLang's control routes, which every server has. Recorded from 0.5.23.

`retract` is what keeps requests in flight over an update: their keys and values are dropped and computed anew.
`in_place` keeps them as they are, which mixes two models, and is not offered. There is no mode that waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokentrue.errors import EngineFailureError, EvidenceError, UnsupportedParameterError
from tokentrue.transports.admin import AdminCall, PauseMode, admin_call, expect
from tokentrue.transports.refusals import ServerWords, excerpt, refusal
from tokentrue.transports.transport import HttpCall, HttpReply

WORDS = ServerWords(
    name="SGLang",
    route_advice="use a release that has it (written for 0.5.23), and check the base URL",
    route="this control route",
)
_MODES = {PauseMode.ABORT: "abort", PauseMode.KEEP: "retract"}
_FLUSHED = b"Cache flushed"


@dataclass(frozen=True, slots=True)
class SglangAdminCodec:
    """Pause, resume, load from a checkpoint folder, label, flush."""

    name: str = "sglang"

    def pause(self, mode: PauseMode) -> AdminCall[None]:
        """See `AdminCodec.pause`."""
        if mode not in _MODES:
            raise UnsupportedParameterError("mode", "SGLang's pause", "it can abort or keep, not wait")
        return _ok("/pause_generation", "pause", {"mode": _MODES[mode]})

    def resume(self) -> AdminCall[None]:
        """See `AdminCodec.resume`."""
        return _ok("/continue_generation", "resume", {})

    def load(self, path: str, version: str) -> AdminCall[None]:
        """See `AdminCodec.load`; the label is set with it, as the engine has one call for both."""
        body = {"model_path": path, "weight_version": version}
        return admin_call("POST", "/update_weights_from_disk", WORDS, _loaded, body)

    def set_version(self, version: str) -> AdminCall[None]:
        """See `AdminCodec.set_version`."""

        def read(said: Mapping[str, Any]) -> None:
            expect(said, "success", True, WORDS, "label its weights")
            expect(said, "new_version", version, WORDS, f"label its weights {version!r}")

        return admin_call("POST", "/update_weight_version", WORDS, read, {"new_version": version})

    def reset_prefix_cache(self) -> AdminCall[None]:
        """See `AdminCodec.reset_prefix_cache`; the reply is a text."""
        return AdminCall(HttpCall("POST", "/flush_cache", idempotent=True), _flushed)

    def version(self) -> AdminCall[str]:
        """See `AdminCodec.version`; "default" is the label of weights that nobody labelled."""
        return admin_call("GET", "/model_info", WORDS, _version)


def _ok(path: str, what: str, body: Mapping[str, Any]) -> AdminCall[None]:
    return admin_call("POST", path, WORDS, lambda said: expect(said, "status", "ok", WORDS, what), body)


def _loaded(said: Mapping[str, Any]) -> None:
    expect(said, "success", True, WORDS, "load the weights")


def _flushed(reply: HttpReply) -> None:
    refused = refusal(reply, None, WORDS)
    if refused is not None:
        raise refused
    if not reply.body.startswith(_FLUSHED):
        raise EngineFailureError("SGLang did not flush its cache", status=reply.status, detail=excerpt(reply.body))


def _version(said: Mapping[str, Any]) -> str:
    version = said.get("weight_version")
    if not isinstance(version, str) or not version:
        raise EvidenceError("SGLang tells no weight version", status=200)
    return version
