"""Bring a real vLLM up on loopback, serving the embedded model on CPU, and take it down again.

python -m servers.vllm install
python -m servers.vllm up [--model FOLDER] [--port PORT]
python -m servers.vllm status
python -m servers.vllm down
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from servers.command_line import Kind, Started, make_parser, run
from servers.processes import EMBEDDED_MODEL
from servers.vllm.install import ensure_vllm
from servers.vllm.server import MODEL_NAME, VllmServer


def main() -> int:
    """Run one command; returns the exit status."""
    parser = make_parser("vllm", __doc__ or "")
    parser.add_argument("--model", type=Path, default=EMBEDDED_MODEL, help="a Hugging Face folder")
    return run(Kind("vllm", "vllm", ensure_vllm, _start), parser.parse_args())


def _start(arguments: argparse.Namespace, python: Path) -> Started:
    model = arguments.model.resolve()
    server = VllmServer(python, model, arguments.work, tethered=False, port=arguments.port).__enter__()
    return Started(server.url, MODEL_NAME, server.processes)


if __name__ == "__main__":
    sys.exit(main())
