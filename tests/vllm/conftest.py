"""One real vLLM for the whole session, serving the embedded model's folder, stopped at the end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # `servers` is no part of the wheel

from servers.plain_http import exchange  # noqa: E402
from servers.teacher_forcing import TeacherForcing  # noqa: E402
from servers.vllm.install import ensure_vllm  # noqa: E402
from servers.vllm.server import MODEL_NAME, VllmServer  # noqa: E402

from tokentrue.engines.embedded.engine import MODEL_FOLDER  # noqa: E402
from tokentrue.engines.http import HttpEngine  # noqa: E402
from tokentrue.generation import EngineInfo, GenerateRequest, Generation  # noqa: E402
from tokentrue.sampling import SamplingParams  # noqa: E402
from tokentrue.tokens import Logprobs, TokenIds  # noqa: E402
from tokentrue.transports.vllm import VllmTransport  # noqa: E402


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A running vLLM."""
    with VllmServer(ensure_vllm(), MODEL_FOLDER, tmp_path_factory.mktemp("vllm")) as server:
        yield server


@pytest.fixture(scope="session")
def teacher() -> TeacherForcing:
    """What our own forward pass says about ids that vLLM sampled."""
    return TeacherForcing(MODEL_FOLDER)


@pytest.fixture(scope="session")
def assert_same_logprobs() -> Callable[..., None]:
    """Two single-precision computations of one model: nearly all equal within 1e-4, and none far away.

    Measured against double precision over 3611 sampled ids of a trained checkpoint: vLLM is off by 7e-6 at the
    99th percentile and 2.7e-4 at worst, our numpy by 6e-6 and 1.5e-4, transformers in float32 by 7e-6 and 8e-5.
    """

    def check(found: Logprobs, expected: NDArray[np.float64]) -> None:
        differences = np.abs(found.array() - expected)
        assert np.quantile(differences, 0.9) < 1e-4
        assert differences.max() < 1e-3

    return check


@dataclass(frozen=True, slots=True)
class Asker:
    """Sends single requests through the product's engine and the vLLM transport."""

    url: str

    def engine(self) -> HttpEngine:
        """An engine that tells every failure at once, and the first one."""
        return HttpEngine(self.url, VllmTransport(), max_retries=0, timeout_s=60.0)

    def generate(self, prompt_ids, *, model=MODEL_NAME, vocab_size=None, **sampling) -> Generation:
        """One completion of `prompt_ids`."""

        async def ask() -> Generation:
            async with self.engine() as engine:
                return await engine.generate(_request(model, prompt_ids, sampling, vocab_size))

        return asyncio.run(ask())

    def generate_unchecked(self, prompt_ids, **sampling) -> Generation:
        """The same without the engine, which would know the context limit and not send what is too long."""
        request, transport = _request(MODEL_NAME, prompt_ids, sampling), VllmTransport()
        reply = exchange(self.url, transport.write_generate(request))
        return transport.read_generate(request, reply)

    def describe(self) -> EngineInfo:
        """What the server says of itself."""

        async def ask() -> EngineInfo:
            async with self.engine() as engine:
                return await engine.describe(MODEL_NAME)

        return asyncio.run(ask())


def _request(model, prompt_ids, sampling, vocab_size=None) -> GenerateRequest:
    return GenerateRequest(model, TokenIds(prompt_ids), SamplingParams.from_args(sampling), vocab_size=vocab_size)


@pytest.fixture(scope="session")
def ask(vllm: VllmServer) -> Asker:
    """Asks the running server."""
    return Asker(vllm.url)
