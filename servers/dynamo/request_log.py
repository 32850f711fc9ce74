"""What a worker received and what became of it, one JSON line per event: the tests' witness."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class RequestLogWriter:
    """Appends to the log; one writer per worker process, closed by whoever made it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._count = 0

    def received(self, request: Mapping[str, Any]) -> int:
        """Note a request as it arrived; returns its number, for `ended`."""
        self._count += 1
        self._write({"event": "received", "number": self._count, "request": request})
        return self._count

    def ended(self, number: int, how: str, completion_ids: Sequence[int] = ()) -> None:
        """Note how a request ended: its finish reason, "cancelled", or the fault's name."""
        self._write({"event": "ended", "number": number, "how": how, "completion_ids": list(completion_ids)})

    def close(self) -> None:
        """Close the file; every line is already on its way to it."""
        self._file.close()

    def _write(self, event: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(event, default=repr) + "\n")


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request: the frontend's words, and how it ended (None while it runs)."""

    request: Mapping[str, Any]
    how: str | None
    completion_ids: tuple[int, ...]

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The ids that the worker was given."""
        return tuple(self.request["token_ids"])

    @property
    def token_in(self) -> bool:
        """Whether the frontend says that the ids came from the client."""
        extra = self.request.get("extra_args") or {}
        return bool((extra.get("nvext") or {}).get("token_in"))


def read_requests(path: Path) -> list[LoggedRequest]:
    """The requests of one worker's life, in the order of their arrival.

    A worker that was killed while it wrote leaves half a line; it is no event.
    """
    received: dict[tuple[int, int], dict[str, Any]] = {}
    ended: dict[tuple[int, int], dict[str, Any]] = {}
    life = 0
    for line in path.read_text().split("\n")[:-1] if path.exists() else ():
        event = json.loads(line)
        if event["event"] == "received":
            life += event["number"] == 1  # a restarted worker counts from one again
            received[life, event["number"]] = event["request"]
        else:
            ended[life, event["number"]] = event
    return [
        LoggedRequest(
            request=request,
            how=ended[key]["how"] if key in ended else None,
            completion_ids=tuple(ended[key]["completion_ids"]) if key in ended else (),
        )
        for key, request in received.items()
    ]
