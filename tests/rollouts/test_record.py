"""A record on disk: what is written comes back, whatever form it is in and wherever it was torn."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from datetime import timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokentrue.errors import RecordError
from tokentrue.generation import (
    EngineInfo,
    FinishReason,
    LogprobsMode,
    Usage,
    VersionSource,
    WeightSpan,
    make_tokens,
)
from tokentrue.messages import Message, messages_from
from tokentrue.rollouts.environment import EpisodeState, MultiTurnEnv, StopReason
from tokentrue.rollouts.record import RecordForm, RecordWriter, compact_record, open_record
from tokentrue.rollouts.runner import RolloutPlan, run_rollouts
from tokentrue.rollouts.trajectory import EpisodeError, EpisodeRecord, Phase, RunInfo, TurnRecord
from tokentrue.sampling import SamplingParams
from tokentrue.testing.scripted_client import ScriptedClient
from tokentrue.tokens import TokenIds
from tokentrue.turns import How, Junction, Stitch, TokenKind, TokenSpan, Turn, Why

INFO = RunInfo(
    environment="calculator",
    model="m",
    engine=EngineInfo("embedded", "1.2", ("m", "n"), 2048, LogprobsMode.RAW),
    transport="embedded",
    seed=-(2**80),
    episodes=3,
    concurrency=2,
    sampling=SamplingParams(temperature=0.7, stop=("x",), stop_token_ids=(1, 2), extra={"foo": {"bar": [1]}}),
    tokenizer_hash="aa",
    template_hash="bb",
    versions={"tokentrue": "0.1.0"},
    config={"out": "runs/1", "nested": {"none": None}},
    created_at="2026-01-02T03:04:05+00:00",
)


class Continues(MultiTurnEnv[int, EpisodeState[int]]):
    """Always continues."""

    max_turns = 5

    def make_task(self, index, seed):
        return index

    def setup(self, task, seed):
        return EpisodeState(task, seed, [Message(role="user", content=f"task {task}")])

    def env_response(self, messages, state):
        return [Message(role="user", content="more")]

    def reward(self, messages, state):
        return 0.5


def draw(messages, rng):
    return Message(role="assistant", content="x" * rng.randrange(1, 20))


def play(sink, episodes=4, environment=None):
    plan = RolloutPlan(episodes, concurrency=3)
    return asyncio.run(run_rollouts(environment or Continues(), ScriptedClient(draw), "m", plan, record=sink))


@pytest.fixture
def opened(tmp_path):
    """An open record, as a killed run leaves it, and what it should hold."""
    folder = tmp_path / "run"
    result = play(RecordWriter(folder, INFO))
    return folder, result


text = st.text(st.characters(codec=None, categories=None), max_size=12)
plain_text = st.text(max_size=12)
any_text = plain_text | text
"""With lone surrogates too: a byte-level model samples what is no character, and errors quote it."""
json_values = st.recursive(
    st.booleans() | st.integers(-(2**60), 2**60) | text, lambda v: st.lists(v, max_size=3), max_leaves=5
)
calls = st.fixed_dictionaries(
    {"name": plain_text.filter(bool), "arguments": text}, optional={"id": plain_text}
).map(lambda c: {"id": c.get("id"), "function": {"name": c["name"], "arguments": c["arguments"]}})


@st.composite
def messages(draw, roles=("system", "user", "assistant", "tool")):
    value = {"role": draw(st.sampled_from(roles)), "content": draw(st.none() | text)}
    if value["role"] == "assistant":
        value["reasoning_content"] = draw(st.none() | text)
        value["tool_calls"] = draw(st.lists(calls, max_size=2))
    if value["role"] == "tool":
        value["tool_call_id"] = draw(st.none() | plain_text)
    if draw(st.booleans()):
        value["malformed_tool_calls"] = draw(st.lists(json_values, max_size=2))
    return messages_from([value])[0]


offsets = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
counts = st.none() | st.integers(0, 2**40)
ids = st.lists(st.integers(0, 2**31 - 1), max_size=6)


@st.composite
def weight_span(draw, start, end):
    """A span of any source, which says of its version what that source knows."""
    source = draw(st.sampled_from(list(VersionSource)))
    known = draw(any_text) if source in (VersionSource.ENGINE, VersionSource.BRACKETED) else None
    between = (draw(any_text), draw(any_text)) if source is VersionSource.MIXED else None
    return WeightSpan(known, start, end, source, between)


@st.composite
def episode_turns(draw, episode):
    """Turns that bridge from any earlier turn, in full or in part, or are rendered."""
    turns = []
    for index in range(draw(st.integers(0, 5))):
        anchor = draw(st.none() | st.integers(0, index - 1)) if index else None
        known = list(turns[anchor].turn.tokens.all_ids()) if anchor is not None else []
        kept = draw(st.integers(0, len(known)))
        base = turns[anchor].turn.tokens.all_ids() if kept == len(known) and known else TokenIds(known[:kept])
        prompt = base.extended([*draw(ids), 7])
        sampled = draw(ids)
        logprobs = [-draw(st.floats(0, 50)) for _ in sampled]
        cut = draw(st.integers(0, len(sampled)))
        spans = (draw(weight_span(0, cut)), draw(weight_span(cut, len(sampled)))) if draw(st.booleans()) else ()
        how = How.BRIDGED if anchor is not None else draw(st.sampled_from([How.RENDERED, How.ENGINE_RENDERED]))
        turn = Turn(
            index=index,
            tokens=make_tokens(prompt, sampled, logprobs),
            stitch=Stitch(
                how,
                draw(st.sampled_from(list(Why))),
                draw(any_text),
                draw(st.none() | st.sampled_from(list(Junction))),
                anchor,
                kept,
            ),
            finish_reason=draw(st.sampled_from(list(FinishReason))),
            stop_reason=draw(st.none() | st.integers(0, 2**31 - 1) | any_text),
            usage=Usage(draw(counts), draw(counts), draw(counts)),
            prompt_spans=tuple(
                TokenSpan(start, start + 1, draw(st.integers(-1, 9)), draw(st.sampled_from(list(TokenKind))))
                for start in range(draw(st.integers(0, 2)))
            ),
            request_id=draw(any_text),
            weight_spans=spans,
            logprobs_mode=draw(st.sampled_from(list(LogprobsMode))),
            resumed_at=tuple(draw(st.lists(st.integers(0, len(sampled)), max_size=2))),
            unread=draw(any_text),
        )
        turns.append(
            TurnRecord(
                episode,
                turn,
                draw(st.integers(0, 3)),
                tuple(draw(st.lists(messages(), max_size=2))),
                draw(messages(("assistant",))),
                draw(st.floats(0, 1e6)),
            )
        )
    return turns


@st.composite
def episode_records(draw, index):
    error = EpisodeError(draw(any_text), draw(any_text), draw(st.sampled_from(list(Phase))), draw(any_text))
    return EpisodeRecord(
        index=index,
        seed=draw(st.integers(0, 2**53 - 1)),
        task=draw(any_text),
        messages=tuple(draw(st.lists(messages(), max_size=3))),
        tools=tuple(draw(st.lists(st.just({"type": "function", "function": {"name": "ä"}}), max_size=1))),
        stop_reason=draw(st.sampled_from([r for r in StopReason if r is not StopReason.INTERRUPTED])),
        reward=draw(st.none() | st.floats(allow_nan=False)),
        turns=draw(st.integers(0, 100)),
        error=draw(st.none() | st.just(error)),
        started_at=draw(st.floats(0, 2e9)),
        duration_s=draw(st.floats(0, 1e6)),
        began_at=draw(st.none() | st.datetimes(timezones=offsets)),
    )


def comparable_turn(record):
    """A turn with its messages by digest: the package's one definition of the same message."""
    return (
        replace(record, new_messages=(), message=Message(role="assistant")),
        [m.digest for m in record.new_messages],
        record.message.digest,
    )


def comparable_episode(record):
    return replace(record, messages=()), [m.digest for m in record.messages]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_reading_is_the_inverse_of_writing_in_both_forms(data):
    """read(write(run)) == run, while the record is open and after it was closed."""
    episodes = [data.draw(episode_records(i)) for i in range(data.draw(st.integers(0, 3)))]
    turns = [data.draw(episode_turns(episode.index)) for episode in episodes]
    order = data.draw(st.permutations([e.index for e in episodes for _ in turns[e.index]]))
    with tempfile.TemporaryDirectory() as place:
        writer = RecordWriter(Path(place) / "run", INFO)
        for episode in episodes:
            writer.episode_started(replace(episode, stop_reason=StopReason.INTERRUPTED, reward=None, error=None))
        streams = [iter(found) for found in turns]
        for index in order:
            writer.turn_done(next(streams[index]))
        for episode in reversed(episodes):
            writer.episode_done(episode)
        for form in (RecordForm.OPEN, RecordForm.CLOSED):
            reader = open_record(writer.folder)
            assert (reader.form, reader.torn_bytes, reader.info) == (form, 0, INFO)
            assert [comparable_episode(e) for e in reader.episodes()] == [comparable_episode(e) for e in episodes]
            expected = [comparable_turn(turn) for found in turns for turn in found]
            assert [comparable_turn(turn) for turn in reader.turns()] == expected
            writer.close()


def test_a_closed_record_is_three_files_that_anything_can_read(tmp_path):
    """Parquet with the schema version in it, sorted by episode and turn; no stream is left."""
    with RecordWriter(tmp_path / "run", INFO) as record:
        play(record)
    assert sorted(p.name for p in record.folder.iterdir()) == ["episodes.parquet", "run.json", "turns.parquet"]
    table = pq.read_table(record.folder / "turns.parquet")
    assert table.schema.metadata[b"tokentrue_schema_version"] == b"5"
    assert table["episode"].to_pylist() == [e for e in range(4) for _ in range(5)]
    assert table["turn"].to_pylist() == list(range(5)) * 4
    assert table.schema.field("completion_ids").type.value_type == pa.int32()
    assert table.schema.field("completion_logprobs").type.value_type == pa.float64()
    assert pq.read_table(record.folder / "episodes.parquet").num_rows == 4


@pytest.mark.parametrize("form", ["closed", "open"])
def test_a_record_of_schema_version_1_is_read_and_does_not_say_what_its_logprobs_mean(tmp_path, form):
    """Files as the version before wrote them; an open one can still be closed."""
    folder = shutil.copytree(Path(__file__).parent / "schema_1" / form, tmp_path / form)
    for _ in range(2):
        reader = open_record(folder)
        turns = list(reader.turns())
        assert [(turn.episode, turn.turn.index) for turn in turns] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert {turn.turn.logprobs_mode for turn in turns} == {LogprobsMode.UNKNOWN}
        assert {turn.turn.version_source for turn in turns} <= {VersionSource.ENGINE, VersionSource.UNKNOWN}
        assert {turn.turn.resumed_at for turn in turns} == {()}
        assert all(len(turn.turn.tokens.completion_ids) for turn in turns)
        assert reader.info.engine.logprobs_mode is LogprobsMode.RAW
        assert [episode.reward for episode in reader.episodes()] == [0.5, 0.5]
        compact_record(folder)
    assert open_record(folder).form is RecordForm.CLOSED


@pytest.mark.parametrize("form", ["closed", "open"])
def test_a_record_of_schema_version_3_is_read(tmp_path, form):
    """Before version 4 nothing said which completions could not be read, nor the zone of a date."""
    folder = shutil.copytree(Path(__file__).parent / "schema_3" / form, tmp_path / form)
    for _ in range(2):
        reader = open_record(folder)
        turns = list(reader.turns())
        assert [(turn.episode, turn.turn.index) for turn in turns] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert {turn.turn.unread for turn in turns} == {""}
        assert {episode.began_at for episode in reader.episodes()} == {None}
        assert all(episode.started_at > 0 for episode in reader.episodes())
        assert len(turns[1].turn.tokens.prompt_ids) > turns[1].turn.stitch.known_len > 0
        compact_record(folder)
    assert open_record(folder).form is RecordForm.CLOSED


def test_a_surrogate_is_a_question_mark_for_other_readers_and_comes_back_here(tmp_path):
    """The column is UTF-8 for anything that reads it; what was said is not lost for that."""
    (turn, *_) = play(None, episodes=1).turns
    said = replace(turn.turn, unread="a?\ud800b\udfff", request_id="\udc80")
    with RecordWriter(tmp_path / "run", INFO) as record:
        record.turn_done(replace(turn, turn=said))
    table = pq.read_table(record.folder / "turns.parquet")
    assert table["unread"].to_pylist() == ["a??b?"]
    (read,) = open_record(record.folder).turns()
    assert read.turn == said


def test_a_replaced_character_that_is_none_is_refused(tmp_path):
    """A row that was tampered with is never half believed."""
    (turn, *_) = play(None, episodes=1).turns
    with RecordWriter(tmp_path / "run", INFO) as record:
        record.turn_done(replace(turn, turn=replace(turn.turn, unread="a\ud800b")))
    path = record.folder / "turns.parquet"
    table = pq.read_table(path)
    for wrong in ({"at": 1, "code": 65}, {"at": 0, "code": 0xD800}, {"at": 9, "code": 0xD800}):
        at = table.schema.get_field_index("surrogates")
        column = pa.array([[{"place": "unread", **wrong}]], table.schema.field(at).type)
        pq.write_table(table.set_column(at, table.schema.field(at), column), path)
        with pytest.raises(RecordError, match="its unread has no replaced surrogate at character"):
            list(open_record(record.folder).turns())


def test_columns_that_are_not_those_of_their_version_are_refused(tmp_path):
    """An old table that claims to be a new one."""
    with RecordWriter(tmp_path / "run", INFO) as record:
        play(record)
    path = record.folder / "turns.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns("logprobs_mode"), path)
    with pytest.raises(RecordError, match="other columns than schema version 5 prescribes"):
        open_record(record.folder)


def test_an_open_record_is_a_stream_that_any_arrow_reader_can_follow(opened):
    """Nothing about it is Tokentrue's own."""
    folder, _ = opened
    with pa.ipc.open_stream(folder / "turns.arrows") as stream:
        assert stream.read_all().num_rows == 20


def test_an_open_record_is_closed_by_compacting_it(opened):
    """A killed run's record becomes a closed one that says the same."""
    folder, result = opened
    before = list(open_record(folder).turns())
    compact_record(folder)
    reader = open_record(folder)
    assert reader.form is RecordForm.CLOSED
    assert list(reader.turns()) == before == list(result.turns)
    assert reader.episodes() == result.records
    compact_record(folder)


def test_a_stream_torn_anywhere_loses_only_the_last_row(opened):
    """For every length between two rows, the whole rows are read and the rest is told."""
    folder, _ = opened
    path = folder / "turns.arrows"
    whole = path.read_bytes()
    all_turns = len(list(open_record(folder).turns()))
    with pa.ipc.open_stream(whole) as stream:
        longest_row = max(row.serialize().size for row in stream)
    row_lengths = set()
    for cut in [*range(1, 60), *range(60, 4000, 97)]:
        path.write_bytes(whole[:-cut])
        reader = open_record(folder)
        turns = len(list(reader.turns()))
        row_lengths.add(turns)
        assert reader.torn_bytes > 0 or turns < all_turns
        assert reader.torn_bytes < longest_row
    assert max(row_lengths) == all_turns - 1
    for length in range(0, len(whole), 1999):
        path.write_bytes(whole[:length])
        open_record(folder)


def test_an_interrupted_episode_carries_the_conversation_of_its_turns(tmp_path):
    """The process died after two turns of the second episode."""
    result = play(None, episodes=2)
    writer = RecordWriter(tmp_path / "run", INFO)
    first, second = result.episodes
    for episode in (first, second):
        started = replace(episode.record, stop_reason=StopReason.INTERRUPTED, turns=0, messages=())
        writer.episode_started(started)
    for turn in (*first.turns, *second.turns[:2]):
        writer.turn_done(turn)
    writer.episode_done(first.record)
    ended, interrupted = open_record(writer.folder).episodes()
    assert ended == first.record
    assert (interrupted.stop_reason, interrupted.turns) == (StopReason.INTERRUPTED, 2)
    assert interrupted.messages == second.record.messages[:4]
    writer.close()
    assert open_record(writer.folder).episodes() == (ended, interrupted)


def test_a_long_episode_is_stored_once_and_not_once_per_turn(tmp_path):
    """Law 8: four times the turns are about four times the ids in the record, not sixteen times."""

    def stored(turns):
        class Long(Continues):
            max_turns = turns

        with RecordWriter(tmp_path / str(turns), INFO) as record:
            result = play(record, 1, Long())
        table = pq.read_table(record.folder / "turns.parquet")
        total = sum(len(v) for name in ("added_ids", "completion_ids") for v in table[name].to_pylist())
        assert total == len(result.turns[-1].turn.tokens.all_ids())
        assert list(open_record(record.folder).turns()) == list(result.turns)
        return total

    assert stored(100) < 6 * stored(25)


def test_a_prompt_that_was_rendered_again_shares_what_it_shares(tmp_path):
    """A client that renders every prompt is stored by its common prefix with the turn before."""
    result = play(None, episodes=1)
    turns = [
        replace(t, turn=replace(t.turn, stitch=Stitch(How.ENGINE_RENDERED, Why.TEMPLATE_RAISED)))
        for t in result.turns
    ]
    with RecordWriter(tmp_path / "run", INFO) as record:
        for turn in turns:
            record.turn_done(turn)
    table = pq.read_table(record.folder / "turns.parquet")
    assert table["base_turn"].to_pylist() == [None, 0, 1, 2, 3]
    assert list(open_record(record.folder).turns()) == turns


def test_a_lone_surrogate_of_a_model_is_kept_in_messages(tmp_path):
    """A model may write bytes that are no text; messages keep them as they were read."""
    message = Message(role="assistant", content="a\ud800b")
    (turn, *_) = play(None, episodes=1).turns
    with RecordWriter(tmp_path / "run", INFO) as record:
        record.turn_done(replace(turn, message=message))
    (read,) = open_record(record.folder).turns()
    assert read.message == message


def test_an_error_in_the_run_still_leaves_a_closed_record(tmp_path):
    """Leaving the context closes it, whatever was raised."""

    def play_and_stop(record):
        play(record)
        raise KeyboardInterrupt

    record = RecordWriter(tmp_path / "run", INFO)
    with pytest.raises(KeyboardInterrupt), record:
        play_and_stop(record)
    assert open_record(record.folder).form is RecordForm.CLOSED


def _overwrite(garbage):
    def overwrite(folder):
        path = folder / "turns.arrows"
        data = path.read_bytes()
        middle = len(data) // 2
        path.write_bytes(data[:middle] + garbage + data[middle + len(garbage) :])

    return overwrite


def _edit_run(**changes):
    def edit(folder):
        path = folder / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


@pytest.mark.parametrize(
    ("breaks", "told"),
    [
        (lambda f: (f / "run.json").unlink(), "holds no run.json: it is no record"),
        (lambda f: (f / "run.json").write_text("{"), "run.json is broken"),
        (lambda f: (f / "run.json").write_text("[]"), "it holds no JSON object"),
        (_edit_run(schema_version=99), "has schema_version 99, and this Tokentrue reads 1 to 5"),
        (_edit_run(schema_version=None), "has schema_version None"),
        (_edit_run(engine=None), "does not describe a run"),
        (_edit_run(colour="red"), "does not describe a run"),
        (lambda f: (f / "turns.arrows").unlink(), "has no turns.parquet and no turns.arrows"),
        (_overwrite(bytes(4000)), "turns.arrows is broken"),
        (_overwrite(b"\xff\xff\xff\xff" + bytes(5000)), "turns.arrows is broken"),
        (lambda f: (f / "turns.arrows").write_bytes(b"no arrow at all"), "turns.arrows is broken at byte 0"),
        (lambda f: (f / "turns.parquet").write_bytes(b"no parquet at all"), "turns.parquet is broken"),
        (lambda f: shutil.copy(f / "episodes.arrows", f / "turns.arrows"), "has other columns"),
        (shutil.rmtree, "holds no run.json"),
    ],
)
def test_a_record_that_cannot_be_read_says_which_file_and_why(opened, breaks, told):
    """One line, and never half a record."""
    folder, _ = opened
    breaks(folder)
    with pytest.raises(RecordError) as caught:
        open_record(folder)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_zeros_behind_the_last_row_are_torn_bytes(opened):
    """What some file systems leave after a power cut."""
    folder, result = opened
    path = folder / "turns.arrows"
    path.write_bytes(path.read_bytes() + bytes(1000))
    reader = open_record(folder)
    assert reader.torn_bytes == 1000
    assert len(list(reader.turns())) == len(result.turns)


def test_a_changed_id_in_an_open_record_is_found(opened):
    """An Arrow stream has no checksum of its own; each row brings one for its ids and log-probabilities."""
    folder, result = opened
    path = folder / "turns.arrows"
    data = path.read_bytes()
    ids = result.turns[7].turn.tokens.completion_ids.array().tobytes()
    at = data.rindex(ids)
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(RecordError, match="are not those that were written"):
        list(open_record(folder).turns())


def test_a_flipped_bit_in_a_closed_record_is_found(tmp_path):
    """Parquet pages carry checksums; the last byte of a column is in a page, and not in its header."""
    with RecordWriter(tmp_path / "run", INFO) as record:
        play(record)
    path = record.folder / "turns.parquet"
    whole = path.read_bytes()
    columns = pq.read_metadata(path).row_group(0)
    for column in (columns.column(at) for at in range(columns.num_columns)):
        # The last byte of a column's chunk is in its data page; what statistics say is in no checksum.
        first = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        data = bytearray(whole)
        data[first + column.total_compressed_size - 1] ^= 0x10
        path.write_bytes(data)
        with pytest.raises(RecordError):
            list(open_record(record.folder).turns())
    path.write_bytes(whole)
    assert len(list(open_record(record.folder).turns())) == 20


@pytest.mark.parametrize("column", ["prompt_len", "base_len", "why", "base_turn"])
def test_a_row_that_contradicts_itself_is_refused_by_its_place(tmp_path, column):
    """Nothing is restored that was not written."""
    with RecordWriter(tmp_path / "run", INFO) as record:
        play(record, episodes=1)
    path = record.folder / "turns.parquet"
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[2] = {"prompt_len": 1, "base_len": 10**6, "why": "because", "base_turn": 77}[column]
    at = table.column_names.index(column)
    pq.write_table(
        table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type)), path
    )
    with pytest.raises(RecordError, match="turn 2 of episode 0 cannot be restored"):
        list(open_record(record.folder).turns())


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    """A second run must not overwrite the first."""
    (tmp_path / "precious").write_text("data")
    with pytest.raises(RecordError, match="is not empty"):
        RecordWriter(tmp_path, INFO)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    """A file is in the way."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be written: "):
        RecordWriter(tmp_path / "file" / "run", INFO)


def test_settings_that_are_no_json_are_told(tmp_path):
    """Before the run, not after it."""
    with pytest.raises(RecordError, match="settings cannot be kept as JSON"):
        RecordWriter(tmp_path / "run", replace(INFO, config={"x": object()}))


def synced(make, turns):
    """How often the disk was waited for: while turns came, and when the record was closed."""
    counts = [0, 0]

    def watch(frame, event, called):
        counts[-1] += event == "c_call" and called is os.fsync

    with make() as record:
        sys.setprofile(watch)
        try:
            for turn in turns:
                record.turn_done(turn)
            counts.insert(0, counts.pop())
            record.close()
        finally:
            sys.setprofile(None)
    return counts


@pytest.mark.parametrize(("every_s", "expected"), [(0.0, 10), (3600.0, 0), (float("inf"), 0)])
def test_the_disk_is_waited_for_as_often_as_was_asked(tmp_path, every_s, expected) -> None:
    """Both tables, behind each turn or not before the end; at the end always."""
    turns = play(None, episodes=1).turns
    while_turns_came, at_the_end = synced(
        lambda: RecordWriter(tmp_path / "run", INFO, sync_every_s=every_s), turns
    )
    assert (len(turns), while_turns_came) == (5, expected)
    assert at_the_end >= 4


def test_a_record_without_a_turn_is_taken_away_and_one_with_a_turn_is_not(tmp_path) -> None:
    with RecordWriter(tmp_path / "none", INFO) as record:
        record.episode_done(EpisodeRecord(0, 0, "null"))
    assert record.discard_without_turns()
    assert not record.folder.exists()
    with RecordWriter(tmp_path / "some", INFO) as record:
        record.turn_done(play(None, episodes=1).turns[0])
    assert not record.discard_without_turns()
    assert len(list(open_record(record.folder).turns())) == 1
