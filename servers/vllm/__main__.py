"""Bring a real vLLM up on loopback, serving the embedded model on CPU, and take it down again.

python -m servers.vllm install
python -m servers.vllm up [--model FOLDER] [--port PORT]
python -m servers.vllm status
python -m servers.vllm down
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from servers.processes import REPOSITORY, ServerError
from servers.standing import note, read_note, report_status, take_down
from servers.venvs import ENGINES
from servers.vllm.install import ensure_vllm
from servers.vllm.server import MODEL_NAME, VllmServer

_MODEL_FOLDER = REPOSITORY / "src" / "tokentrue" / "engines" / "embedded" / "model"


def main() -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m servers.vllm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("install", "up", "status", "down"))
    parser.add_argument("--model", type=Path, default=_MODEL_FOLDER, help="a Hugging Face folder")
    parser.add_argument("--port", type=int, help="a free one is chosen when it is not given")
    parser.add_argument("--work", type=Path, default=ENGINES / "run-vllm", help="folder of the log")
    arguments = parser.parse_args()
    try:
        if arguments.command == "install":
            ensure_vllm()
            return 0
        if arguments.command == "up":
            return _up(arguments.work, arguments.model, arguments.port)
        act = report_status if arguments.command == "status" else take_down
        return act(arguments.work / "standing.json")
    except (ServerError, subprocess.CalledProcessError) as error:
        print(f"vllm: {error}", file=sys.stderr)
        return 1


def _up(work: Path, model: Path, port: int | None) -> int:
    running = read_note(work / "standing.json")
    if running is not None and running.runs():
        print(f"already up at {running.url}; `python -m servers.vllm down` stops it")
        return 1
    server = VllmServer(ensure_vllm(), model.resolve(), work, tethered=False, port=port).__enter__()
    note(work / "standing.json", server.url, [MODEL_NAME], server.processes)
    print(f"up at {server.url}, logs in {work}; try:")
    print(
        f"  tokentrue rollout --env calculator --engine {server.url} --transport vllm "
        f"--model {MODEL_NAME} --episodes 16 --out vllm-run"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
