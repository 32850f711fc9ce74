"""Each word for the end of a turn is one that is known, or an error that keeps what was sampled."""

from __future__ import annotations

import copy

import pytest

from tokentrue.errors import AbortedError, UnknownFinishError
from tokentrue.generation import REPETITION_STOP, FinishReason
from tokentrue.transports.openai_chat import VllmChat
from transports.test_openai_chat import chat, recorded, reply_of

CAPTURED = [
    ("vllm", "generate_logprobs1_return_ids"),
    ("dynamo", "wk_chat_tito_logprobs"),
    ("sglang", "gen_greedy_lp"),
]


def saying(answer: dict, word: str) -> None:
    """Replace why it ended, wherever this engine says that."""
    if "meta_info" in answer:
        answer["meta_info"]["finish_reason"] = {"type": word}
        return
    answer["choices"][0]["finish_reason"] = word
    answer.get("nvext", {}).pop("detailed_finish_reason", None)


@pytest.mark.parametrize(("folder", "name"), CAPTURED)
def test_a_word_that_nobody_knows_is_named_and_the_ids_are_kept(capture, folder, name) -> None:
    found = capture(folder, name)
    whole = found.transport.read_generate(found.request(), found.reply)
    answer = copy.deepcopy(found.answer)
    saying(answer, "tired")
    with pytest.raises(UnknownFinishError, match="finish_reason 'tired' is unknown") as raised:
        found.transport.read_generate(found.request(), found.changed(answer))
    partial = raised.value.partial
    assert partial.tokens == whole.tokens
    assert partial.usage == whole.usage


def test_a_detailed_word_of_dynamo_that_nobody_knows_keeps_the_ids_too(capture) -> None:
    found = capture("dynamo", "wk_chat_tito_logprobs")
    answer = copy.deepcopy(found.answer)
    answer["nvext"]["detailed_finish_reason"] = "tired"
    with pytest.raises(UnknownFinishError, match="finish_reason 'tired' is unknown") as raised:
        found.transport.read_generate(found.request(), found.changed(answer))
    assert len(raised.value.partial.tokens.completion_ids)


def test_ids_that_do_not_stand_up_to_the_laws_are_not_kept(capture) -> None:
    found = capture(*CAPTURED[0])
    answer = copy.deepcopy(found.answer)
    saying(answer, "tired")
    answer["choices"][0]["logprobs"]["content"].pop()
    with pytest.raises(UnknownFinishError, match=r"'tired' is unknown.*not usable") as raised:
        found.transport.read_generate(found.request(), found.changed(answer))
    assert raised.value.partial is None


def test_an_end_that_nobody_knows_without_any_ids_has_no_partial(capture) -> None:
    """Missing evidence is an error, never an empty list of ids."""
    found = capture("dynamo", "wk_chat_tito_logprobs")
    answer = copy.deepcopy(found.answer)
    saying(answer, "tired")
    del answer["nvext"]["engine_data"]["completion_token_ids"]
    for item in answer["choices"][0]["logprobs"]["content"]:
        del item["token_id"]
    with pytest.raises(UnknownFinishError, match=r"'tired' is unknown.*not usable.*no sampled ids") as raised:
        found.transport.read_generate(found.request(), found.changed(answer))
    assert raised.value.partial is None


@pytest.mark.parametrize("told", [REPETITION_STOP, None])
def test_a_turn_that_vllm_cut_for_its_repetition_is_a_truncated_one(capture, told) -> None:
    """vLLM 0.32 names it as the stop reason too; before that its token route names none."""
    found = capture(*CAPTURED[0])
    whole = found.transport.read_generate(found.request(), found.reply)
    answer = copy.deepcopy(found.answer)
    answer["choices"][0] |= {"finish_reason": "repetition", "stop_reason": told}
    cut = found.transport.read_generate(found.request(), found.changed(answer))
    assert (cut.finish_reason, cut.stop_reason) == (FinishReason.LENGTH, "repetition_detected")
    assert cut.tokens == whole.tokens


def test_the_chat_route_says_the_same(captures_folder) -> None:
    _, _, answer = recorded(captures_folder / "vllm", "chat_token_ids_logprobs")
    choice = answer["choices"][0]
    ids = choice["token_ids"]
    choice |= {"finish_reason": "repetition", "stop_reason": REPETITION_STOP}
    cut = VllmChat().read_chat(chat(), reply_of(answer))
    assert cut.finish_reason is FinishReason.LENGTH
    assert cut.generation.stop_reason == REPETITION_STOP
    assert cut.generation.tokens.completion_ids == ids
    choice["finish_reason"] = "tired"
    with pytest.raises(UnknownFinishError, match="'tired' is unknown") as raised:
        VllmChat().read_chat(chat(), reply_of(answer))
    assert raised.value.partial.tokens.completion_ids == ids
    del choice["token_ids"]
    with pytest.raises(UnknownFinishError, match="'tired' is unknown") as raised:
        VllmChat().read_chat(chat(), reply_of(answer))
    assert raised.value.partial is None


@pytest.mark.parametrize("word", ["abort", "cancelled"])
def test_what_is_given_up_stays_an_abort(capture, word) -> None:
    found = capture(*CAPTURED[0])
    answer = copy.deepcopy(found.answer)
    saying(answer, word)
    with pytest.raises(AbortedError) as raised:
        found.transport.read_generate(found.request(), found.changed(answer))
    assert type(raised.value) is AbortedError
    assert len(raised.value.partial.tokens.completion_ids)
