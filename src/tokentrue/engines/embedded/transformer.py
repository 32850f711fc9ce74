"""The forward pass, arranged so that a row's result never depends on its company.

Floating-point sums depend on the order of addition, and BLAS picks that order by the shape of the matrices.
So that the logits of a sequence are bit-identical whatever else is computed beside it:

- dense layers always run at one of two fixed heights: `DECODE_ROWS` for decoding, `BLOCK_TOKENS` for
  prompts, padded with zero rows when there is less to do;
- attention runs per sequence, over exactly that sequence's keys;
- prompts are computed in blocks aligned to multiples of `BLOCK_TOKENS`, so that a prompt id stands in the
  same row of its block every time;
- a decoded sequence may stand in any row, so a BLAS that treats the rows of a decode step differently by their
  position (OpenBLAS does so at 16 rows, not at 8) is detected at load time and then used row by row.

All numbers are float32, as in `LlamaForCausalLM` served with `--dtype float32`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokentrue.engines.embedded.weights import Array, LayerWeights, LlamaConfig, Weights

DECODE_ROWS = 8
BLOCK_TOKENS = 16


@dataclass(slots=True)
class KeyValues:
    """Keys and values of one sequence, `[layers, heads, capacity, head_dim]`.

    The first `length` positions count.
    """

    keys: Array
    values: Array
    length: int = 0

    @classmethod
    def empty(cls, config: LlamaConfig, capacity: int) -> KeyValues:
        """Room for `capacity` tokens, rounded up to whole blocks."""
        rounded = -(-capacity // BLOCK_TOKENS) * BLOCK_TOKENS
        shape = (config.num_hidden_layers, config.num_attention_heads, rounded, config.head_dim)
        return cls(np.zeros(shape, np.float32), np.zeros(shape, np.float32))


class Transformer:
    """A loaded model. It keeps no state between calls: what is remembered lives in `KeyValues`."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._config = weights.config
        self._scale = np.float32(weights.config.head_dim**-0.5)
        self._cos, self._sin = _rotation_tables(weights.config)
        self._decodes_row_by_row = not _treats_rows_alike(weights)

    def prefill_block(self, ids: Sequence[int] | NDArray[np.int32], kv: KeyValues) -> Array:
        """Append up to one block of prompt ids, starting at a block boundary.

        Returns:
            Logits `[vocabulary]` of the last of these ids.
        """
        start, count = kv.length, len(ids)
        if start % BLOCK_TOKENS or not 0 < count <= BLOCK_TOKENS:
            raise ValueError(f"{count} ids at position {start} are not one aligned block")
        padded = np.zeros(BLOCK_TOKENS, np.int64)
        padded[:count] = ids
        x = self._weights.embeddings[padded]
        end = start + BLOCK_TOKENS
        for index, layer in enumerate(self._weights.layers):
            queries, keys, values = self._project(layer, x, slice(start, end))
            kv.keys[index, :, start:end] = keys.transpose(1, 0, 2)
            kv.values[index, :, start:end] = values.transpose(1, 0, 2)
            x = x + self._dense(
                self._attend_block(queries, kv.keys[index, :, :end], kv.values[index, :, :end]),
                layer.attention_out,
            )
            x = x + self._mlp(layer, x)
        kv.length = start + count
        x = _rms_norm(x, self._weights.norm, self._config.rms_norm_eps)
        logits: Array = self._dense(x, self._weights.head)[count - 1]
        return logits

    def decode(self, ids: Sequence[int], rows: Sequence[KeyValues]) -> Array:
        """Append one id to each of up to `DECODE_ROWS` sequences.

        Returns:
            Logits `[len(ids), vocabulary]`.
        """
        if not 0 < len(ids) == len(rows) <= DECODE_ROWS:
            raise ValueError(f"{len(ids)} ids for {len(rows)} sequences; at most {DECODE_ROWS} go into one step")
        x = np.zeros((DECODE_ROWS, self._config.hidden_size), np.float32)
        x[: len(ids)] = self._weights.embeddings[list(ids)]
        positions = np.zeros(DECODE_ROWS, np.int64)
        positions[: len(ids)] = [kv.length for kv in rows]
        attended = np.zeros((DECODE_ROWS, self._config.num_attention_heads, self._config.head_dim), np.float32)
        for index, layer in enumerate(self._weights.layers):
            queries, keys, values = self._project(layer, x, positions)
            for row, kv in enumerate(rows):
                kv.keys[index, :, kv.length] = keys[row]
                kv.values[index, :, kv.length] = values[row]
                end = kv.length + 1
                attended[row] = self._attend_row(queries[row], kv.keys[index, :, :end], kv.values[index, :, :end])
            x = x + self._dense(attended.reshape(DECODE_ROWS, -1), layer.attention_out)
            x = x + self._mlp(layer, x)
        for kv in rows:
            kv.length += 1
        x = _rms_norm(x, self._weights.norm, self._config.rms_norm_eps)
        return self._dense(x, self._weights.head)[: len(ids)]

    def _project(
        self, layer: LayerWeights, x: Array, positions: slice | NDArray[np.int64]
    ) -> tuple[Array, Array, Array]:
        """Queries, keys (both rotated to their positions) and values, each `[rows, heads, head_dim]`."""
        normed = _rms_norm(x, layer.attention_norm, self._config.rms_norm_eps)
        joined = self._dense(normed, layer.attention_in)
        joined = joined.reshape(len(x), 3, self._config.num_attention_heads, self._config.head_dim)
        turned = _rotate(joined[:, :2], self._cos[positions][:, None, None], self._sin[positions][:, None, None])
        return turned[:, 0] * self._scale, turned[:, 1], joined[:, 2]

    def _attend_row(self, queries: Array, keys: Array, values: Array) -> Array:
        """One position over all keys so far: `[heads, head_dim]`."""
        scores = np.matmul(keys, queries[:, :, None])[:, :, 0]
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        out: Array = np.matmul(scores[:, None, :], values)[:, 0]
        return out

    def _attend_block(self, queries: Array, keys: Array, values: Array) -> Array:
        """One block over its own causal past: `[block, heads * head_dim]`."""
        scores = np.matmul(queries.transpose(1, 0, 2), keys.transpose(0, 2, 1))
        scores[:, :, -BLOCK_TOKENS:] += _CAUSAL
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        out: Array = np.matmul(scores, values).transpose(1, 0, 2).reshape(BLOCK_TOKENS, -1)
        return out

    def _mlp(self, layer: LayerWeights, x: Array) -> Array:
        joined = self._dense(_rms_norm(x, layer.mlp_norm, self._config.rms_norm_eps), layer.gate_up)
        gate, up = joined[:, : joined.shape[1] // 2], joined[:, joined.shape[1] // 2 :]
        with np.errstate(over="ignore"):  # exp(-gate) = inf is right there: the gate closes
            activated = gate / (1 + np.exp(-gate)) * up
        return self._dense(activated, layer.down)

    def _dense(self, x: Array, matrix: Array) -> Array:
        if self._decodes_row_by_row and len(x) == DECODE_ROWS:
            return np.stack([row @ matrix for row in x])
        product: Array = x @ matrix
        return product


_CAUSAL = np.triu(np.full((BLOCK_TOKENS, BLOCK_TOKENS), -np.inf, np.float32), 1)


def _rms_norm(x: Array, weight: Array, eps: float) -> Array:
    variance = np.mean(x * x, axis=-1, keepdims=True)
    root: Array = np.sqrt(variance + np.float32(eps))
    normed: Array = x / root * weight
    return normed


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding, halves rotated against each other; `cos` and `sin` hold one half's angles."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def _rotation_tables(config: LlamaConfig) -> tuple[Array, Array]:
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    bases = np.full_like(exponents, config.rope_theta)
    frequencies = np.float32(1.0) / np.power(bases, exponents)
    angles = np.outer(np.arange(config.max_position_embeddings, dtype=np.float32), frequencies)
    # The cosine of the float32 angle, correctly rounded: float32 cosine of large angles is not.
    wide = angles.astype(np.float64)
    return np.cos(wide).astype(np.float32), np.sin(wide).astype(np.float32)


def _treats_rows_alike(weights: Weights) -> bool:
    """Does this BLAS give equal rows equal products, wherever they stand in a decode step?"""
    rng = np.random.default_rng(0)
    layer = weights.layers[0]
    for matrix in (layer.attention_in, layer.attention_out, layer.gate_up, layer.down, weights.head):
        row = rng.standard_normal(matrix.shape[0], dtype=np.float32)
        product = np.tile(row, (DECODE_ROWS, 1)) @ matrix
        if not np.array_equal(product, np.tile(product[0], (DECODE_ROWS, 1))):
            return False
    return True
