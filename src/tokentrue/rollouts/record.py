"""A run on disk: `run.json`, a table of turns and a table of episodes. The only module that imports pyarrow.

While a run is under way the tables are Arrow IPC streams (`turns.arrows`, `episodes.arrows`), to which every
turn is appended as one record batch in one write: a kill at any moment loses at most the turn in flight, and any
Arrow reader can follow. A power cut may lose more: what the disk was not told to keep, which is done every few
seconds (`sync_every_s`) and when the record is closed. `close` turns the streams into Parquet (`turns.parquet`,
`episodes.parquet`), sorted by episode and turn. A reader takes either form, and says which one it found.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from tokentrue.errors import RecordError
from tokentrue.messages import Message
from tokentrue.rollouts.environment import StopReason
from tokentrue.rollouts.record_files import (
    broken,
    make_empty_folder,
    read_run_info,
    sync_file,
    unwritable,
    write_run_info,
)
from tokentrue.rollouts.record_rows import (
    KnownTurns,
    Row,
    episode_from_row,
    episode_row,
    turn_from_row,
    turn_row,
)
from tokentrue.rollouts.record_stream import STREAM_END, ArrowStream
from tokentrue.rollouts.trajectory import EpisodeRecord, RunInfo, TurnRecord

SCHEMA_VERSION = 5
"""Grows with every change of the columns. Older records are read; what they lack is read as None."""

_ADDED = {
    2: ("logprobs_mode",),
    3: ("weight_evidence", "resumed_at"),
    4: ("unread", "began_at", "surrogates"),
    5: ("removed_spans",),
}
"""The columns that came with a schema version; version 1 has all others."""

SYNC_EVERY_S = 5.0
"""The most that a power cut costs of a run under way, in seconds, where turns keep ending."""

_TURNS = "turns"
_EPISODES = "episodes"
_HEADER_BYTES = 8  # continuation marker and length of the metadata, both 32 bits
_GROUP_ROWS = 1024
_VERSION_KEY = b"tokentrue_schema_version"

_IDS = pa.list_(pa.int32())
_SPAN = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("owner", pa.int32()), ("kind", pa.int8())])
_CUT_SPAN = pa.struct([("start", pa.int32()), ("end", pa.int32())])
_WEIGHT_SPAN = pa.struct([("version", pa.string()), ("start", pa.int32()), ("end", pa.int32())])
_SURROGATES = pa.list_(pa.struct([("place", pa.string()), ("at", pa.int32()), ("code", pa.int32())]))
"""Where a text has a `?` for a lone surrogate, which UTF-8 cannot hold: column, character, code point."""
_WEIGHT_EVIDENCE = pa.struct([("source", pa.string()), ("before", pa.string()), ("after", pa.string())])
"""Of the weight span at the same place in `weight_spans`: who says so, and what a mixed turn is between."""


_TURN_SCHEMA = pa.schema(
    [
        ("episode", pa.int32()),
        ("turn", pa.int32()),
        ("how", pa.string()),
        ("why", pa.string()),
        ("detail", pa.string()),
        ("junction", pa.string()),
        ("anchor_turn", pa.int32()),
        ("known_len", pa.int32()),
        ("base_turn", pa.int32()),
        ("base_len", pa.int32()),
        ("prompt_len", pa.int32()),
        ("added_ids", _IDS),
        ("completion_ids", _IDS),
        ("completion_logprobs", pa.list_(pa.float64())),
        ("ids_crc32", pa.int64()),
        ("prompt_spans", pa.list_(_SPAN)),
        ("finish_reason", pa.string()),
        ("stop_id", pa.int64()),
        ("stop_text", pa.string()),
        ("usage_prompt", pa.int64()),
        ("usage_completion", pa.int64()),
        ("usage_cached", pa.int64()),
        ("request_id", pa.string()),
        ("weight_spans", pa.list_(_WEIGHT_SPAN)),
        ("messages_kept", pa.int32()),
        ("new_messages", pa.string()),
        ("message", pa.string()),
        ("duration_s", pa.float64()),
        ("logprobs_mode", pa.string()),
        ("weight_evidence", pa.list_(_WEIGHT_EVIDENCE)),
        ("resumed_at", pa.list_(pa.int32())),
        ("unread", pa.string()),
        ("surrogates", _SURROGATES),
        ("removed_spans", pa.list_(_CUT_SPAN)),
    ],
    metadata={_VERSION_KEY: str(SCHEMA_VERSION)},
)
_EPISODE_SCHEMA = pa.schema(
    [
        ("episode", pa.int32()),
        ("seed", pa.int64()),
        ("task", pa.string()),
        ("messages", pa.string()),
        ("tools", pa.string()),
        ("stop_reason", pa.string()),
        ("reward", pa.float64()),
        ("turns", pa.int32()),
        ("error_type", pa.string()),
        ("error_message", pa.string()),
        ("error_phase", pa.string()),
        ("error_trace", pa.string()),
        ("started_at", pa.float64()),
        ("duration_s", pa.float64()),
        ("began_at", pa.string()),
        ("surrogates", _SURROGATES),
    ],
    metadata={_VERSION_KEY: str(SCHEMA_VERSION)},
)
_ARRAY_COLUMNS = ("added_ids", "completion_ids", "completion_logprobs")
"""Columns that are read as numpy arrays, without a Python object per token."""


class RecordForm(Enum):
    """In which form the tables of a record lie on disk."""

    CLOSED = "closed"
    """Parquet: the run ended, by itself, by an error or by Ctrl-C, and closed its record."""
    OPEN = "open"
    """Arrow streams: the run is still under way, or its process was killed."""


class RecordWriter:
    """Writes a record while its run happens; a `TrajectorySink`. Use it as a context manager.

    Leaving the context closes the record whatever was raised inside, so that Ctrl-C leaves a closed one.

    Args:
        sync_every_s: A turn or an episode that ends so long after the last time has the disk take what was
            written, which may take it milliseconds. A power cut (no mere kill) loses what was written since. 0 is
            each time, infinity never before the end.

    Raises:
        RecordError: The folder is not empty, or something in it cannot be written (disk full, no permission).
    """

    def __init__(self, folder: Path, info: RunInfo, *, sync_every_s: float = SYNC_EVERY_S) -> None:
        self.folder = folder
        self._known: dict[int, KnownTurns] = {}
        self._is_closed = self._has_turns = False
        self._sync_every_s, self._synced_at = sync_every_s, time.monotonic()
        make_empty_folder(folder)
        write_run_info(folder, info, SCHEMA_VERSION)
        self._turns = ArrowStream(folder / f"{_TURNS}.arrows", _TURN_SCHEMA)
        try:
            self._episodes = ArrowStream(folder / f"{_EPISODES}.arrows", _EPISODE_SCHEMA)
        except RecordError:
            self._turns.close()
            raise

    def episode_started(self, episode: EpisodeRecord) -> None:
        """Keep what an episode is about before its first turn."""
        self._episodes.append(episode_row(episode))

    def turn_done(self, turn: TurnRecord) -> None:
        """Keep a turn; when this returns, a kill no longer loses it."""
        known = self._known.setdefault(turn.episode, KnownTurns())
        self._turns.append(turn_row(turn, known.strip(turn.turn)))
        self._has_turns = True
        known.add(turn.turn)
        self._maybe_sync()

    def episode_done(self, episode: EpisodeRecord) -> None:
        """Keep how an episode ended."""
        self._episodes.append(episode_row(episode))
        self._known.pop(episode.index, None)
        self._maybe_sync()

    def _maybe_sync(self) -> None:
        if time.monotonic() - self._synced_at >= self._sync_every_s:
            self._turns.sync()
            self._episodes.sync()
            self._synced_at = time.monotonic()

    def discard_without_turns(self) -> bool:
        """Remove a record into which no turn came, so that its folder is free again; whether that was so.

        Raises:
            RecordError: Something of it cannot be removed.
        """
        if self._has_turns:
            return False
        self.close()
        try:
            for path in self.folder.iterdir():
                path.unlink()
            self.folder.rmdir()
        except OSError as exc:
            raise unwritable(self.folder, exc) from exc
        return True

    def close(self) -> None:
        """Turn the streams into Parquet; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._turns.close()
        finally:
            self._episodes.close()
        compact_record(self.folder)

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, trace
        try:
            self.close()
        except RecordError as closing:
            if exc is None:
                raise
            # What ended the run is the news; the streams are still there to be read.
            exc.add_note(f"and the record could not be closed: {closing}")


@dataclass(frozen=True, slots=True)
class RecordReader:
    """Reads a record in either form. Made by `open_record`.

    Args:
        folder: Where it lies.
        info: What `run.json` says.
        form: Closed, or still open.
        torn_bytes: Bytes at the end of an open record's streams that are no whole row: the turn in flight.
    """

    folder: Path
    info: RunInfo
    form: RecordForm
    torn_bytes: int

    def turns(self) -> Iterator[TurnRecord]:
        """All turns, by episode and turn, with their full prompt ids.

        Raises:
            RecordError: A file is broken; says which, and where.
        """
        known = KnownTurns()
        episode = -1
        for row in _rows(self.folder, _TURNS):
            if row["episode"] != episode:
                known, episode = KnownTurns(), row["episode"]
            yield turn_from_row(row, known)

    def episodes(self) -> tuple[EpisodeRecord, ...]:
        """All episodes by index. Those that had not ended carry the conversation as far as it was recorded.

        Raises:
            RecordError: A file is broken; says which, and where.
        """
        latest = {row["episode"]: episode_from_row(row) for row in _rows(self.folder, _EPISODES)}
        unended = {index for index, episode in latest.items() if episode.stop_reason is StopReason.INTERRUPTED}
        if unended:
            for index, (messages, turns) in _conversations(self.turns(), unended).items():
                latest[index] = replace(latest[index], messages=messages, turns=turns)
        return tuple(latest[index] for index in sorted(latest))


def open_record(folder: Path) -> RecordReader:
    """Open a record for reading.

    Raises:
        RecordError: No record lies there, it is of another schema version, or a file is broken.
    """
    info = read_run_info(folder, SCHEMA_VERSION)
    found = [_find(folder, name) for name in (_TURNS, _EPISODES)]
    is_closed = all(form is RecordForm.CLOSED for _, form in found)
    torn = [_read_stream(path).torn_bytes for path, form in found if form is RecordForm.OPEN]
    for path, form in found:
        if form is RecordForm.CLOSED:
            _parquet(path).close()
    return RecordReader(folder, info, RecordForm.CLOSED if is_closed else RecordForm.OPEN, sum(torn))


def compact_record(folder: Path) -> None:
    """Turn an open record into a closed one. The streams go only when the Parquet files are on the disk.

    Raises:
        RecordError: A stream is broken, or Parquet cannot be written; the streams are still there then.
    """
    for name in (_TURNS, _EPISODES):
        path, form = _find(folder, name)
        if form is RecordForm.CLOSED:
            continue
        stream = _read_stream(path)
        target = folder / f"{name}.parquet"
        partial = target.with_suffix(".parquet.partial")
        try:
            with pq.ParquetWriter(partial, stream.schema, compression="zstd", write_page_checksum=True) as parquet:
                for group in stream.groups_in_order():
                    parquet.write_batch(group)
            sync_file(partial)
            partial.replace(target)
        except (OSError, pa.ArrowException) as exc:
            partial.unlink(missing_ok=True)
            raise unwritable(target, exc) from exc
    for name in (_TURNS, _EPISODES):
        (folder / f"{name}.arrows").unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _StreamRows:
    """The whole rows of a stream as batches of one row, as they were appended, and what is torn behind them."""

    schema: pa.Schema
    rows: list[pa.RecordBatch]
    torn_bytes: int

    def groups_in_order(self) -> Iterator[pa.RecordBatch]:
        """The rows by episode and turn, some at a time; of an episode's start and end, the later row counts."""
        # Rows are picked one by one: reordering whole columns would join them into one array, and the offsets
        # of that end at 2 GiB of text.
        latest = {_place(row): row for row in self.rows}
        in_order = [latest[place] for place in sorted(latest)]
        for start in range(0, len(in_order), _GROUP_ROWS):
            yield from pa.Table.from_batches(in_order[start : start + _GROUP_ROWS]).combine_chunks().to_batches()


def _place(row: pa.RecordBatch) -> tuple[int, int]:
    turn = row.schema.get_field_index("turn")
    return row.column(0)[0].as_py(), row.column(turn)[0].as_py() if turn >= 0 else 0


def _find(folder: Path, name: str) -> tuple[Path, RecordForm]:
    closed, opened = folder / f"{name}.parquet", folder / f"{name}.arrows"
    # A kill during `compact_record` leaves both; Parquet is put in place only when it is whole.
    if closed.exists():
        return closed, RecordForm.CLOSED
    if opened.exists():
        return opened, RecordForm.OPEN
    raise RecordError(f"{folder} has no {closed.name} and no {opened.name}: the record is incomplete")


def _schema_of(path: Path, version: int) -> pa.Schema:
    """The columns of a table as that version prescribes them."""
    schema = _TURN_SCHEMA if path.stem == _TURNS else _EPISODE_SCHEMA
    for later, names in _ADDED.items():
        for name in names if later > version else ():
            at = schema.get_field_index(name)
            schema = schema if at < 0 else schema.remove(at)
    return schema


def _check_schema(path: Path, found: pa.Schema) -> None:
    said = (found.metadata or {}).get(_VERSION_KEY, b"")
    version = int(said) if said.isdigit() else SCHEMA_VERSION
    if not found.equals(_schema_of(path, version)):
        raise RecordError(f"{path} has other columns than schema version {version} prescribes")


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as exc:
        raise broken(path, exc) from exc
    _check_schema(path, file.schema_arrow)
    return file


def _batches(folder: Path, name: str) -> Iterator[pa.RecordBatch]:
    path, form = _find(folder, name)
    if form is RecordForm.OPEN:
        yield from _read_stream(path).groups_in_order()
        return
    with _parquet(path) as file:
        batches = file.iter_batches(batch_size=_GROUP_ROWS)
        while True:
            try:
                batch = next(batches, None)
            except (OSError, pa.ArrowException) as exc:
                raise broken(path, exc) from exc
            if batch is None:
                return
            yield batch


def _read_stream(path: Path) -> _StreamRows:
    """Read a stream as far as it is whole.

    A row is torn when the file ends before it does; anything else that cannot be read is a broken file.
    """
    try:
        with pa.OSFile(str(path)) as file:
            data = file.read_buffer()
    except OSError as exc:
        raise broken(path, exc) from exc
    source = pa.BufferReader(data)
    rows: list[pa.RecordBatch] = []
    schema: pa.Schema | None = None
    start = 0
    while start < data.size:
        try:
            message = pa.ipc.read_message(source)
        except EOFError:
            return _StreamRows(schema, rows, _bytes_behind_end(path, data.slice(start).to_pybytes()))
        except (OSError, pa.ArrowException) as exc:
            if _ends_early(data, start, exc):
                break
            raise broken(path, exc, f" at byte {start}") from exc
        try:
            if schema is None:
                schema = pa.ipc.read_schema(message)
                _check_schema(path, schema)
            else:
                rows.append(pa.ipc.read_record_batch(message, schema))
        except (OSError, pa.ArrowException) as exc:
            raise broken(path, exc, f" at byte {start}") from exc
        start = source.tell()
    return _StreamRows(schema, rows, data.size - start)


def _bytes_behind_end(path: Path, rest: bytes) -> int:
    """How many bytes are torn where a stream says that it ends; zeros are what a power cut may leave."""
    if rest == STREAM_END:
        return 0
    if not any(rest):
        return len(rest)
    raise RecordError(f"{path} is broken: it ends, and {len(rest)} bytes follow")


def _ends_early(data: pa.Buffer, start: int, exc: Exception) -> bool:
    """Whether the file ends inside the message at `start`: in its header, its metadata or its body."""
    header = data.slice(start, min(_HEADER_BYTES, data.size - start)).to_pybytes()
    if len(header) < _HEADER_BYTES:
        return True
    if not header.startswith(STREAM_END[:4]):
        return False
    metadata_len = int.from_bytes(header[4:], "little", signed=True)
    ends_in_metadata = metadata_len >= 0 and start + _HEADER_BYTES + metadata_len > data.size
    # pyarrow raises a plain OSError for a body that ends early, and ArrowInvalid for what it cannot decode.
    return ends_in_metadata or not isinstance(exc, pa.ArrowException)


def _rows(folder: Path, name: str) -> Iterator[Row]:
    arrays = list(_ARRAY_COLUMNS) if name == _TURNS else []
    for batch in _batches(folder, name):
        plain = batch.drop_columns(arrays) if arrays else batch
        missing = dict.fromkeys(set(_schema_of(Path(name), SCHEMA_VERSION).names) - set(batch.schema.names))
        for position, row in enumerate(plain.to_pylist()):
            row.update(missing)
            for column in arrays:
                row[column] = batch.column(column)[position].values.to_numpy(zero_copy_only=False)
            yield row


def _conversations(turns: Iterator[TurnRecord], of: set[int]) -> dict[int, tuple[tuple[Message, ...], int]]:
    """The conversation and the number of turns, as far as they were recorded, of some episodes."""
    found: dict[int, tuple[tuple[Message, ...], int]] = {}
    for turn in turns:
        if turn.episode in of:
            before, count = found.get(turn.episode, ((), 0))
            found[turn.episode] = (turn.conversation(before), count + 1)
    return found
