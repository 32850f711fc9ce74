"""What the tests of the engines ask about servers and their venvs, asked where the answer is known."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from servers import venvs
from servers.processes import ServerError, free_ports
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


def test_a_venv_is_there_once_it_is_whole(tmp_path, monkeypatch) -> None:
    """Another suite may want its libraries while it is being built."""
    monkeypatch.setattr(venvs, "REPOSITORY", tmp_path)
    monkeypatch.setattr(venvs, "ENGINES", tmp_path / ".engines")
    monkeypatch.setattr(venvs.subprocess, "run", lambda command, check: Path(command[-1]).mkdir(parents=True))
    seen = []

    def build(python: Path) -> None:
        assert python.parents[1].exists()
        seen.append(venvs.installed("some"))

    def fails(_python: Path) -> None:
        raise subprocess.CalledProcessError(1, "pip")

    assert venvs.installed("some") is None
    python = venvs.ensure_venv("some", "recipe", build)
    assert (seen, venvs.installed("some")) == ([None], python)
    with pytest.raises(subprocess.CalledProcessError):
        venvs.ensure_venv("some", "another recipe", fails)
    assert venvs.installed("some") is None


def test_ports_are_free_different_and_below_those_of_outgoing_connections() -> None:
    ports = free_ports(30)
    assert len(set(ports)) == 30
    assert all(0 < port < 2**15 for port in ports)
    with contextlib.ExitStack() as servers:
        for port in ports:
            servers.enter_context(socket.create_server(("127.0.0.1", port)))
    with pytest.raises(ServerError, match="no 100000 free ports"):
        free_ports(100_000)
