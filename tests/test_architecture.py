"""The layout is law: import directions, one door per dependency, pure rooms, sizes."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "tokentrue"
ROOMS = ["vocabulary", "rendering", "transports", "engines", "sessions", "clients", "rollouts", "gateway", "cli"]
BESIDE = {"testing"}
PURE = {"vocabulary", "rendering", "transports", "sessions"}
IMPURE_MODULES = {"asyncio", "socket", "threading", "time", "subprocess", "selectors", "multiprocessing", "random"}
DOORS = {
    "aiohttp": ["engines/http.py"],
    "jinja2": ["rendering/chat_template.py"],
    "tokenizers": ["rendering/tokenizer.py"],
    "huggingface_hub": ["rendering/named_folder.py"],
    "gigatoken": ["rendering/fast_tokenizer.py"],
    "pyarrow": ["rollouts/record"],
    "safetensors": ["engines/embedded/"],
    "threadpoolctl": ["engines/embedded/engine.py"],
    "click": ["cli/"],
    "rich": ["cli/", "rollouts/progress_bar.py"],
    "renderers": ["rendering/plugged_loading.py"],
}
OPTIONAL = {"renderers"}
NEVER = {"torch", "transformers", "requests", "httpx"}
MODULES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else "vocabulary"


def imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


@pytest.fixture(params=MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def module(request: pytest.FixtureRequest) -> tuple[Path, ast.Module, str]:
    path: Path = request.param
    text = path.read_text(encoding="utf-8")
    return path, ast.parse(text), text


def test_a_room_imports_only_rooms_below_it(module: tuple[Path, ast.Module, str]) -> None:
    path, tree, _ = module
    room = room_of(path)
    if path.name in ("__init__.py", "__main__.py") and path.parent == SOURCE:
        return  # the front door names what lies in every room
    for name in imports_of(tree):
        parts = name.split(".")
        if parts[0] != "tokentrue" or len(parts) < 2:
            continue
        target = parts[1] if (SOURCE / parts[1]).is_dir() else "vocabulary"
        if room in BESIDE or target == room:
            continue
        assert target not in BESIDE, f"{path} imports the test kit {name}"
        assert ROOMS.index(target) < ROOMS.index(room), f"{path} ({room}) imports {name} ({target})"


def test_each_dependency_enters_by_its_door(module: tuple[Path, ast.Module, str]) -> None:
    path, tree, _ = module
    relative = path.relative_to(SOURCE).as_posix()
    for name in imports_of(tree):
        top = name.split(".")[0]
        assert top not in NEVER, f"{relative} imports {name}"
        if top in DOORS:
            assert any(relative.startswith(door) for door in DOORS[top]), f"{relative} imports {name}"


def test_an_optional_dependency_is_imported_when_it_is_needed(module: tuple[Path, ast.Module, str]) -> None:
    path, tree, _ = module
    for statement in tree.body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            tops = {name.split(".")[0] for name in imports_of(statement)}
            assert not tops & OPTIONAL, f"{path} imports {tops} whether or not it is needed"


def test_pure_rooms_have_no_clock_socket_thread_or_coroutine(module: tuple[Path, ast.Module, str]) -> None:
    path, tree, _ = module
    if room_of(path) not in PURE:
        return
    bad = {name.split(".")[0] for name in imports_of(tree)} & IMPURE_MODULES
    assert not bad, f"{path} imports {bad}"
    coroutines = [n for n in ast.walk(tree) if isinstance(n, (ast.AsyncFunctionDef, ast.Await))]
    assert not coroutines, f"{path} has a coroutine"


def test_files_and_functions_stay_readable(module: tuple[Path, ast.Module, str]) -> None:
    path, tree, text = module
    assert text.count("\n") <= 500, f"{path} has {text.count(chr(10))} lines"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{path}:{node.lineno} {node.name} has {length} lines"
            count = len(node.args.args) + len(node.args.kwonlyargs)
            assert count <= 10, f"{path}:{node.lineno} {node.name} has {count} parameters"


def test_a_coroutine_waits_for_something(module: tuple[Path, ast.Module, str]) -> None:
    path, tree, text = module
    for node in ast.walk(tree):
        if not isinstance(node, ast.AsyncFunctionDef):
            continue
        waits = [n for n in ast.walk(node) if isinstance(n, (ast.Await, ast.AsyncFor, ast.AsyncWith))]
        body = [n for n in node.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
        promised = not body or "abstractmethod" in ast.dump(node)
        context_manager = node.name in ("__aenter__", "__aexit__")
        # A protocol or a library may ask for a coroutine that has nothing to wait for; it says so there.
        excused = "# async:" in text.splitlines()[node.lineno - 1]
        assert waits or promised or context_manager or excused, f"{path}:{node.lineno} {node.name} awaits nothing"


def test_every_module_and_public_definition_says_what_it_promises(module: tuple[Path, ast.Module, str]) -> None:
    path, tree, _ = module
    assert ast.get_docstring(tree), f"{path} has no docstring"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name[0] != "_":
            assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name} has no docstring"


def test_every_import_is_declared() -> None:
    import tomllib

    project = tomllib.loads((SOURCE.parent.parent / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(item for extra in OPTIONAL for item in project["optional-dependencies"][extra]),
    ]
    names = {item.split(">")[0].split("[")[0].strip() for item in declared} | {"tokentrue"}
    for path in MODULES:
        for name in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
            top = name.split(".")[0]
            assert top in names or top in sys.stdlib_module_names, f"{path} imports undeclared {top}"
