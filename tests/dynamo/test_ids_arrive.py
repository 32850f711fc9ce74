"""Ids, log-probabilities and counts through a real frontend: what was sent is what the worker got, and back."""

from __future__ import annotations

import pytest
from servers.dynamo.fault_worker import logprob_of, reply_text
from servers.teacher_forcing import TeacherForcing

from tokentrue.errors import EngineRequestError, InvalidTokenIdError, OverlongPromptError, UnknownModelError
from tokentrue.generation import FinishReason, GenerateRequest
from tokentrue.rendering.tokenizer import Tokenizer
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.vllm import VllmTransport

pytestmark = pytest.mark.dynamo

CONTEXT_LIMIT = 2048


def _expected_ids(worker, prompt_ids) -> list[int]:
    """The whole reply of the deterministic worker, with its end token."""
    tokenizer = Tokenizer.load(worker.model_folder)
    return [*tokenizer.encode(reply_text(prompt_ids)), tokenizer.added_token("<|im_end|>").id]


@pytest.mark.parametrize("length", [1, 2, 57, 2000])
def test_the_worker_gets_exactly_the_ids_that_were_sent(dynamo, ask, length) -> None:
    prompt_ids = [(7 * i + length) % 380 for i in range(length)]
    generation = ask.generate(dynamo.faults, prompt_ids, max_tokens=40)
    received = dynamo.faults.requests()[-1]
    assert received.prompt_ids == tuple(prompt_ids)
    assert received.token_in
    assert generation.tokens.prompt_ids == prompt_ids
    assert generation.prompt_ids_echoed


def test_ids_that_are_no_canonical_encoding_arrive_unchanged(dynamo, ask) -> None:
    """Single bytes spell text that the tokenizer would merge: an engine that re-encoded it would get other ids."""
    tokenizer = Tokenizer.load(dynamo.faults.model_folder)
    letters = [tokenizer.encode(letter)[0] for letter in "the quick brown fox"]
    assert tokenizer.encode("the quick brown fox") != letters
    ask.generate(dynamo.faults, letters, max_tokens=40)
    assert dynamo.faults.requests()[-1].prompt_ids == tuple(letters)


def test_the_reply_can_be_recomputed_id_by_id(dynamo, ask) -> None:
    prompt_ids = [11, 12, 13, 14]
    generation = ask.generate(dynamo.faults, prompt_ids, max_tokens=60)
    expected = _expected_ids(dynamo.faults, prompt_ids)
    assert generation.tokens.completion_ids == expected
    assert generation.tokens.completion_logprobs.tolist() == pytest.approx(
        [logprob_of(each) for each in expected], abs=1e-6
    )
    assert generation.finish_reason is FinishReason.STOP
    assert generation.usage.prompt_tokens == len(prompt_ids)
    assert generation.usage.completion_tokens == len(expected)


def test_several_ids_in_one_chunk_change_nothing(dynamo, ask) -> None:
    one_by_one, in_chunks = (
        ask.generate(worker, [5, 6, 7], max_tokens=60).tokens for worker in (dynamo.faults, dynamo.chunky)
    )
    assert one_by_one == in_chunks


@pytest.mark.parametrize("name", ["faults", "embedded"])
def test_dynamos_route_of_vllms_shape_carries_the_same_ids(dynamo, ask, run_with_engine, name) -> None:
    worker = getattr(dynamo, name)
    sampling = {"max_tokens": 20, "seed": 6, "temperature": 0.9}
    request = GenerateRequest(worker.kind.model_name, TokenIds(range(3, 40)), SamplingParams(**sampling))
    by_generate = run_with_engine(ask, lambda engine: engine.generate(request), transport=VllmTransport())
    assert worker.requests()[-1].prompt_ids == tuple(range(3, 40))
    by_chat = ask.generate(worker, range(3, 40), **sampling)
    assert by_generate.tokens.completion_ids == by_chat.tokens.completion_ids
    assert by_generate.tokens.completion_logprobs.tolist() == pytest.approx(
        by_chat.tokens.completion_logprobs.tolist(), abs=1e-6
    )
    assert by_generate.finish_reason is by_chat.finish_reason


def test_max_tokens_cuts_the_reply_and_says_length(dynamo, ask) -> None:
    generation = ask.generate(dynamo.faults, [1, 2, 3], max_tokens=3)
    assert generation.tokens.completion_ids == _expected_ids(dynamo.faults, [1, 2, 3])[:3]
    assert generation.finish_reason is FinishReason.LENGTH


def test_a_stop_id_ends_the_reply_and_is_its_last_id(dynamo, ask) -> None:
    expected = _expected_ids(dynamo.faults, [1, 2, 3])
    generation = ask.generate(dynamo.faults, [1, 2, 3], max_tokens=60, stop_token_ids=(expected[2],))
    assert generation.tokens.completion_ids == expected[:3]
    assert generation.stop_reason == expected[2]


@pytest.mark.parametrize("name", ["faults", "chunky", "embedded"])
def test_a_stop_string_keeps_ids_and_logprobs_aligned(dynamo, ask, name) -> None:
    """The frontend cuts the stream in the text. The worker's own list is then missing, or longer than what was
    delivered when it sends several ids at a time; the named fields are right."""
    worker = getattr(dynamo, name)
    plain = ask.generate(worker, [1, 2, 3], max_tokens=40, temperature=2.0, seed=1)
    tokenizer = Tokenizer.load(worker.model_folder)
    word = next(
        text
        for each in plain.tokens.completion_ids.tolist()[1:]
        if (text := tokenizer.decode([each]).strip()) and text.isalnum()
    )
    cut = ask.generate(worker, [1, 2, 3], max_tokens=40, temperature=2.0, seed=1, stop=(word,))
    count = len(cut.tokens.completion_ids)
    assert cut.tokens.completion_ids == plain.tokens.completion_ids[:count]
    assert cut.tokens.completion_logprobs.tolist() == pytest.approx(
        plain.tokens.completion_logprobs.tolist()[:count], abs=1e-6
    )
    assert cut.finish_reason is FinishReason.STOP
    assert cut.stop_reason == word


def test_the_embedded_models_logprobs_are_those_of_its_weights(dynamo, ask) -> None:
    prompt_ids = [(13 * i) % 300 for i in range(75)]
    generation = ask.generate(dynamo.embedded, prompt_ids, max_tokens=24, temperature=0.8, top_p=0.9, seed=5)
    completion_ids = generation.tokens.completion_ids.tolist()
    expected = TeacherForcing(dynamo.embedded.model_folder).sampled(prompt_ids, completion_ids)
    assert generation.tokens.completion_logprobs.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_seed_gives_the_same_ids_again_and_another_seed_others(dynamo, ask) -> None:
    first, again, other = (
        ask.generate(
            dynamo.embedded, range(20, 60), max_tokens=24, temperature=1.5, seed=seed
        ).tokens.completion_ids
        for seed in (8, 8, 9)
    )
    assert first == again
    assert first != other


def test_a_parameter_that_the_worker_does_not_have_is_refused_not_dropped(dynamo, ask) -> None:
    with pytest.raises(EngineRequestError, match="frequency_penalty"):
        ask.generate(dynamo.embedded, [1, 2, 3], max_tokens=4, frequency_penalty=1.0)


@pytest.mark.parametrize("length", [CONTEXT_LIMIT, CONTEXT_LIMIT + 5])
def test_an_overlong_prompt_is_refused_by_the_frontend_with_its_limit(dynamo, ask, length) -> None:
    before = len(dynamo.faults.requests())
    with pytest.raises(OverlongPromptError) as raised:
        ask.generate_unchecked(dynamo.faults, [7] * length, max_tokens=4)
    assert (raised.value.prompt_len, raised.value.limit) == (length, CONTEXT_LIMIT)
    assert len(dynamo.faults.requests()) == before


def test_an_overlong_prompt_is_refused_before_sending_once_the_limit_is_known(dynamo, ask) -> None:
    before = dynamo.frontend.token_in_count()
    with pytest.raises(OverlongPromptError) as raised:
        ask.generate(dynamo.faults, [7] * CONTEXT_LIMIT, max_tokens=4)
    assert (raised.value.prompt_len, raised.value.limit) == (CONTEXT_LIMIT, CONTEXT_LIMIT)
    assert dynamo.frontend.token_in_count() == before


def test_a_prompt_with_too_large_max_tokens_is_not_called_overlong(dynamo, ask) -> None:
    with pytest.raises(EngineRequestError, match="leaves room for 48"):
        ask.generate(dynamo.faults, [7] * (CONTEXT_LIMIT - 48), max_tokens=49)


def test_the_context_limit_is_told_by_the_model_list(dynamo, ask, run_with_engine) -> None:
    info = run_with_engine(ask, lambda engine: engine.describe(dynamo.faults.kind.model_name))
    assert info.context_limit == CONTEXT_LIMIT
    assert set(info.models) >= {dynamo.faults.kind.model_name, dynamo.embedded.kind.model_name}


def test_an_id_outside_the_vocabulary_is_refused_by_the_frontend(dynamo, ask) -> None:
    with pytest.raises(EngineRequestError):
        ask.generate(dynamo.faults, [1, 2, 100_000], max_tokens=4)


def test_an_id_outside_the_vocabulary_is_refused_before_sending_when_its_size_is_known(
    dynamo, ask, run_with_engine
) -> None:
    before = len(dynamo.faults.requests())
    request = GenerateRequest(
        dynamo.faults.kind.model_name, TokenIds([1, 700]), SamplingParams(max_tokens=4), vocab_size=700
    )
    with pytest.raises(InvalidTokenIdError, match="700"):
        run_with_engine(ask, lambda engine: engine.generate(request))
    assert len(dynamo.faults.requests()) == before


def test_a_model_that_nobody_serves_is_named(dynamo, ask, run_with_engine) -> None:
    request = GenerateRequest("no-such-model", TokenIds([1, 2]), SamplingParams(max_tokens=4))
    with pytest.raises(UnknownModelError):
        run_with_engine(ask, lambda engine: engine.generate(request))
