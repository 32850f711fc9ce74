"""Every draw obeys its filters, follows its seed, and is as likely as it says."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentrue.engines.embedded.sampler import (
    Sampler,
    SamplerOptions,
    log_sum_exp,
    processed_logprobs,
)
from tokentrue.errors import ConfigError, EngineFailureError
from tokentrue.generation import LogprobsMode

LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=40).map(lambda x: np.array(x, np.float32))
OPTIONS = st.builds(
    SamplerOptions,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([-1, 0, 1, 3, 100]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)


@given(LOGITS, OPTIONS, st.integers(0, 2**64))
def test_same_seed_same_draws(logits: np.ndarray, options: SamplerOptions, seed: int) -> None:
    first, second = (Sampler(options, seed, LogprobsMode.RAW) for _ in range(2))
    assert [first.draw(logits) for _ in range(5)] == [second.draw(logits) for _ in range(5)]


@given(LOGITS, OPTIONS, st.integers(0, 1000))
def test_raw_logprob_is_log_softmax_at_temperature_one(
    logits: np.ndarray, options: SamplerOptions, seed: int
) -> None:
    draw = Sampler(options, seed, LogprobsMode.RAW).draw(logits)
    shifted = logits.astype(np.float64) - float(logits.max())
    expected = shifted[draw.token_id] - math.log(math.fsum(np.exp(shifted)))
    assert draw.logprob == pytest.approx(expected, abs=1e-9)
    assert draw.logprob <= 1e-12


@given(LOGITS, OPTIONS, st.integers(0, 1000))
def test_processed_logprobs_are_a_distribution_and_the_draw_is_in_it(
    logits: np.ndarray, options: SamplerOptions, seed: int
) -> None:
    draw = Sampler(options, seed, LogprobsMode.PROCESSED).draw(logits)
    if options.temperature == 0:
        assert draw.logprob == 0.0
        return
    logs = processed_logprobs(logits.astype(np.float64), options)
    assert math.fsum(np.exp(logs)) == pytest.approx(1.0)
    assert draw.logprob == logs[draw.token_id]


@given(LOGITS, OPTIONS, st.integers(0, 1000))
def test_scaled_logprob_is_log_softmax_at_the_temperature_before_truncation(
    logits: np.ndarray, options: SamplerOptions, seed: int
) -> None:
    draw = Sampler(options, seed, LogprobsMode.SCALED).draw(logits)
    scaled = logits.astype(np.float64) / (options.temperature or 1.0)
    scaled -= scaled.max()
    expected = scaled[draw.token_id] - math.log(math.fsum(np.exp(scaled)))
    assert draw.logprob == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("mode", [LogprobsMode.ALIKE, LogprobsMode.UNKNOWN])
def test_a_sampler_has_a_mode_that_an_engine_can_have(mode: LogprobsMode) -> None:
    with pytest.raises(ConfigError, match="raw', 'scaled', 'processed"):
        Sampler(SamplerOptions(), 0, mode)


@given(LOGITS, st.integers(1, 5), st.integers(0, 1000))
def test_top_k_draws_among_the_k_likeliest(logits: np.ndarray, top_k: int, seed: int) -> None:
    draw = Sampler(SamplerOptions(top_k=top_k), seed, LogprobsMode.RAW).draw(logits)
    assert (logits > logits[draw.token_id]).sum() < top_k


@given(LOGITS, st.floats(0.05, 0.99), st.integers(0, 1000))
def test_top_p_draws_from_the_smallest_set_that_reaches_p(logits: np.ndarray, top_p: float, seed: int) -> None:
    draw = Sampler(SamplerOptions(top_p=top_p), seed, LogprobsMode.RAW).draw(logits)
    wide = logits.astype(np.float64)
    probabilities = np.exp(wide - log_sum_exp(wide))
    assert probabilities[wide > wide[draw.token_id]].sum() < top_p + 1e-9


def test_top_k_sees_differences_that_vanish_in_the_normalised_logs() -> None:
    logits = np.array([0.0, 1e-45], np.float32)
    assert Sampler(SamplerOptions(top_k=1), 0, LogprobsMode.RAW).draw(logits).token_id == 1


@given(LOGITS, st.floats(0.01, 1), st.integers(0, 1000))
def test_min_p_draws_nothing_far_below_the_likeliest(logits: np.ndarray, min_p: float, seed: int) -> None:
    draw = Sampler(SamplerOptions(min_p=min_p), seed, LogprobsMode.RAW).draw(logits)
    assert math.exp(float(logits[draw.token_id]) - float(logits.max())) >= min_p * (1 - 1e-9)


@given(LOGITS)
def test_temperature_zero_takes_the_likeliest(logits: np.ndarray) -> None:
    draw = Sampler(SamplerOptions(temperature=0.0), None, LogprobsMode.RAW).draw(logits)
    assert draw.token_id == int(np.argmax(logits))


@given(LOGITS, OPTIONS, st.integers(0, 1000))
def test_forbidden_ids_are_not_drawn(logits: np.ndarray, options: SamplerOptions, seed: int) -> None:
    forbidden = frozenset(range(len(logits) - 1))
    draw = Sampler(options, seed, LogprobsMode.RAW).draw(logits, forbidden)
    assert draw.token_id == len(logits) - 1


def test_frequencies_follow_the_probabilities() -> None:
    """A chi-square test at a fixed seed: 20,000 draws from five ids."""
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03], np.float32))
    sampler = Sampler(SamplerOptions(), 7, LogprobsMode.RAW)
    counts = np.bincount([sampler.draw(logits).token_id for _ in range(20_000)], minlength=5)
    expected = np.exp(logits.astype(np.float64)) * 20_000
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # the 99.9 % point with four degrees of freedom


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonsense_logits_are_an_error_and_never_a_sample(value: float) -> None:
    logits = np.array([0.0, value, 1.0], np.float32)
    with pytest.raises(EngineFailureError, match="1 of 3 logits"):
        Sampler(SamplerOptions(), 1, LogprobsMode.RAW).draw(logits)
