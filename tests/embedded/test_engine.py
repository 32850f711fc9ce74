"""The embedded engine keeps the engine protocol's promises."""

import asyncio
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tokentrue.engines.embedded.engine import MODEL_NAME, EmbeddedEngine
from tokentrue.engines.embedded.weights import Weights
from tokentrue.engines.engine import Engine
from tokentrue.errors import (
    AbortedError,
    ConfigError,
    EngineFailureError,
    InvalidSamplingError,
    InvalidTokenIdError,
    OverlongPromptError,
    TokentrueError,
    UnknownModelError,
    UnsupportedParameterError,
)
from tokentrue.generation import FinishReason, GenerateRequest, Generation, LogprobsMode
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds

PROMPT = list(range(20, 60))


def request(prompt: Sequence[int] = PROMPT, model: str = MODEL_NAME, **sampling: object) -> GenerateRequest:
    return GenerateRequest(model, TokenIds(prompt), SamplingParams.from_args({"max_tokens": 12, **sampling}))


def generate(*requests: GenerateRequest, engine: EmbeddedEngine | None = None) -> list[Generation]:
    async def run() -> list[Generation]:
        async with engine or EmbeddedEngine() as running:
            return await asyncio.gather(*(running.generate(item) for item in requests))

    return asyncio.run(run())


def failure(item: GenerateRequest) -> TokentrueError:
    with pytest.raises(TokentrueError) as caught:
        generate(item)
    return caught.value


def test_it_is_an_engine() -> None:
    engine: Engine = EmbeddedEngine()
    asyncio.run(engine.close())


def test_ids_logprobs_and_counts_belong_together() -> None:
    first, second = generate(request(seed=1), request(seed=2, max_tokens=3, ignore_eos=True))
    for generation in (first, second):
        tokens = generation.tokens
        assert tokens.prompt_ids == PROMPT
        assert len(tokens.completion_ids) == len(tokens.completion_logprobs) > 0
        assert all(math.isfinite(logprob) and logprob <= 0 for logprob in tokens.completion_logprobs)
        assert generation.usage.prompt_tokens == len(PROMPT)
        assert generation.usage.completion_tokens == len(tokens.completion_ids)
    assert second.finish_reason is FinishReason.LENGTH
    assert second.stop_reason is None
    assert len(second.tokens.completion_ids) == 3


def test_more_requests_than_rows_give_what_each_gives_alone() -> None:
    requests = [request(PROMPT[: 10 + i], seed=i) for i in range(20)]
    together = generate(*requests, engine=EmbeddedEngine(rows=3))
    alone = [generate(item)[0] for item in requests[:5]]
    assert [item.tokens for item in together[:5]] == [item.tokens for item in alone]


def test_the_second_turn_is_cached_in_whole_blocks() -> None:
    async def run() -> Generation:
        async with EmbeddedEngine() as engine:
            await engine.generate(request(seed=1))
            return await engine.generate(request([*PROMPT, 3, 4, 5], seed=1))

    assert asyncio.run(run()).usage.cached_tokens == 32


def test_stop_ids_stop_and_are_named_also_when_eos_is_ignored() -> None:
    free = generate(request(seed=5, ignore_eos=True))[0].tokens.completion_ids.tolist()
    stopped = generate(request(seed=5, ignore_eos=True, stop_token_ids=[free[4]]))[0]
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.stop_reason == free[4]
    assert stopped.tokens.completion_ids == free[: free.index(free[4]) + 1]


def test_min_tokens_forbids_to_stop_early(weights: Weights) -> None:
    """With every id but one a stop id, nothing else can be sampled until `min_tokens` are there."""
    stop_ids = [i for i in range(weights.config.vocab_size) if i != 7]
    generation = generate(request(stop_token_ids=stop_ids, min_tokens=4, seed=0))[0]
    assert generation.tokens.completion_ids[:4] == [7, 7, 7, 7]


def test_temperature_zero_is_greedy_whatever_the_seed() -> None:
    first, second = generate(request(temperature=0, seed=1), request(temperature=0, seed=2))
    assert first.tokens == second.tokens


def test_processed_logprobs_of_greedy_sampling_are_certain() -> None:
    engine = EmbeddedEngine(logprobs_mode=LogprobsMode.PROCESSED)
    assert set(generate(request(temperature=0), engine=engine)[0].tokens.completion_logprobs) == {0.0}


def test_max_tokens_is_cut_to_the_context() -> None:
    generation = generate(request([5] * 2045, max_tokens=100, ignore_eos=True, seed=0))[0]
    assert len(generation.tokens.completion_ids) == 3
    assert generation.finish_reason is FinishReason.LENGTH


def test_every_id_has_the_policy_version_that_sampled_it() -> None:
    async def run() -> tuple[str, Generation]:
        async with EmbeddedEngine() as engine:
            return (await engine.describe()).version, await engine.generate(request(seed=1))

    version, generation = asyncio.run(run())
    assert [span.version for span in generation.weight_spans] == [version]


def test_it_describes_itself() -> None:
    async def run() -> None:
        async with EmbeddedEngine(model_name="small") as engine:
            info = await engine.describe("small")
            assert (info.name, info.models, info.context_limit) == ("embedded", ("small",), 2048)
            assert info.logprobs_mode is LogprobsMode.RAW
            with pytest.raises(UnknownModelError):
                await engine.describe("large")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("item", "error", "words"),
    [
        (request([]), InvalidTokenIdError, "no id"),
        (request([5, 100_000]), InvalidTokenIdError, "100000 at position 1"),
        (request([5] * 2048), OverlongPromptError, "2048"),
        (request(model="other"), UnknownModelError, "'other'"),
        (request(n=2), UnsupportedParameterError, "'n'"),
        (request(stop=["x"]), UnsupportedParameterError, "'stop'"),
        (request(frequency_penalty=0.5), UnsupportedParameterError, "'frequency_penalty'"),
        (request(repetition_penalty=1.5), UnsupportedParameterError, "'repetition_penalty'"),
        (request(logit_bias={"5": 1.0}), UnsupportedParameterError, "'logit_bias'"),
        (request(surprise=1), UnsupportedParameterError, "'surprise'"),
        (request(min_tokens=1, stop_token_ids=list(range(696))), InvalidSamplingError, "every id"),
        (request(stop_token_ids=[3, 696]), InvalidTokenIdError, "stop token id 696"),
    ],
)
def test_what_cannot_be_done_is_a_typed_error(
    item: GenerateRequest, error: type[TokentrueError], words: str
) -> None:
    raised = failure(item)
    assert isinstance(raised, error)
    assert words in str(raised)


def test_ids_beyond_the_renderers_vocabulary_are_refused() -> None:
    item = GenerateRequest(MODEL_NAME, TokenIds([5, 30]), vocab_size=30)
    assert isinstance(failure(item), InvalidTokenIdError)


def test_cancelling_frees_the_row() -> None:
    async def run() -> Generation:
        async with EmbeddedEngine(rows=1) as engine:
            long = asyncio.create_task(engine.generate(request(max_tokens=2000, ignore_eos=True, seed=1)))
            short = asyncio.create_task(engine.generate(request(max_tokens=2, ignore_eos=True, seed=1)))
            await engine.describe()
            await asyncio.sleep(0)
            long.cancel()
            with pytest.raises(asyncio.CancelledError):
                await long
            return await short

    assert len(asyncio.run(run()).tokens.completion_ids) == 2


def test_closing_fails_what_is_in_work_and_what_comes_after() -> None:
    async def run() -> None:
        engine = EmbeddedEngine()
        task = asyncio.create_task(engine.generate(request(max_tokens=2000, ignore_eos=True)))
        await asyncio.sleep(0)
        await engine.close()
        await engine.close()
        with pytest.raises(AbortedError):
            await task
        with pytest.raises(AbortedError):
            await engine.generate(request())

    asyncio.run(run())


def test_one_engine_serves_one_event_loop_after_another() -> None:
    engine = EmbeddedEngine()
    first, second = (asyncio.run(engine.generate(request(seed=1))) for _ in range(2))
    assert first.tokens == second.tokens
    asyncio.run(engine.close())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_weights_that_compute_nonsense_give_an_error_and_no_sample(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], np.nan)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(EngineFailureError, match="not finite"):
        generate(request(), engine=EmbeddedEngine(folder))


def test_a_folder_without_a_model_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weights"):
        EmbeddedEngine(tmp_path)
