"""What an endpoint's log-probabilities mean is found out by asking it, and never guessed."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tokentrue.engines.embedded.engine import MODEL_NAME, EmbeddedEngine
from tokentrue.engines.embedded.sampler import Sampler, SamplerOptions
from tokentrue.engines.logprobs import (
    COLD,
    FIRST,
    PLAIN,
    LogprobsModes,
    LogprobsProbe,
    MeasuredEngine,
    measure,
    measure_logprobs_mode,
)
from tokentrue.errors import AbortedError, EngineFailureError, TokentrueError
from tokentrue.generation import (
    EngineInfo,
    FinishReason,
    GenerateRequest,
    Generation,
    LogprobsMode,
    PartialGeneration,
    make_tokens,
)
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds

MODES = (LogprobsMode.RAW, LogprobsMode.SCALED, LogprobsMode.PROCESSED)
PROMPT = list(range(20, 60))


class OneRow:
    """Samples from one row of logits, in one mode, with noise as a busy GPU has it; tells nothing of the mode.

    The first `certain_first` ids are certain, and `length` follow them.
    """

    def __init__(self, logits, mode, *, noise=0.0, seed=0, greedy_top_k=False, certain_first=0, length=1):
        self.certain_first, self.length = certain_first, length
        self.opening = np.asarray([50.0, *[0.0] * (len(logits) - 1)], np.float32)
        self.logits, self.mode, self.noise = np.asarray(logits, np.float32), mode, noise
        self.rng = np.random.default_rng(seed)
        self.greedy_top_k = greedy_top_k
        self.asked = []
        self.failing = 0

    async def generate(self, request):
        self.asked.append(request)
        if self.failing:
            self.failing -= 1
            raise EngineFailureError("the engine is out of order")
        sampling = request.sampling
        options = SamplerOptions(sampling.temperature, sampling.top_p or 1.0, sampling.top_k or 0)
        if self.greedy_top_k and options.top_k == 1:
            options = replace(options, temperature=0.0)
        sampler = Sampler(options, int(self.rng.integers(2**60)), self.mode)
        draws = [sampler.draw(row) for row in ([self.opening] * self.certain_first + [self.logits] * self.length)]
        noise = self.rng.uniform(-1, 1, len(draws)) * self.noise
        logprobs = [min(0.0, draw.logprob + float(off)) for draw, off in zip(draws, noise, strict=True)]
        tokens = make_tokens(request.prompt_ids, [draw.token_id for draw in draws], logprobs)
        return Generation(tokens, FinishReason.LENGTH)

    async def describe(self, model=None):
        return EngineInfo("row", "1", ("m",), None)

    async def close(self):
        pass


def measured(engine, model="m"):
    return asyncio.run(measure_logprobs_mode(engine, model, PROMPT))


@pytest.mark.parametrize("mode", MODES)
def test_the_embedded_engine_is_measured_as_what_it_is(mode):
    async def run():
        async with EmbeddedEngine(logprobs_mode=mode) as engine:
            return await measure_logprobs_mode(engine, MODEL_NAME, PROMPT)

    found = asyncio.run(run())
    assert found.mode is mode
    telling = next(probe for probe in found.probes if probe.mode is mode)
    assert f"id {telling.first[0]} at {telling.first[1]:.4f}" in found.why


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(MODES),
    st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=50),
    st.sampled_from([0.0, 0.005, 0.015]),
    st.integers(0, 1000),
)
def test_a_measurement_is_right_or_says_that_it_is_none(mode, logits, noise, seed):
    """Whatever the distribution is; with more noise in each number than bfloat16 kernels have for one prompt."""
    highest = sorted(logits)[-2:]
    assume(highest[1] - highest[0] > 0.1)
    found = measured(OneRow(logits, mode, noise=noise, seed=seed))
    assert found.mode in (mode, LogprobsMode.UNKNOWN)


@pytest.mark.parametrize("mode", MODES)
def test_an_ordinary_distribution_is_measured(mode):
    """A hundred ids, none certain: the first prompt tells, in a handful of requests."""
    counts = []
    for seed in range(60):
        logits = np.random.default_rng(seed).normal(0, 2, 100)
        logits[7] = logits.max() + 1
        engine = OneRow(logits, mode, noise=0.01, seed=seed, length=12)
        assert measured(engine).mode is mode
        counts.append(len(engine.asked))
    assert np.mean(counts) < 6
    assert max(counts) <= 4 * 8


@pytest.mark.parametrize("mode", [LogprobsMode.RAW, LogprobsMode.SCALED])
def test_a_server_that_takes_top_k_1_for_greedy_is_not_misread(mode):
    """SGLang's sampler does not divide by the temperature when every request in the batch has top-k 1."""
    assert measured(OneRow([3.0, 2.0, 1.0, 0.0], mode, greedy_top_k=True)).mode is mode


@pytest.mark.parametrize("mode", MODES)
def test_what_follows_a_certain_opening_tells(mode):
    """A reasoning model begins every completion with its opener."""
    engine = OneRow([2.0, 1.0, 0.0, -1.0, 1.5], mode, certain_first=2, length=6, noise=0.005)
    assert measured(engine).mode is mode
    assert len(engine.asked) <= 8


@pytest.mark.parametrize("mode", MODES)
def test_a_certain_id_tells_nothing(mode):
    """One id with probability 1: all meanings are 0.0, and every beginning of the prompt was tried."""
    found = measured(OneRow([100.0, 0.0, 0.0], mode))
    assert found.mode is LogprobsMode.UNKNOWN
    assert len(found.probes) == 4
    assert "fit no meaning, or several" in found.why


class OneSeed(OneRow):
    """Draws every request from one seed, as SGLang's deterministic mode does: asked again, it repeats itself."""

    async def generate(self, request):
        self.rng = np.random.default_rng(7 * len(request.prompt_ids) + self.certain_first)
        return await super().generate(request)


@pytest.mark.parametrize("length", [1, 12])
@pytest.mark.parametrize("mode", [LogprobsMode.SCALED, LogprobsMode.PROCESSED])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 9, 30])
def test_ids_that_are_equally_likely_tell_nothing(count, mode, length):
    """A low temperature does not part them, so scaled looks like raw; but they take turns."""
    for seed in range(4):
        found = measured(OneRow([5.0] * count + [-9.0] * 30, mode, seed=seed, length=length, noise=0.005))
        assert found.mode is not LogprobsMode.RAW
    found = measured(OneSeed([5.0] * count + [-9.0] * 30, mode, length=length))
    assert found.mode is not LogprobsMode.RAW
    assert LogprobsProbe((1, -0.9), ((3, -1.0),), ((2, -0.9),)).mode is LogprobsMode.UNKNOWN


@pytest.mark.parametrize("engine", [OneRow, OneSeed])
@pytest.mark.parametrize("gap", [0.5, 1.0])
@pytest.mark.parametrize("count", [10, 300, 3000])
def test_a_flat_distribution_whose_numbers_could_be_ties_is_measured_by_several_places(engine, gap, count):
    """Any number below -1.8 is near to that of some ties; that a low temperature always finds one id is not."""
    row = [gap, *np.random.default_rng(count).uniform(-0.5, 0.0, count)]
    for mode in (LogprobsMode.RAW, LogprobsMode.SCALED):
        assert measured(engine(row, mode, length=12)).mode is mode
    alone = measured(OneRow([1.0, *[0.0] * 14], LogprobsMode.RAW, length=1))  # -1.78: as one of six
    assert alone.mode in (LogprobsMode.RAW, LogprobsMode.UNKNOWN)
    assert LogprobsProbe((1, -1.79), ((3, -4.0),), ((1, -1.79),)).mode is LogprobsMode.UNKNOWN


def test_numbers_that_cannot_be_true_tell_nothing():
    """An id that was sampled at probability 0.9 leaves 0.1 for the likeliest one."""
    assert LogprobsProbe((1, -0.9), ((3, -0.1),), ((1, -0.9),)).mode is LogprobsMode.UNKNOWN
    assert LogprobsProbe((1, -0.9), ((3, 0.0),), ((1, -0.9),)).mode is LogprobsMode.UNKNOWN
    assert LogprobsProbe((1, -0.9), ((3, -1.0),), ((1, -0.9),)).mode is LogprobsMode.RAW


@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=8), st.integers(0, 99))
def test_the_bound_on_the_likeliest_id_holds(logits, seed):
    """log p(first) <= log(1 - p(other)), and equality for the id itself."""
    wide = np.asarray(logits, np.float64)
    logs = wide - np.log(np.exp(wide).sum())
    other = seed % len(logs)
    top = int(np.argmax(logs))
    probe = LogprobsProbe((top, float(logs[top])), ((other, float(logs[other])),), ((top, 0.0),))
    assert probe.highest_raw >= logs[top] - 1e-6


def test_every_request_is_for_a_few_tokens_and_names_every_parameter_that_shapes():
    """A default of the engine would be measured instead."""
    engine = OneRow([2.0, 1.0, 0.0], LogprobsMode.RAW)
    measured(engine)
    for request in engine.asked:
        sampling = request.sampling
        assert sampling.max_tokens == 12
        assert None not in (
            *(sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.repetition_penalty),
        )
    assert (FIRST.top_k, COLD.temperature, PLAIN.temperature) == (1, 0.02, 1.0)


def turn(engine, **sampling):
    return engine.generate(GenerateRequest("m", TokenIds(PROMPT), SamplingParams(**sampling)))


def test_a_measured_engine_asks_once_and_only_when_it_matters():
    """Two thousand turns at one temperature cost the requests of one measurement."""

    async def run():
        inner = OneRow([2.0, 1.0, 0.0, -1.0], LogprobsMode.SCALED)
        engine = MeasuredEngine(inner)
        plain = await engine.generate(GenerateRequest("m", TokenIds(PROMPT), PLAIN))
        assert (plain.logprobs_mode, len(inner.asked)) == (LogprobsMode.ALIKE, 1)
        assert (await engine.describe("m")).logprobs_mode is LogprobsMode.UNKNOWN
        turns = await asyncio.gather(*(turn(engine, temperature=0.7) for _ in range(50)))
        assert {found.logprobs_mode for found in turns} == {LogprobsMode.SCALED}
        asked = len(inner.asked)
        assert 54 <= asked <= 59
        await engine.measured(GenerateRequest("m", TokenIds(PROMPT)))
        assert len(inner.asked) == asked
        assert (await engine.describe("m")).logprobs_mode is LogprobsMode.SCALED
        assert (await engine.describe()).logprobs_mode is LogprobsMode.SCALED

    asyncio.run(run())


def test_what_an_engine_says_itself_is_believed():
    async def run():
        async with EmbeddedEngine() as inner:
            engine = MeasuredEngine(inner)
            request = GenerateRequest(MODEL_NAME, TokenIds(PROMPT), SamplingParams(temperature=0.7, max_tokens=1))
            assert (await engine.generate(request)).logprobs_mode is LogprobsMode.RAW
            assert (await engine.describe()).logprobs_mode is LogprobsMode.RAW
            assert inner._request_count == 1

    asyncio.run(run())


def test_a_failure_to_measure_fails_no_turn_and_is_told(caplog):
    """The turn says `UNKNOWN`; the failure is not asked for again by every turn behind it."""

    async def run():
        inner = OneRow([2.0, 1.0, 0.0, -1.0], LogprobsMode.RAW)
        engine = MeasuredEngine(inner)

        class Fails(OneRow):
            async def generate(self, request):
                raise EngineFailureError("no more of that")

        modes = LogprobsModes()
        sampled = await inner.generate(GenerateRequest("m", TokenIds(PROMPT), SamplingParams(temperature=0.5)))
        failing = MeasuredEngine(Fails([1.0, 0.0], LogprobsMode.RAW), modes)
        asked = []

        def asks():
            asked.append(1)
            return [lambda sampling: failing.engine.generate(None)]

        # At once, and one after the other: who waited behind the failure does not fail anew.
        shaped = SamplingParams(temperature=0.5)
        together = await asyncio.gather(*(modes.marked(sampled, "m", shaped, asks) for _ in range(20)))
        for found in [*together, await modes.marked(sampled, "m", shaped, asks)]:
            assert found.logprobs_mode is LogprobsMode.UNKNOWN
        assert len(asked) == 1
        with pytest.raises(TokentrueError, match="no more of that"):
            await failing.measured(GenerateRequest("m", TokenIds(PROMPT)))
        assert (await turn(engine, temperature=0.5)).logprobs_mode is LogprobsMode.RAW

    asyncio.run(run())
    assert "could not be measured" in caplog.text
    assert "no more of that" in caplog.text


def test_a_measurement_that_hangs_holds_no_turn_for_ever(monkeypatch, caplog):
    monkeypatch.setattr("tokentrue.engines.logprobs.MEASURE_WITHIN_S", 0.05)

    class Hangs(OneRow):
        async def generate(self, request):
            if request.sampling.max_tokens == 1:
                return await super().generate(request)
            await asyncio.Event().wait()
            raise AssertionError

    async def run():
        engine = MeasuredEngine(Hangs([2.0, 1.0, 0.0], LogprobsMode.RAW))
        request = GenerateRequest("m", TokenIds(PROMPT), SamplingParams(temperature=0.5, max_tokens=1))
        return await asyncio.wait_for(engine.generate(request), 10)

    assert asyncio.run(run()).logprobs_mode is LogprobsMode.UNKNOWN
    assert "no answer within" in caplog.text


def test_no_prompt_measures_nothing():
    assert asyncio.run(measure([])).mode is LogprobsMode.UNKNOWN


def test_the_bound_of_a_certain_id_is_no_number_below_it():
    assert LogprobsProbe((2, -1.0), ((1, 0.0),), ((2, -1.0),)).highest_raw == -math.inf


def test_the_ids_of_an_aborted_turn_are_marked_too():
    """Whatever continues them may be another endpoint, whose numbers mean other things."""

    class GivesUp(OneRow):
        async def generate(self, request):
            found = await super().generate(request)
            if request.sampling.max_tokens == 20:
                raise AbortedError("finish_reason is 'abort'", partial=PartialGeneration(found.tokens))
            return found

    async def run(**sampling):
        engine = MeasuredEngine(GivesUp([3.0, 2.0, 1.0, 0.0], LogprobsMode.SCALED))
        with pytest.raises(AbortedError) as raised:
            await turn(engine, max_tokens=20, **sampling)
        return raised.value.partial.logprobs_mode

    assert asyncio.run(run(temperature=0.7)) is LogprobsMode.SCALED
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert asyncio.run(run(**plain)) is LogprobsMode.ALIKE
