"""`tokentrue rollout`: play episodes of an environment against an engine, and record every token."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokentrue.cli.connecting import TRANSPORTS, EngineChoice, connect
from tokentrue.cli.door import CommandFailed, ExitCode
from tokentrue.cli.report import check_laws_held, summary_lines
from tokentrue.config import SPELLED_MARKERS
from tokentrue.errors import RecordError
from tokentrue.rendering.named_folder import EMBEDDED
from tokentrue.rollouts.environment import StopReason
from tokentrue.rollouts.runner import RolloutPlan, RolloutResult
from tokentrue.rollouts.summary import summarize
from tokentrue.sampling import SamplingParams

if TYPE_CHECKING:
    from tokentrue.cli.running import Order


@click.command(context_settings={"show_default": True})
@click.option(
    "--env",
    required=True,
    metavar="NAME|module:Class|file.py:Class",
    help="What to play: calculator, shop, or a class of yours.",
)
@click.option(
    "--engine",
    default=EMBEDDED,
    metavar="embedded|URL|FOLDER",
    help="The model that comes with the package, a server, or a folder with a Llama for the embedded engine.",
)
@click.option(
    "--transport",
    type=click.Choice(list(TRANSPORTS)),
    default="vllm",
    help="The API that the server at URL speaks.",
)
@click.option(
    "--model", metavar="NAME", help="Name under which the engine serves the model.  [default: the only one]"
)
@click.option(
    "--tokenizer",
    metavar="FOLDER",
    help="Tokenizer folder of the served model, or its name in the local cache.  [default: the embedded model's]",
)
@click.option("--episodes", type=click.IntRange(1), default=16, help="How many episodes.")
@click.option("--concurrency", type=click.IntRange(1), default=8, help="How many at a time.")
@click.option("--seed", type=int, default=0, help="Decides every task and every sampled token.")
@click.option("--temperature", type=float, default=1.0, help="0 is greedy.")
@click.option(
    "--top-p", type=float, help="Sample from the most likely tokens of this mass.  [default: the engine's]"
)
@click.option("--top-k", type=int, help="Sample from so many most likely tokens.  [default: the engine's]")
@click.option("--max-tokens", type=int, default=512, help="Sampled tokens per turn at most.")
@click.option(
    "--max-turns", type=click.IntRange(1), help="Turns per episode at most.  [default: the environment's]"
)
@click.option(
    "--episode-timeout",
    "episode_timeout_s",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Time for one episode.  [default: the environment's]",
)
@click.option(
    "--spelled-markers",
    type=click.Choice(SPELLED_MARKERS),
    default=SPELLED_MARKERS[0],
    help="Make message text that spells a special token that token, as engines do, or keep it plain text.",
)
@click.option("--api-key-env", default="", metavar="VAR", help="Environment variable with the server's API key.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for the record; must be new or empty.",
)
def rollout(**options: Any) -> None:
    """Play episodes and record every token of them.

    Each turn's prompt extends the ids of the turn before it, sampled ids included, verbatim. Ctrl-C ends the run
    early and leaves a valid record. Look at it with `tokentrue inspect DIR`.
    """
    # pyarrow and rich come with this import, and --help must not wait for them.
    from tokentrue.cli.running import check_free_folder

    order = _order(options)
    check_free_folder(order.out)
    try:
        result = asyncio.run(_play(order))
    except KeyboardInterrupt:
        raise CommandFailed(ExitCode.INTERRUPTED, _interrupted_line(order.out)) from None
    _report(order, result)


def _order(options: dict[str, Any]) -> Order:
    from tokentrue.cli.running import Limits, Order

    sampling = SamplingParams.from_args(
        {name: options[name] for name in ("temperature", "top_p", "top_k", "max_tokens")}
    )
    choice = EngineChoice(
        **{
            name: options[name]
            for name in ("engine", "transport", "model", "tokenizer", "api_key_env", "spelled_markers")
        }
    )
    return Order(
        env=options["env"],
        choice=choice,
        plan=RolloutPlan(
            episodes=options["episodes"],
            concurrency=options["concurrency"],
            seed=options["seed"],
            sampling=sampling,
        ),
        out=options["out"],
        limits=Limits(options["max_turns"], options["episode_timeout_s"]),
    )


async def _play(order: Order) -> RolloutResult:
    from tokentrue.cli.running import limited_environment, record_run

    limited_environment(order.env, order.limits)  # a wrong name is told before an engine is asked
    started = datetime.now().astimezone()
    connection = await connect(order.choice)
    async with connection.client:
        result = await record_run(order, connection, started)
    for disproof in connection.renderer.disproofs:
        click.echo(f"fast path  {disproof}")
    return result


def _report(order: Order, result: RolloutResult) -> None:
    summary = summarize(result.records, result.turns)
    for line in summary_lines(summary, result.duration_s):
        click.echo(line)
    if summary.turns:
        click.echo(f"record     {order.out}  (tokentrue inspect {order.out})")
    else:
        click.echo(f"record     none: nothing was sampled, and {order.out} is free again")
    check_laws_held(summary.laws)
    if summary.stop_reasons.get(StopReason.ERROR, 0) == summary.episodes:
        first = next(record.error for record in result.records if record.error is not None)
        text = " ".join(first.message.split())
        raise CommandFailed(
            ExitCode.FAILED, f"every episode ended in an error; the first: {first.type_name}: {text}"
        )


def _interrupted_line(folder: Path) -> str:
    from tokentrue.rollouts.record import open_record

    try:
        reader = open_record(folder)
        turns, episodes = sum(1 for _ in reader.turns()), len(reader.episodes())
    except RecordError:
        return f"interrupted before anything was recorded in {folder}"
    return (
        f"interrupted: the record in {folder} is valid and holds {turns} turns of {episodes} episodes "
        f"(tokentrue inspect {folder})"
    )
