"""The numpy forward pass computes what torch computes: float32 log-probabilities within 1e-4.

`golden_logprobs.json` is written by `scripts/train_embedded.py --golden-only`, from the shipped checkpoint.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tokentrue.engines.embedded.sampler import log_sum_exp
from tokentrue.engines.embedded.transformer import BLOCK_TOKENS, KeyValues, Transformer
from tokentrue.engines.embedded.weights import Weights

pytestmark = pytest.mark.usefixtures("one_blas_thread")
GOLDEN = json.loads((Path(__file__).parent / "golden_logprobs.json").read_text())["conversations"]


def logprob(logits: np.ndarray, token_id: int) -> float:
    wide = logits.astype(np.float64)
    return float(wide[token_id]) - log_sum_exp(wide)


@pytest.mark.parametrize("number", range(len(GOLDEN)))
def test_decoding_gives_torchs_logprobs(transformer: Transformer, weights: Weights, number: int) -> None:
    ids, sampled = GOLDEN[number]["ids"], GOLDEN[number]["sampled"]
    prompt_len = sampled[0]
    kv = KeyValues.empty(weights.config, len(ids))
    for start in range(0, prompt_len, BLOCK_TOKENS):
        logits = transformer.prefill_block(ids[start : min(start + BLOCK_TOKENS, prompt_len)], kv)
    got = {}
    for place in range(prompt_len, len(ids)):
        got[place] = logprob(logits, ids[place])
        logits = transformer.decode([ids[place]], [kv])[0]
    np.testing.assert_allclose([got[place] for place in sampled], GOLDEN[number]["logprobs"], atol=1e-4)


@pytest.mark.parametrize("number", range(len(GOLDEN)))
def test_prefill_gives_torchs_logprobs_behind_every_block(
    transformer: Transformer, weights: Weights, number: int
) -> None:
    ids = GOLDEN[number]["ids"]
    expected = dict(zip(GOLDEN[number]["sampled"], GOLDEN[number]["logprobs"], strict=True))
    kv = KeyValues.empty(weights.config, len(ids))
    for start in range(0, len(ids) - 1, BLOCK_TOKENS):
        block = ids[start : min(start + BLOCK_TOKENS, len(ids) - 1)]
        logits = transformer.prefill_block(block, kv)
        if kv.length in expected:
            assert logprob(logits, ids[kv.length]) == pytest.approx(expected[kv.length], abs=1e-4)
