"""A real vLLM made to sample a known text in unusual splits: what going through text loses, and ids keep."""

from __future__ import annotations

import asyncio

import pytest
from servers.random_model import write_random_model
from servers.vllm.drift import TOOL_FLAGS, TURNS, Played, answers, play
from servers.vllm.install import ensure_vllm
from servers.vllm.server import VllmServer

from tokentrue import ClientConfig, load_renderer, make_client

pytestmark = pytest.mark.vllm

CONVERSATIONS = 6
PATHS = {
    "MITO": "openai_chat_completions",
    "TITO": "renderer",
    "TITO, token client": "openai_chat_completions_token",
}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A vLLM with random weights that reads tool calls."""
    folder = tmp_path_factory.mktemp("drift")
    model = write_random_model(folder / "model", seed=0)
    with VllmServer(ensure_vllm(), model, folder / "logs", flags=TOOL_FLAGS) as server:
        yield server.url


def played_by(url, path) -> list[Played]:
    config = ClientConfig(
        client_type=PATHS[path], api_base_url=f"{url}/v1", renderer="embedded", max_retries=0, timeout=60.0
    )

    async def every() -> list[Played]:
        async with await make_client(config) as client:
            return [await play(client, path, number) for number in range(CONVERSATIONS)]

    return asyncio.run(every())


@pytest.fixture(scope="module")
def mito(url) -> list[Played]:
    """The conversations as messages."""
    return played_by(url, "MITO")


@pytest.fixture(scope="module", params=["TITO", "TITO, token client"])
def tito(url, request) -> list[Played]:
    """The conversations as ids."""
    return played_by(url, request.param)


def test_the_text_is_what_it_was_made_to_be_and_its_split_is_not_the_tokenizers(tito) -> None:
    tokenizer = load_renderer("embedded").tokenizer
    for number, played in enumerate(tito):
        assert len(played.turns) == TURNS >= 5
        for each, text in zip(played.turns, answers(number), strict=True):
            ids = each.turn.tokens.completion_ids.tolist()
            assert tokenizer.decode(ids[:-1]) == text
            assert ids != tokenizer.encode(text + "<|im_end|>")
            assert len(ids) > len(tokenizer.encode(text + "<|im_end|>"))


def test_through_text_every_later_turn_loses_ids_and_cache(mito) -> None:
    for played in mito:
        assert played.samples == TURNS
        for each in played.turns[1:]:
            assert not each.kept
            assert each.cached < each.whole_blocks


def test_by_ids_every_turn_keeps_every_id_and_hits_every_block(tito) -> None:
    for played in tito:
        assert played.samples == 1
        for each in played.turns[1:]:
            assert each.kept
            assert each.cached == each.whole_blocks > 0
