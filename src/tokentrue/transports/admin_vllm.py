"""vLLM's control routes, which it serves with VLLM_SERVER_DEV_MODE=1.

Written for 0.28 to 0.33; recorded from 0.32.

Measured on 0.32: `/pause` with its default `clear_cache=true` drops the keys and values of held requests in every
mode, so that they are computed anew with new weights; with `clear_cache=false` a held request goes on with a
mixture that is neither model. The label does not follow a reload: only `/update_weight_version` sets it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokentrue.errors import EngineFailureError, EvidenceError
from tokentrue.transports.admin import AdminCall, PauseMode, admin_call, expect
from tokentrue.transports.refusals import ServerWords

WORDS = ServerWords(
    name="vLLM",
    route_advice="start `vllm serve` with VLLM_SERVER_DEV_MODE=1 in its environment",
    route="its control routes",
)


@dataclass(frozen=True, slots=True)
class VllmAdminCodec:
    """Pause, resume, reload from a checkpoint folder, label, reset."""

    name: str = "vllm"

    def pause(self, mode: PauseMode) -> AdminCall[None]:
        """See `AdminCodec.pause`."""
        path = f"/pause?mode={mode.value}&clear_cache=true"
        return admin_call("POST", path, WORDS, lambda said: expect(said, "status", "paused", WORDS, "pause"))

    def resume(self) -> AdminCall[None]:
        """See `AdminCodec.resume`."""
        return admin_call(
            "POST", "/resume", WORDS, lambda said: expect(said, "status", "resumed", WORDS, "resume")
        )

    def load(self, path: str, version: str) -> AdminCall[None]:
        """See `AdminCodec.load`; all workers load, and one that fails is an error."""
        del version
        body = {"method": "reload_weights", "kwargs": {"weights_path": path}}
        return admin_call("POST", "/collective_rpc", WORDS, _check_results, body)

    def set_version(self, version: str) -> AdminCall[None]:
        """See `AdminCodec.set_version`."""

        def read(said: Mapping[str, Any]) -> None:
            expect(said, "success", True, WORDS, "label its weights")
            expect(said, "new_version", version, WORDS, f"label its weights {version!r}")

        return admin_call("POST", "/update_weight_version", WORDS, read, {"new_version": version})

    def reset_prefix_cache(self) -> AdminCall[None]:
        """See `AdminCodec.reset_prefix_cache`.

        It answers 200 with `success: false` where blocks are still held.
        """
        path = "/reset_prefix_cache?reset_running_requests=true"
        return admin_call(
            "POST", path, WORDS, lambda said: expect(said, "success", True, WORDS, "reset its prefix cache")
        )

    def version(self) -> AdminCall[str]:
        """See `AdminCodec.version`; "default" is the label of weights that nobody labelled."""
        return admin_call("GET", "/weight_info", WORDS, _version)


def _check_results(said: Mapping[str, Any]) -> None:
    results = said.get("results")
    if not isinstance(results, list) or not results:
        raise EngineFailureError("vLLM does not say that its workers loaded the weights", status=200)


def _version(said: Mapping[str, Any]) -> str:
    version = said.get("weight_version")
    if not isinstance(version, str) or not version:
        raise EvidenceError(f"vLLM tells no weight version: {dict(said)!r}", status=200)
    return version
