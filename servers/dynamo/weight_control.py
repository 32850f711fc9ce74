"""Pause, load, label: the control routes of a worker, with the bodies and replies of `dynamo.vllm` 1.6.1.

Pure of Dynamo, so that it can be read and tested without one. What a worker of ours cannot do, it says: a request
in flight is finished (`wait`) or given up (`abort`), never kept over an update.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

Body = dict[str, Any]


class WeightControl:
    """The state that the routes change.

    Args:
        load: Replaces the weights by those of a folder, while nothing is sampled.
        flush: Forgets all keys and values.
    """

    def __init__(self, load: Callable[[Path], Awaitable[None]], flush: Callable[[], Awaitable[None]]) -> None:
        self._load = load
        self._flush = flush
        self._running = asyncio.Event()
        self._running.set()
        self._in_flight: set[asyncio.Future[Any]] = set()
        self._version: str | None = None

    async def admitted(self) -> None:
        """Return when a new request may be sampled."""
        await self._running.wait()

    def started(self, sampled: asyncio.Future[Any]) -> None:
        """Know of a request, until it is over."""
        self._in_flight.add(sampled)
        sampled.add_done_callback(self._in_flight.discard)

    def routes(self) -> Mapping[str, Callable[[Body], Awaitable[Body]]]:
        """The routes by their names."""
        return {
            "pause_generation": self._pause,
            "resume_generation": self._resume,
            "flush_cache": self._flush_cache,
            "update_weights_from_disk": self._update,
            "get_weight_version": self._get_version,
            "set_weight_version": self._set_version,
        }

    async def _pause(self, body: Body) -> Body:
        mode = (body or {}).get("mode", "keep")
        if mode not in ("wait", "abort"):
            return {"status": "error", "message": f"this worker cannot pause with mode {mode!r}, only wait|abort"}
        self._running.clear()
        waiting = set(self._in_flight)
        if mode == "abort":
            for sampled in waiting:
                sampled.cancel()
        if waiting:
            await asyncio.wait(waiting)
        return {"status": "ok", "message": "Engine paused", "mode": mode}

    async def _resume(self, body: Body) -> Body:  # async: as the registry asks
        del body
        self._running.set()
        return {"status": "ok", "message": "Engine resumed"}

    async def _flush_cache(self, body: Body) -> Body:
        del body
        await self._flush()
        return {"status": "ok", "message": "Cache flushed"}

    async def _update(self, body: Body) -> Body:
        if self._running.is_set():
            return {"status": "error", "message": "Worker must be paused via pause_generation() before updating"}
        path = (body or {}).get("model_path")
        if not path:
            return {"status": "error", "message": "Missing 'model_path' in body"}
        try:
            await self._load(Path(path))
        except Exception as exc:  # noqa: BLE001  (as dynamo.vllm: whatever it was is told)
            return {"status": "error", "message": str(exc)}
        if "weight_version" in body:
            self._version = body["weight_version"]
        return {"status": "ok", "version": self._version, "version_declared": self._version is not None}

    async def _get_version(self, body: Body) -> Body:  # async: as the registry asks
        del body
        return {"status": "ok", "version": self._version, "version_declared": self._version is not None}

    async def _set_version(self, body: Body) -> Body:  # async: as the registry asks
        if "weight_version" not in (body or {}):
            return {"status": "error", "message": "Missing 'weight_version' in body"}
        self._version = body["weight_version"]
        return {"status": "ok", "version": self._version}
