"""`tokentrue demo`: real conversations on the embedded engine, and the proof. The body of `make demo`."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tokentrue.cli.connecting import EngineChoice, connect
from tokentrue.cli.door import CommandFailed, ExitCode
from tokentrue.cli.page import episode_page, write_page
from tokentrue.cli.painting import paint_episode
from tokentrue.cli.picture import demo_picture
from tokentrue.cli.report import (
    check_laws_held,
    comparison_lines,
    example_lines,
    proof_lines,
    summary_lines,
)
from tokentrue.errors import ConfigError, RecordError
from tokentrue.rendering.named_folder import EMBEDDED
from tokentrue.rendering.renderer import Renderer
from tokentrue.rollouts.comparison import (
    Comparison,
    compare_episode,
    compare_run,
    drift_example,
    joined_comparison,
    renderer_at,
)
from tokentrue.rollouts.proof import Proof, joined_proof, prove
from tokentrue.rollouts.runner import RolloutPlan
from tokentrue.rollouts.summary import Summary, summarize
from tokentrue.rollouts.trajectory import EpisodeRecord, TurnRecord
from tokentrue.sampling import SamplingParams

if TYPE_CHECKING:
    from tokentrue.rollouts.record import RecordReader

_ENVIRONMENTS = ("calculator", "shop")
_CONCURRENCY = 16
_MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class _Run:
    """One environment's record, read back from the disk, and what was found in it."""

    name: str
    reader: RecordReader
    episodes: tuple[EpisodeRecord, ...]
    turns: tuple[TurnRecord, ...]
    summary: Summary
    proof: Proof
    comparison: Comparison


@click.command(context_settings={"show_default": True})
@click.option("--episodes", type=click.IntRange(2), default=64, help="How many, half of them per environment.")
@click.option("--seed", type=int, default=0, help="Decides every task and every sampled token.")
@click.option(
    "--engine",
    default=EMBEDDED,
    metavar="embedded|FOLDER",
    help="The model that comes with the package, or a folder with another Llama for the embedded engine.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo-run"),
    metavar="DIR",
    help="Folder for records and pages; if it is taken, DIR-2, DIR-3, ... is used.",
)
def demo(episodes: int, seed: int, engine: str, out: Path) -> None:
    """Play both shipped environments on the embedded engine, and print the proof.

    A small real language model plays multi-turn tool conversations at temperature 1. Every law is checked on the
    record, and every prompt is compared with the one that rendering from text would have made. Exit code 1 when a
    law is broken.
    """
    begun = time.perf_counter()
    folder = _free_folder(out)
    counts = (episodes - episodes // 2, episodes // 2)
    try:
        renderer = asyncio.run(_play(engine, seed, folder, counts))
    except KeyboardInterrupt:
        raise CommandFailed(ExitCode.INTERRUPTED, f"interrupted: the records in {folder} are valid") from None
    runs = [_examined(name, folder / name, renderer) for name in _ENVIRONMENTS]
    _print_runs(runs)
    _print_proof(runs)
    _print_comparison(runs)
    pages = _write_pages(runs, renderer, folder)
    click.echo("")
    for what, path in (("records", f"{folder}/{{{','.join(_ENVIRONMENTS)}}}"), *pages):
        click.echo(f"{what:<11}{path}")
    click.echo(f"{'look at it':<11}{_command()} inspect {folder / _ENVIRONMENTS[0]} --episode 0")
    click.echo(f"{'took':<11}{time.perf_counter() - begun:.1f} s, everything included")
    check_laws_held([check for run in runs for check in run.proof.checks])


def _command() -> str:
    """How this command can be called again: by its name where that is on the PATH, else by where it lies."""
    if shutil.which("tokentrue") is not None:
        return "tokentrue"
    script = Path(sys.argv[0])
    return "python -m tokentrue" if script.suffix == ".py" else os.path.relpath(script)


def _free_folder(wanted: Path) -> Path:
    """The first of DIR, DIR-2, DIR-3, ... in which nothing is yet."""
    from tokentrue.cli.running import check_free_folder

    for number in range(1, 1000):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            check_free_folder(folder)
        except ConfigError:
            continue
        return folder
    raise ConfigError(f"--out {str(wanted)!r} and a thousand folders named after it are taken")


async def _play(engine: str, seed: int, folder: Path, counts: Sequence[int]) -> Renderer:
    # pyarrow and rich come with these imports, and --help must not wait for them.
    from tokentrue.cli.running import Order, record_run

    choice = EngineChoice(engine=engine)
    if choice.is_server:
        raise CommandFailed(
            ExitCode.CALLER, "the demo plays on the embedded engine; for a server: tokentrue rollout"
        )
    started = datetime.now().astimezone()
    connection = await connect(choice)
    sampling = SamplingParams(temperature=1.0, max_tokens=_MAX_TOKENS)
    async with connection.client:
        model = f"{connection.model} {connection.info.version}"
        click.echo(f"Tokentrue plays {sum(counts)} episodes on {model}, temperature 1, seed {seed}")
        click.echo("")
        for name, count in zip(_ENVIRONMENTS, counts, strict=True):
            plan = RolloutPlan(count, _CONCURRENCY, seed, sampling)
            result = await record_run(Order(name, choice, plan, folder / name), connection, started)
            click.echo(f"  {name:<11} played in {result.duration_s:.1f} s")
    return connection.renderer


def _examined(name: str, folder: Path, renderer: Renderer) -> _Run:
    """Everything printed is found in the record as it lies on the disk, not in what the run remembers."""
    from tokentrue.rollouts.record import open_record

    reader = open_record(folder)
    episodes, turns = reader.episodes(), tuple(reader.turns())
    return _Run(
        name=name,
        reader=reader,
        episodes=episodes,
        turns=turns,
        summary=summarize(episodes, turns),
        proof=prove(episodes, turns, renderer),
        comparison=compare_run(episodes, turns, renderer),
    )


def _print_runs(runs: Sequence[_Run]) -> None:
    for run in runs:
        click.echo(f"\n{run.name}")
        # The laws have a table of their own below.
        for line in summary_lines(run.summary):
            if not line.startswith("laws"):
                click.echo(f"  {line}"[:100])


def _print_proof(runs: Sequence[_Run]) -> None:
    click.echo("\nLaws, held against every recorded turn")
    for line in proof_lines(joined_proof([run.proof for run in runs])):
        click.echo(line)


def _print_comparison(runs: Sequence[_Run]) -> None:
    joined = joined_comparison([run.comparison for run in runs])
    click.echo("\nThe same conversations, had every prompt been rendered again from text")
    for line in comparison_lines(joined):
        click.echo(line)
    example = joined.examples[0] if joined.examples else None
    if example is not None:
        run = next(run.name for run in runs if example in run.comparison.examples)
        click.echo(f"  the first difference, in {run}")
        for line in example_lines(example):
            click.echo(f"  {line}"[:100])


def _write_pages(runs: Sequence[_Run], renderer: Renderer, folder: Path) -> list[tuple[str, str]]:
    run, episode = _most_telling(runs)
    turns = [turn for turn in run.turns if turn.episode == episode.index]
    compared = compare_episode(turns, episode.tools, renderer_at(episode, renderer))
    painted = paint_episode(turns, renderer.tokenizer, compared)
    first = next((one for one in compared if one.first_difference is not None), None)
    found = drift_example(first, renderer) if first is not None else None
    joined = joined_comparison([one.comparison for one in runs])
    page, picture = folder / "episode.html", folder / "picture.html"
    write_page(page, episode_page(run.reader.info, episode, painted))
    example = (found, renderer) if found is not None else None
    write_page(picture, demo_picture(run.reader.info, episode, painted, joined, example))
    return [("page", str(page)), ("picture", str(picture))]


def _most_telling(runs: Sequence[_Run]) -> tuple[_Run, EpisodeRecord]:
    """The episode with the most causes of drift among the successful ones of readable length, else the first."""

    def interest(item: tuple[_Run, EpisodeRecord]) -> tuple[bool, bool, int, int]:
        run, episode = item
        causes = run.comparison.causes_by_episode.get(episode.index, frozenset())
        is_readable = 3 <= episode.turns <= 6
        return (episode.reward == 1.0, is_readable, len(causes), -episode.index)

    found = [(run, episode) for run in runs for episode in run.episodes if episode.turns]
    if not found:
        raise RecordError("no episode has a turn: there is nothing to show")
    return max(found, key=interest)
