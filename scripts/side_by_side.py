"""Runs groups of tests at the same time, one pytest for each, and adds their counts up in the last line.

    python scripts/side_by_side.py "FILES OF GROUP 1" "FILES OF GROUP 2" …

Ends with 1 when a group fails, or when one has nothing to tell.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter


def main() -> None:
    """Start the groups, print what each says when it ends, and the sum."""
    groups = [group.split() for group in sys.argv[1:]]
    if not groups:
        sys.exit(__doc__)
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "--timeout", "1200", "-p", "no:cacheprovider"]
    running = [
        subprocess.Popen([*command, *files], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for files in groups
    ]
    total: Counter[str] = Counter()
    failed = False
    for files, process in zip(groups, running, strict=True):
        said, _ = process.communicate()
        print(f"== {' '.join(files)}\n{said}", flush=True)
        counts = re.findall(r"(\d+) (passed|failed|errors?|skipped)", said.strip().splitlines()[-1])
        total.update({word: int(count) for count, word in counts})
        failed = failed or process.returncode != 0 or not counts
    sums = ", ".join(f"{total[word]} {word}" for word in ("passed", "failed", "skipped"))
    print(f"{sums} in {time.monotonic() - started:.0f} s")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
