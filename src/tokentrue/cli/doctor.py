"""`tokentrue doctor`: what a live endpoint can do, with evidence, and the configuration to paste."""

from __future__ import annotations

import asyncio
import json
import textwrap
from typing import Any

import click

from tokentrue.cli.connecting import api_key_of
from tokentrue.cli.doctor_config import config_toml
from tokentrue.cli.door import CommandFailed, ExitCode
from tokentrue.cli.report import WIDTH
from tokentrue.engines.checkup.examination import AUTO, TRANSPORTS, Examination, Question, examine
from tokentrue.engines.checkup.finding import Finding, Level
from tokentrue.errors import EngineError, EngineTimeoutError, RouteMissingError, TransportError
from tokentrue.rendering.renderer import load_renderer

_MARKS = {Level.OK: "ok", Level.NOTE: "note", Level.WARN: "warn", Level.FAIL: "FAIL"}
_HEAD = "{mark:<6}{name:<18}"


@click.command(context_settings={"show_default": True})
@click.argument("url", metavar="URL")
@click.option(
    "--transport",
    type=click.Choice([AUTO, *TRANSPORTS]),
    default=AUTO,
    help="The API that the server speaks; auto recognises it.",
)
@click.option("--model", metavar="NAME", help="Name of the served model.  [default: the only one]")
@click.option(
    "--tokenizer",
    metavar="FOLDER",
    help="Tokenizer folder of the served model, or its name: then its ids are compared with the server's.",
)
@click.option("--api-key-var", default="", metavar="VAR", help="Environment variable with the server's API key.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    metavar="SECONDS",
    help="Time for everything.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(url: str, **options: Any) -> None:
    """Look at a live endpoint: can one train on what it samples?

    URL is the server's root, with or without /v1. About twenty requests for a few tokens each are made, and none
    that changes the server or may harm it. Every line says what the server did, and what to switch on.

    \b
    ok    as it should be
    note  could not be looked at, or would be good to have
    warn  one can train, and something will be slow or go wrong
    FAIL  what is sampled here cannot be trained on by its ids

    Exit code 0 only when nothing failed.
    """
    tokenizer: str | None = options["tokenizer"]
    question = Question(
        url=url,
        transport=options["transport"],
        model=options["model"],
        api_key=api_key_of(options["api_key_var"], "--api-key-var"),
        timeout_s=options["timeout_s"],
        renderer=load_renderer(tokenizer) if tokenizer is not None else None,
    )
    examination = _examined(question)
    config = config_toml(examination, tokenizer, options["api_key_var"])
    if options["as_json"]:
        click.echo(json.dumps(examination_json(examination, config), ensure_ascii=False))
    else:
        for line in examination_lines(examination, config):
            click.echo(line)
    if not examination.can_train:
        failed = [finding.name for finding in examination.findings if finding.level is Level.FAIL]
        raise CommandFailed(ExitCode.FAILED, f"one cannot train on this endpoint: {', '.join(failed)}")


def _examined(question: Question) -> Examination:
    try:
        return asyncio.run(examine(question))
    except EngineTimeoutError as exc:
        words = " ".join(str(exc).split())
        raise CommandFailed(
            ExitCode.FAILED, f"{words}: look at the server's log, or give it longer by --timeout"
        ) from exc
    except TransportError as exc:
        words = " ".join(str(exc).split())
        raise CommandFailed(
            ExitCode.FAILED, f"{words} (does a server listen there, and is it http or https?)"
        ) from exc
    except EngineError as exc:
        raise CommandFailed(ExitCode.FAILED, _no_engine(question.url, exc)) from exc


def _no_engine(url: str, exc: EngineError) -> str:
    if exc.status == 401:
        return f"{url} wants a key: name the environment variable that holds it with --api-key-var"
    if isinstance(exc, RouteMissingError):
        return f"{url} is no inference engine: it serves no /v1/models (is it the server's root?)"
    return f"{url} answers, and not as an inference engine does: {' '.join(str(exc).split())}"


def examination_json(examination: Examination, config: str) -> dict[str, Any]:
    """Everything that was found, as JSON values."""
    return {
        "url": examination.url,
        "engine": examination.engine,
        "version": examination.version,
        "transport": examination.transport,
        "model": examination.model,
        "can_train": examination.can_train,
        "findings": [
            {
                "name": finding.name,
                "level": finding.level.value,
                "evidence": finding.evidence,
                "advice": finding.advice,
            }
            for finding in examination.findings
        ],
        "config": config,
    }


def examination_lines(examination: Examination, config: str) -> list[str]:
    """The checklist, the configuration and the verdict, in lines of at most 100 columns."""
    lines = [line for finding in examination.findings for line in _finding_lines(finding)]
    can = "can" if examination.can_train else "cannot"
    return [*lines, "", f"one {can} train on what this endpoint samples", "", *config.splitlines()]


def _finding_lines(finding: Finding) -> list[str]:
    head = _HEAD.format(mark=_MARKS[finding.level], name=finding.name)
    told = [finding.evidence, *([f"-> {finding.advice}"] if finding.advice else [])]
    wrapped = [
        line
        for text in told
        for line in textwrap.wrap(
            " ".join(text.split()), WIDTH - len(head), break_long_words=True, break_on_hyphens=False
        )
    ]
    return [(head if at == 0 else " " * len(head)) + line for at, line in enumerate(wrapped)]
