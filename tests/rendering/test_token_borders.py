"""Borders of ids in a text, against spelling every prefix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conversations import texts
from real_tokenizers import unpack_real
from rendering.conftest import QWEN_LIKE
from rendering_folders import write_folder
from tokentrue.rendering.token_borders import TokenBorders
from tokentrue.rendering.tokenizer import Tokenizer
from tokentrue.tokens import TokenIds

relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    loaded: dict[str, Tokenizer] = {}

    def load(name: str) -> Tokenizer:
        if name not in loaded:
            folder = tmp_path_factory.mktemp(name)
            made = write_folder(folder, QWEN_LIKE) if name == "qwen_like" else unpack_real(name, folder)
            loaded[name] = Tokenizer.load(made)
        return loaded[name]

    return load


@pytest.mark.parametrize("name", ["qwen_like", "qwen3", "tinyllama"])
@relaxed
@given(pieces=st.lists(texts, max_size=40))
def test_every_border_is_where_the_ids_before_it_end(
    tokenizers: Callable[[str], Tokenizer], name: str, pieces: list[str]
) -> None:
    """Characters of several ids, bytes of SentencePiece, and more ids than are spelled at once."""
    tokenizer = tokenizers(name)
    ids = TokenIds(token_id for piece in pieces for token_id in tokenizer.encode(piece))
    borders = TokenBorders(ids, tokenizer.decode)
    text = tokenizer.decode(ids)
    assert borders.text == text
    first: dict[int, int] = {}
    for index in range(len(ids) + 1):
        spelled = tokenizer.decode(ids[:index])
        expected = len(spelled) if text.startswith(spelled) else None
        assert borders.place_of(index) == expected, index
        if expected is not None:
            first.setdefault(expected, index)
    for place in range(len(text) + 1):
        assert borders.index_at(place) == first.get(place), place
