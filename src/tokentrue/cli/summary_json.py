"""A summary as JSON values, for scripts; names are those of `Summary`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from tokentrue.rollouts.summary import Summary


def summary_json(summary: Summary) -> dict[str, Any]:
    """Every number of a summary; enum members by their values, laws by their numbers."""
    return {
        "episodes": summary.episodes,
        "scored": summary.scored,
        "succeeded": summary.succeeded,
        "success_rate": summary.success_rate,
        "mean_reward": summary.mean_reward,
        "stop_reasons": _by_value(summary.stop_reasons),
        "errors": dict(summary.errors),
        "turns": summary.turns,
        "prompt_tokens": summary.prompt_tokens,
        "completion_tokens": summary.completion_tokens,
        "cached_tokens": summary.cached_tokens,
        "cached_told": summary.cached_told,
        "how": _by_value(summary.how),
        "rendered_why": _by_value(summary.rendered_why),
        "junctions": _by_value(summary.junctions),
        "logprobs_modes": _by_value(summary.logprobs_modes),
        "version_sources": _by_value(summary.version_sources),
        "versions": dict(summary.versions),
        "mixed_turns": summary.mixed_turns,
        "resumed_turns": summary.resumed_turns,
        "unread_turns": summary.unread_turns,
        "unexplained": summary.unexplained,
        "laws": {
            str(check.law.value): {"checked": check.checked, "broken": check.broken} for check in summary.laws
        },
    }


def _by_value(counts: Mapping[Any, int]) -> dict[str, int]:
    return {str(key.value) if isinstance(key, Enum) else str(key): count for key, count in counts.items()}
