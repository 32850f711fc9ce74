"""The embedded model's own opinion of ids that somebody sampled: its log-probabilities, id by id.

It walks the completion exactly as the engine would have decoded it, so that for the engine's own samples the
numbers are the engine's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokentrue.engines.embedded.sampler import log_sum_exp
from tokentrue.engines.embedded.transformer import BLOCK_TOKENS, KeyValues, Transformer
from tokentrue.engines.embedded.weights import load_weights


class TeacherForcing:
    """A loaded model that scores completions instead of sampling them."""

    def __init__(self, folder: Path) -> None:
        weights = load_weights(folder)
        self._config = weights.config
        self._model = Transformer(weights)

    def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> NDArray[np.float64]:
        """Log-softmax at temperature 1 before each completion id. Shape (len(completion_ids), vocabulary)."""
        kv = KeyValues.empty(self._config, len(prompt_ids) + len(completion_ids))
        for start in range(0, len(prompt_ids), BLOCK_TOKENS):
            logits = self._model.prefill_block(list(prompt_ids[start : start + BLOCK_TOKENS]), kv)
        rows = [logits]
        rows.extend(self._model.decode([each], [kv])[0] for each in completion_ids[:-1])
        wide = [row.astype(np.float64) for row in rows]
        return np.stack([row - log_sum_exp(row) for row in wide])

    def sampled(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> NDArray[np.float64]:
        """The log-probability of each completion id. Shape (len(completion_ids),)."""
        every = self.logprobs(prompt_ids, completion_ids)
        chosen: NDArray[np.float64] = every[np.arange(len(completion_ids)), list(completion_ids)]
        return chosen
