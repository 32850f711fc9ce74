"""What remembered runs and a faster library save, on tokenizer folders of yours.

python scripts/bench_tokenizers.py FOLDER...

Prints one row for each folder. All ways are timed in turn within one run, so that a busy machine slows all of
them; the numbers to read are the ratios. The text is a chat of agent turns as the markers of the folder frame it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tokentrue.rendering.fast_tokenizer import with_fast
from tokentrue.rendering.tokenizer import Tokenizer

ROUNDS = 5
DOCS = Path(__file__).resolve().parent.parent / "docs"


def chat(tokenizer: Tokenizer, seed: int) -> list[str]:
    """Forty turns of about 3,000 characters, each behind a special token; no two seeds share a turn."""
    marker = next(info.text for info in tokenizer.added_tokens() if info.special)
    source = "".join(path.read_text() for path in sorted(DOCS.glob("*.md")))
    pieces = [source[(seed * 997 + turn * 3011) % len(source) :][:3000] for turn in range(40)]
    return [f"{marker}turn {seed} {turn}\n{piece}" for turn, piece in enumerate(pieces)]


def timed(work: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def row(folder: Path) -> str:
    """One folder: medians in milliseconds, and ratios to encoding anew."""
    tokenizer = Tokenizer.load(folder)
    start = time.perf_counter()
    fast = with_fast(tokenizer, folder, "auto")
    load_s = time.perf_counter() - start
    times: dict[str, list[float]] = {"anew": [], "known": [], "one turn more": [], "gigatoken": []}
    tokens = 0
    for seed in range(ROUNDS):
        turns = chat(tokenizer, seed)
        whole, before = "".join(turns), "".join(turns[:-1])
        times["anew"].append(timed(lambda text=whole: tokenizer.encode_all([text])))
        tokenizer.encode(before)
        times["one turn more"].append(timed(lambda text=whole: tokenizer.encode(text)))
        times["known"].append(timed(lambda text=whole: tokenizer.encode(text)))
        if fast.fast is not None:
            times["gigatoken"].append(timed(lambda text=whole: fast.encode(text)))
            assert fast.encode(whole) == tokenizer.encode_all([whole])[0]
        tokens = len(tokenizer.encode(whole))
    medians = {name: statistics.median(each) for name, each in times.items() if each}
    cells = [f"{medians['anew']:.1f}"]
    for name in ("one turn more", "known", "gigatoken"):
        cells.append(f"{medians[name]:.2f} (x{medians['anew'] / medians[name]:.0f})" if name in medians else "off")
    return f"| {folder.name} | {tokens} | " + " | ".join(cells) + f" | {load_s:.1f} |"


HEADS = ("tokenizer", "tokens", "anew, ms", "one turn more", "all known", "gigatoken, new text")

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(f"| {' | '.join(HEADS)} | load and self-check, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in sys.argv[1:]:
        print(row(Path(name)), flush=True)
