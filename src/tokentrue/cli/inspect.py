"""`tokentrue inspect`: what a record holds, and any episode token by token."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokentrue.cli.page import check_page_folder, episode_page, write_page
from tokentrue.cli.painting import paint_episode
from tokentrue.cli.report import WIDTH, summary_lines
from tokentrue.cli.screen import episode_screen
from tokentrue.cli.summary_json import summary_json
from tokentrue.errors import ConfigError, RecordError
from tokentrue.rendering.named_folder import folder_of
from tokentrue.rendering.renderer import Renderer, load_renderer
from tokentrue.rollouts.comparison import compare_episode, renderer_at
from tokentrue.rollouts.summary import summarize
from tokentrue.rollouts.trajectory import EpisodeRecord, TurnRecord

if TYPE_CHECKING:
    from tokentrue.rollouts.record import RecordReader

_PLACE = 30
"""How much of the end of a long error is shown in a list."""


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--episode", type=int, metavar="N", help="Show this episode, token by token.")
@click.option(
    "--logprobs", is_flag=True, help="With --episode: show every sampled token with its log-probability."
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the episode (the first one, unless --episode is given) as a page that needs nothing else.",
)
@click.option("--list", "as_list", is_flag=True, help="List the episodes, one per line.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary, or the list, as JSON.")
@click.option(
    "--tokenizer",
    metavar="FOLDER",
    help="Tokenizer folder of the run, if it is no longer where the record says.  [default: what the record says]",
)
@click.option(
    "--color/--no-color", default=None, help="Colours.  [default: on a terminal, unless NO_COLOR is set]"
)
def inspect(folder: Path, **options: Any) -> None:
    """Print what a record holds, and show episodes.

    An episode is shown in colours by who wrote each token: the template (scaffold) or a message (body) in a
    prompt rendered from nothing, the same two in the ids that a bridge added, and what was sampled. Each turn says
    how its prompt was made, and why.
    """
    # pyarrow comes with this import, and --help must not wait for it.
    from tokentrue.rollouts.record import open_record

    if (options["episode"] is not None or options["html"] is not None) and (
        options["as_json"] or options["as_list"]
    ):
        raise ConfigError("--json and --list go with no episode: leave out --episode and --html")
    if options["logprobs"] and options["episode"] is None:
        raise ConfigError("--logprobs goes with an episode on the screen: say which one with --episode N")
    if options["html"] is not None:
        check_page_folder(options["html"])
    _check_record_folder(folder)
    reader = open_record(folder)
    if options["as_list"]:
        _print_list(reader, options["as_json"])
    elif options["episode"] is None and options["html"] is None:
        _print_summary(reader, options["as_json"])
    if options["episode"] is not None or options["html"] is not None:
        _show(reader, options)


def _check_record_folder(folder: Path) -> None:
    """Say what is meant where the records are one folder further down, as a demo leaves them."""
    if not folder.exists():
        raise ConfigError(f"{folder} does not exist; the folder of a record is what --out named")
    below = sorted(str(path.parent) for path in folder.glob("*/run.json")) if folder.is_dir() else []
    if below and not (folder / "run.json").exists():
        raise ConfigError(f"{folder} holds several records; choose one: {', '.join(below)}")


def _print_summary(reader: RecordReader, as_json: bool) -> None:
    summary = summarize(reader.episodes(), reader.turns())
    if as_json:
        click.echo(json.dumps({"folder": str(reader.folder), "form": reader.form.value, **summary_json(summary)}))
        return
    info = reader.info
    torn = f", {reader.torn_bytes} torn bytes" if reader.torn_bytes else ""
    click.echo(f"record     {reader.folder}  ({reader.form.value}{torn})")
    click.echo(f"run        {info.environment}, {info.episodes} episodes asked for, seed {info.seed}")
    click.echo(f"engine     {info.engine.name} {info.engine.version}".rstrip() + f", model {info.model}")
    click.echo(f"created    {info.created_at}")
    for line in summary_lines(summary):
        click.echo(line)


def _print_list(reader: RecordReader, as_json: bool) -> None:
    if not as_json:
        click.echo(f"{'episode':>7}  {'turns':>5}  {'reward':>6}  {'stop':<12} first message, or error")
    for episode in reader.episodes():
        if as_json:
            row = {
                "episode": episode.index,
                "turns": episode.turns,
                "reward": episode.reward,
                "stop_reason": episode.stop_reason.value,
                "seed": episode.seed,
                "error": episode.error.message if episode.error is not None else None,
                "error_type": episode.error.type_name if episode.error is not None else None,
                "error_phase": episode.error.phase.value if episode.error is not None else None,
            }
            click.echo(json.dumps(row))
        else:
            click.echo(_list_line(episode))


def _list_line(episode: EpisodeRecord) -> str:
    reward = "-" if episode.reward is None else f"{episode.reward:.2f}"
    opening = next((m.content or "" for m in episode.messages if m.role == "user"), "")
    if episode.error is not None:
        kind = episode.error.type_name.rsplit(".", 1)[-1]
        opening = f"in {episode.error.phase.value}: {kind}: {episode.error.message}"
    text = " ".join(opening.split())
    line = f"{episode.index:>7}  {episode.turns:>5}  {reward:>6}  {episode.stop_reason.value:<12} {text}"
    if len(line) <= WIDTH:
        return line
    if episode.error is not None:
        # What it says may be long; where it was raised stands at its end.
        return f"{line[: WIDTH - _PLACE - 1]}…{line[-_PLACE:]}"
    return line[: WIDTH - 1] + "…"


def _show(reader: RecordReader, options: dict[str, Any]) -> None:
    wanted = options["episode"] if options["episode"] is not None else _first_episode(reader)
    episode, turns = _episode(reader, wanted)
    renderer = renderer_at(episode, renderer_of(reader, options["tokenizer"]))
    compared = compare_episode(turns, episode.tools, renderer)
    painted = paint_episode(turns, renderer.tokenizer, compared)
    if options["episode"] is not None:
        for text in episode_screen(episode, painted, with_logprobs=options["logprobs"]):
            click.echo(text, color=_color(options["color"]))
    if options["html"] is not None:
        write_page(options["html"], episode_page(reader.info, episode, painted))
        click.echo(f"page       {options['html']}")


def _first_episode(reader: RecordReader) -> int:
    found = next((episode.index for episode in reader.episodes()), None)
    if found is None:
        raise RecordError(f"{reader.folder} holds no episode yet")
    return found


def _episode(reader: RecordReader, wanted: int) -> tuple[EpisodeRecord, tuple[TurnRecord, ...]]:
    episodes = {episode.index: episode for episode in reader.episodes()}
    if wanted not in episodes:
        known = f"{min(episodes)} to {max(episodes)}" if episodes else "none"
        raise ConfigError(f"--episode {wanted}: the record holds no such episode; its episodes are {known}")
    return episodes[wanted], tuple(turn for turn in reader.turns() if turn.episode == wanted)


def renderer_of(reader: RecordReader, tokenizer: str | None) -> Renderer:
    """The renderer that made the prompts of a record: same tokenizer, same template; `renderer_at` adds the date.

    Args:
        tokenizer: A folder to use instead of the one that the record names.

    Raises:
        ConfigError: The folder holds another tokenizer or template, or the record names none.
        TokenizerFolderError: The folder cannot be read.
    """
    info = reader.info
    named = tokenizer if tokenizer is not None else info.config.get("tokenizer")
    if not isinstance(named, str):
        raise ConfigError(
            f"{reader.folder} does not say which tokenizer folder it was made with: give --tokenizer"
        )
    path = folder_of(named)
    if not path.is_dir():
        raise ConfigError(f"the run's tokenizer folder {str(path)!r} is not there: give --tokenizer")
    renderer = load_renderer(path, spelled_markers=info.config.get("spelled_markers", "as_template"))
    for what, found, wanted in (
        ("tokenizer", renderer.tokenizer.content_hash, info.tokenizer_hash),
        ("chat template", renderer.template.content_hash, info.template_hash),
    ):
        if wanted and found != wanted:
            raise ConfigError(
                f"the {what} in {str(path)!r} is not the one of this run "
                f"({found[:12]} instead of {wanted[:12]}): give --tokenizer"
            )
    return renderer


def _color(wanted: bool | None) -> bool | None:
    if wanted is None and os.environ.get("NO_COLOR"):
        return False
    return wanted
