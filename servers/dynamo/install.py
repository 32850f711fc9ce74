"""Dynamo's own venv: its pins, and what Tokentrue needs, since the embedded worker imports it (about 30 s)."""

from __future__ import annotations

import tomllib
from pathlib import Path

from servers.processes import REPOSITORY
from servers.venvs import ensure_venv, pip

_REQUIREMENTS = Path(__file__).resolve().parent / "requirements.txt"


def ensure_dynamo() -> Path:
    """The Python of Dynamo's venv, installed when it is not there yet."""
    return ensure_venv("dynamo", f"{_own_dependencies()}\n{_REQUIREMENTS.read_text()}", _build)


def _own_dependencies() -> list[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return [str(each) for each in project["dependencies"]]


def _build(python: Path) -> None:
    pip(python, "install", *_own_dependencies())
    pip(python, "install", "--no-deps", "-r", str(_REQUIREMENTS))
