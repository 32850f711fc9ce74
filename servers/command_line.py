"""The command line that all servers share: install, up, status, down."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from servers.processes import ServerError, ServerProcess
from servers.standing import note, read_note
from servers.venvs import ENGINES


@dataclass(frozen=True, slots=True)
class Started:
    """A server that `up` has started, and that goes on after the command."""

    url: str
    model_name: str
    processes: list[ServerProcess]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of server, as its command line needs it.

    Args:
        name: Of the module under `servers`.
        transport: The one that speaks to it.
        install: Gives the Python of its venv, and makes the venv when it is not there.
        start: Starts it with the parsed arguments and that Python, and waits until it is ready.
    """

    name: str
    transport: str
    install: Callable[[], Path]
    start: Callable[[argparse.Namespace, Path], Started]


def make_parser(name: str, description: str) -> argparse.ArgumentParser:
    """The arguments that every server takes."""
    parser = argparse.ArgumentParser(
        prog=f"python -m servers.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("install", "up", "status", "down"))
    parser.add_argument("--port", type=int, help="a free one is chosen when it is not given")
    parser.add_argument("--work", type=Path, default=ENGINES / f"run-{name}", help="folder of the logs")
    return parser


def run(kind: Kind, arguments: argparse.Namespace) -> int:
    """Run one command; returns the exit status."""
    commands = {"install": _install, "up": _up, "status": _status, "down": _down}
    try:
        return commands[arguments.command](kind, arguments)
    except (ServerError, OSError, subprocess.CalledProcessError) as error:
        print(f"{kind.name}: {error}", file=sys.stderr)
        return 1


def _install(kind: Kind, arguments: argparse.Namespace) -> int:
    del arguments
    kind.install()
    return 0


def _up(kind: Kind, arguments: argparse.Namespace) -> int:
    running = read_note(_note_path(arguments))
    if running is not None and running.runs():
        print(f"already up at {running.url}; `python -m servers.{kind.name} down` stops it")
        return 1
    arguments.work = arguments.work.resolve()
    started = kind.start(arguments, kind.install())
    note(_note_path(arguments), started.url, [started.model_name], started.processes)
    print(f"up at {started.url}, logs in {arguments.work}; try:")
    print(
        f"  tokentrue rollout --env calculator --engine {started.url} --transport {kind.transport} "
        f"--model {started.model_name} --episodes 16 --out {kind.name}-run"
    )
    return 0


def _status(kind: Kind, arguments: argparse.Namespace) -> int:
    del kind
    running = read_note(_note_path(arguments))
    if running is None or not running.runs():
        print("down")
        return 1
    print(f"up at {running.url}, serving {', '.join(running.models)}")
    return 0


def _down(kind: Kind, arguments: argparse.Namespace) -> int:
    del kind
    running = read_note(_note_path(arguments))
    if running is not None:
        running.stop()
        _note_path(arguments).unlink()
    print("down")
    return 0


def _note_path(arguments: argparse.Namespace) -> Path:
    path: Path = arguments.work / "standing.json"
    return path
