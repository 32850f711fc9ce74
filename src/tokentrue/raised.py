"""Where an exception was raised, for the author of the code that raised it: file, line and function."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_OURS = str(Path(__file__).parent)
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def place_of(exc: BaseException) -> str:
    """`file:line in function` of the innermost frame of the caller's own code; "" for what was never raised.

    The caller's own code is what is neither Tokentrue's nor a library's: a wrong argument for `json.loads` is a
    mistake in the line that calls it. Where there is none it is the first frame behind Tokentrue's, else the last.
    """
    frames = traceback.extract_tb(exc.__traceback__)
    if not frames:
        return ""
    theirs = [frame for frame in frames if not frame.filename.startswith(_OURS)]
    own = [frame for frame in theirs if not frame.filename.startswith((*_LIBRARIES, "<"))]
    frame = own[-1] if own else theirs[0] if theirs else frames[-1]
    return f"{frame.filename}:{frame.lineno} in {frame.name}"


def raised_line(exc: BaseException) -> str:
    """An exception in one line: its type, what it says, and where it was raised."""
    told = " ".join(str(exc).split())[:400]
    place = place_of(exc)
    return type(exc).__name__ + (f": {told}" if told else "") + (f" ({place})" if place else "")
