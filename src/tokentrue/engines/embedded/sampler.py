"""Draw one id from one row of logits, and say exactly how likely it was.

Everything here is float64. The order of the filters is vLLM's: temperature, min-p, top-k, top-p.
Log-probabilities are raw, scaled or processed, as `LogprobsMode` says.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokentrue.engines.embedded.weights import Array
from tokentrue.errors import ConfigError, EngineFailureError
from tokentrue.generation import LogprobsMode

Wide = NDArray[np.float64]

GREEDY_BELOW = 1e-5
"""Temperatures below it are greedy, as in vLLM (`_SAMPLING_EPS` in `sampling_params.py`)."""


_MODES = (LogprobsMode.RAW, LogprobsMode.SCALED, LogprobsMode.PROCESSED)


@dataclass(frozen=True, slots=True)
class SamplerOptions:
    """How to draw; `temperature` below `GREEDY_BELOW` is greedy, `top_k` 0 and below means every id."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


@dataclass(frozen=True, slots=True)
class Draw:
    """One sampled id with its log-probability in nats."""

    token_id: int
    logprob: float


class Sampler:
    """The sampling state of one request: its options and its own random stream.

    Args:
        seed: Fixes the stream; None draws one from the operating system.

    Raises:
        ConfigError: `mode` is none that an engine can have.
    """

    def __init__(self, options: SamplerOptions, seed: int | None, mode: LogprobsMode) -> None:
        if mode not in _MODES:
            raise ConfigError(f"logprobs_mode {mode} is no engine's: choose one of {[m.value for m in _MODES]}")
        self._options = options
        self._mode = mode
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def draw(self, logits: Array, forbidden: Collection[int] = ()) -> Draw:
        """Draw from `logits` `[vocabulary]`, never one of the `forbidden` ids.

        Raises:
            EngineFailureError: A logit or the log-probability is not finite: the model computed nonsense.
        """
        wide = logits.astype(np.float64)
        if not np.isfinite(wide).all():
            raise EngineFailureError(f"{int((~np.isfinite(wide)).sum())} of {len(wide)} logits are not finite")
        allowed = wide
        if forbidden:
            allowed = wide.copy()
            allowed[list(forbidden)] = -math.inf
        if self._options.temperature < GREEDY_BELOW:
            token_id, processed = int(np.argmax(allowed)), 0.0
        else:
            logs = processed_logprobs(allowed, self._options)
            token_id = self._pick(np.exp(logs))
            processed = float(logs[token_id])
        logprob = self._logprob(wide, token_id, processed)
        if not math.isfinite(logprob):
            raise EngineFailureError(f"the model gave id {token_id} the log-probability {logprob!r}")
        return Draw(token_id, logprob)

    def _logprob(self, logits: Wide, token_id: int, processed: float) -> float:
        if self._mode is LogprobsMode.PROCESSED:
            return processed
        is_scaled = self._mode is LogprobsMode.SCALED and self._options.temperature >= GREEDY_BELOW
        seen = logits / self._options.temperature if is_scaled else logits
        return float(seen[token_id]) - log_sum_exp(seen)

    def _pick(self, probabilities: Wide) -> int:
        """Inverse transform: one uniform number per id, whatever the filters."""
        cumulative = np.cumsum(probabilities)
        # The sum is 1 up to rounding, so the draw is scaled; the product may round up to the sum itself, and the
        # bound keeps ids of probability 0 at the end out of reach then.
        drawn = self._rng.random() * cumulative[-1]
        last_possible = np.searchsorted(cumulative, cumulative[-1])
        return int(min(np.searchsorted(cumulative, drawn, side="right"), last_possible))


def log_sum_exp(logits: Wide) -> float:
    """`log(sum(exp(logits)))` without overflow."""
    highest = float(logits.max())
    return highest + math.log(float(np.exp(logits - highest).sum()))


def processed_logprobs(logits: Wide, options: SamplerOptions) -> Wide:
    """The log of the distribution drawn from; -inf where a filter took an id away."""
    logs = logits / options.temperature
    logs = logs - log_sum_exp(logs)
    if options.min_p > 0:
        logs = np.where(logs < logs.max() + math.log(options.min_p), -math.inf, logs)
    # By the logits themselves: subtracting the log-sum makes equal what differs in the last bits only.
    if 0 < options.top_k < len(logs):
        logs = _keep(logs, np.argsort(-logits, kind="stable")[: options.top_k])
    if options.top_p < 1:
        order = np.argsort(-logits, kind="stable")
        probabilities = np.exp(logs[order] - log_sum_exp(logs))
        before = np.cumsum(probabilities) - probabilities
        logs = _keep(logs, order[before < options.top_p])
    return logs - log_sum_exp(logs)


def _keep(logs: Wide, kept: NDArray[np.intp]) -> Wide:
    out = np.full_like(logs, -math.inf)
    out[kept] = logs[kept]
    return out
