"""A splice in a record, in the laws that read it, in its summary, and on the screen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from played import Play, Played, user
from rendering.conftest import QWEN_LIKE
from rendering_folders import write_folder
from tokentrue import Message, Renderer, load_renderer
from tokentrue.cli.painting import Writer, paint_episode
from tokentrue.cli.report import summary_lines
from tokentrue.cli.screen import episode_screen
from tokentrue.errors import RecordError
from tokentrue.generation import EngineInfo
from tokentrue.rendering.verdict import OnRewrite
from tokentrue.rollouts.comparison import compare_episode
from tokentrue.rollouts.drift import DriftCause
from tokentrue.rollouts.laws import Law, check_laws
from tokentrue.rollouts.proof import prove
from tokentrue.rollouts.record import RecordWriter, open_record
from tokentrue.rollouts.summary import summarize
from tokentrue.rollouts.trajectory import RunInfo
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.turns import CutSpan, How

INFO = RunInfo("env", "m", EngineInfo("embedded", "1", ("m",), 2048), "embedded", sampling=SamplingParams())


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return load_renderer(write_folder(tmp_path_factory.mktemp("qwen_like"), QWEN_LIKE))


@pytest.fixture(scope="module")
def played(renderer: Renderer) -> Played:
    """A tool loop, then two questions; the last one answers by the same message twice over."""
    play = Play(renderer, [user("look it up")], on_rewrite=OnRewrite.SPLICE)
    play.say('<think>\nhm\n</think>\n\n<tool_call>\n{"name":"look_up","arguments":{}}\n</tool_call>')
    play.answer(Message(role="tool", content="blue", tool_call_id="call_0_0", name="look_up"))
    play.say("<think>\nso it is\n</think>\n\nIt is blue.", split=False)
    play.answer(user("sure?"))
    play.say("<think>\nyes\n</think>\n\nYes.")
    play.answer(user("really?"))
    play.say("Yes.")
    return play.done()


def record_of(played: Played, folder: Path) -> Path:
    with RecordWriter(folder, INFO) as record:
        record.episode_started(played.episode)
        for turn in played.turns:
            record.turn_done(turn)
        record.episode_done(played.episode)
    return folder


def test_a_splice_is_written_by_reference_and_read_back_the_same(
    played: Played, renderer: Renderer, tmp_path: Path
) -> None:
    """The row holds the removed spans and what was added; the kept ids are those of the anchor's row."""
    folder = record_of(played, tmp_path / "run")
    reader = open_record(folder)
    assert list(reader.turns()) == list(played.turns)
    rows = pq.read_table(folder / "turns.parquet").to_pylist()
    hows = [row["how"] for row in rows]
    assert hows == ["rendered", "bridged", "spliced", "spliced"]
    for row, record in zip(rows, played.turns, strict=True):
        stitch, base = record.turn.stitch, row["base_turn"]
        if row["how"] != "spliced":
            assert row["removed_spans"] == []
            continue
        known = played.turns[base].turn.tokens.all_ids().tolist()[: row["base_len"]]
        cut = {at for span in row["removed_spans"] for at in range(span["start"], span["end"])}
        kept = [token_id for at, token_id in enumerate(known) if at not in cut]
        assert kept + row["added_ids"] == record.turn.tokens.prompt_ids.tolist()
        assert (row["known_len"], row["anchor_turn"]) == (len(kept), base)
        assert len(row["added_ids"]) == len(record.turn.tokens.prompt_ids) - stitch.known_len < 20
        assert row["detail"].startswith("message ")
    proof = prove(reader.episodes(), reader.turns(), renderer)
    assert proof.holds


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_record_in_which_spans_were_moved_by_one_is_not_read(played: Played, tmp_path: Path, shift: int) -> None:
    """A checksum covers them: where white space is cut, other spans may leave the very same ids."""
    folder = record_of(played, tmp_path / "run")
    path = folder / "turns.parquet"
    table = pq.read_table(path)
    column = table.column("removed_spans").to_pylist()
    moved = [[{key: at + shift for key, at in span.items()} for span in spans] for spans in column]
    at = table.schema.get_field_index("removed_spans")
    field = table.schema.field(at)
    pq.write_table(table.set_column(at, field, pa.array(moved, field.type)), path)
    with pytest.raises(
        RecordError, match=r"turn 2 of episode 0 cannot be restored: .* not those that were written"
    ):
        list(open_record(folder).turns())


def test_a_splice_that_is_not_its_own_is_kept_for_its_law(played: Played, tmp_path: Path) -> None:
    """A record never hides a broken turn by failing to write it."""
    turn = played.turns[2].turn
    wrong = replace(turn, stitch=replace(turn.stitch, removed=(CutSpan(0, 5), CutSpan(7, 9))))
    broken = replace(played, turns=(*played.turns[:2], replace(played.turns[2], turn=wrong)))
    found = list(open_record(record_of(broken, tmp_path / "run")).turns())
    assert found == list(broken.turns)
    assert not check_laws(found)[0].holds


@pytest.mark.parametrize("index", [1, 2])
@pytest.mark.parametrize("anchor", [None, 0, 7])
def test_a_record_whose_anchor_is_not_there_is_judged_and_compared(
    played: Played, renderer: Renderer, index: int, anchor: int | None
) -> None:
    """A broken record is what laws and comparison are for: a bridge and a splice of no turn, or of another one."""
    turn = played.turns[index].turn
    wrong = replace(turn, stitch=replace(turn.stitch, anchor_turn=anchor))
    turns = [replace(one, turn=wrong) if at == index else one for at, one in enumerate(played.turns)]
    assert prove([played.episode], turns, renderer).holds == (anchor == turn.stitch.anchor_turn)
    assert len(compare_episode(turns, played.episode.tools, renderer)) == len(turns)


def _cut_more(played: Played, renderer: Renderer, text: str) -> Played:
    """The spliced turn 2 without the ids of `text` either, which was sampled; its record agrees with itself."""
    record, given = played.turns[2], played.turns[1].turn.tokens.all_ids().tolist()
    turn, ids = record.turn, renderer.tokenizer.encode(text)
    at = next(at for at in range(len(given)) if given[at : at + len(ids)] == ids)
    removed = (*turn.stitch.removed, CutSpan(at, at + len(ids)))
    added = turn.tokens.prompt_ids[turn.stitch.known_len :]
    known = [each for index, each in enumerate(given) if not any(cut.start <= index < cut.end for cut in removed)]
    back = turn.stitch.known_len - len(known)
    spans = tuple(replace(span, start=span.start - back, end=span.end - back) for span in turn.prompt_spans)
    stitch = replace(turn.stitch, removed=removed, known_len=len(known))
    tokens = replace(turn.tokens, prompt_ids=TokenIds([*known, *added]))
    cut = replace(record, turn=replace(turn, tokens=tokens, stitch=stitch, prompt_spans=spans))
    return replace(played, turns=(*played.turns[:2], cut))


def test_a_splice_that_removes_more_than_the_template_breaks_law_2(played: Played, renderer: Renderer) -> None:
    """What nobody sampled stands in it all the same, so only the splice's own proof can tell."""
    (faithful,) = [c for c in prove([played.episode], played.turns, renderer).checks if c.law is Law.FAITHFUL]
    assert (faithful.checked, faithful.broken) == (3, 0)
    forged = _cut_more(played, renderer, " blue.")
    (faithful,) = [c for c in prove([forged.episode], forged.turns, renderer).checks if c.law is Law.FAITHFUL]
    assert faithful.broken == 1
    assert "is a splice without the ids" in faithful.violations[0]


@pytest.mark.parametrize("anchor", [None, 0, 7])
def test_a_splice_of_another_turn_than_it_says_is_kept_for_its_law(
    played: Played, tmp_path: Path, anchor: int | None
) -> None:
    """None, a turn that it is no splice of, and one that is not there: the row can be read again."""
    turn = played.turns[2].turn
    wrong = replace(turn, stitch=replace(turn.stitch, anchor_turn=anchor))
    broken = replace(played, turns=(*played.turns[:2], replace(played.turns[2], turn=wrong)))
    found = list(open_record(record_of(broken, tmp_path / "run")).turns())
    assert found == list(broken.turns)
    assert not check_laws(found)[0].holds


def test_why_a_spliced_prompt_has_other_ids_than_its_text(renderer: Renderer) -> None:
    """As piece by piece as of a bridge: one call was sampled without blanks, one could not be read."""
    play = Play(renderer, [user("look it up")], on_rewrite=OnRewrite.SPLICE)
    play.say('<think>\nhm\n</think>\n\n<tool_call>\n{"name":"look_up","arguments":{}}\n</tool_call>')
    play.answer(user("no, that"))
    play.say('Oh.\n<tool_call>\n{"name": "look_up", \n</tool_call>')
    play.answer(user("and?"))
    play.say("<think>\nso\n</think>\n\nBlue.")
    play.answer(user("sure?"))
    play.say("Yes.")
    played = play.done()
    compared = compare_episode(played.turns, played.episode.tools, renderer)
    assert [(one.record.turn.stitch.how, one.causes) for one in compared] == [
        (How.RENDERED, ()),
        (How.SPLICED, (DriftCause.RESPACED,)),
        (How.BRIDGED, (DriftCause.RESPACED, DriftCause.CALL_LOST)),
        (How.SPLICED, (DriftCause.RESPACED, DriftCause.CALL_LOST)),
    ]


def test_a_person_sees_what_was_removed(played: Played, renderer: Renderer) -> None:
    summary = summarize([played.episode], played.turns)
    assert (summary.bridged, summary.spliced, sum(summary.rendered_why.values())) == (1, 2, 1)
    assert any("1 bridged, 2 spliced, 1 rendered" in line for line in summary_lines(summary))
    compared = compare_episode(played.turns, played.episode.tools, renderer)
    painted = paint_episode(played.turns, renderer.tokenizer, compared)
    for turn in painted:
        ids = turn.record.turn.tokens.prompt_ids
        assert [token.id for token in turn.prompt] == ids[turn.known_len :]
        assert turn.known_len == turn.record.turn.stitch.known_len
    spliced = [turn for turn in painted if turn.record.turn.stitch.how is How.SPLICED]
    assert all(token.writer is not Writer.UNKNOWN for turn in spliced for token in turn.prompt)
    screen = "\n".join(episode_screen(played.episode, painted))
    first, second = spliced[0].record.turn.stitch.removed
    told = f"turn 2   spliced from turn 1, without its ids {first.start} to {first.end - 1}, {second.start} to"
    assert told in screen.replace("\n  ", " ").replace("\x1b[0m", "").replace("\x1b[1m", "")
