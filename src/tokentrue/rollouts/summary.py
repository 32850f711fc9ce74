"""What a run did, in numbers. Pure: from recorded episodes and turns alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tokentrue.generation import LogprobsMode, VersionSource
from tokentrue.rollouts.environment import StopReason
from tokentrue.rollouts.laws import Law, LawCheck, check_laws
from tokentrue.rollouts.trajectory import EpisodeRecord, TurnRecord
from tokentrue.turns import How, Junction, Why

SUCCESS_REWARD = 1.0
"""An episode succeeded when its reward is at least this."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of a run.

    Args:
        episodes: All of them.
        scored: Those with a reward.
        succeeded: Those with a reward of at least `SUCCESS_REWARD`.
        mean_reward: Over the scored ones; None when there are none.
        stop_reasons: How many episodes ended why.
        errors: How many episodes have an error of which type.
        turns: Engine calls that gave a completion.
        prompt_tokens: Sum of the prompts' lengths, known ids included.
        completion_tokens: Sampled ids.
        cached_tokens: Prompt tokens that the engine said it had cached; None when it never said.
        cached_told: Turns of which it said that: `cached_tokens` is of these only.
        how: Turns by how their prompt was made.
        rendered_why: Turns that were neither bridged nor spliced, by reason.
        junctions: Bridged turns by what happened at the junction.
        logprobs_modes: Turns by what their log-probabilities mean.
        version_sources: Turns by how well it is known which policy version sampled them.
        versions: Sampled ids by policy version, where it is known.
        resumed_turns: Turns that were given up and continued at least once.
        unread_turns: Turns whose completion could not be read as a message; each says why.
        unexplained: Turns whose reason does not explain them (law 5); must be 0.
        laws: What each law looked at and found.
    """

    episodes: int
    scored: int
    succeeded: int
    mean_reward: float | None
    stop_reasons: Mapping[StopReason, int]
    errors: Mapping[str, int]
    turns: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None
    cached_told: int
    how: Mapping[How, int]
    rendered_why: Mapping[Why, int]
    junctions: Mapping[Junction, int]
    logprobs_modes: Mapping[LogprobsMode, int]
    version_sources: Mapping[VersionSource, int]
    versions: Mapping[str, int]
    resumed_turns: int
    unread_turns: int
    unexplained: int
    laws: tuple[LawCheck, ...]

    @property
    def success_rate(self) -> float | None:
        """Successes among the scored episodes, or None when none was scored."""
        return self.succeeded / self.scored if self.scored else None

    @property
    def mixed_turns(self) -> int:
        """Turns during which the weights changed, and nobody knows which of their ids are of which version."""
        return self.version_sources.get(VersionSource.MIXED, 0)

    @property
    def bridged(self) -> int:
        """Turns whose prompt is a bridge."""
        return self.how.get(How.BRIDGED, 0)

    @property
    def spliced(self) -> int:
        """Turns whose prompt is a bridge without the ids that the template no longer writes."""
        return self.how.get(How.SPLICED, 0)

    @property
    def has_mixed_logprobs(self) -> bool:
        """Whether log-probabilities of different meanings lie side by side."""
        return len(set(self.logprobs_modes) - {LogprobsMode.ALIKE}) > 1

    @property
    def laws_hold(self) -> bool:
        """Whether no law was broken."""
        return all(check.holds for check in self.laws)


def _ids_by_version(recorded: Iterable[TurnRecord]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for record in recorded:
        for span in record.turn.weight_spans:
            if span.version is not None:
                counts[span.version] += span.end - span.start
    return counts


def summarize(episodes: Iterable[EpisodeRecord], turns: Iterable[TurnRecord]) -> Summary:
    """Count, and hold every turn against the laws."""
    ended = tuple(episodes)
    recorded = tuple(turns)
    rewards = [episode.reward for episode in ended if episode.reward is not None]
    cached = [turn.turn.usage.cached_tokens for turn in recorded]
    said_cached = [count for count in cached if count is not None]
    laws = check_laws(recorded)
    stitches = [record.turn.stitch for record in recorded]
    return Summary(
        episodes=len(ended),
        scored=len(rewards),
        succeeded=sum(reward >= SUCCESS_REWARD for reward in rewards),
        mean_reward=sum(rewards) / len(rewards) if rewards else None,
        stop_reasons=Counter(episode.stop_reason for episode in ended),
        errors=Counter(episode.error.type_name for episode in ended if episode.error is not None),
        turns=len(recorded),
        prompt_tokens=sum(len(record.turn.tokens.prompt_ids) for record in recorded),
        completion_tokens=sum(len(record.turn.tokens.completion_ids) for record in recorded),
        cached_tokens=sum(said_cached) if said_cached else None,
        cached_told=len(said_cached),
        how=Counter(stitch.how for stitch in stitches),
        rendered_why=Counter(stitch.why for stitch in stitches if not stitch.builds_on_anchor),
        junctions=Counter(stitch.junction for stitch in stitches if stitch.junction is not None),
        logprobs_modes=Counter(record.turn.logprobs_mode for record in recorded),
        version_sources=Counter(record.turn.version_source for record in recorded),
        versions=_ids_by_version(recorded),
        resumed_turns=sum(bool(record.turn.resumed_at) for record in recorded),
        unread_turns=sum(bool(record.turn.unread) for record in recorded),
        unexplained=sum(check.broken for check in laws if check.law is Law.NO_SILENT_FALLBACK),
        laws=laws,
    )
