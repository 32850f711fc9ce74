"""Read a Hugging Face Llama checkpoint into numpy arrays. The only door to safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from tokentrue.errors import ConfigError

Array = NDArray[np.float32]

_FIXED = {"attention_bias": False, "hidden_act": "silu", "mlp_bias": False, "tie_word_embeddings": True}
"""What this engine computes; a configuration that says otherwise is refused, not approximated."""


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The numbers of a config.json, under its own names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Matrices are stored `[in, out]`, so that a layer computes `x @ matrix`.

    `attention_in` holds the query, key and value projections side by side, `gate_up` the two of the MLP.
    """

    attention_norm: Array
    attention_in: Array
    attention_out: Array
    mlp_norm: Array
    gate_up: Array
    down: Array


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole checkpoint in float32.

    Args:
        embeddings: `[vocabulary, hidden]`; the head is its transpose.
        head: `[hidden, vocabulary]`.
        eos_token_ids: The ids that generation_config.json ends a completion with.
        version: First twelve hex digits of the SHA-256 of the weights file.
    """

    config: LlamaConfig
    embeddings: Array
    head: Array
    layers: tuple[LayerWeights, ...]
    norm: Array
    eos_token_ids: tuple[int, ...]
    version: str


def load_weights(folder: Path) -> Weights:
    """Read config.json, generation_config.json and model.safetensors.

    Raises:
        ConfigError: A file is missing or unreadable, or describes a model that this engine does not compute.
    """
    try:
        data = (folder / "model.safetensors").read_bytes()
        tensors = {name: tensor.astype(np.float32) for name, tensor in load(data).items()}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot read the weights in {str(folder)!r}: {error}") from error
    config = _read_config(folder)
    try:
        layers = tuple(_layer(tensors, f"model.layers.{i}.") for i in range(config.num_hidden_layers))
        embeddings, norm = tensors["model.embed_tokens.weight"], tensors["model.norm.weight"]
    except KeyError as error:
        raise ConfigError(f"the weights in {str(folder)!r} have no tensor {error}") from error
    if embeddings.shape != (config.vocab_size, config.hidden_size):
        raise ConfigError(f"embeddings of shape {embeddings.shape} do not fit {config!r}")
    eos = _read_json(folder / "generation_config.json").get("eos_token_id")
    return Weights(
        config=config,
        embeddings=embeddings,
        head=np.ascontiguousarray(embeddings.T),
        layers=layers,
        norm=norm,
        eos_token_ids=tuple(eos) if isinstance(eos, list) else (() if eos is None else (eos,)),
        version=hashlib.sha256(data).hexdigest()[:12],
    )


def _layer(tensors: Mapping[str, Array], prefix: str) -> LayerWeights:
    def side_by_side(*names: str) -> Array:
        return np.ascontiguousarray(np.concatenate([tensors[f"{prefix}{name}_proj.weight"] for name in names]).T)

    return LayerWeights(
        attention_norm=tensors[prefix + "input_layernorm.weight"],
        attention_in=side_by_side("self_attn.q", "self_attn.k", "self_attn.v"),
        attention_out=side_by_side("self_attn.o"),
        mlp_norm=tensors[prefix + "post_attention_layernorm.weight"],
        gate_up=side_by_side("mlp.gate", "mlp.up"),
        down=side_by_side("mlp.down"),
    )


def _read_config(folder: Path) -> LlamaConfig:
    values = _read_json(folder / "config.json")
    if values.get("architectures") != ["LlamaForCausalLM"]:
        raise ConfigError(
            f"the embedded engine computes LlamaForCausalLM only, not {values.get('architectures')!r}"
        )
    wanted: dict[str, Any] = {
        **_FIXED,
        "num_key_value_heads": values.get("num_attention_heads"),
        "rope_scaling": None,
    }
    for name, value in wanted.items():
        if values.get(name) != value:
            raise ConfigError(f"the embedded engine needs {name}={value!r}, config.json says {values.get(name)!r}")
    try:
        return LlamaConfig(**{name: values[name] for name in LlamaConfig.__dataclass_fields__})
    except KeyError as error:
        raise ConfigError(f"config.json in {str(folder)!r} does not say {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{str(path)!r} must hold a JSON object")
    return value
