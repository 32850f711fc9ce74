"""What commands print about a run: plain lines of at most 100 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TypeVar

from tokentrue.cli.door import CommandFailed, ExitCode
from tokentrue.generation import LogprobsMode, VersionSource
from tokentrue.rollouts.comparison import BLOCK_TOKENS, Comparison, DriftExample
from tokentrue.rollouts.laws import Law, LawCheck
from tokentrue.rollouts.proof import Proof
from tokentrue.rollouts.summary import Summary

WIDTH = 100

E = TypeVar("E", bound=Enum)

LAW_NAMES = {
    Law.VERBATIM: "verbatim   a prompt begins with all ids of the turn before",
    Law.FAITHFUL: "faithful   a bridge is what the template itself writes",
    Law.ALIGNED: "aligned    one finite log-probability per sampled id",
    Law.EVIDENCE: "evidence   the engine counted the ids that were sent",
    Law.NO_SILENT_FALLBACK: "no silent fallback   each prompt says why it was made so",
    Law.INVERSE: "inverse    a message, written and read, is the same",
    Law.NOTHING_LOST: "nothing lost   each sampled id is trained exactly once",
}


def summary_lines(summary: Summary, duration_s: float | None = None) -> list[str]:
    """A run in a few lines; each begins with one word in the first eleven columns."""
    lines = [
        _row("episodes", f"{summary.episodes}   {_counts(summary.stop_reasons)}"),
        _row("success", _success(summary)),
        _row("turns", f"{summary.turns}   {_stitches(summary)}"),
        _row("tokens", _tokens(summary)),
    ]
    if summary.junctions:
        lines.append(_row("junctions", _counts(summary.junctions)))
    if summary.turns:
        lines += _logprobs(summary)
        lines += _weights(summary)
    if summary.unread_turns:
        told = "turns could not be read as messages: --episode says why, their ids are kept"
        lines.append(_row("unread", f"{summary.unread_turns} {told}"))
    if summary.errors:
        lines.append(
            _row("errors", ", ".join(f"{name} {count}" for name, count in sorted(summary.errors.items())))
        )
    if duration_s is not None and duration_s > 0:
        rates = f"{summary.turns / duration_s:.1f} turns/s, {summary.completion_tokens / duration_s:.0f} sampled/s"
        lines.append(_row("time", f"{duration_s:.1f} s   {rates}"))
    lines.append(_row("laws", laws_in_a_line(summary.laws)))
    for check in summary.laws:
        lines += [_row("", violation) for violation in check.violations]
    return lines


def laws_in_a_line(checks: Sequence[LawCheck]) -> str:
    """The outcome of each law by its number."""
    return ", ".join(
        f"{check.law.value} held ({check.checked} checks)"
        if check.holds
        else f"{check.law.value} BROKEN {check.broken} of {check.checked}"
        for check in checks
    )


def proof_lines(proof: Proof) -> list[str]:
    """Every law on a line of its own, with what was checked and found."""
    lines = []
    for check in proof.checks:
        outcome = "held" if check.holds else f"BROKEN {check.broken} times"
        unit = "ids" if check.law is Law.NOTHING_LOST else "turns"
        lines.append(f"  {check.law.value}  {LAW_NAMES[check.law]:<62} {check.checked:>7} {unit:<6} {outcome}")
        lines += [f"       {violation}"[:WIDTH] for violation in check.violations]
    if proof.normalised:
        lines.append("     of law 6, in one direction only (the ids say the message), because of the template:")
        lines += [f"       {count:>5}  {reason.value}" for reason, count in sorted_counts(proof.normalised)]
    return lines


def comparison_lines(comparison: Comparison) -> list[str]:
    """What rendering from text would have done, in numbers."""
    exact, text = comparison.exact_prefilled, comparison.rerendered_prefilled
    lines = [
        f"  other ids          {comparison.differing} of {comparison.follow_ups} prompts "
        f"({percent(comparison.differing, comparison.follow_ups)}) would have had ids that nobody sampled",
    ]
    lines += [f"    {count:>14}  {cause.value}" for cause, count in sorted_counts(comparison.causes)]
    if sum(comparison.causes.values()) > comparison.differing:
        lines.append("                    (a prompt with several causes is counted under each)")
    lines += [
        f"  prefix cache       {percent(exact, comparison.exact_prompt)} of prompt tokens prefilled with exact "
        f"ids, {percent(text, comparison.rerendered_prompt)} from text",
        f"                     ({exact} and {text} tokens of {comparison.exact_prompt} and "
        f"{comparison.rerendered_prompt}, in blocks of {BLOCK_TOKENS})",
        f"  training           {comparison.exact_sequences} sequences with exact ids, "
        f"{comparison.rerendered_sequences} from text",
    ]
    return lines


def example_lines(example: DriftExample) -> list[str]:
    """The first difference of one turn: both sides, decoded and as ids."""
    exact_ids, text_ids = _ids(example.exact_ids), _ids(example.rerendered_ids)
    return [
        f"  episode {example.episode}, turn {example.turn}, id {example.position}: {example.cause.value}",
        _fitted("    exact      ", repr(example.exact_text)),
        _fitted("               ", exact_ids),
        _fitted("    from text  ", repr(example.rerendered_text)),
        _fitted("               ", text_ids),
    ]


def check_laws_held(checks: Sequence[LawCheck]) -> None:
    """End a command when a law is broken.

    Raises:
        CommandFailed: Names the laws, and the first violation.
    """
    broken = [check for check in checks if not check.holds]
    if broken:
        numbers = ", ".join(str(check.law.value) for check in broken)
        first = next((check.violations[0] for check in broken if check.violations), "")
        raise CommandFailed(ExitCode.FAILED, f"broken: law {numbers}; the first violation: {first}")


def percent(part: int, whole: int) -> str:
    """`part` of `whole` in percent; "-" when there is no whole."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def sorted_counts(counts: Mapping[E, int]) -> list[tuple[E, int]]:
    """The largest first; equal ones by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0].name))


def _row(name: str, text: str) -> str:
    return _fitted(f"{name:<11}", text)


def _fitted(head: str, text: str) -> str:
    room = WIDTH - len(head)
    return head + (text if len(text) <= room else text[: room - 1] + "…")


def _ids(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def _success(summary: Summary) -> str:
    if summary.success_rate is None or summary.mean_reward is None:
        return "no episode was scored"
    rate = f"{summary.succeeded} of {summary.scored} scored episodes ({100 * summary.success_rate:.0f} %)"
    return f"{rate}, mean reward {summary.mean_reward:.2f}"


def _stitches(summary: Summary) -> str:
    rendered = summary.turns - summary.bridged - summary.spliced
    spliced = f", {summary.spliced} spliced" if summary.spliced else ""
    why = _counts(summary.rendered_why)
    reasons = f" ({why})" if why else ""
    return f"{summary.bridged} bridged{spliced}, {rendered} rendered{reasons}, {summary.unexplained} unexplained"


def _tokens(summary: Summary) -> str:
    text = f"{summary.completion_tokens} sampled, {summary.prompt_tokens} in prompts"
    if summary.cached_tokens is None:
        return text
    if summary.cached_told < summary.turns:
        return f"{text}, {summary.cached_tokens} cached (told of {summary.cached_told} turns)"
    return f"{text}, of these {summary.cached_tokens} cached by the engine"


_MEANINGS = {
    LogprobsMode.RAW: "of the model at temperature 1, whatever was sampled from",
    LogprobsMode.SCALED: "after temperature, before truncation",
    LogprobsMode.PROCESSED: "as sampled, after temperature and truncation",
    LogprobsMode.ALIKE: "temperature 1 and no truncation, so every meaning is the same number",
    LogprobsMode.UNKNOWN: "what they mean was not measured",
}


def _logprobs(summary: Summary) -> list[str]:
    """What the log-probabilities mean; loud where they cannot be used together."""
    lines = [
        _row("logprobs" if at == 0 else "", f"{mode.value} {count}   {_MEANINGS[mode]}")
        for at, (mode, count) in enumerate(sorted_counts(summary.logprobs_modes))
    ]
    if summary.has_mixed_logprobs:
        lines.append(_row("", "MIXED: these mean different things, and no trainer can use them together"))
    return lines


def _weights(summary: Summary) -> list[str]:
    """Policy versions, where they changed or were asked for; loud where a turn cannot be attributed."""
    lines = []
    is_told = len(summary.versions) > 1 or VersionSource.BRACKETED in summary.version_sources
    if is_told or summary.mixed_turns:
        ids = ", ".join(f"{count} ids of {version}" for version, count in sorted(summary.versions.items()))
        lines.append(_row("weights", ids or "no version is known of any id"))
    if summary.mixed_turns:
        turns = f"{summary.mixed_turns} turns during which the weights changed"
        lines.append(_row("", f"MIXED: {turns}; which id is of which version is not known"))
    if summary.resumed_turns:
        lines.append(_row("resumed", f"{summary.resumed_turns} turns were given up and continued"))
    return lines


def _counts(counts: Mapping[E, int]) -> str:
    return ", ".join(f"{member.value} {count}" for member, count in sorted_counts(counts))
