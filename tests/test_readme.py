"""The README is true: its tree is the tree, its example runs, its demo block is what a demo prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, cwd=cwd, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_tree_and_example_are_up_to_date() -> None:
    run("scripts/readme_blocks.py", "--check")


def test_the_example_environment_runs(tmp_path: Path) -> None:
    environment = f"{ROOT / 'examples' / 'own_environment.py'}:DictionaryEnv"
    told = run(
        *("-m", "tokentrue", "rollout", "--env", environment, "--episodes", "2", "--max-turns", "2"),
        *("--out", str(tmp_path / "run")),
    )
    assert "0 unexplained" in told


def shape(printed: str) -> list[str]:
    """What does not depend on sampling: the labels, in order, without numbers and examples."""
    labels = re.findall(
        r"^ *(calculator|shop|episodes|success|turns|tokens|junctions|\d  \w[\w ]*?(?=  )|other ids|prefix cache"
        r"|training|records|page|picture|look at it|took)\b",
        printed,
        flags=re.MULTILINE,
    )
    return [label for label in labels if label not in ("calculator", "shop")]


def test_the_demo_block_is_what_the_demo_prints(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme[readme.index("<!-- demo:") : readme.index("<!-- end of demo -->")]
    printed = run("-m", "tokentrue", "demo", "--out", str(tmp_path / "demo"))
    assert shape(block) == shape(printed)
    assert "0 unexplained" in block
    assert "broken" not in printed
