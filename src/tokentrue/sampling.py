"""Sampling parameters: one frozen value, checked at birth, whatever engine it goes to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from tokentrue.errors import InvalidSamplingError

_ALIASES = {"max_completion_tokens": "max_tokens", "max_new_tokens": "max_tokens"}


def _check_number(name: str, value: float | None, low: float, high: float, *, open_low: bool = False) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidSamplingError(f"{name} must be a finite number, not {value!r}")
    if value < low or value > high or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise InvalidSamplingError(f"{name}={value!r} is outside {bracket}{low}, {high}]")


def _check_integer(name: str, value: int | None, low: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidSamplingError(f"{name} must be an integer, not {value!r}")
    if value < low:
        raise InvalidSamplingError(f"{name}={value!r} must be at least {low}")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample one completion. None means: the engine's default, nothing is sent.

    `temperature` 0 is greedy. `top_k` -1 and 0 mean all tokens. `stop_token_ids` are *added* to the
    renderer's stop ids, never a replacement. `priority`: higher is sooner, on every transport.
    `extra` holds further parameters by the engine's own names; a transport that cannot place one
    raises `UnsupportedParameterError` instead of dropping it.

    Raises:
        InvalidSamplingError: A value is outside its range.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[str, float] | None = None
    priority: int | None = None
    cache_salt: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 0.0, 2.0)
        _check_number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, open_low=True)
        _check_integer("top_k", self.top_k, -1)
        _check_integer("max_tokens", self.max_tokens, 1)
        _check_integer("min_tokens", self.min_tokens, 0)
        _check_integer("n", self.n, 1)
        _check_integer("seed", self.seed, 0)
        _check_integer("priority", self.priority, -(2**31))
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise InvalidSamplingError(f"stop must hold non-empty strings, not {text!r}")
        for token_id in self.stop_token_ids:
            _check_integer("stop_token_ids", token_id, 0)
        if self.cache_salt == "":
            raise InvalidSamplingError("cache_salt must not be empty: vLLM refuses it; leave it out instead")
        object.__setattr__(self, "extra", MappingProxyType(dict(self.extra)))

    @classmethod
    def from_args(cls, args: Mapping[str, Any] | SamplingParams | None) -> SamplingParams:
        """Read OpenAI-style sampling arguments; `extra_body` is merged in, None values are dropped.

        `max_completion_tokens` and `max_new_tokens` are read as `max_tokens`. Keys that are no field
        of this class go to `extra`, so that the transport decides about them.

        Raises:
            InvalidSamplingError: A value is out of range, or a key is given twice with two values.
        """
        if args is None:
            return cls()
        if isinstance(args, SamplingParams):
            return args
        merged: dict[str, Any] = {}
        body = args.get("extra_body")
        for source in (args, body if isinstance(body, Mapping) else {}):
            for key, value in source.items():
                name = _ALIASES.get(key, key)
                if name == "extra_body" or value is None:
                    continue
                if name in merged and merged[name] != value:
                    raise InvalidSamplingError(f"{key} is given twice: {merged[name]!r} and {value!r}")
                merged[name] = value
        known = {f.name for f in fields(cls)} - {"extra"}
        extra = {key: value for key, value in merged.items() if key not in known}
        return cls(**{key: value for key, value in merged.items() if key in known}, extra=extra)

    def with_stop_token_ids(self, stop_token_ids: tuple[int, ...]) -> SamplingParams:
        """The same parameters with the union of both sets of stop ids, the caller's first."""
        union = tuple(dict.fromkeys((*self.stop_token_ids, *stop_token_ids)))
        return replace(self, stop_token_ids=union, extra=dict(self.extra))

    def with_max_tokens(self, max_tokens: int | None) -> SamplingParams:
        """The same parameters with another `max_tokens`."""
        return replace(self, max_tokens=max_tokens, extra=dict(self.extra))
