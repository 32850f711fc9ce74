"""Where a process listens, as the kernel tells it: a server of a test must be reachable from this machine only."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

LOOPBACK = "0100007F"
_LISTENS = "0A"


def listening_addresses(pid: int) -> set[str]:
    """The local addresses on which a process listens, in the kernel's hexadecimal.

    Raises:
        OSError: The process is not there, or not ours to look at.
    """
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        # A running server closes files while they are listed; one that is closed by now does not listen.
        with contextlib.suppress(FileNotFoundError):
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))
            if found:
                inodes.add(found.group(1))
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == _LISTENS and rest[5] in inodes:
                addresses.add(local.partition(":")[0])
    return addresses
