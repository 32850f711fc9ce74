"""The last line of a run over several suites counts them all, and a suite that did not end is no success."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "sum_tests.py"


@pytest.mark.parametrize(
    ("logs", "last_line", "status"),
    [
        (["3 passed, 1 skipped in 61.00s (0:01:01)"], "3 passed, 0 failed, 1 skipped", 0),
        (["x\n3 passed in 1.00s\n", "2 passed, 4 deselected in 1.00s"], "5 passed, 0 failed, 0 skipped", 0),
        (["FAILED a\n1 failed, 2 passed in 1.00s", "1 passed in 1s"], "3 passed, 1 failed, 0 skipped", 1),
        (["3 passed, 2 errors in 1.00s"], "3 passed, 2 failed, 0 skipped", 1),
        (["3 passed in 1.00s", "Traceback: the server did not start"], "3 passed, 0 failed, 0 skipped", 1),
    ],
)
def test_the_last_line_adds_up(tmp_path, logs, last_line, status) -> None:
    paths = [tmp_path / f"{number}.log" for number in range(len(logs))]
    for path, text in zip(paths, logs, strict=True):
        path.write_text(text)
    done = subprocess.run([sys.executable, SCRIPT, *paths], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == last_line
    assert done.returncode == status
