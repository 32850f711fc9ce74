"""Sampling parameters are checked where they are built, and nothing is dropped on the way in."""

from __future__ import annotations

import math

import pytest

from tokentrue.errors import InvalidSamplingError
from tokentrue.sampling import SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("temperature", True),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", -0.1),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("min_tokens", -1),
        ("seed", -1),
        ("n", 0),
        ("repetition_penalty", 0),
        ("frequency_penalty", 3),
        ("stop_token_ids", (-1,)),
        ("stop", ("",)),
        ("cache_salt", ""),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidSamplingError, match=name):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


def test_openai_arguments_and_extra_body_are_one_set() -> None:
    params = SamplingParams.from_args(
        {
            "max_completion_tokens": 5,
            "temperature": 0.0,
            "top_p": None,
            "extra_body": {"top_k": 3, "priority": 0, "nvext": {"x": 1}},
        }
    )
    assert params.max_tokens == 5
    assert params.temperature == 0.0
    assert params.top_k == 3
    assert params.priority == 0
    assert params.extra == {"nvext": {"x": 1}}


def test_extra_body_none_is_nothing() -> None:
    assert SamplingParams.from_args({"extra_body": None}) == SamplingParams()


def test_two_values_for_one_parameter_are_an_error() -> None:
    with pytest.raises(InvalidSamplingError, match="given twice"):
        SamplingParams.from_args({"max_tokens": 5, "max_completion_tokens": 6})


def test_stop_ids_are_united_never_replaced() -> None:
    params = SamplingParams(stop_token_ids=(9, 7)).with_stop_token_ids((7, 8))
    assert params.stop_token_ids == (9, 7, 8)


def test_one_stop_string_is_a_list_of_one() -> None:
    assert SamplingParams.from_args({"stop": "END"}).stop == ("END",)
