"""A model's name is found where huggingface_hub itself has put the model, without a network."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from tokentrue.errors import TokenizerFolderError
from tokentrue.rendering.named_folder import EMBEDDED_FOLDER, folder_of
from tokentrue.rendering.renderer import Renderer, load_renderer

COMMIT = "c0ffee" * 6 + "c0ff"
NAME = "some-lab/Model-1.5B"


class _Hub(BaseHTTPRequestHandler):
    """As much of a hub as its own library needs for a file."""

    folder: Path

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        content = (self.folder / self.path.rpartition("/")[2]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def cached(qwen_like: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache that the library filled with a model from a hub which is gone."""
    handler = type("_Handler", (_Hub,), {"folder": Path(qwen_like.folder)})
    cache = tmp_path / "cache"
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            for path in Path(qwen_like.folder).iterdir():
                url = f"http://127.0.0.1:{server.server_port}"
                huggingface_hub.hf_hub_download(NAME, path.name, cache_dir=cache, endpoint=url)
        finally:
            server.shutdown()
            thread.join()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


def test_a_name_is_the_snapshot_in_the_cache(cached: Path, qwen_like: Renderer) -> None:
    renderer = load_renderer(NAME)
    assert Path(renderer.folder).name == COMMIT, "what was used can be told exactly"
    assert Path(renderer.folder).is_relative_to(cached)
    assert renderer.tokenizer.content_hash == qwen_like.tokenizer.content_hash
    assert renderer.template.content_hash == qwen_like.template.content_hash
    assert renderer.stop_ids == qwen_like.stop_ids


@pytest.mark.parametrize("name", ["some-lab/Model-7B", "Model-1.5B", "some-lab"])
def test_a_name_that_is_not_in_the_cache_is_told_with_the_cure(cached: Path, name: str) -> None:
    with pytest.raises(TokenizerFolderError) as raised:
        load_renderer(name)
    assert str(cached) in str(raised.value)
    assert f"hf download {name} --include" in str(raised.value)


@pytest.mark.parametrize("text", ["/nowhere/at/all", "./nowhere", "../a", "a/b/c", "~/model", "a--b/c", "x" * 120])
def test_what_is_no_name_is_a_path(cached: Path, text: str) -> None:
    with pytest.raises(TokenizerFolderError, match="is not a folder; a tokenizer folder holds"):
        load_renderer(text)


def test_a_folder_wins_over_the_cache_and_embedded_over_both(
    cached: Path, qwen_like: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for each in (NAME, "embedded"):
        Path(each).mkdir(parents=True)
    assert folder_of(NAME) == Path(NAME)
    assert folder_of("embedded") == EMBEDDED_FOLDER
    assert folder_of(Path(qwen_like.folder)) == Path(qwen_like.folder)
