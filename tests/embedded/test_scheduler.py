"""A result never depends on its company: not on other rows, not on their order, not on the prefix cache."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokentrue.engines.embedded.kv_blocks import block_keys
from tokentrue.engines.embedded.scheduler import Phase, Scheduler, Sequence
from tokentrue.engines.embedded.transformer import BLOCK_TOKENS, KeyValues, Transformer
from tokentrue.engines.embedded.weights import Weights

pytestmark = pytest.mark.usefixtures("one_blas_thread")

MakeScheduler = Callable[..., Scheduler]
MakeSequence = Callable[..., Sequence]
SHARED = [(7 * i) % 600 for i in range(40)]


@st.composite
def requests(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Prompt ids (often beginning alike), seed and number of ids to sample."""
    start = SHARED[: draw(st.sampled_from([0, 15, 16, 17, 32, 40]))]
    rest = draw(st.lists(st.integers(0, 600), min_size=1, max_size=24))
    return start + rest, draw(st.integers(0, 5)), draw(st.integers(1, 6))


def run(scheduler: Scheduler) -> list[Sequence]:
    over = []
    while scheduler.has_work():
        over += scheduler.step()
    return over


def outcome(sequence: Sequence) -> tuple[list[int], list[float], Phase]:
    return sequence.completion_ids, sequence.logprobs, sequence.phase


@settings(max_examples=25, deadline=None)
@given(
    batch=st.lists(requests(), min_size=2, max_size=12), steps_between=st.integers(0, 3), rows=st.integers(1, 8)
)
def test_company_changes_no_bit(
    make_scheduler: MakeScheduler,
    make_sequence: MakeSequence,
    batch: list[tuple[list[int], int, int]],
    steps_between: int,
    rows: int,
) -> None:
    alone = []
    for prompt, seed, max_tokens in batch:
        scheduler, sequence = make_scheduler(cache_bytes=0), make_sequence(prompt, seed, max_tokens)
        scheduler.submit(sequence)
        run(scheduler)
        alone.append(outcome(sequence))
    together = [make_sequence(prompt, seed, max_tokens) for prompt, seed, max_tokens in batch]
    scheduler = make_scheduler(rows=rows)
    for sequence in together:
        scheduler.submit(sequence)
        for _ in range(steps_between):
            scheduler.step()
    run(scheduler)
    assert [outcome(sequence) for sequence in together] == alone


@settings(max_examples=25, deadline=None)
@given(requests(), st.integers(0, 3))
def test_a_cache_hit_changes_no_bit_and_says_how_much_it_was(
    make_scheduler: MakeScheduler, make_sequence: MakeSequence, request_: tuple[list[int], int, int], extra: int
) -> None:
    prompt, seed, max_tokens = request_
    scheduler = make_scheduler()
    cold, warm = (make_sequence(prompt, seed, max_tokens) for _ in range(2))
    longer = make_sequence(prompt + [5] * extra, seed, max_tokens)
    for sequence in (cold, warm, longer):
        scheduler.submit(sequence)
        run(scheduler)
    assert outcome(cold) == outcome(warm)
    assert cold.cached_tokens == 0
    assert warm.cached_tokens == (len(prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    whole_blocks = len(prompt) // BLOCK_TOKENS * BLOCK_TOKENS
    assert longer.cached_tokens == min(whole_blocks, (len(prompt) + extra - 1) // BLOCK_TOKENS * BLOCK_TOKENS)


def test_a_turn_finds_the_prompt_of_the_turn_before_but_not_what_was_decoded(
    make_scheduler: MakeScheduler, make_sequence: MakeSequence
) -> None:
    scheduler = make_scheduler()
    first = make_sequence(SHARED[:32], max_tokens=20)
    scheduler.submit(first)
    run(scheduler)
    second = make_sequence(SHARED[:32] + first.completion_ids + [1, 2, 3])
    scheduler.submit(second)
    run(scheduler)
    assert second.cached_tokens == 32


def test_salt_separates_prefixes(make_scheduler: MakeScheduler, make_sequence: MakeSequence) -> None:
    scheduler = make_scheduler()
    sequences = [make_sequence(SHARED, salt=salt) for salt in (None, "a", "b", "a", None)]
    for sequence in sequences:
        scheduler.submit(sequence)
        run(scheduler)
    assert [sequence.cached_tokens for sequence in sequences] == [0, 0, 0, 32, 32]
    assert len({tuple(sequence.completion_ids) for sequence in sequences}) == 1


def test_the_cache_stays_within_its_bytes(
    make_scheduler: MakeScheduler, make_sequence: MakeSequence, weights: Weights
) -> None:
    """Room for two blocks: a third pushes the least recently used one out."""
    config = weights.config
    block_bytes = 2 * 4 * BLOCK_TOKENS * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    scheduler = make_scheduler(cache_bytes=2 * block_bytes)
    prompts = [[seed] * 17 for seed in (1, 2, 1, 3, 1, 2)]
    sequences = [make_sequence(prompt, max_tokens=1) for prompt in prompts]
    for sequence in sequences:
        scheduler.submit(sequence)
        run(scheduler)
    assert [sequence.cached_tokens for sequence in sequences] == [0, 0, 16, 0, 16, 0]


@given(st.lists(st.integers(0, 600), max_size=80), st.integers(0, 80))
def test_block_keys_are_equal_exactly_as_far_as_the_prefixes_are(ids: list[int], changed: int) -> None:
    array = np.array(ids, np.int32)
    keys = list(block_keys(array, None))
    assert len(keys) == len(ids) // BLOCK_TOKENS
    if changed < len(ids):
        other = array.copy()
        other[changed] += 1
        other_keys = list(block_keys(other, None))
        block = changed // BLOCK_TOKENS
        assert keys[:block] == other_keys[:block]
        assert not set(keys[block:]) & set(other_keys[block:])


def test_a_row_freed_by_cancelling_goes_to_the_next(
    make_scheduler: MakeScheduler, make_sequence: MakeSequence
) -> None:
    scheduler = make_scheduler(rows=1)
    given_up, waiting_and_given_up, last = (make_sequence(SHARED, max_tokens=500 - i) for i in range(3))
    last.max_tokens = 2
    for sequence in (given_up, waiting_and_given_up, last):
        scheduler.submit(sequence)
    for _ in range(3):
        scheduler.step()
    scheduler.cancel(given_up)
    scheduler.cancel(waiting_and_given_up)
    over = run(scheduler)
    assert [sequence.phase for sequence in over] == [Phase.CANCELLED, Phase.CANCELLED, Phase.OUT_OF_ROOM]
    assert len(given_up.completion_ids) == 3


def test_higher_priority_is_sooner(make_scheduler: MakeScheduler, make_sequence: MakeSequence) -> None:
    scheduler = make_scheduler(rows=1)
    sequences = [make_sequence([priority + 1], max_tokens=1, priority=priority) for priority in (0, 2, 1, 2)]
    for sequence in sequences:
        scheduler.submit(sequence)
    assert [sequence.priority for sequence in run(scheduler)] == [2, 2, 1, 0]


def test_a_stop_id_ends_the_completion_and_is_its_last_id(
    make_scheduler: MakeScheduler, make_sequence: MakeSequence
) -> None:
    scheduler = make_scheduler()
    free = make_sequence(SHARED, seed=3, max_tokens=6)
    scheduler.submit(free)
    run(scheduler)
    stop_id = free.completion_ids[3]
    stopped = make_sequence(SHARED, seed=3, max_tokens=6, stop_ids=frozenset({stop_id}))
    scheduler.submit(stopped)
    run(scheduler)
    assert stopped.phase is Phase.STOPPED
    assert stopped.completion_ids == free.completion_ids[: free.completion_ids.index(stop_id) + 1]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 33])
def test_prefill_and_decode_agree_up_to_rounding(transformer: Transformer, weights: Weights, length: int) -> None:
    """Two routes to the same logits: the prompt in blocks, and id by id."""
    ids = SHARED[:length]
    blocks, single = (KeyValues.empty(weights.config, length) for _ in range(2))
    for start in range(0, length, BLOCK_TOKENS):
        by_block = transformer.prefill_block(ids[start : start + BLOCK_TOKENS], blocks)
    for token_id in ids:
        by_id = transformer.decode([token_id], [single])[0]
    np.testing.assert_allclose(by_block, by_id, atol=2e-3)
    np.testing.assert_allclose(blocks.keys[:, :, :length], single.keys[:, :, :length], atol=2e-3)
