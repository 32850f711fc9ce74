"""Ids, log-probabilities and counts of a real vLLM, against our own forward pass over the same weights."""

from __future__ import annotations

import numpy as np
import pytest
from servers.vllm.server import BLOCK_TOKENS, CONTEXT_LIMIT, MODEL_NAME

from tokentrue.engines.embedded.engine import MODEL_FOLDER
from tokentrue.errors import EngineRequestError, InvalidTokenIdError, OverlongPromptError, UnknownModelError
from tokentrue.generation import FinishReason
from tokentrue.rendering.renderer import load_renderer
from tokentrue.rendering.tokenizer import Tokenizer
from tokentrue.tokens import Logprobs

pytestmark = pytest.mark.vllm

PROMPT = [(17 * i) % 300 for i in range(90)]


@pytest.mark.parametrize("length", [1, 31, 32, 33, 700])
def test_ids_are_used_and_echoed(ask, teacher, assert_same_logprobs, length) -> None:
    prompt_ids = [(7 * i + length) % 300 for i in range(length)]
    generation = ask.generate(prompt_ids, max_tokens=8, temperature=1.0, seed=1)
    assert generation.prompt_ids_echoed
    assert generation.tokens.prompt_ids == prompt_ids
    assert generation.usage.prompt_tokens == length
    assert generation.usage.completion_tokens == len(generation.tokens.completion_ids)
    expected = teacher.sampled(prompt_ids, generation.tokens.completion_ids.tolist())
    assert_same_logprobs(generation.tokens.completion_logprobs, expected)


def test_ids_that_are_no_canonical_encoding_are_used_unchanged(ask, teacher, assert_same_logprobs) -> None:
    """The logprobs are those behind these very ids, and not those behind the merged encoding of the same text."""
    tokenizer = Tokenizer.load(MODEL_FOLDER)
    letters = [tokenizer.encode(letter)[0] for letter in "the tools add subtract multiply"]
    assert tokenizer.encode(tokenizer.decode(letters)) != letters
    generation = ask.generate(letters, max_tokens=6, temperature=1.0, seed=2)
    expected = teacher.sampled(letters, generation.tokens.completion_ids.tolist())
    assert_same_logprobs(generation.tokens.completion_logprobs, expected)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.5, "top_k": 20, "min_p": 0.01},
    ],
    ids=str,
)
def test_logprobs_are_raw_whatever_the_sampling(ask, teacher, assert_same_logprobs, sampling) -> None:
    generation = ask.generate(PROMPT, max_tokens=40, seed=3, ignore_eos=True, **sampling)
    completion_ids = generation.tokens.completion_ids.tolist()
    assert len(completion_ids) == 40
    expected = teacher.sampled(PROMPT, completion_ids)
    assert_same_logprobs(generation.tokens.completion_logprobs, expected)


def test_greedy_ids_are_our_own_models_best_ids(ask, teacher) -> None:
    completion_ids = ask.generate(PROMPT, max_tokens=40, temperature=0).tokens.completion_ids.tolist()
    best = teacher.logprobs(PROMPT, completion_ids)
    gaps = best.max(axis=1) - best[np.arange(len(completion_ids)), completion_ids]
    assert gaps.max() < 1e-4


def test_the_models_own_end_is_the_last_id_of_a_completion(ask) -> None:
    renderer = load_renderer(MODEL_FOLDER)
    rendered = renderer.render_ids([{"role": "user", "content": "What is 2 + 3?"}], add_generation_prompt=True)
    generation = ask.generate(rendered, max_tokens=400, temperature=1.0, seed=4)
    assert generation.finish_reason is FinishReason.STOP
    assert generation.tokens.completion_ids[-1] in renderer.get_stop_token_ids()


def test_a_stop_id_is_included_and_told(ask) -> None:
    plain = ask.generate(PROMPT, max_tokens=20, temperature=0, ignore_eos=True).tokens.completion_ids.tolist()
    stop_id = plain[-1]
    cut = ask.generate(PROMPT, max_tokens=20, temperature=0, ignore_eos=True, stop_token_ids=(stop_id,))
    assert cut.tokens.completion_ids.tolist() == plain[: plain.index(stop_id) + 1]
    assert cut.finish_reason is FinishReason.STOP
    assert cut.stop_reason == stop_id


def test_the_prefix_cache_grows_by_whole_blocks_turn_by_turn(ask) -> None:
    """Exact ids are what the cache is keyed by: every block computed in a turn is found in the next."""
    prompt_ids, known_len = list(PROMPT), 0
    for turn in range(6):
        generation = ask.generate(
            prompt_ids, max_tokens=20, temperature=1.0, seed=turn, ignore_eos=True, cache_salt="turn by turn"
        )
        assert generation.usage.cached_tokens == known_len // BLOCK_TOKENS * BLOCK_TOKENS
        prompt_ids += generation.tokens.completion_ids.tolist()
        known_len = len(prompt_ids) - 1  # the last sampled id was never computed
        prompt_ids += [5, 6, 7]


def test_one_changed_id_loses_every_block_behind_it(ask) -> None:
    ask.generate(PROMPT, max_tokens=2, temperature=0, cache_salt="changed")
    changed = [*PROMPT[:40], PROMPT[40] + 1, *PROMPT[41:]]
    generation = ask.generate(changed, max_tokens=2, temperature=0, cache_salt="changed")
    assert generation.usage.cached_tokens == BLOCK_TOKENS


def test_the_context_limit_is_told(ask) -> None:
    info = ask.describe()
    assert info.context_limit == CONTEXT_LIMIT
    assert info.models == (MODEL_NAME,)


@pytest.mark.parametrize("name", ["generate", "generate_unchecked"], ids=["before-sending", "by-the-server"])
@pytest.mark.parametrize("length", [CONTEXT_LIMIT, CONTEXT_LIMIT + 52])
def test_an_overlong_prompt_says_its_length_and_the_limit(ask, name, length) -> None:
    with pytest.raises(OverlongPromptError) as raised:
        getattr(ask, name)([7] * length, max_tokens=4)
    assert (raised.value.prompt_len, raised.value.limit) == (length, CONTEXT_LIMIT)


def test_the_longest_prompt_leaves_room_for_one_id(ask) -> None:
    generation = ask.generate([7] * (CONTEXT_LIMIT - 1), max_tokens=50, temperature=0, ignore_eos=True)
    assert len(generation.tokens.completion_ids) == 1
    assert generation.finish_reason is FinishReason.LENGTH


def test_an_unknown_model_is_named(ask) -> None:
    with pytest.raises(UnknownModelError):
        ask.generate(PROMPT, model="no-such-model", max_tokens=4)


def test_an_id_outside_the_vocabulary_is_refused(ask) -> None:
    with pytest.raises(EngineRequestError):
        ask.generate([1, 2, 100_000], max_tokens=4)
    with pytest.raises(InvalidTokenIdError, match="100000"):
        ask.generate([1, 2, 100_000], vocab_size=1000, max_tokens=4)


def test_the_prompts_logprobs_are_those_of_our_own_model(ask, teacher, assert_same_logprobs) -> None:
    generation = ask.generate(PROMPT, max_tokens=2, prompt_logprobs=0)
    first, *others = generation.prompt_logprobs
    assert first is None
    assert_same_logprobs(Logprobs(others), teacher.sampled(PROMPT[:1], PROMPT[1:]))
