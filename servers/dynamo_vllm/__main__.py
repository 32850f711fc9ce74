"""Bring Dynamo's frontend up on loopback with a real vLLM worker behind it, and take both down again.

python -m servers.dynamo_vllm install
python -m servers.dynamo_vllm up [--port PORT]
python -m servers.dynamo_vllm status
python -m servers.dynamo_vllm down
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from servers.command_line import Kind, Started, make_parser, run
from servers.dynamo.server import DynamoServer
from servers.dynamo_vllm.install import ensure_dynamo_vllm
from servers.dynamo_vllm.server import DYNAMO_VLLM, READY_TIMEOUT_S


def main() -> int:
    """Run one command; returns the exit status."""
    parser = make_parser("dynamo_vllm", __doc__ or "")
    return run(Kind("dynamo_vllm", "dynamo", ensure_dynamo_vllm, _start), parser.parse_args())


def _start(arguments: argparse.Namespace, python: Path) -> Started:
    server = DynamoServer(python, arguments.work, tethered=False).__enter__()
    try:
        frontend = server.start_frontend(port=arguments.port)
        worker = server.start_worker(DYNAMO_VLLM)
        server.wait_ready(READY_TIMEOUT_S)
    except BaseException:
        server.__exit__(None, None, None)
        raise
    return Started(frontend.url, worker.kind.model_name, server.processes())


if __name__ == "__main__":
    sys.exit(main())
