"""What several engines have in common, so that they can be one."""

from __future__ import annotations

from collections.abc import Mapping

from tokentrue.errors import ConfigError
from tokentrue.generation import EngineInfo, LogprobsMode


def common_info(infos: Mapping[str, EngineInfo]) -> EngineInfo:
    """The names that all of them serve, the smallest context limit.

    Args:
        infos: What each says of itself, by its name; at least one.

    Raises:
        ConfigError: Two of them mean different things by a log-probability.
    """
    every = list(infos.values())
    modes = {info.logprobs_mode for info in every}
    if len(modes - {LogprobsMode.UNKNOWN}) > 1:
        told = ", ".join(f"{name}: {info.logprobs_mode.value}" for name, info in infos.items())
        raise ConfigError(f"log-probabilities of these endpoints mean different things: {told}")
    limits = [info.context_limit for info in every if info.context_limit is not None]
    return EngineInfo(
        name="+".join(dict.fromkeys(info.name for info in every)),
        version=", ".join(dict.fromkeys(info.version for info in every if info.version)),
        models=tuple(model for model in every[0].models if all(model in info.models for info in every)),
        context_limit=min(limits, default=None),
        logprobs_mode=every[0].logprobs_mode if len(modes) == 1 else LogprobsMode.UNKNOWN,
    )
