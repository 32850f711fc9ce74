"""Virtual environments of engines: built from pins, stamped, and left alone while the stamp is right."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from servers.processes import REPOSITORY

ENGINES = REPOSITORY / ".engines"
_STAMP = "tokentrue-stamp.txt"


def ensure_venv(name: str, recipe: str, build: Callable[[Path], None]) -> Path:
    """The Python of `.engines/NAME`, built anew unless its stamp names this recipe and this Python.

    Args:
        name: Folder under `.engines`.
        recipe: Every pin and step as text; a change of it means a new build.
        build: Installs into the venv, given its Python.

    Raises:
        subprocess.CalledProcessError: A step failed; nothing is stamped, so the next call starts over.
    """
    folder = ENGINES / name
    python = folder / "bin" / "python"
    digest = hashlib.sha256(f"{sys.version_info[:3]}\n{recipe}".encode()).hexdigest()
    stamp = folder / _STAMP
    if stamp.exists() and stamp.read_text() == digest:
        return python
    started = time.monotonic()
    print(f"installing {name} into {folder.relative_to(REPOSITORY)} ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    build(python)
    stamp.write_text(digest)
    print(f"installed {name} in {time.monotonic() - started:.0f} s", flush=True)
    return python


def installed(name: str) -> Path | None:
    """The Python of `.engines/NAME`; None where there is none, or where it is not built to its end."""
    folder = ENGINES / name
    return folder / "bin" / "python" if (folder / _STAMP).exists() else None


def pip(python: Path, *arguments: str) -> None:
    """Run pip of a venv; it prints errors only.

    Raises:
        subprocess.CalledProcessError: pip failed; it has said why on stderr.
    """
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "-qq", *arguments]
    subprocess.run(command, check=True)
