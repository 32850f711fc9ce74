import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from tokentrue.engines.embedded.engine import MODEL_FOLDER
from tokentrue.engines.embedded.sampler import Sampler, SamplerOptions
from tokentrue.engines.embedded.scheduler import Scheduler, Sequence
from tokentrue.engines.embedded.transformer import Transformer
from tokentrue.engines.embedded.weights import Weights, load_weights
from tokentrue.generation import LogprobsMode

# The oracle and the evaluation loop belong to the training script, which is no package.
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))


_BLAS = ThreadpoolController()


@pytest.fixture
def one_blas_thread() -> Iterator[None]:
    """As in the engine: two threads for matrices this small wait for each other, spinning.

    On two busy cores a test that called the model for 4 s of CPU took 65.
    """
    with _BLAS.limit(limits=1, user_api="blas"):
        yield


@pytest.fixture(scope="session")
def model_folder() -> Path:
    return MODEL_FOLDER


@pytest.fixture(scope="session")
def weights(model_folder: Path) -> Weights:
    return load_weights(model_folder)


@pytest.fixture(scope="session")
def transformer(weights: Weights) -> Transformer:
    return Transformer(weights)


@pytest.fixture(scope="session")
def make_scheduler(weights: Weights, transformer: Transformer) -> Callable[..., Scheduler]:
    def make(rows: int = 8, cache_bytes: int = 64 * 2**20) -> Scheduler:
        return Scheduler(transformer, weights.config, rows=rows, cache_bytes=cache_bytes)

    return make


@pytest.fixture(scope="session")
def make_sequence() -> Callable[..., Sequence]:
    """A sequence whose every input follows from its arguments, so that two calls make equals."""

    def make(
        prompt_ids: list[int],
        seed: int = 0,
        max_tokens: int = 8,
        stop_ids: frozenset[int] = frozenset(),
        salt: str | None = None,
        priority: int = 0,
        temperature: float = 1.0,
    ) -> Sequence:
        sampler = Sampler(SamplerOptions(temperature=temperature), seed, LogprobsMode.RAW)
        ids = np.array(prompt_ids, np.int32)
        return Sequence(ids, sampler, stop_ids, 0, max_tokens, priority=priority, salt=salt)

    return make
