"""What an engine says of the end of a completion, and of its cache, is held against what was asked."""

from __future__ import annotations

import copy
import json

import pytest

from tokentrue.errors import EmptyCompletionError, EvidenceError
from tokentrue.generation import GenerateRequest
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.transport import HttpReply
from tokentrue.transports.vllm import VllmTransport


def asked_with(recorded, **sampling) -> GenerateRequest:
    return GenerateRequest("tiny", recorded.request().prompt_ids, SamplingParams(max_tokens=60, **sampling))


def ended(recorded, finish_reason, **choice):
    """The same reply with another end."""
    answer = copy.deepcopy(recorded.answer)
    answer["choices"][0].update(finish_reason=finish_reason, **choice)
    return recorded.changed(answer)


def test_a_stop_string_must_have_been_asked_for(capture) -> None:
    recorded = capture("vllm", "generate_logprobs1_return_ids")
    reply = ended(recorded, "stop", stop_reason="END")
    with pytest.raises(EvidenceError, match="'END'"):
        recorded.transport.read_generate(asked_with(recorded), reply)
    generation = recorded.transport.read_generate(asked_with(recorded, stop=("END",)), reply)
    assert generation.stop_reason == "END"


def test_where_end_of_sequence_is_ignored_only_a_stop_that_was_asked_for_ends_it(capture) -> None:
    recorded = capture("vllm", "generate_logprobs1_return_ids")
    last_id = recorded.answer["choices"][0]["token_ids"][-1]
    reply = ended(recorded, "stop", stop_reason=None)
    with pytest.raises(EvidenceError, match="ignored"):
        recorded.transport.read_generate(
            asked_with(recorded, ignore_eos=True, stop_token_ids=(last_id + 1,)), reply
        )
    for fine in (
        {"ignore_eos": True, "stop_token_ids": (last_id,)},
        {"ignore_eos": True, "stop": ("a",)},
        {},  # the model's own end-of-sequence id, which 0.31 does not name
    ):
        recorded.transport.read_generate(asked_with(recorded, **fine), reply)


@pytest.mark.parametrize("cached", [69, -1])
@pytest.mark.parametrize("name", ["vllm/generate_logprobs1_return_ids", "dynamo/wk_chat_tito_logprobs"])
def test_no_more_of_the_prompt_is_cached_than_there_is(capture, name, cached) -> None:
    recorded = capture(*name.split("/"))
    recorded.transport.read_generate(recorded.request(), recorded.reply)
    answer = copy.deepcopy(recorded.answer)
    answer["usage"]["prompt_tokens_details"] = {"cached_tokens": cached}
    with pytest.raises(EvidenceError, match="cached"):
        recorded.transport.read_generate(recorded.request(), recorded.changed(answer))


def test_another_name_for_the_model_is_no_contradiction(capture) -> None:
    """vLLM always answers with the first of its `--served-model-name`s, whichever of them was asked for."""
    recorded = capture("vllm", "generate_logprobs1_return_ids")
    request = GenerateRequest("an-alias", recorded.request().prompt_ids, SamplingParams(max_tokens=8))
    assert recorded.transport.read_generate(request, recorded.reply).model == "tiny"


@pytest.mark.parametrize(
    ("counted", "stop_reason", "told"),
    [
        (1, 7, 7),
        (0, 7, 7),
        (5, 7, None),  # it kept four ids back: that is no stop behind what came before
        (None, 7, None),
        (1, "HO", None),
        (1, None, None),
    ],
)
def test_without_ids_the_stop_id_is_told_only_where_nothing_else_can_be_missing(
    counted, stop_reason, told
) -> None:
    choice = {"index": 0, "token_ids": [], "logprobs": None, "finish_reason": "stop", "stop_reason": stop_reason}
    usage = {"prompt_tokens": 3, "completion_tokens": counted, "total_tokens": 3 + (counted or 0)}
    answer = {"request_id": "r", "choices": [choice], **({} if counted is None else {"usage": usage})}
    asked = GenerateRequest("m", TokenIds([1, 2, 3]), SamplingParams(stop_token_ids=(7,)))
    with pytest.raises(EmptyCompletionError) as raised:
        VllmTransport().read_generate(asked, HttpReply(200, {}, json.dumps(answer).encode()))
    assert raised.value.stop_id == told
