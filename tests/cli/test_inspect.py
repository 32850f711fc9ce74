"""What a person sees of a record, on the screen and as a page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cli.conftest import run_command
from tokentrue import load_renderer
from tokentrue.cli.page import episode_page
from tokentrue.cli.page_style import STYLE
from tokentrue.cli.painting import Writer, paint_episode, token_texts
from tokentrue.cli.screen import episode_screen
from tokentrue.engines.embedded.engine import MODEL_FOLDER
from tokentrue.errors import InvalidTokenIdError
from tokentrue.messages import Message
from tokentrue.rollouts.comparison import compare_episode
from tokentrue.rollouts.record import RecordWriter, open_record
from tokentrue.rollouts.trajectory import EpisodeError, Phase
from tokentrue.turns import How

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.token_ids: list[int] = []
        self.texts: list[str] = []
        self.writers: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._in_token = False
        self._writer = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        found = dict(attrs)
        if "data-w" in found:
            self._writer = found["data-w"] or ""
        if tag == "b" and "data-i" in found:
            self.token_ids.append(int(found["data-i"] or ""))
            self.writers.append(self._writer)
            self.texts.append("")
            self._in_token = True
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._in_token = self._in_token and tag != "b"

    def handle_data(self, data: str) -> None:
        if self._in_token:
            self.texts[-1] += data


def is_self_contained(text: str) -> bool:
    """No address, and nothing that loads anything."""
    return not re.search(r"https?://|\bsrc=|<link|@import|url\(", text)


@pytest.fixture(scope="module")
def page_text(record: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pages") / "page.html"
    done = run_command("inspect", record, "--episode", 1, "--html", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(path) in done.stdout
    return path.read_text(encoding="utf-8")


def recorded(record: Path, episode: int):
    return [turn for turn in open_record(record).turns() if turn.episode == episode]


def test_the_summary_names_what_a_run_was(record: Path) -> None:
    done = run_command("inspect", record)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("episodes   3", "success", "first_turn 3", "0 unexplained", "laws", "CalculatorEnv", "(closed)"):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_the_summary_as_json_has_every_number(record: Path) -> None:
    found = json.loads(run_command("inspect", record, "--json").stdout)
    turns = list(open_record(record).turns())
    assert found["episodes"] == 3
    assert found["turns"] == len(turns)
    assert found["completion_tokens"] == sum(len(turn.turn.tokens.completion_ids) for turn in turns)
    assert found["how"]["rendered"] == 3
    assert all(law["broken"] == 0 for law in found["laws"].values())


def test_the_list_has_a_line_per_episode(record: Path) -> None:
    lines = run_command("inspect", record, "--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["episode", "0", "1", "2"]
    rows = [json.loads(line) for line in run_command("inspect", record, "--list", "--json").stdout.splitlines()]
    assert [row["episode"] for row in rows] == [0, 1, 2]


def test_an_episode_on_the_screen_shows_turns_writers_and_reasons(record: Path) -> None:
    done = run_command("inspect", record, "--episode", 0)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b[" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    for word in ("turn 0   rendered (first_turn)", "scaffold", "body", "sampled", "message 0", "⏎"):
        assert word in done.stdout
    if len(recorded(record, 0)) > 1:
        assert "turn 1   bridged from turn 0 (known_prefix), junction" in done.stdout
        assert "bridge scaffold" in done.stdout


def test_colours_are_there_when_asked_for_and_tell_writers_apart(record: Path) -> None:
    done = run_command("inspect", record, "--episode", 0, "--color")
    assert "\x1b[32m" in done.stdout
    assert "\x1b[90m" in done.stdout
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert plain == run_command("inspect", record, "--episode", 0).stdout


def test_logprobs_are_shown_on_demand(record: Path) -> None:
    sampled = [turn.turn.tokens for turn in recorded(record, 0)]
    shown = run_command("inspect", record, "--episode", 0, "--logprobs").stdout
    assert f"[{sampled[0].completion_logprobs[0]:.2f}]" in shown
    assert len(re.findall(r"\[-?\d+\.\d\d\] ", shown)) == sum(len(tokens.completion_ids) for tokens in sampled)


def test_the_page_needs_nothing_else_and_is_well_formed(page_text: str) -> None:
    assert is_self_contained(page_text)
    page = Page(page_text)
    assert ("tabindex", "0") in page.attributes
    assert "prefers-color-scheme: dark" in page_text
    assert 'aria-label="Legend"' in page_text


def test_the_page_has_every_token_once_in_order(record: Path, page_text: str) -> None:
    expected: list[int] = []
    for turn in recorded(record, 1):
        tokens, stitch = turn.turn.tokens, turn.turn.stitch
        known = stitch.known_len if stitch.how is How.BRIDGED else 0
        expected += [*tokens.prompt_ids[known:], *tokens.completion_ids]
    page = Page(page_text)
    assert page.token_ids == expected
    assert page.writers.count("sampled") == sum(len(t.turn.tokens.completion_ids) for t in recorded(record, 1))
    decode = load_renderer(MODEL_FOLDER).tokenizer.decode
    shown = "".join(text.replace("⏎\n", "\n") for text in page.texts)
    assert shown == decode(expected)


def test_no_column_of_the_page_is_wider_than_a_narrow_screen() -> None:
    """A fixed least width of a grid's column overflows there: each is bounded by what there is."""
    columns = re.findall(r"minmax\(((?:[^()]|\([^()]*\))*),", STYLE)
    assert columns
    assert all(re.fullmatch(r"0|min\([^()]*, 100%\)", column) for column in columns)


def test_a_page_escapes_what_a_model_wrote(record: Path) -> None:
    """Markup in a conversation is text, also in the tokenizer's spelling of it."""
    renderer = load_renderer(MODEL_FOLDER)
    reader = open_record(record)
    turns = recorded(record, 1)
    painted = paint_episode(turns, renderer.tokenizer)
    painted[0].completion[0].text = "</b><script>alert(1)</script>\x00&amp;"
    page = Page(episode_page(reader.info, reader.episodes()[1], painted))
    assert page.texts.count("</b><script>alert(1)</script>\ufffd&amp;") == 1


def test_marks_say_what_rendering_from_text_would_lose(record: Path) -> None:
    """A token is marked exactly when some later prompt from text has another id there."""
    renderer = load_renderer(MODEL_FOLDER)
    reader = open_record(record)
    for episode in reader.episodes():
        turns = recorded(record, episode.index)
        compared = compare_episode(turns, episode.tools, renderer)
        painted = paint_episode(turns, renderer.tokenizer, compared)
        marks = [token for turn in painted for token in (*turn.prompt, *turn.completion)]
        differs = any(one.first_difference is not None for one in compared)
        assert any(token.lost_at is not None or token.gap_at is not None for token in marks) == differs
        for turn, one in zip(painted, compared, strict=True):
            if one.first_difference is not None and one.first_difference < len(one.exact_ids):
                token = marks[one.first_difference]
                assert turn.record.turn.index >= min(at for at in (token.lost_at, token.gap_at) if at is not None)
        lines = "\n".join(episode_screen(episode, painted))
        assert ("from text, this prompt differs" in lines) == differs


@pytest.fixture(scope="session")
def unread(record: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record again, as it is when a reader failed in its first turn, with what is no character in the text."""
    reader = open_record(record)
    folder = tmp_path_factory.mktemp("runs") / "unread"
    with RecordWriter(folder, reader.info) as written:
        for index, turn in enumerate(reader.turns()):
            told = "Mine.parse_response cannot read 3 sampled ids: KeyError: 'x\ud800' (mine.py:7 in f)"
            written.turn_done(turn if index else replace(turn, turn=replace(turn.turn, unread=told)))
        for episode in reader.episodes():
            question = Message(role="user", content="What is \ud800?")
            asked = replace(episode, messages=(question, *episode.messages))
            error = EpisodeError("mine.Broken", "no \udfff here", Phase.REWARD, "")
            written.episode_done(asked if episode.index else replace(episode, error=error))
    return folder


def test_what_could_not_be_read_is_told(unread: Path, tmp_path: Path) -> None:
    assert "unread     1 turns could not be read as messages" in run_command("inspect", unread).stdout
    assert json.loads(run_command("inspect", unread, "--json").stdout)["unread_turns"] == 1
    done = run_command("inspect", unread, "--episode", 0, "--html", tmp_path / "page.html")
    assert (done.returncode, done.stderr) == (0, "")
    told = "not read as a message, and kept as sampled: Mine.parse_response cannot read 3 sampled ids: KeyError"
    assert told in " ".join(done.stdout.split())
    assert told in (tmp_path / "page.html").read_text()
    assert "not read" not in run_command("inspect", unread, "--episode", 1).stdout


def test_what_is_no_character_is_shown_as_an_escape(unread: Path) -> None:
    for shown in (("--list",), ("--list", "--json"), ("--episode", 0), ()):
        done = run_command("inspect", unread, *shown)
        assert (done.returncode, done.stderr) == (0, "")
    assert "What is \\ud800?" in run_command("inspect", unread, "--list").stdout
    assert "error in reward: no \\udfff here" in run_command("inspect", unread, "--episode", 0).stdout


def test_unknown_writers_are_shown_as_unknown(record: Path) -> None:
    renderer = load_renderer(MODEL_FOLDER)
    turn = recorded(record, 0)[0]
    bare = replace(turn, turn=replace(turn.turn, prompt_spans=()))
    painted = paint_episode([bare], renderer.tokenizer)
    assert {token.writer for token in painted[0].prompt} == {Writer.UNKNOWN}


def test_an_id_of_another_vocabulary_is_an_error() -> None:
    renderer = load_renderer(MODEL_FOLDER)
    with pytest.raises(InvalidTokenIdError, match="outside the vocabulary"):
        token_texts([renderer.vocab_size], renderer.tokenizer)
