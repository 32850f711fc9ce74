"""The set-up itself: one command up, one down, loopback only, nothing left behind when its starter is killed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from servers.processes import REPOSITORY, get_json
from servers.sockets import LOOPBACK, listening_addresses

pytestmark = pytest.mark.dynamo


START_AND_WAIT = """
import sys, time
from pathlib import Path
from servers.dynamo.server import DynamoServer
with DynamoServer(Path(sys.argv[1]), Path(sys.argv[2])) as server:
    print(server.start_frontend().process.pid, flush=True)
    time.sleep(60)
"""


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "servers.dynamo", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def _is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_up_status_and_down(tmp_path) -> None:
    work = ("--work", str(tmp_path / "run"), "--worker", "faults")
    up = _command("up", *work)
    try:
        assert up.returncode == 0, up.stderr
        url = re.search(r"up at (http://127\.0\.0\.1:\d+)", up.stdout).group(1)
        assert "tokentrue rollout" in up.stdout
        assert get_json(f"{url}/v1/models/tokentrue-faults/ready")["ready"] is True
        assert _command("status", *work).stdout.startswith(f"up at {url}")
        assert "already up" in _command("up", *work).stdout
    finally:
        down = _command("down", *work)
    assert down.returncode == 0
    assert get_json(f"{url}/v1/models", timeout_s=1) is None
    assert _command("status", *work).stdout.strip() == "down"


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    up = _command("up", "--work", str(tmp_path))
    assert up.returncode == 1
    assert "not empty" in up.stderr
    assert "Traceback" not in up.stderr
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_servers_end_when_their_starter_is_killed(dynamo, tmp_path, eventually) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", START_AND_WAIT, str(dynamo.server.python), str(tmp_path / "orphan")],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    with starter, starter.stdout:
        pid = int(starter.stdout.readline())
        assert _is_there(pid)
        starter.send_signal(signal.SIGKILL)
    eventually(lambda: not _is_there(pid), "the frontend ended with its starter")


def test_everything_listens_on_loopback_only(dynamo) -> None:
    per_process = [listening_addresses(process.pid) for process in dynamo.server.processes()]
    assert set().union(*per_process) == {LOOPBACK}
