"""The command that `python -m servers.dynamo up` tells a user to try."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.dynamo

EPISODES = 8


def _rollout(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from tokentrue.cli.main import main; main()", "rollout", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_rollout_against_a_real_frontend_explains_every_turn(dynamo, tmp_path) -> None:
    out = tmp_path / "run"
    done = _rollout(
        *("--env", "calculator", "--engine", dynamo.frontend.url, "--transport", "dynamo"),
        *("--model", dynamo.embedded.kind.model_name, "--episodes", str(EPISODES), "--out", str(out)),
    )
    assert done.returncode == 0, done.stderr
    assert "0 unexplained" in done.stdout
    assert (out / "run.json").exists()


def test_a_frontend_that_ignores_the_ids_is_one_clear_line(dynamo, tmp_path) -> None:
    """No episode can be sampled: the run ends with the advice, and with no traceback."""
    done = _rollout(
        *("--env", "calculator", "--engine", dynamo.forgetful.url, "--transport", "dynamo"),
        *("--model", dynamo.embedded.kind.model_name, "--episodes", "2", "--out", str(tmp_path / "run")),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert "DYN_DISABLE_FRONTEND_NVEXT" in done.stderr + done.stdout
