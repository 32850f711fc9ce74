"""The embedded model's folder with random weights: a model that writes a given text in any split.

A trained model, made to write a text, writes it in the tokens that its tokenizer would choose; so the splits that
appear in long rollouts would take long to show. Random weights have no such habit.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from servers.processes import EMBEDDED_MODEL

_SPREAD = 0.12
"""Standard deviation of the weights: peaked enough to be a model, flat enough to choose rare tokens."""


def write_random_model(folder: Path, seed: int) -> Path:
    """Write the folder and give it back; the same seed writes the same weights."""
    shutil.copytree(EMBEDDED_MODEL, folder)
    generator = np.random.default_rng(seed)
    trained = load_file(EMBEDDED_MODEL / "model.safetensors")
    drawn = {
        # Norms are vectors, and stay what they are.
        name: generator.normal(0.0, _SPREAD, weight.shape).astype(weight.dtype) if weight.ndim > 1 else weight
        for name, weight in sorted(trained.items())
    }
    save_file(drawn, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
