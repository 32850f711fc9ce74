"""What a real vLLM's log-probabilities mean is measured, and every number is that of our own forward pass."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from servers.teacher_forcing import TeacherForcing
from servers.vllm.install import ensure_vllm
from servers.vllm.server import MODEL_NAME, VllmServer

from tokentrue.clients.making import make_client
from tokentrue.config import ClientConfig
from tokentrue.engines.embedded.engine import MODEL_FOLDER
from tokentrue.engines.embedded.sampler import SamplerOptions, processed_logprobs
from tokentrue.engines.http import HttpEngine
from tokentrue.engines.logprobs import MeasuredEngine, measure_logprobs_mode
from tokentrue.generation import GenerateRequest, LogprobsMode
from tokentrue.rendering.renderer import load_renderer
from tokentrue.rollouts.record import open_record
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.vllm import VllmTransport

pytestmark = pytest.mark.vllm

CLIENTS = ("renderer", "openai_chat_completions_token", "openai_chat_completions")


@pytest.fixture(scope="module")
def processed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A second server: it tells what it sampled from."""
    flags = ("--logprobs-mode", "processed_logprobs")
    folder = tmp_path_factory.mktemp("processed")
    with VllmServer(ensure_vllm(), MODEL_FOLDER, folder, flags=flags) as server:
        yield server


@dataclass(frozen=True, slots=True)
class Served:
    url: str
    mode: LogprobsMode


@pytest.fixture(scope="module", params=["raw", "processed"])
def served(request: pytest.FixtureRequest) -> Served:
    """Each of the two servers."""
    name = "vllm" if request.param == "raw" else "processed"
    return Served(request.getfixturevalue(name).url, LogprobsMode(request.param))


@pytest.fixture(scope="module")
def prompt_ids() -> TokenIds:
    return load_renderer(MODEL_FOLDER).render_ids([{"role": "user", "content": "Tell me a story."}])


def test_the_mode_is_measured(served: Served, prompt_ids: TokenIds):
    async def run():
        async with HttpEngine(served.url, VllmTransport()) as engine:
            return [
                await measure_logprobs_mode(engine, MODEL_NAME, ids)
                for ids in (prompt_ids, list(range(30, 90)), [5])
            ]

    found = asyncio.run(run())
    print(*(measured.why for measured in found), sep="\n")
    assert {measured.mode for measured in found} == {served.mode}


@pytest.mark.parametrize("sampling", [{"temperature": 0.7}, {"temperature": 1.3, "top_k": 5}, {"top_p": 0.6}])
def test_the_numbers_are_those_of_the_mode(
    served: Served,
    prompt_ids: TokenIds,
    teacher: TeacherForcing,
    assert_same_logprobs: Callable[..., None],
    sampling: dict[str, float],
):
    """Every sampled id's number is our forward pass's: at temperature 1, or of what was sampled from."""
    asked = SamplingParams(**{"temperature": 1.0, **sampling}, max_tokens=40, seed=5, ignore_eos=True)

    async def run():
        engine = MeasuredEngine(HttpEngine(served.url, VllmTransport()))
        try:
            return await engine.generate(GenerateRequest(MODEL_NAME, prompt_ids, asked))
        finally:
            await engine.close()

    generation = asyncio.run(run())
    assert generation.logprobs_mode is served.mode
    ids = list(generation.tokens.completion_ids)
    rows = teacher.logprobs(list(prompt_ids), ids)
    options = SamplerOptions(asked.temperature, asked.top_p or 1.0, asked.top_k or 0)
    expected = {
        LogprobsMode.RAW: rows,
        LogprobsMode.PROCESSED: np.stack([processed_logprobs(row, options) for row in rows]),
    }
    at = np.arange(len(ids)), ids
    assert_same_logprobs(generation.tokens.completion_logprobs, expected[served.mode][at])
    other = LogprobsMode.PROCESSED if served.mode is LogprobsMode.RAW else LogprobsMode.RAW
    assert np.abs(generation.tokens.completion_logprobs.array() - expected[other][at]).max() > 0.1


@pytest.mark.parametrize("client_type", CLIENTS)
def test_every_turn_of_every_client_says_it(served: Served, client_type: str, prompt_ids: TokenIds):
    """Measured once, by whichever route the client has; nothing is measured where all meanings are one."""
    renderer = load_renderer(MODEL_FOLDER)
    config = ClientConfig(client_type=client_type, api_base_url=served.url)
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}

    async def run():
        asked = {"max_tokens": 8, "seed": 1}
        async with await make_client(config, None if client_type == CLIENTS[-1] else renderer) as client:
            first = await client.get_response("Hi", MODEL_NAME, {**plain, **asked})
            second = await client.get_response("Hi", MODEL_NAME, {"temperature": 0.6, **asked})
            return [first.turn.logprobs_mode, second.turn.logprobs_mode]

    assert asyncio.run(run()) == [LogprobsMode.ALIKE, served.mode]


def test_a_run_keeps_what_was_measured(served: Served, tmp_path: Path):
    """In `run.json` with its evidence, on every turn, and in what `inspect` prints."""
    out = tmp_path / "run"
    tokentrue = [sys.executable, "-c", "from tokentrue.cli.main import main; main()"]
    run = ["rollout", "--env", "calculator", "--engine", served.url, "--episodes", "2", "--temperature", "0.8"]
    subprocess.run([*tokentrue, *run, "--out", str(out)], check=True, timeout=120)
    reader = open_record(out)
    assert (reader.info.engine.name, reader.info.engine.version) == ("vllm", "0.32.0")
    assert reader.info.engine.logprobs_mode is served.mode
    assert reader.info.config["logprobs"]["mode"] == served.mode.value
    assert "top_k=1: id" in reader.info.config["logprobs"]["why"]
    assert {turn.turn.logprobs_mode for turn in reader.turns()} == {served.mode}
    shown = subprocess.run([*tokentrue, "inspect", str(out)], check=True, capture_output=True, text=True).stdout
    assert f"logprobs   {served.mode.value} " in shown
