"""What is kept on the disk is what would be found anew, and no state of the disk is an error."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from real_tokenizers import SHARED, unpack_real
from rendering.conftest import LLAMA_LIKE, NO_CLOSE, QWEN_LIKE
from rendering_folders import write_folder
from tokentrue import Renderer, load_renderer
from tokentrue.engines.embedded.engine import MODEL_FOLDER
from tokentrue.rendering.certificate import Certificate
from tokentrue.rendering.proof_cache import MOST_ENTRIES, Proof, ProofCache, proof_key
from tokentrue.rendering.spelled import MarkerPolicy

ALL = "TOKENTRUE_ALL_TEMPLATES" in os.environ
SOURCE = Path(__file__).parents[2] / "src"
TEMPLATES = {"qwen like": QWEN_LIKE, "llama like": LLAMA_LIKE, "no close": NO_CLOSE}
REAL = tuple(sorted(path.parent.name for path in SHARED.glob("*/chat_template.jinja")))
FEW = ("deepseek-v3", "llama-3.1")
"""Folders in the short suite; `make test-templates` takes all."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache" / "of" / "proofs"
    monkeypatch.setenv("TOKENTRUE_CACHE_DIR", str(folder))
    return folder


def proved(renderer: Renderer) -> tuple[bool, Certificate]:
    return renderer.bridges.tails.short_is_enough, renderer.certificate


def loaded(folder: Path | str) -> tuple[bool, Certificate]:
    return proved(load_renderer(folder, now=datetime(2030, 5, 6)))


@pytest.mark.parametrize("name", ["embedded", *TEMPLATES, *(name for name in REAL if ALL or name in FEW)])
def test_what_was_kept_is_what_is_found_anew(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if name in TEMPLATES:
        write_folder(folder, TEMPLATES[name])
    else:
        folder = MODEL_FOLDER if name == "embedded" else unpack_real(name, folder)
    first, again = loaded(folder), loaded(folder)
    assert [path.parent for path in cache.iterdir()] == [cache]
    monkeypatch.setenv("TOKENTRUE_CACHE_DIR", "off")
    assert loaded(folder) == first == again


def test_a_kept_proof_is_used(tmp_path: Path, cache: Path) -> None:
    """A false proof, put there whole and under the right key, is believed: so nothing was proved anew."""
    renderer = load_renderer(write_folder(tmp_path / "model", QWEN_LIKE))
    key = proof_key(renderer.template, renderer.tokenizer, renderer.stop_ids, MarkerPolicy.AS_TEMPLATE)
    assert [path.name for path in cache.iterdir()] == [key]
    ProofCache(cache).write(key, Proof(short_history=False))
    assert not load_renderer(tmp_path / "model").bridges.tails.short_is_enough


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_broken_entry_counts_as_absent(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("cache")
    ProofCache(folder).write("k", Proof(short_history=True))
    whole = (folder / "k").read_bytes()
    assert ProofCache(folder).read("k") == Proof(short_history=True)
    at = data.draw(st.integers(0, len(whole) - 1))
    broken = data.draw(
        st.sampled_from([whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], b"", whole + b"x"])
    )
    (folder / "k").write_bytes(broken)
    assert ProofCache(folder).read("k") is None


def test_an_entry_of_another_shape_counts_as_absent(tmp_path: Path) -> None:
    for payload in (b"[]", b'{"short_history": "yes"}', b'{"short_history": true, "certificate": {}}', b"\xff"):
        digest = hashlib.sha256(payload).hexdigest().encode()
        (tmp_path / "k").write_bytes(digest + b"\n" + payload)
        assert ProofCache(tmp_path).read("k") is None


@pytest.mark.parametrize("what", ["folder", "entry"])
def test_what_others_may_write_proves_nothing(tmp_path: Path, what: str) -> None:
    cache = ProofCache(tmp_path / "cache")
    cache.write("a" * 64, Proof(short_history=True))
    assert cache.read("a" * 64) == Proof(short_history=True)
    path = tmp_path / "cache" if what == "folder" else tmp_path / "cache" / ("a" * 64)
    path.chmod(0o777)
    assert cache.read("a" * 64) is None


def test_a_broken_cache_is_replaced(tmp_path: Path, cache: Path) -> None:
    folder = write_folder(tmp_path / "model", QWEN_LIKE)
    first = loaded(folder)
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    assert loaded(folder) == first
    assert entry.read_bytes() == whole


@pytest.mark.parametrize("where", ["a file", "a folder under a file", "a folder in place of the entry"])
def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder, cache = write_folder(tmp_path / "model", QWEN_LIKE), tmp_path / "cache"
    monkeypatch.setenv("TOKENTRUE_CACHE_DIR", "off")
    wanted = loaded(folder)
    if where == "a folder in place of the entry":
        renderer = load_renderer(folder)
        key = proof_key(renderer.template, renderer.tokenizer, renderer.stop_ids, MarkerPolicy.AS_TEMPLATE)
        (cache / key / "full").mkdir(parents=True)
    else:
        cache.write_text("in the way")
    below = cache / "below" if where == "a folder under a file" else cache
    monkeypatch.setenv("TOKENTRUE_CACHE_DIR", str(below))
    assert loaded(folder) == wanted
    assert list(tmp_path.rglob(".*")) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a read-only folder")
def test_a_read_only_cache_is_read(tmp_path: Path, cache: Path) -> None:
    folder = write_folder(tmp_path / "model", QWEN_LIKE)
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    wanted = loaded(folder)
    assert loaded(folder) == wanted
    assert list(cache.iterdir()) == []


def test_the_key_changes_with_all_that_a_proof_follows_from(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", LLAMA_LIKE)
    one = load_renderer(folder, now=datetime(2030, 5, 6, 1))
    other = load_renderer(write_folder(tmp_path / "other", LLAMA_LIKE, trained_on="other words " * 99))
    policy = MarkerPolicy.AS_TEMPLATE
    template, tokenizer, stops = one.template, one.tokenizer, one.stop_ids
    keys = [
        proof_key(template, tokenizer, stops, policy),
        proof_key(load_renderer(folder, now=datetime(2030, 5, 7)).template, tokenizer, stops, policy),
        proof_key(one.with_template_kwargs({"x": 1}).template, tokenizer, stops, policy),
        proof_key(template, other.tokenizer, stops, policy),
        proof_key(template, tokenizer, stops[:1], policy),
        proof_key(template, tokenizer, stops, MarkerPolicy.ESCAPE),
    ]
    assert len(set(keys)) == len(keys)
    same_day = load_renderer(folder, now=datetime(2030, 5, 6, 9))
    assert proof_key(same_day.template, tokenizer, stops, policy) == keys[0]


def test_two_processes_may_write_at_once(tmp_path: Path, cache: Path) -> None:
    folder = write_folder(tmp_path / "model", QWEN_LIKE)
    script = (
        "import sys, json\n"
        "from datetime import datetime\n"
        "from tokentrue import load_renderer\n"
        "renderer = load_renderer(sys.argv[1], now=datetime(2030, 5, 6))\n"
        "print(json.dumps([finding.detail for finding in renderer.certificate.findings]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    playing = [
        subprocess.Popen([sys.executable, "-c", script, str(folder)], env=environment, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    told = [json.loads(process.communicate(timeout=120)[0]) for process in playing]
    _, certificate = loaded(folder)
    assert told == [[finding.detail for finding in certificate.findings]] * 2
    (entry,) = cache.iterdir()
    found = ProofCache(cache).read(entry.name)
    assert found is not None
    assert found.certificate == certificate


def test_the_oldest_go_when_there_are_too_many(tmp_path: Path) -> None:
    cache = ProofCache(tmp_path)
    names = [f"{index:064x}" for index in range(MOST_ENTRIES + 3)]
    for age, name in enumerate(names):
        cache.write(name, Proof(short_history=True))
        os.utime(tmp_path / name, (age, age))
    cache.write("f" * 64, Proof(short_history=True))
    kept = {path.name for path in tmp_path.iterdir()}
    assert len(kept) == MOST_ENTRIES
    assert {"f" * 64, names[-1]} <= kept
    assert not kept & set(names[:4])


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HOME": "/h"}, "/h/.cache/tokentrue"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/tokentrue"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "relative"}, "/h/.cache/tokentrue"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x", "TOKENTRUE_CACHE_DIR": "/t"}, "/t"),
        ({"HOME": "/h", "TOKENTRUE_CACHE_DIR": "off"}, None),
        ({"HOME": "/h", "TOKENTRUE_CACHE_DIR": ""}, "/h/.cache/tokentrue"),
        ({}, None),
    ],
)
def test_where_proofs_are_kept(environment: dict[str, str], folder: str | None) -> None:
    assert ProofCache.of_environment(environment) == ProofCache(Path(folder) if folder else None)
