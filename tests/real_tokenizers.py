"""Real tokenizer folders: third-party data beside the repository, never in it."""

from __future__ import annotations

import atexit
import lzma
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "tokenizers"


@cache
def unpacked(name: str) -> Path:
    """A real tokenizer folder, unpacked for the life of the process: to be read only."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for path in (SHARED / name).iterdir():
        if path.suffix == ".xz":
            (folder / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
        else:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def unpack_real(name: str, folder: Path) -> Path:
    """A copy of a real tokenizer folder; skips where the third-party data is not at hand."""
    source = SHARED / name
    if not source.is_dir():
        pytest.skip(f"the real tokenizer {name} is not at hand ({source} is absent)")
    shutil.copytree(unpacked(name), folder, dirs_exist_ok=True)
    return folder
