"""The files of a record that are no table: its folder and `run.json`; and how failures of the disk are told."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tokentrue.errors import RecordError
from tokentrue.rollouts.record_rows import run_info_from_json, run_info_json
from tokentrue.rollouts.trajectory import RunInfo

_RUN = "run.json"


def make_empty_folder(folder: Path) -> None:
    """Make the folder of a new record.

    Raises:
        RecordError: It cannot be made, or something is in it already.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
    except OSError as exc:
        raise unwritable(folder, exc) from exc
    if not is_empty:
        raise RecordError(f"{folder} is not empty: a record needs a folder of its own; choose another one")


def write_run_info(folder: Path, info: RunInfo, schema_version: int) -> None:
    """Write `run.json`, whole or not at all; inverse of `read_run_info`.

    Raises:
        RecordError: It cannot be written, or a setting is no JSON value.
    """
    try:
        text = json.dumps({"schema_version": schema_version, **run_info_json(info)}, indent=2, sort_keys=True)
    except (TypeError, ValueError) as exc:
        raise RecordError(f"the run's settings cannot be kept as JSON: {exc}") from exc
    path = folder / _RUN
    partial = folder / f"{_RUN}.partial"
    try:
        partial.write_text(text + "\n", encoding="ascii")
        sync_file(partial)
        partial.replace(path)
    except OSError as exc:
        raise unwritable(path, exc) from exc


def read_run_info(folder: Path, schema_version: int) -> RunInfo:
    """Read `run.json`, also that of an older record.

    Raises:
        RecordError: It is missing, broken, or of a schema version above `schema_version`.
    """
    path = folder / _RUN
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise RecordError(f"{folder} holds no {_RUN}: it is no record") from exc
    except OSError as exc:
        raise RecordError(f"{path} cannot be read: {_one_line(exc)}") from exc
    except ValueError as exc:
        raise broken(path, exc) from exc
    if not isinstance(content, dict):
        raise RecordError(f"{path} is broken: it holds no JSON object")
    found = content.pop("schema_version", None)
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= schema_version:
        raise RecordError(
            f"{path} has schema_version {found!r}, and this Tokentrue reads 1 to {schema_version}: read it with "
            f"the version that wrote it"
        )
    return run_info_from_json(content)


def sync_file(path: Path) -> None:
    """Wait until the disk has the file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def broken(path: Path, exc: Exception, place: str = "") -> RecordError:
    """A file that is not what its name says."""
    return RecordError(f"{path} is broken{place}: {_one_line(exc)}")


def unwritable(path: Path, exc: Exception) -> RecordError:
    """A file that cannot be written: disk full, no permission."""
    return RecordError(f"{path} cannot be written: {_one_line(exc)}")


def _one_line(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return str(exc).splitlines()[0] if str(exc) else type(exc).__name__
