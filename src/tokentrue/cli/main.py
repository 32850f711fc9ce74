"""The `tokentrue` command: one file per subcommand, one door for errors."""

from __future__ import annotations

import sys

import click

import tokentrue
from tokentrue.cli.certify import certify
from tokentrue.cli.demo import demo
from tokentrue.cli.doctor import doctor
from tokentrue.cli.door import run_command
from tokentrue.cli.inspect import inspect
from tokentrue.cli.rollout import rollout


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(tokentrue.__version__, prog_name="tokentrue")
def cli() -> None:
    """Exact tokens between agents, inference engines and trainers.

    Exit codes: 0 done; 1 the engine, the way to it, the record or a law failed; 2 a wrong value, name or folder;
    130 interrupted; 141 whoever read the output closed it. Errors are one line on standard error.
    """


cli.add_command(rollout)
cli.add_command(inspect)
cli.add_command(demo)
cli.add_command(certify)
cli.add_command(doctor)


def main() -> None:
    """The console script."""
    sys.exit(run_command(cli, sys.argv[1:]))
