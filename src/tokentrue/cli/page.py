"""An episode as one HTML page that needs nothing else: no network, no fonts, no library.

Token elements carry only what differs from token to token; what a run of tokens shares is on the run. One listener
serves all of them, and turns out of sight are not laid out, so that thousands of tokens stay quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from tokentrue.cli.page_style import SCRIPT, STYLE
from tokentrue.cli.painting import PaintedRun, PaintedToken, PaintedTurn, Writer
from tokentrue.cli.screen import drift_line, turn_heading, unread_line
from tokentrue.errors import ConfigError, RecordError
from tokentrue.messages import Message
from tokentrue.rollouts.trajectory import EpisodeRecord, RunInfo

_CLASSES = {
    Writer.SCAFFOLD: "sc",
    Writer.BODY: "bo",
    Writer.BRIDGE_SCAFFOLD: "bs",
    Writer.BRIDGE_BODY: "bb",
    Writer.SAMPLED: "sa",
    Writer.UNKNOWN: "un",
}
_EXPLAINED = {
    Writer.SCAFFOLD: "scaffold: written by the template in a prompt rendered from nothing",
    Writer.BODY: "body: a message's text in a prompt rendered from nothing",
    Writer.BRIDGE_SCAFFOLD: "bridge scaffold: written by the template, added behind what was sampled",
    Writer.BRIDGE_BODY: "bridge body: a message's text, added behind what was sampled",
    Writer.SAMPLED: "sampled: drawn by the model, never re-encoded",
    Writer.UNKNOWN: "unknown: the record does not tell who wrote it",
}
_KEYS = "← → token · n p turn · d next token that rendering from text would lose · Esc nothing"


def check_page_folder(path: Path) -> None:
    """Refuse to write where there is no folder: none is made for a name that may be a slip.

    Raises:
        ConfigError: The folder of the page is not there.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no folder {path.parent}")


def write_page(path: Path, page: str) -> None:
    """Write a page into a folder that is there.

    Raises:
        RecordError: It cannot be written.
    """
    try:
        path.write_text(page, encoding="utf-8", errors="replace")
    except OSError as exc:
        raise RecordError(f"{path} cannot be written: {exc.strerror or exc}") from exc


def episode_page(
    info: RunInfo, episode: EpisodeRecord, painted: Sequence[PaintedTurn], *, title: str = "", above: str = ""
) -> str:
    """The page of one episode.

    Args:
        title: A heading instead of the episode's number.
        above: HTML to put between the heading and the tokens.
    """
    heading = title or f"Episode {episode.index}"
    sections = "\n".join(_section(turn, episode.messages) for turn in painted)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(heading)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(heading)}</h1>\n<p>{escape(_facts(info, episode, painted))}</p></header>\n"
        f"<main>\n{above}\n{_legend(painted)}\n{sections}\n</main>\n"
        f'<footer id="about" role="status" aria-live="polite">{escape(_KEYS)}</footer>\n'
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _facts(info: RunInfo, episode: EpisodeRecord, painted: Sequence[PaintedTurn]) -> str:
    reward = "not scored" if episode.reward is None else f"reward {episode.reward:g}"
    sampled = sum(len(turn.completion) for turn in painted)
    return (
        f"{info.environment} · episode {episode.index} · model {info.model} on {info.engine.name} · "
        f"{len(painted)} turns, {sampled} sampled tokens · {reward} · ended: {episode.stop_reason.value}"
    )


def _legend(painted: Sequence[PaintedTurn]) -> str:
    used = {run.writer for turn in painted for run in turn.runs()}
    items = [
        f'<li><span class="{_CLASSES[writer]} key">Aa</span> {escape(_EXPLAINED[writer])}</li>'
        for writer in Writer
        if writer in used
    ]
    items.append(
        '<li><span class="sa key"><b class="x">Aa</b></span> lost: rendering a later prompt from text would put '
        "another id here, or none</li>"
    )
    items.append(
        '<li><span class="sa key"><b class="g">Aa</b></span> in front of this token, rendering a later prompt '
        "from text would put further ids</li>"
    )
    return f'<ul class="legend" aria-label="Legend">{"".join(items)}</ul>'


def _section(turn: PaintedTurn, messages: Sequence[Message]) -> str:
    drift = drift_line(turn)
    told = [line for line in (drift, unread_line(turn)) if line]
    note = "".join(f'<p class="drift">{escape(line)}</p>' for line in told)
    runs = "".join(_run(run, messages) for run in turn.runs())
    index = turn.record.turn.index
    known = f'<span class="known">… {turn.known_len} known ids …</span>' if turn.known_len else ""
    return (
        f'<section id="turn-{index}" data-start="{turn.known_len}">'
        f"<h2>{escape(turn_heading(turn).replace('   ', ' · '))}</h2>{note}"
        f'<div class="tokens" tabindex="0" role="group" aria-label="tokens of turn {index}">{known}{runs}</div>'
        "</section>"
    )


def _run(run: PaintedRun, messages: Sequence[Message]) -> str:
    role = messages[run.owner].role if 0 <= run.owner < len(messages) else ""
    owner = f' data-o="{run.owner}"' if run.owner >= 0 else ""
    role_part = f' data-r="{escape(role)}"' if role else ""
    tokens = "".join(_token(token) for token in run.tokens)
    return f'<span class="{_CLASSES[run.writer]}" data-w="{run.writer.value}"{owner}{role_part}>{tokens}</span>'


def _token(token: PaintedToken) -> str:
    marks = " ".join(name for name, turn in (("x", token.lost_at), ("g", token.gap_at)) if turn is not None)
    parts = [f' class="{marks}"' if marks else "", f' data-i="{token.id}"']
    if token.logprob is not None:
        parts.append(f' data-l="{token.logprob:.4f}"')
    if token.lost_at is not None:
        parts.append(f' data-x="{token.lost_at}"')
    if token.gap_at is not None:
        parts.append(f' data-g="{token.gap_at}"')
    return f"<b{''.join(parts)}>{_visible(token.text)}</b>"


def _visible(text: str) -> str:
    """The text with line breaks that can be seen; what HTML cannot carry becomes U+FFFD."""
    shown = "".join(char if char in "\n\t" or ord(char) >= 32 else "�" for char in text)
    return escape(shown).replace("\t", "<u>⇥</u>\t").replace("\n", "<u>⏎</u>\n")
