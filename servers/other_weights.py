"""A second checkpoint of one model: the same folder with other weights, so that weights can change under a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

_NOISE = 0.15
"""Standard deviations of each matrix: another model by nats per id, and still one that answers."""


def write_other_weights(source: Path, folder: Path, seed: int) -> Path:
    """Copy a model folder, with noise added to every matrix of its layers; the same seed gives the same bytes.

    The embeddings stay: vLLM 0.32 on CPU reloads other ones, tied to the head, into a model that is neither.
    """
    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, tensor in sorted(load_file(path).items()):
        noise = rng.standard_normal(tensor.shape) * float(tensor.astype(np.float64).std()) * _NOISE
        changes = tensor.ndim > 1 and "embed_tokens" not in name
        tensors[name] = (tensor + noise).astype(tensor.dtype) if changes else tensor
    path.unlink()  # the copy may be read-only, or a link
    save_file(tensors, path, metadata={"format": "pt"})
    return folder
