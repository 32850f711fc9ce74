"""The families of the `renderers` package for which a real tokenizer is at hand, and how each is made offline."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from real_tokenizers import SHARED
from tokentrue.rendering.plugged import PluggedRenderer
from tokentrue.rendering.plugged_loading import load_plugged_renderer


@dataclass(frozen=True)
class Family:
    """One family, the tokenizer it is used with, and options that make it comparable with the template."""

    name: str
    folder: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_at_hand(self) -> bool:
        return (SHARED / self.folder).is_dir()

    def load(self, folder: Path, work: Path) -> PluggedRenderer:
        """Make it over an unpacked folder; `work` is for files that other libraries want to read."""
        if self.name == "gpt-oss":
            write_harmony_vocabulary(folder, work)
            os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(work)
        return load_plugged_renderer(folder, self.name, options=self.options)


FAMILIES = (
    Family("qwen3", "qwen3", {"thinking_retention": "all"}),
    Family("llama-3", "llama-3.1"),
    Family("deepseek-v3", "deepseek-v3"),
    Family("glm-4.5", "glm-4.5", {"thinking_retention": "all"}),
    Family(
        "gpt-oss", "gpt-oss", {"thinking_retention": "all", "conversation_start_date": date.today().isoformat()}
    ),
    Family("gemma4", "gemma-4"),
)


def write_harmony_vocabulary(folder: Path, work: Path) -> None:
    """The vocabulary of gpt-oss as openai-harmony reads it, from the tokenizer: it would download it otherwise.

    harmony compares a hash of the file, so that this cannot be wrong unseen.
    """
    ranks = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    bytes_of = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    lines = [
        base64.b64encode(bytes(bytes_of[char] for char in token)) + f" {rank}\n".encode()
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
    ]
    (work / "o200k_base.tiktoken").write_bytes(b"".join(lines))
