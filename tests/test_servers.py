"""What the tests of the engines ask the kernel about servers, asked about this very process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from servers.sockets import LOOPBACK, listening_addresses

ANYWHERE = "00000000"


@pytest.mark.parametrize(("address", "written"), [("127.0.0.1", LOOPBACK), ("0.0.0.0", ANYWHERE)])
def test_a_listening_socket_is_found_though_files_are_closed_meanwhile(address, written) -> None:
    # The listing itself opens a file, which is in its own list and closed again before it is looked at.
    before = listening_addresses(os.getpid())
    with socket.socket() as server:
        server.bind((address, 0))
        server.listen()
        assert listening_addresses(os.getpid()) == before | {written}


def test_a_process_that_is_not_there_listens_nowhere_unnoticed() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    with pytest.raises(FileNotFoundError):
        listening_addresses(gone.pid)
