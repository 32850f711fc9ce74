"""Become another program that ends when the process which started it ends, however that one ends.

    python tether.py STARTER_PID PROGRAM [ARGUMENT ...]

A test runner that is killed runs no clean-up, and a server which outlives it would hold ports and memory. The
kernel keeps the promise instead: `PR_SET_PDEATHSIG` survives the exec, so no extra process stands between.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent, then exec the program."""
    starter_pid, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != starter_pid:  # it ended between our start and the prctl
            sys.exit("the starter is gone")
    os.execvp(program[0], program)


if __name__ == "__main__":
    main()
