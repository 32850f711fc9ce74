"""The command that `python -m servers.vllm up` tells a user to try."""

from __future__ import annotations

import subprocess
import sys

import pytest
from servers.vllm.server import MODEL_NAME

pytestmark = pytest.mark.vllm


def test_a_rollout_against_a_real_vllm_explains_every_turn(vllm, tmp_path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", "from tokentrue.cli.main import main; main()", "rollout"]
    command += ["--env", "calculator", "--engine", vllm.url, "--transport", "vllm", "--model", MODEL_NAME]
    command += ["--episodes", "8", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "0 unexplained" in done.stdout
    assert (out / "run.json").exists()
