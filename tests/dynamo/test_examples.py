"""The examples for Dynamo run as they are printed, against the embedded model behind a real frontend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.dynamo

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "second", "samples"),
    [("chat_dynamo", "engine_rendered", None), ("token_dynamo", "bridged", 1), ("renderer_dynamo", "bridged", 1)],
)
def test_an_example_runs(dynamo, name, second, samples) -> None:
    done = subprocess.run(
        [sys.executable, f"{EXAMPLES / name}.py", dynamo.frontend.url + "/v1", dynamo.embedded.kind.model_name],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert f"turn 1: {second}" in done.stdout
    assert samples is None or f"{samples} samples" in done.stdout
