"""Server processes: started in a group of their own with a log file, probed until ready, stopped by pid."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
EMBEDDED_MODEL = REPOSITORY / "src" / "tokentrue" / "engines" / "embedded" / "model"
_TETHER = Path(__file__).resolve().parent / "tether.py"
_FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP")
_FOREIGN_PREFIXES = ("DYN_", "VLLM_", "OMP_", "MKL_")


class ServerError(RuntimeError):
    """A server did not start, ended early, or was not ready in time; carries the end of its log."""


def free_ports(count: int) -> list[int]:
    """That many different TCP ports which are free on 127.0.0.1 right now.

    Below 32768: the kernel gives higher ones to outgoing connections, so that one could be taken before a server
    binds it; and some programs keep ports in 16 signed bits.

    Raises:
        ServerError: None of many was free.
    """
    with contextlib.ExitStack() as held:
        found: list[int] = []
        for port in random.SystemRandom().sample(range(20000, 32768), 200):
            if len(found) == count:
                break
            with contextlib.suppress(OSError):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
    if len(found) < count:
        raise ServerError(f"no {count} free ports were found between 20000 and 32767")
    return found


def clean_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without other engines' and Python's settings, then `settings`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _FOREIGN and not name.startswith(_FOREIGN_PREFIXES)
    }
    return {**kept, **settings}


def get_json(url: str, timeout_s: float = 5.0) -> Any | None:
    """The JSON at `url`, or None while nobody answers or the answer is no success."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as reply:
            return json.load(reply)
    except (OSError, ValueError):
        return None


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log file; "" when there is none."""
    if not path.exists():
        return ""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


class ServerProcess:
    """One server in a process group of its own, its output in `log_path`.

    Args:
        command: Program and arguments.
        settings: Environment on top of `clean_environment`.
        log_path: Where stdout and stderr go; appended to, so that a restart keeps the past.
        tethered: End it when this process ends; False for a server that must outlive its starter.
    """

    def __init__(
        self, command: Sequence[str], settings: Mapping[str, str], log_path: Path, *, tethered: bool
    ) -> None:
        self.log_path = log_path
        prefix = [sys.executable, str(_TETHER), str(os.getpid())] if tethered else []
        with log_path.open("ab") as log:
            self._child = subprocess.Popen(
                [*prefix, *command],
                env=clean_environment(settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=log_path.parent,
            )

    @property
    def pid(self) -> int:
        """Also the id of its process group."""
        return self._child.pid

    def ended(self) -> bool:
        """Whether the process is no longer there."""
        return self._child.poll() is not None

    def stop(self, grace_s: float = 5.0) -> None:
        """SIGTERM to the group, SIGKILL to what is left of it after `grace_s`; idempotent."""
        signal_group(self.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(grace_s)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the group, without warning; idempotent."""
        signal_group(self.pid, signal.SIGKILL)
        self._child.wait()


def signal_group(pid: int, number: signal.Signals) -> bool:
    """Send a signal to the process group of `pid`; False when none of it is left."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_until(ready: Callable[[], bool], processes: Sequence[ServerProcess], timeout_s: float) -> None:
    """Probe `ready` until it holds.

    Raises:
        ServerError: A process ended, or `timeout_s` went by.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        for process in processes:
            if process.ended():
                raise ServerError(f"it ended while starting; {process.log_path}:\n{tail(process.log_path)}")
        if time.monotonic() > deadline:
            logs = "\n".join(f"{each.log_path}:\n{tail(each.log_path)}" for each in processes)
            raise ServerError(f"not ready after {timeout_s:.0f} s; {logs}")
        time.sleep(0.05)
