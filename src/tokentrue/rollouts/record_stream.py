"""An Arrow IPC stream on disk, to which one row after the other is appended."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa

from tokentrue.errors import RecordError
from tokentrue.rollouts.record_files import unwritable
from tokentrue.rollouts.record_rows import Row

STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""Arrow's end-of-stream marker."""


class ArrowStream:
    """An Arrow IPC stream that is whole after every `append`."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._row_type = pa.struct(list(schema))
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        except OSError as exc:
            raise unwritable(path, exc) from exc
        self._length = 0
        self._write(schema.serialize().to_pybytes())

    def append(self, row: Row) -> None:
        """Add one row, in one write.

        Raises:
            RecordError: The row does not fit the columns, or it cannot be written.
        """
        try:
            # One conversion of the whole row: column by column, `from_pylist` takes more than twice as long.
            batch = pa.RecordBatch.from_struct_array(pa.array([row], type=self._row_type))
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as exc:
            raise RecordError(f"a row does not fit {self._path.name}: {exc}") from exc
        self._write(batch.serialize().to_pybytes())

    def _write(self, message: bytes) -> None:
        done = 0
        try:
            while done < len(message):
                done += os.write(self._file, message[done:])
        except OSError as exc:
            # Half a message would hide everything appended behind it.
            os.ftruncate(self._file, self._length)
            raise unwritable(self._path, exc) from exc
        self._length += done

    def sync(self) -> None:
        """Wait until the disk has all that was appended.

        Raises:
            RecordError: The disk failed.
        """
        try:
            os.fsync(self._file)
        except OSError as exc:
            raise unwritable(self._path, exc) from exc

    def close(self) -> None:
        """End the stream and hand it to the disk; the file is closed even when that fails."""
        try:
            self._write(STREAM_END)
            os.fsync(self._file)
        except OSError as exc:
            raise unwritable(self._path, exc) from exc
        finally:
            os.close(self._file)
