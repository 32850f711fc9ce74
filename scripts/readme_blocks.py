"""Write what README.md shows of other files: the tree, the example, and what a demo printed.

python scripts/readme_blocks.py [DEMO_OUTPUT_FILE]   rewrites the blocks
python scripts/readme_blocks.py --check              exit code 1 when tree or example is out of date
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
EXAMPLE = ROOT / "examples" / "own_environment.py"
OTHERS = {
    "src/tokentrue/engines/embedded/model": "The embedded model: a Hugging Face folder with weights and template",
    "tests": "One folder per room: laws as properties, wires as recorded bytes, engines for real",
    ".ci/run": "What a change must pass",
    "Makefile": "demo, test, test-engines and the others; `make help` lists them",
}


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[.])\s", " ".join(text.split()))[0].rstrip(".")


def tree() -> str:
    """One line per file: its path, and the first sentence of its own docstring."""
    rows: list[tuple[str, str]] = []
    for folder in ("src/tokentrue", "servers", "scripts", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            rows.append((path.relative_to(ROOT).as_posix(), first_sentence(path)))
    rows += [(name, line) for name, line in OTHERS.items() if (ROOT / name).exists()]
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:<{width}}  {line}\n" for name, line in rows)


def replaced(text: str, begin: str, end: str, fence: str, body: str) -> str:
    """`text` with the fenced block between two comments replaced."""
    start = text.index(begin)
    stop = text.index(end, start)
    return f"{text[:start]}{begin}\n```{fence}\n{body.rstrip()}\n```\n{text[stop:]}"


def wanted(text: str) -> str:
    """README.md as it should be."""
    text = replaced(text, "<!-- tree: scripts/readme_blocks.py -->", "<!-- end of tree -->", "", tree())
    example = EXAMPLE.read_text(encoding="utf-8")
    return replaced(
        text, "<!-- example: examples/own_environment.py -->", "<!-- end of example -->", "python", example
    )


def main(arguments: list[str]) -> int:
    """Rewrite or check README.md."""
    text = README.read_text(encoding="utf-8")
    if arguments == ["--check"]:
        if wanted(text) != text:
            print("README.md is out of date; run python scripts/readme_blocks.py")
            return 1
        return 0
    if arguments:
        printed = Path(arguments[0]).read_text(encoding="utf-8")
        text = replaced(text, "<!-- demo: what make demo printed -->", "<!-- end of demo -->", "", printed)
    README.write_text(wanted(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
