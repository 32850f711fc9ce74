"""The one door between commands and the shell: whatever a command raises becomes one line and an exit code."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from enum import IntEnum

import click

from tokentrue.errors import (
    CallerError,
    ConnectionFailedError,
    ConnectionLostError,
    EngineTimeoutError,
    RouteMissingError,
    TemplateError,
    TokentrueError,
    UnknownModelError,
)


class ExitCode(IntEnum):
    """What a shell is told."""

    DONE = 0
    FAILED = 1
    """The engine, the way to it, the record, or a law."""
    CALLER = 2
    """A wrong value, name or folder: the same command cannot succeed."""
    INTERRUPTED = 130
    CLOSED_PIPE = 141
    """What a shell says of a process that SIGPIPE ended."""


class CommandFailed(Exception):
    """A command ends with an exit code, and perhaps with one line for a person."""

    def __init__(self, code: ExitCode, line: str = "") -> None:
        super().__init__(line)
        self.code = code
        self.line = line


_CALLERS_FAULT = (CallerError, TemplateError, UnknownModelError)

_ADVICE: dict[type[TokentrueError], str] = {
    ConnectionFailedError: "is the server running, and is --engine its URL?",
    ConnectionLostError: "look at the server's log",
    EngineTimeoutError: "the server is too slow or stuck: look at its log",
    RouteMissingError: "is --transport the right one for this server?",
}


def run_command(command: click.Group, args: Sequence[str]) -> int:
    """Run a command line; returns its exit code and never raises what a caller, engine or disk may cause."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model can sample what is no character, and UTF-8 has no place for that: it is shown as an escape.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with command.make_context("tokentrue", list(args)) as context:
            command.invoke(context)
            sys.stdout.flush()
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        return ExitCode.CALLER
    except click.ClickException as exc:
        return _say(_usage_line(exc), ExitCode.CALLER)
    except (KeyboardInterrupt, click.Abort):
        return _say("interrupted", ExitCode.INTERRUPTED)
    except CommandFailed as exc:
        return _say(exc.line, exc.code)
    except TokentrueError as exc:
        code = ExitCode.CALLER if isinstance(exc, _CALLERS_FAULT) else ExitCode.FAILED
        return _say(error_line(exc), code)
    except BrokenPipeError:
        # Whoever read this has seen enough, as in `tokentrue inspect DIR | head -1`: that is no failure to tell.
        _give_up_stdout()
        return ExitCode.CLOSED_PIPE
    except OSError as exc:
        # Commands turn the failures of their own files into RecordError; what is left is standard output.
        _give_up_stdout()
        return _say(f"standard output cannot be written: {exc.strerror or exc}", ExitCode.FAILED)
    return ExitCode.DONE


def error_line(exc: TokentrueError) -> str:
    """One line: what happened and where, and what to do when the error itself does not say it."""
    line = " ".join(str(exc).split()) or type(exc).__name__
    advice = next((text for kind, text in _ADVICE.items() if isinstance(exc, kind)), "")
    return f"{line} ({advice})" if advice else line


def _usage_line(exc: click.ClickException) -> str:
    line = " ".join(exc.format_message().split())
    where = exc.ctx.command_path if isinstance(exc, click.UsageError) and exc.ctx is not None else "tokentrue"
    return f"{line.rstrip('.')} (see {where} --help)"


def _say(line: str, code: ExitCode) -> int:
    if line:
        with contextlib.suppress(OSError):
            click.echo(f"tokentrue: {line}", err=True)
    return code


def _give_up_stdout() -> None:
    # The interpreter flushes standard output once more when it ends, and would complain a second time.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
