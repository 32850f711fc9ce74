"""What makes encoding cheap changes no id: runs that are remembered, and a faster library behind a self-check."""

from __future__ import annotations

import threading
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conversations import texts
from real_tokenizers import SHARED, unpack_real
from rendering.conftest import QWEN_LIKE
from rendering_folders import write_folder
from tokentrue import ClientConfig, load_renderer, make_client
from tokentrue.errors import ConfigError, FastTokenizerWarning
from tokentrue.rendering.fast_tokenizer import corpus, difference, with_fast
from tokentrue.rendering.run_memory import RunMemory, run_of
from tokentrue.rendering.tokenizer import Tokenizer

relaxed = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
installed = find_spec("gigatoken") is not None
needs_library = pytest.mark.skipif(
    not installed, reason="gigatoken is not installed (pip install 'tokentrue[fast]')"
)
REAL = (
    sorted(path.name for path in SHARED.iterdir() if (path / "tokenizer.json.xz").is_file())
    if SHARED.is_dir()
    else []
)


@pytest.fixture(scope="module", params=["trained", *REAL])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("folder")
    return write_folder(path, QWEN_LIKE) if request.param == "trained" else unpack_real(request.param, path)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


def draw_text(data: st.DataObject, tokenizer: Tokenizer) -> str:
    """Runs and added tokens in any order, long enough to be taken apart; runs come back, as they do in chats."""
    spelled = [info.text for info in tokenizer.added_tokens()]
    spelled = [*spelled[:20], *spelled[-20:]]
    run = data.draw(texts)
    piece = st.one_of(
        st.sampled_from(spelled), texts, st.sampled_from([run, " ", "\n", "  \n", run + " word" * 40])
    )
    body = data.draw(st.lists(piece, min_size=1, max_size=14).map("".join))
    filler = data.draw(st.sampled_from(["x y " * 150, spelled[0] * 60, " " * 600]))
    return data.draw(st.sampled_from([body + filler, filler + body, body + filler + body]))


@relaxed
@given(data=st.data())
def test_remembered_runs_give_the_ids_and_offsets_of_the_truth(tokenizer: Tokenizer, data: st.DataObject) -> None:
    text = draw_text(data, tokenizer)
    truth = tokenizer.backend.encode(text, add_special_tokens=False)
    for _ in range(2):  # anew, and remembered
        assert tokenizer.encode(text) == truth.ids
        assert tokenizer.encode_with_offsets(text) == (truth.ids, truth.offsets)


def test_the_memory_of_runs_is_bounded() -> None:
    memory = RunMemory(limit=1000)
    for number in range(300):
        memory.put(("<s>", f"run {number:04d} of many"), run_of([number], [(0, 3)]))
        assert memory.characters <= 1000
    assert memory.get(("<s>", "run 0299 of many")) is not None
    assert memory.get(("<s>", "run 0000 of many")) is None
    memory.put(("", "x" * 1001), run_of([1], None))
    assert memory.get(("", "x" * 1001)) is None


# --- the faster library ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fast(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a difference on the corpus would be told
        found = with_fast(tokenizer, folder, "gigatoken")
    assert found.fast is not None
    return found


@needs_library
@relaxed
@given(data=st.data())
def test_the_faster_library_gives_the_ids_of_the_truth(
    tokenizer: Tokenizer, fast: Tokenizer, data: st.DataObject
) -> None:
    text = data.draw(st.one_of(st.text(max_size=60), texts)) + draw_text(data, tokenizer)
    assert fast.encode(text) == tokenizer.backend.encode(text, add_special_tokens=False).ids
    assert fast.encode(text[:200]) == tokenizer.backend.encode(text[:200], add_special_tokens=False).ids


@needs_library
def test_threads_share_the_faster_library(tokenizer: Tokenizer, fast: Tokenizer) -> None:
    listed = list(corpus([info.text for info in tokenizer.added_tokens()]))[::5]
    wanted = tokenizer.encode_all(listed)
    wrong: list[str] = []

    def work() -> None:
        wrong.extend(text for text, ids in zip(listed, wanted, strict=True) if fast.encode(text) != ids)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Off:
    """A library that is wrong about one kind of text."""

    def __init__(self, truth: Tokenizer, about: str) -> None:
        self.truth, self.about = truth, about

    def encode(self, text: str) -> list[int]:
        ids = self.truth.encode_all([text])[0]
        return ids[::-1] if self.about in text else ids


WRONG_ABOUT = [
    "\u0301",
    "漢",
    "\U0001f469\u200d",
    "\x00",
    "\x1b",
    " " * 33,
    "\n" * 9,
    "1234567",
    "|>",
    "<|im_end|",
    "\ufeff",
]


@pytest.mark.parametrize("about", WRONG_ABOUT, ids=ascii)
def test_the_self_check_finds_what_it_is_for(tmp_path: Path, about: str) -> None:
    tokenizer = Tokenizer.load(write_folder(tmp_path / "folder", QWEN_LIKE))
    found = difference(tokenizer, Off(tokenizer, about))
    assert found.startswith("of ")
    assert "not [" in found
    assert difference(tokenizer, Off(tokenizer, "no such text anywhere")) == ""


@needs_library
def test_a_library_that_differs_is_told_and_not_used(tmp_path: Path) -> None:
    """The folder's truth was changed after the library read it: one more added token."""
    folder = write_folder(tmp_path / "folder", QWEN_LIKE)
    other = Tokenizer.load(write_folder(tmp_path / "other", QWEN_LIKE, trained_on="quite another text\n" * 50))
    with pytest.warns(FastTokenizerWarning, match="gigatoken is not used for .* its ids from position"):
        assert with_fast(other, folder, "gigatoken").fast is None


@needs_library
def test_a_folder_that_the_library_cannot_read_is_told_and_not_used(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_folder(tmp_path / "folder", QWEN_LIKE))
    (tmp_path / "folder" / "tokenizer.json").write_text('{"model": {"type": "Odd"}}')
    with pytest.warns(FastTokenizerWarning, match="cannot read this tokenizer"):
        assert with_fast(tokenizer, tmp_path / "folder", "gigatoken").fast is None


def test_the_setting_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", QWEN_LIKE)
    with pytest.raises(ConfigError, match=r"fast_tokenizer='quick'.*'off', 'auto', 'gigatoken'"):
        load_renderer(folder, fast_tokenizer="quick")
    assert load_renderer(folder).tokenizer.fast is None
    assert (load_renderer(folder, fast_tokenizer="auto").tokenizer.fast is not None) == installed


@pytest.mark.skipif(installed, reason="gigatoken is installed")
def test_a_library_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pip install 'tokentrue\[fast\]'"):
        load_renderer(write_folder(tmp_path / "folder", QWEN_LIKE), fast_tokenizer="gigatoken")


async def make_and_close(config: ClientConfig) -> None:
    async with await make_client(config):
        pass


def test_a_configuration_reaches_the_tokenizer() -> None:
    import asyncio

    config = ClientConfig(client_type="renderer", renderer="embedded", fast_tokenizer="auto")
    asyncio.run(make_and_close(config))
    assert replace(config, fast_tokenizer="off").fast_tokenizer == "off"
