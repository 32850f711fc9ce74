"""A recorded run, as `rollout` and `demo` both start it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from tokentrue.cli.connecting import Connection, EngineChoice
from tokentrue.engines.logprobs import MeasuredLogprobs
from tokentrue.errors import ConfigError
from tokentrue.generation import LogprobsMode
from tokentrue.rollouts.environment import Environment
from tokentrue.rollouts.loading import load_environment
from tokentrue.rollouts.progress_bar import BarProgress
from tokentrue.rollouts.record import RecordWriter
from tokentrue.rollouts.runner import RolloutPlan, RolloutResult, run_rollouts
from tokentrue.rollouts.trajectory import RunInfo

_PACKAGES = ("tokentrue", "aiohttp", "jinja2", "msgspec", "numpy", "pyarrow", "tokenizers")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a caller may change about an environment; None leaves it as its author wrote it."""

    max_turns: int | None = None
    episode_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """One run: which environment, how many episodes, where to."""

    env: str
    choice: EngineChoice
    plan: RolloutPlan
    out: Path
    limits: Limits = field(default_factory=Limits)


def check_free_folder(folder: Path) -> None:
    """A record needs a folder of its own.

    Raises:
        ConfigError: Something is there already.
    """
    try:
        is_taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as exc:
        raise ConfigError(f"--out {str(folder)!r} cannot be looked into: {exc.strerror}") from exc
    if is_taken:
        raise ConfigError(f"--out {str(folder)!r} is not an empty folder; choose another one, or remove it")


def limited_environment(spec: str, limits: Limits) -> Environment[Any, Any]:
    """The environment of that name, with the caller's limits.

    Raises:
        ConfigError: There is none of that name, or it cannot be made.
    """
    environment = load_environment(spec)
    wanted = {"max_turns": limits.max_turns, "timeout_s": limits.episode_timeout_s}
    # The limits are class attributes: an attribute of the object goes before them, for this run only.
    vars(environment).update({name: value for name, value in wanted.items() if value is not None})
    return environment


async def record_run(order: Order, connection: Connection, started: datetime) -> RolloutResult:
    """Play and record; the record is closed when this ends, also on Ctrl-C, and gone where it has no turn.

    Raises:
        ConfigError: The environment cannot be loaded.
        RecordError: The record cannot be written.
        EngineError, TransportError: The engine cannot be used; see `run_rollouts`.
    """
    environment = limited_environment(order.env, order.limits)
    logprobs = await connection.logprobs(order.plan.sampling)
    info = _run_info(order, connection, started, environment.name, logprobs)
    record = RecordWriter(order.out, info)
    try:
        with record:
            return await run_rollouts(
                environment,
                connection.client,
                connection.model,
                order.plan,
                record=record,
                progress=BarProgress(Console(stderr=True)),
            )
    finally:
        # Where nothing was sampled, the same command must be free to try again.
        record.discard_without_turns()


def _run_info(
    order: Order, connection: Connection, started: datetime, environment: str, logprobs: MeasuredLogprobs
) -> RunInfo:
    engine = connection.info
    if logprobs.mode is not LogprobsMode.ALIKE:
        engine = replace(engine, logprobs_mode=logprobs.mode)
    config: Mapping[str, Any] = {
        "engine": order.choice.engine,
        "tokenizer": order.choice.tokenizer_name,
        "spelled_markers": order.choice.spelled_markers,
        "max_turns": order.limits.max_turns,
        "episode_timeout_s": order.limits.episode_timeout_s,
        "logprobs": {"mode": logprobs.mode.value, "why": logprobs.why},
    }
    return RunInfo(
        environment=environment,
        model=connection.model,
        engine=engine,
        transport=connection.transport,
        seed=order.plan.seed,
        episodes=order.plan.episodes,
        concurrency=order.plan.concurrency,
        sampling=order.plan.sampling,
        tokenizer_hash=connection.renderer.tokenizer.content_hash,
        template_hash=connection.renderer.template.content_hash,
        versions={"python": platform.python_version(), **_installed_versions()},
        config=config,
        created_at=started.isoformat(),
    )


def _installed_versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            # Run from a source tree, the package itself is not installed.
            continue
    return found
