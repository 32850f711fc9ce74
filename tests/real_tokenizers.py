"""Real tokenizer folders: third-party data beside the repository, never in it."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "tokenizers"


def unpack_real(name: str, folder: Path) -> Path:
    """A real tokenizer folder; skips where the third-party data is not at hand."""
    source = SHARED / name
    if not source.is_dir():
        pytest.skip(f"the real tokenizer {name} is not at hand ({source} is absent)")
    for path in source.iterdir():
        if path.suffix == ".xz":
            (folder / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
        else:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder
