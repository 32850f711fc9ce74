"""The documentation is generated where it can be, checked where it can be, and builds without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tokentrue
from tokentrue import ClientConfig
from tokentrue.cli.painting import Writer
from tokentrue.generation import FinishReason, LogprobsMode, VersionSource
from tokentrue.rollouts.environment import StopReason
from tokentrue.testing import CHECKS
from tokentrue.turns import How, Junction, Why

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "scripts/docs.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=200,
    )


def test_generated_pages_are_up_to_date() -> None:
    done = run("check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_site_builds_and_has_every_public_name_and_page(tmp_path) -> None:
    done = run("build", str(tmp_path))
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "tokentrue.html").read_text()
    for name in tokentrue.__all__:
        assert f'id="{name}"' in reference, f"{name} is not in the reference"
    assert 'id="OverlongPromptError"' in (tmp_path / "tokentrue" / "errors.html").read_text()
    assert 'id="Why"' in (tmp_path / "tokentrue" / "turns.html").read_text()
    for page in PAGES:
        built = tmp_path / ("guide.html" if page.stem == "index" else f"guide/{page.stem.replace('-', '_')}.html")
        assert built.is_file(), page.name
        for target in re.findall(r'href="((?:guide/)?\w+\.html)', built.read_text()):
            assert (built.parent / target).is_file(), f"{page.name} leads to {target}"


def test_every_printed_word_is_explained_and_no_other() -> None:
    """The tables of the glossary that list an enum list all of it."""
    text = (ROOT / "docs" / "glossary.md").read_text()
    told: dict[str, set[str]] = {}
    for heading, table in re.findall(r"## (.+?)\n(.*?)(?=\n## |\Z)", text, flags=re.DOTALL):
        cells = re.findall(r"^\| (.*?) \|", table, flags=re.MULTILINE)
        told[heading] = {word for cell in cells for word in re.findall(r"`(.+?)`", cell)}
    listed = {
        "How a prompt was made": How,
        "Why it was made so": Why,
        "What happened at the junction": Junction,
        "Why sampling ended": FinishReason,
        "Why an episode ended": StopReason,
        "Who wrote a token": Writer,
    }
    for heading, words in listed.items():
        assert told[heading] == {word.value for word in words}, heading
    numbers = {mode.value for mode in LogprobsMode} | {source.value for source in VersionSource}
    assert told["What is known of the numbers"] == numbers


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_code_is_code(page) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (page.parent / target).exists(), target
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        compile(code, page.name, "exec")
    for table in re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL):
        ClientConfig.from_mapping(tomllib.loads(table))


def test_the_page_of_engines_has_every_check() -> None:
    text = (ROOT / "docs" / "engines.md").read_text()
    assert [name for name in (check.name for check in CHECKS) if f"| {name} | " not in text] == []


def test_the_reasons_that_the_pages_name_exist() -> None:
    text = (ROOT / "docs" / "clients.md").read_text()
    named = set(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, flags=re.MULTILINE))
    words = {word for row in named for word in re.findall(r"`(\w+)`", row)}
    clients = {"client_type", "renderer", "openai_chat_completions", "openai_chat_completions_token"}
    assert {why.value for why in Why} >= words - clients
