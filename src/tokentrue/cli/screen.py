"""An episode on a terminal: a line per run of tokens, labelled by its writer, in colours where those are shown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click

from tokentrue.cli.painting import PaintedRun, PaintedToken, PaintedTurn, Writer
from tokentrue.cli.report import WIDTH
from tokentrue.rollouts.trajectory import EpisodeRecord
from tokentrue.turns import CutSpan


@dataclass(frozen=True, slots=True)
class _Style:
    colour: str
    is_bold: bool | None = None
    is_dim: bool | None = None


_STYLES = {
    Writer.SCAFFOLD: _Style("bright_black"),
    Writer.BODY: _Style("blue"),
    Writer.BRIDGE_SCAFFOLD: _Style("yellow", is_dim=True),
    Writer.BRIDGE_BODY: _Style("yellow"),
    Writer.SAMPLED: _Style("green", is_bold=True),
    Writer.UNKNOWN: _Style("magenta"),
}
_LABEL = 30
_SPACES = str.maketrans({"\n": "⏎", "\t": "⇥", "\r": "␍"})


def episode_screen(
    episode: EpisodeRecord, painted: Sequence[PaintedTurn], *, with_logprobs: bool = False
) -> Iterator[str]:
    """The lines of one episode. ANSI styles are in them; `click.echo` takes them out where they do not belong."""
    reward = "not scored" if episode.reward is None else f"reward {episode.reward:g}"
    yield f"episode {episode.index}   {len(painted)} turns, {reward}, {episode.stop_reason.value}"
    if episode.error is not None:
        yield click.style(f"error in {episode.error.phase.value}: {episode.error.message}", fg="red")
    for turn in painted:
        yield ""
        for line in textwrap.wrap(turn_heading(turn), WIDTH, subsequent_indent="  ", replace_whitespace=False):
            yield click.style(line, bold=True)
        for line in textwrap.wrap(drift_line(turn), WIDTH, initial_indent="  ", subsequent_indent="    "):
            yield click.style(line, fg="red")
        for line in textwrap.wrap(unread_line(turn), WIDTH, initial_indent="  ", subsequent_indent="    "):
            yield click.style(line, fg="red")
        for run in turn.runs():
            yield from _run_lines(run, with_logprobs)


def turn_heading(turn: PaintedTurn) -> str:
    """How the prompt of a turn was made, why, and how much there is of what."""
    record, stitch = turn.record.turn, turn.record.turn.stitch
    junction = f", junction {stitch.junction.value}" if stitch.junction is not None else ""
    anchor = f" from turn {stitch.anchor_turn}" if stitch.anchor_turn is not None else ""
    detail = f": {stitch.detail}" if stitch.detail else ""
    removed = f", without its ids {spans_text(stitch.removed)}" if stitch.removed else ""
    return (
        f"turn {record.index}   {stitch.how.value}{anchor}{removed} ({stitch.why.value}{detail}){junction}   "
        f"{turn.known_len} known + {len(turn.prompt)} added + {len(turn.completion)} sampled, "
        f"{record.finish_reason.value}"
    )


def spans_text(removed: Sequence[CutSpan]) -> str:
    """Removed ids for a person, first and last of each run."""
    return ", ".join(f"{span.start} to {span.end - 1}" for span in removed)


def drift_line(turn: PaintedTurn) -> str:
    """Where rendering this prompt from text would have begun to differ; "" when it would not."""
    compared = turn.compared
    if compared is None or compared.first_difference is None:
        return ""
    causes = "; ".join(cause.value for cause in compared.causes)
    return f"from text, this prompt differs from id {compared.first_difference} on: {causes}"


def unread_line(turn: PaintedTurn) -> str:
    """Why a completion could not be read as a message; "" when it could."""
    told = turn.record.turn.unread
    return f"not read as a message, and kept as sampled: {told}" if told else ""


def _run_lines(run: PaintedRun, with_logprobs: bool) -> Iterator[str]:
    owner = f"message {run.owner}" if run.owner >= 0 else "-"
    label = f"  {run.writer.value:<15} {owner}"
    cells = [_cell(token, with_logprobs) for token in run.tokens]
    for position, line in enumerate(_wrapped(cells, WIDTH - _LABEL - 3)):
        head = f"{label:<{_LABEL}}" if position == 0 else " " * _LABEL
        styled = "".join(_styled(text, run.writer, is_lost) for text, is_lost in line)
        yield f"{head}│ {styled}"


def _styled(text: str, writer: Writer, is_lost: bool) -> str:
    style = _STYLES[writer]
    return click.style(text, fg=style.colour, bold=style.is_bold, dim=style.is_dim, underline=is_lost or None)


def _cell(token: PaintedToken, with_logprobs: bool) -> tuple[str, bool]:
    text = token.text.translate(_SPACES)
    text = "".join(char if char.isprintable() else "�" for char in text)
    if with_logprobs and token.logprob is not None:
        text = f"{text}[{token.logprob:.2f}] "
    return text, token.lost_at is not None


def _wrapped(cells: Sequence[tuple[str, bool]], width: int) -> Iterator[list[tuple[str, bool]]]:
    line: list[tuple[str, bool]] = []
    used = 0
    for text, is_lost in cells:
        if used and used + len(text) > width:
            yield line
            line, used = [], 0
        line.append((text, is_lost))
        used += len(text)
    if line:
        yield line
