"""Servers that stay when the command which started them ends: noted in a file, stopped by what it says."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from servers.processes import ServerProcess, signal_group

_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Standing:
    """What runs: the server's root URL, the models it serves, and its process groups."""

    url: str
    models: tuple[str, ...]
    pids: tuple[int, ...]
    births: tuple[str, ...]

    def runs(self) -> bool:
        """Whether any of its processes is still there."""
        return bool(self._living())

    def stop(self) -> None:
        """SIGTERM to each group that is still ours, SIGKILL to what is left after some seconds."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._living():
                signal_group(pid, number)
            deadline = time.monotonic() + _GRACE_S
            while self._living() and time.monotonic() < deadline:
                time.sleep(0.05)

    def _living(self) -> list[int]:
        pairs = zip(self.pids, self.births, strict=True)
        return [pid for pid, birth in pairs if _birth(pid) == birth]


def note(path: Path, url: str, models: Sequence[str], processes: Sequence[ServerProcess]) -> Standing:
    """Write down what was started."""
    pids = tuple(each.pid for each in processes)
    standing = Standing(url, tuple(models), pids, tuple(_birth(pid) for pid in pids))
    path.write_text(json.dumps(asdict(standing), indent=2) + "\n")
    return standing


def read_note(path: Path) -> Standing | None:
    """What `note` wrote, or None when nothing was started."""
    if not path.exists():
        return None
    values = json.loads(path.read_text())
    return Standing(values["url"], tuple(values["models"]), tuple(values["pids"]), tuple(values["births"]))


def _birth(pid: int) -> str:
    """When the process started, in clock ticks since boot; "" when there is none or it is a zombie.

    Process ids are used again, so that an id alone could name somebody else's process.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] == "Z" else after_name[19]
