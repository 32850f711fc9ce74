"""Dynamo's own venv: the pins of requirements.txt and nothing else (about 20 s, 80 MB to download)."""

from __future__ import annotations

from pathlib import Path

from servers.venvs import ensure_venv, pip

_REQUIREMENTS = Path(__file__).resolve().parent / "requirements.txt"


def ensure_dynamo() -> Path:
    """The Python of Dynamo's venv, installed when it is not there yet."""
    return ensure_venv("dynamo", _REQUIREMENTS.read_text(), _build)


def _build(python: Path) -> None:
    pip(python, "install", "--no-deps", "-r", str(_REQUIREMENTS))
