"""Bring a real Dynamo up on loopback, with the embedded model behind it, and take it down again.

python -m servers.dynamo install
python -m servers.dynamo up [--worker embedded|faults] [--port PORT]
python -m servers.dynamo status
python -m servers.dynamo down
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from servers.dynamo.install import ensure_dynamo
from servers.dynamo.server import EMBEDDED, FAULTS, DynamoServer
from servers.processes import ServerError
from servers.standing import note, read_note, report_status, take_down
from servers.venvs import ENGINES

_KINDS = {"embedded": EMBEDDED, "faults": FAULTS}


def main() -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m servers.dynamo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("install", "up", "status", "down"))
    parser.add_argument("--worker", choices=tuple(_KINDS), default="embedded", help="who answers")
    parser.add_argument("--port", type=int, help="of the frontend; a free one is chosen when it is not given")
    parser.add_argument("--work", type=Path, default=ENGINES / "run-dynamo", help="folder of logs and discovery")
    arguments = parser.parse_args()
    try:
        if arguments.command == "install":
            ensure_dynamo()
            return 0
        if arguments.command == "up":
            return _up(arguments.work, arguments.worker, arguments.port)
        act = report_status if arguments.command == "status" else take_down
        return act(arguments.work / "standing.json")
    except (ServerError, subprocess.CalledProcessError) as error:
        print(f"dynamo: {error}", file=sys.stderr)
        return 1


def _up(work: Path, worker: str, port: int | None) -> int:
    running = read_note(work / "standing.json")
    if running is not None and running.runs():
        print(f"already up at {running.url}; `python -m servers.dynamo down` stops it")
        return 1
    server = DynamoServer(ensure_dynamo(), work, tethered=False).__enter__()
    try:
        frontend = server.start_frontend(port=port)
        kind = server.start_worker(_KINDS[worker]).kind
        server.wait_ready()
    except BaseException:
        server.__exit__(None, None, None)
        raise
    note(work / "standing.json", frontend.url, [kind.model_name], server.processes())
    print(f"up at {frontend.url}, logs in {work}; try:")
    print(
        f"  tokentrue rollout --env calculator --engine {frontend.url} --transport dynamo "
        f"--model {kind.model_name} --episodes 16 --out dynamo-run"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
