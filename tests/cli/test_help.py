"""Every command and option explains itself, fast."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from cli.conftest import run_command
from tokentrue.cli.main import cli

COMMANDS = sorted(cli.commands)


def test_the_group_names_every_command() -> None:
    done = run_command("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)
    assert "Exit codes" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    command = cli.commands[name]
    done = run_command(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 100
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.opts[0]} has no help"
            assert option.opts[0] in done.stdout


def test_defaults_are_shown() -> None:
    shown = " ".join(run_command("rollout", "--help").stdout.split())
    for default in ("[default: embedded]", "[default: vllm]", "[default: 16; x>=1]", "[default: the only one]"):
        assert default in shown


def test_the_version_is_printed() -> None:
    done = run_command("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("tokentrue, version ")


def test_help_waits_for_no_engine() -> None:
    """What only runs need is imported by runs only."""
    code = (
        "import sys; import tokentrue.cli.main; "
        "bad = {'pyarrow', 'rich'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
