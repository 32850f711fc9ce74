"""Add up what several pytest logs count, and print it as one last line.

python scripts/sum_tests.py LOG ...    exit code 1 when a log has no summary, or a test failed
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

WORDS = ("passed", "failed", "error", "skipped")


def counts(text: str) -> dict[str, int] | None:
    """What the last summary line of a log counts, or None when pytest wrote none."""
    lines = [line for line in text.splitlines() if re.search(r"\d+ (passed|failed|error|skipped)\b.* in ", line)]
    if not lines:
        return None
    found = re.findall(r"(\d+) (passed|failed|error|skipped)", lines[-1])
    return {word: sum(int(count) for count, each in found if each == word) for word in WORDS}


def main(paths: list[str]) -> int:
    """Print the sums; returns the exit status."""
    told = {path: counts(Path(path).read_text(errors="replace")) for path in paths}
    for path, each in told.items():
        if each is None:
            print(f"{path} has no summary of tests: they did not run to the end")
    sums = {word: sum(each[word] for each in told.values() if each is not None) for word in WORDS}
    print(f"{sums['passed']} passed, {sums['failed'] + sums['error']} failed, {sums['skipped']} skipped")
    return 1 if sums["failed"] or sums["error"] or None in told.values() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
