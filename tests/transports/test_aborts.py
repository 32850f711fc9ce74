"""What an engine had sampled when it gave up a turn rides on the error, where it stands up to the laws."""

from __future__ import annotations

import copy
import json

import pytest

from tokentrue.errors import AbortedError
from tokentrue.generation import GenerateRequest, WeightSpan
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.sglang import SglangTransport
from tokentrue.transports.transport import HttpReply

ABORTED = ("inflight_during_pause_abort", "inflight_aborted")


def with_logprobs(recorded):
    """The recorded abort as a request of ours gets it: these recordings did not ask for log-probabilities."""
    answer = copy.deepcopy(recorded.answer)
    choice = answer["choices"][0]
    choice["logprobs"] = {
        "content": [
            {"token_id": each, "logprob": -0.5, "rank": 1, "top_logprobs": []} for each in choice["token_ids"]
        ]
    }
    return answer, choice


@pytest.mark.parametrize("name", ABORTED)
def test_the_ids_of_an_aborted_turn_of_vllm_ride_on_the_error(capture, name) -> None:
    recorded = capture("vllm", name)
    answer, choice = with_logprobs(recorded)
    request = recorded.request()
    with pytest.raises(AbortedError, match="finish_reason is 'abort'") as raised:
        recorded.transport.read_generate(request, recorded.changed(answer))
    partial = raised.value.partial
    count = len(choice["token_ids"])
    assert count > 400
    assert partial.tokens.prompt_ids == request.prompt_ids
    assert partial.tokens.completion_ids == choice["token_ids"]
    assert partial.tokens.completion_logprobs == [-0.5] * count
    assert partial.weight_spans == (WeightSpan("step-2", 0, count),)
    assert partial.usage.completion_tokens == count
    assert partial.request_id.startswith("generate-tokens-")


@pytest.mark.parametrize("name", ABORTED)
def test_ids_without_logprobs_are_nothing_to_continue_from(capture, name) -> None:
    recorded = capture("vllm", name)
    with pytest.raises(AbortedError, match=r"not usable: .* without log-probabilities") as raised:
        recorded.transport.read_generate(recorded.request(), recorded.reply)
    assert raised.value.partial is None


def test_ids_whose_logprobs_are_of_other_ids_are_nothing_to_continue_from(capture) -> None:
    recorded = capture("vllm", ABORTED[0])
    answer, choice = with_logprobs(recorded)
    choice["logprobs"]["content"][7]["token_id"] += 1
    with pytest.raises(AbortedError, match="not usable: position 7") as raised:
        recorded.transport.read_generate(recorded.request(), recorded.changed(answer))
    assert raised.value.partial is None


def test_an_abort_before_the_first_id_is_a_partial_of_none(capture) -> None:
    recorded = capture("vllm", ABORTED[0])
    answer, choice = with_logprobs(recorded)
    choice.update(token_ids=[], logprobs=None, weight_versions=[])
    answer["usage"]["completion_tokens"] = 0
    with pytest.raises(AbortedError) as raised:
        recorded.transport.read_generate(recorded.request(), recorded.changed(answer))
    assert raised.value.partial.tokens.completion_ids == []


@pytest.mark.parametrize("word", [None, "content_filter", "error: out of memory"])
def test_a_turn_that_was_given_up_for_what_it_holds_is_not_continued(capture, word) -> None:
    recorded = capture("vllm", ABORTED[0])
    answer, choice = with_logprobs(recorded)
    choice["finish_reason"] = word
    with pytest.raises(AbortedError) as raised:
        recorded.transport.read_generate(recorded.request(), recorded.changed(answer))
    assert raised.value.partial is None


def test_the_ids_of_a_cancelled_turn_of_dynamo_ride_on_the_error(capture) -> None:
    recorded = capture("dynamo", "wkb_fault_9025")
    answer = copy.deepcopy(recorded.answer)
    items = [{"token_id": each, "token": "x", "logprob": -0.25 * each, "top_logprobs": []} for each in (36, 34)]
    answer["choices"][0]["logprobs"] = {"content": items}
    answer["nvext"] = {
        **(answer.get("nvext") or {}),
        "completion_token_ids": [36, 34],
        "prompt_token_ids": recorded.sent["nvext"]["token_data"],
        "detailed_finish_reason": "cancelled",
    }
    with pytest.raises(AbortedError, match="cancelled") as raised:
        recorded.transport.read_generate(recorded.request(), recorded.changed(answer))
    partial = raised.value.partial
    assert partial.tokens.completion_ids == [36, 34]
    assert partial.tokens.completion_logprobs == [item["logprob"] for item in items]
    assert partial.weight_spans == ()


@pytest.mark.parametrize("name", ["inflight_abort", "inflight_pause_abort"])
def test_the_ids_of_an_aborted_turn_of_sglang_ride_on_the_error(captures_folder, name) -> None:
    answer = json.loads((captures_folder / "sglang" / f"{name}.json").read_text())["b"]
    meta, ids = answer["meta_info"], answer["output_ids"]
    request = GenerateRequest("tiny", TokenIds([1] * meta["prompt_tokens"]), SamplingParams(max_tokens=400), 1024)

    def partial():
        with pytest.raises(AbortedError, match="gave up the turn") as raised:
            SglangTransport().read_generate(request, HttpReply(200, {}, json.dumps(answer).encode()))
        return raised.value.partial

    assert partial() is None  # this recording did not ask for log-probabilities
    meta["output_token_logprobs"] = [[-0.5, each, None] for each in ids]
    assert partial().tokens.completion_ids == ids
    assert partial().weight_spans == (WeightSpan("v3", 0, len(ids)),)
    meta["finish_reason"]["status_code"] = 503
    assert partial().tokens.completion_ids == ids  # "busy" would have the turn sampled anew
    meta["finish_reason"] = None
    with pytest.raises(AbortedError) as raised:
        SglangTransport().read_generate(request, HttpReply(200, {}, json.dumps(answer).encode()))
    assert raised.value.partial is None
