"""What log-probabilities mean is said of each turn, and different meanings are never used together."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentrue.errors import LogprobsMeaningError
from tokentrue.generation import (
    FinishReason,
    Generation,
    LogprobsMode,
    common_logprobs_mode,
    make_tokens,
    reads_alike,
    with_logprobs_mode,
)
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds

PLAIN = {"temperature": 1, "top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1}


def generation(mode=LogprobsMode.UNKNOWN) -> Generation:
    """One sampled id."""
    return Generation(make_tokens(TokenIds([1]), [2], [-0.5]), FinishReason.STOP, logprobs_mode=mode)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"top_k": 0, "max_tokens": 9, "seed": 3, "stop_token_ids": (4,), "ignore_eos": True, "n": 2},
        {"priority": 1, "cache_salt": "x", "logit_bias": {}, "min_tokens": 0, "presence_penalty": 0.0},
        {"skip_special_tokens": False, "logprobs": 5},
    ],
)
def test_temperature_one_and_nothing_truncated_reads_alike(more):
    assert reads_alike(SamplingParams.from_args({**PLAIN, **more}))


@pytest.mark.parametrize(
    "shaped",
    [
        *({"temperature": value} for value in (0.0, 0.7, 1.01)),
        *({"top_p": 0.99}, {"top_k": 20}, {"min_p": 0.01}, {"repetition_penalty": 1.05}),
        *({"frequency_penalty": -0.1}, {"presence_penalty": 0.5}, {"logit_bias": {"3": 1.0}}, {"min_tokens": 1}),
        *({"allowed_token_ids": [1, 2]}, {"bad_words": ["x"]}, {"structured_outputs": {"regex": "a"}}),
        {"an_unknown_one": 1},
    ],
)
def test_whatever_may_shape_the_distribution_makes_the_meaning_matter(shaped):
    assert not reads_alike(SamplingParams.from_args({**PLAIN, **shaped}))


@pytest.mark.parametrize("name", PLAIN)
def test_a_default_of_the_engine_is_not_known_to_shape_nothing(name):
    """A model's generation_config.json may set any of these, and servers apply it to what is left out."""
    assert not reads_alike(SamplingParams.from_args({key: value for key, value in PLAIN.items() if key != name}))


def test_every_parameter_was_thought_of():
    """A new parameter has to be placed in one of the tests above."""
    assert {field.name for field in fields(SamplingParams)} == {
        *("temperature", "top_p", "top_k", "min_p", "max_tokens", "min_tokens", "seed", "n", "stop"),
        *("stop_token_ids", "ignore_eos", "frequency_penalty", "presence_penalty", "repetition_penalty"),
        *("logit_bias", "priority", "cache_salt", "extra"),
    }


@pytest.mark.parametrize("mode", LogprobsMode)
def test_a_generation_is_marked_once(mode):
    """What an engine said itself is kept; what it did not say follows from the request, then from the engine."""
    plain, shaped = SamplingParams.from_args(PLAIN), SamplingParams(temperature=0.7)
    assert with_logprobs_mode(generation(), plain, mode).logprobs_mode is LogprobsMode.ALIKE
    assert with_logprobs_mode(generation(), shaped, mode).logprobs_mode is mode
    if mode is not LogprobsMode.UNKNOWN:
        assert with_logprobs_mode(generation(mode), plain, LogprobsMode.RAW).logprobs_mode is mode


@given(st.lists(st.sampled_from(LogprobsMode)))
def test_one_meaning_or_an_error(modes):
    """`ALIKE` goes with every meaning; two others never go together."""
    meanings = set(modes) - {LogprobsMode.ALIKE}
    if len(meanings) > 1:
        with pytest.raises(LogprobsMeaningError) as caught:
            common_logprobs_mode(modes)
        assert all(mode.value in str(caught.value) for mode in meanings)
    else:
        assert common_logprobs_mode(iter(modes)) is (meanings.pop() if meanings else LogprobsMode.ALIKE)
