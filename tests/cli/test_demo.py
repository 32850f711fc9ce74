"""The demo, small: it prints every promised number, and writes a page and a picture."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cli.conftest import run_command
from cli.test_inspect import Page, is_self_contained
from tokentrue.cli.door import CommandFailed, ExitCode
from tokentrue.cli.report import check_laws_held
from tokentrue.rollouts.laws import Law, LawCheck
from tokentrue.rollouts.record import open_record


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    out = tmp_path_factory.mktemp("demo") / "run"
    out.mkdir()
    (out / "taken").write_text("")
    return run_command("demo", "--episodes", 4, "--seed", 3, "--out", out), out.with_name("run-2")


def test_it_ends_well_and_prints_the_proof(demo: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, out = demo
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("calculator", "shop", "scored episodes", "0 unexplained", "prefix cache", "training", "took"):
        assert words in done.stdout
    assert len(re.findall(r"^  [1-7]  .* held$", done.stdout, re.MULTILINE)) == 7
    # How to go on holds a path, and a path is as long as it is.
    lines = [line for line in done.stdout.splitlines() if not line.startswith("look at it")]
    assert max(map(len, lines)) <= 100
    assert "\x1b[" not in done.stdout
    for path in (out / "picture.html", out / "episode.html", out):
        assert str(path) in done.stdout


def test_its_numbers_are_those_of_the_records(demo: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, out = demo
    turns = [turn for name in ("calculator", "shop") for turn in open_record(out / name).turns()]
    sampled = sum(len(turn.turn.tokens.completion_ids) for turn in turns)
    assert re.search(rf"nothing lost .* {sampled} ids", done.stdout)
    assert re.search(rf"aligned .* {len(turns)} turns", done.stdout)


def test_a_broken_law_ends_the_command() -> None:
    check_laws_held([LawCheck(Law.VERBATIM, 9, 0)])
    broken = LawCheck(Law.FAITHFUL, 9, 1, ("turn 3 of episode 2 has a bridge of its own",))
    with pytest.raises(CommandFailed, match="law 2; the first violation: turn 3 of episode 2") as caught:
        check_laws_held([LawCheck(Law.VERBATIM, 9, 0), broken])
    assert caught.value.code is ExitCode.FAILED


@pytest.mark.parametrize("name", ["picture.html", "episode.html"])
def test_its_pages_need_nothing_else(demo: tuple[subprocess.CompletedProcess[str], Path], name: str) -> None:
    text = (demo[1] / name).read_text(encoding="utf-8")
    assert is_self_contained(text)
    page = Page(text)
    assert page.token_ids
    assert ("<svg" in text) == (name == "picture.html")
