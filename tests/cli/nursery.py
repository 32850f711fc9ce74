"""A process that has imported the command and forks one process per command line: imports take most of a test.

A child runs what `python -W error -m tokentrue` runs behind its imports: a process of its own, with descriptors,
an environment and an end of its own. `Nursery` is the side of the tests; run as a program, this file is the other.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

WITHIN_S = 120


class Nursery:
    """Runs command lines one after another, each in a child of one process."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._replies = self._socket.makefile()
        with theirs:
            fd = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", __file__, str(fd)],
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def run(self, args: Sequence[str], env: Mapping[str, str], stdout: int) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run(args, env=env, stdout=stdout, stderr=PIPE, text=True)`; `stdout` may be `PIPE`."""
        errors, asked = _Pipe(), {"args": list(args), "env": dict(env), "cwd": os.getcwd()}
        said = _Pipe() if stdout == subprocess.PIPE else None
        ends = [said.end if said is not None else stdout, errors.end]
        socket.send_fds(self._socket, [json.dumps(asked).encode() + b"\n"], ends)
        told = [pipe.start() if pipe is not None else None for pipe in (said, errors)]
        code = self._code_of(args)
        texts = [text() if text is not None else None for text in told]
        return subprocess.CompletedProcess(args, code, *texts)

    def _code_of(self, args: Sequence[str]) -> int:
        pid = int(self._replies.readline() or 0)
        if not pid:
            raise RuntimeError(f"the process that imports the command ended with {self._process.wait()}")
        late = threading.Timer(WITHIN_S, os.kill, (pid, signal.SIGKILL))
        late.start()
        code = int(self._replies.readline())
        late.cancel()
        if code == -signal.SIGKILL:
            raise subprocess.TimeoutExpired(list(args), WITHIN_S)
        return code

    def close(self) -> None:
        """End the process."""
        self._replies.close()
        self._socket.close()
        self._process.wait()


class _Pipe:
    """A pipe that is read to its end beside whoever waits for the child."""

    def __init__(self) -> None:
        self._read, self.end = os.pipe()
        self._text = ""

    def start(self) -> Callable[[], str]:
        """Begin to read, the other end having been handed over; what comes back waits for the text."""
        os.close(self.end)
        thread = threading.Thread(target=self._take)
        thread.start()

        def text() -> str:
            thread.join()
            return self._text

        return text

    def _take(self) -> None:
        with open(self._read, encoding="utf-8") as file:
            self._text = file.read()


def _next_child(ours: socket.socket) -> list[str] | None:
    """Serves until the tests hang up (None); in a child, the arguments that it is to run with."""
    while True:
        asked, fds, _, _ = socket.recv_fds(ours, 1 << 16, 2)
        if not asked:
            return None
        while not asked.endswith(b"\n"):
            asked += ours.recv(1 << 16)
        with warnings.catch_warnings():
            # Python 3.12 warns of the threads that numpy's BLAS keeps; it makes them anew behind a fork.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            ours.close()
            for target, fd in enumerate(fds, start=1):
                os.dup2(fd, target)
                os.close(fd)
            _open_standard_streams()
            wanted = json.loads(asked)
            os.environ.clear()
            os.environ.update(wanted["env"])
            os.chdir(wanted["cwd"])
            time.tzset()
            args: list[str] = wanted["args"]
            return args
        for fd in fds:
            os.close(fd)
        ours.sendall(b"%d\n" % pid)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(BrokenPipeError):
            ours.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _open_standard_streams() -> None:
    """As Python does when it starts: whether they can seek, say, is found out once."""
    sys.stdout = sys.__stdout__ = open(1, "w", newline="\n", closefd=False)  # noqa: SIM115  (they stay open)
    sys.stderr = sys.__stderr__ = open(  # noqa: SIM115
        2, "w", buffering=1, errors="backslashreplace", newline="\n", closefd=False
    )


if __name__ == "__main__":
    # As `-m` has it: what is imported is what the tests' folder does not shadow.
    sys.path[0] = os.getcwd()
    importlib.import_module("tokentrue.cli.main")
    given = _next_child(socket.socket(fileno=int(sys.argv[1])))
    if given is not None:
        sys.argv[1:] = given
        runpy.run_module("tokentrue", run_name="__main__", alter_sys=True)
