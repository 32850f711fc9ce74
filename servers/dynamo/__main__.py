"""Bring a real Dynamo up on loopback, with the embedded model behind it, and take it down again.

python -m servers.dynamo install
python -m servers.dynamo up [--worker embedded|parsed|faults] [--port PORT]
python -m servers.dynamo status
python -m servers.dynamo down
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from servers.command_line import Kind, Started, make_parser, run
from servers.dynamo.install import ensure_dynamo
from servers.dynamo.server import EMBEDDED, FAULTS, PARSED, DynamoServer

_WORKERS = {"embedded": EMBEDDED, "parsed": PARSED, "faults": FAULTS}


def main() -> int:
    """Run one command; returns the exit status."""
    parser = make_parser("dynamo", __doc__ or "")
    parser.add_argument("--worker", choices=tuple(_WORKERS), default="embedded", help="who answers")
    return run(Kind("dynamo", "dynamo", ensure_dynamo, _start), parser.parse_args())


def _start(arguments: argparse.Namespace, python: Path) -> Started:
    server = DynamoServer(python, arguments.work, tethered=False).__enter__()
    try:
        frontend = server.start_frontend(port=arguments.port)
        worker = server.start_worker(_WORKERS[arguments.worker])
        server.wait_ready()
    except BaseException:
        server.__exit__(None, None, None)
        raise
    return Started(frontend.url, worker.kind.model_name, server.processes())


if __name__ == "__main__":
    sys.exit(main())
