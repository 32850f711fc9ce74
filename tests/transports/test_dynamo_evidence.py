"""Dynamo's chat route: a turn that was given up, a prompt that was not used, and writers that disagree."""

from __future__ import annotations

import json

import pytest

from tokentrue.errors import (
    AbortedError,
    AlignmentError,
    EmptyCompletionError,
    EvidenceError,
    MalformedReplyError,
)
from tokentrue.generation import FinishReason, GenerateRequest
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.dynamo import DynamoTransport
from tokentrue.transports.transport import HttpReply

PROMPT = [418, 10, 20]
IDS = [36, 34, 419]
LOGPROBS = [-0.25, -0.125, -0.1875]


def items(ids, logprobs):
    return {"content": [{"token": "", "token_id": i, "logprob": p} for i, p in zip(ids, logprobs, strict=True)]}


def answer(ids=IDS, *, finish="stop", nvext=None, logprobs=None, usage=None, **worker):
    """A reply as 1.6.1 with `dynamo.vllm` gives it to a request of ours; a None among the fields drops its key."""
    engine_data = {
        "completion_token_ids": ids,
        "completion_logprobs": LOGPROBS[: len(ids)],
        "prompt_token_ids": PROMPT,
        "finished": True,
        **worker,
    }
    fields = {
        "engine_data": {key: value for key, value in engine_data.items() if value is not None},
        "completion_token_ids": ids,
        "prompt_token_ids": PROMPT,
        "detailed_finish_reason": finish,
        **(nvext or {}),
    }
    logprobs = items(ids, LOGPROBS[: len(ids)]) if logprobs is None else logprobs
    return {
        "id": "chatcmpl-1",
        "model": "m",
        "choices": [{"index": 0, "message": {"content": "EC"}, "finish_reason": finish, "logprobs": logprobs}],
        "usage": {"prompt_tokens": 3, "completion_tokens": len(ids)} if usage is None else usage,
        "nvext": {key: value for key, value in fields.items() if value is not None},
    }


def read(reply, **sampling):
    request = GenerateRequest("m", TokenIds(PROMPT), SamplingParams(**sampling))
    return DynamoTransport().read_generate(request, HttpReply(200, {}, json.dumps(reply).encode()))


def test_the_usual_reply() -> None:
    generation = read(answer())
    assert generation.tokens.completion_ids == IDS
    assert generation.tokens.completion_logprobs == LOGPROBS
    assert generation.finish_reason is FinishReason.STOP
    assert generation.prompt_ids_echoed
    assert (generation.request_id, generation.model, generation.text) == ("chatcmpl-1", "m", "EC")


@pytest.mark.parametrize("word", ["cancelled", "abort", "error: engine died"])
def test_a_cancelled_turn_that_is_called_stop_is_no_sample(word) -> None:
    """The frontend says "stop" and the real worker even `finished: true`; only the detailed reason tells."""
    with pytest.raises(AbortedError, match=word):
        read(answer([36, 34], nvext={"detailed_finish_reason": word}))


def test_a_worker_that_says_unfinished_is_believed_whatever_the_frontend_says() -> None:
    with pytest.raises(AbortedError, match="not finished"):
        read(answer(finished=False))


@pytest.mark.parametrize("finish", ["stop", "length"])
@pytest.mark.parametrize("finished", [None, False])
def test_without_the_detailed_reason_nothing_vouches_for_a_turn_without_its_worker(finish, finished) -> None:
    nvext = {"detailed_finish_reason": None}
    if finished is None:
        nvext["engine_data"] = None
    with pytest.raises(AbortedError):
        read(answer([36, 34], finish=finish, nvext=nvext, finished=finished), max_tokens=4, stop_token_ids=(419,))


@pytest.mark.parametrize(
    ("ids", "finish", "nvext", "sampling"),
    [
        (IDS, "stop", {}, {"stop_token_ids": (419,)}),
        (IDS, "stop", {"stop_reason": 419}, {}),
        (IDS, "stop", {"stop_reason": "HO"}, {"stop": ("HO",)}),
        (IDS, "length", {}, {"max_tokens": 3}),
    ],
)
def test_a_stop_or_a_limit_that_is_seen_vouches_for_the_end(ids, finish, nvext, sampling) -> None:
    without = {"detailed_finish_reason": None, "engine_data": None, **nvext}
    assert read(answer(ids, finish=finish, nvext=without), **sampling).tokens.completion_ids == ids


def test_before_1_5_finished_true_does_not_vouch_for_a_stop_without_a_stop_id() -> None:
    """Those releases know no detailed reason and no echo by the frontend; their worker calls an abort finished."""
    old = {"detailed_finish_reason": None, "prompt_token_ids": None}
    with pytest.raises(AbortedError):
        read(answer([36, 34], nvext=old), stop_token_ids=(419,))
    assert read(answer(nvext=old), stop_token_ids=(419,)).tokens.completion_ids == IDS


def test_two_finish_reasons_that_contradict_each_other() -> None:
    with pytest.raises(MalformedReplyError, match="contradicts"):
        read(answer(nvext={"detailed_finish_reason": "length"}))


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (answer(usage={"prompt_tokens": 25, "completion_tokens": 3}), "counts 25"),
        (answer(nvext={"prompt_token_ids": [418, 10, 21]}), "position 2"),
        (answer(prompt_token_ids=[418, 10]), "position 2"),
        ({**answer(), "nvext": None}, "nothing in the reply"),
        ({**answer(), "nvext": {}}, "nothing in the reply"),
        (
            answer(usage={}, nvext={"prompt_token_ids": None}, prompt_token_ids=None),
            "nothing in the reply",
        ),
    ],
)
def test_a_prompt_that_was_not_used_is_an_error_that_says_what_to_switch(reply, says) -> None:
    """The third from last is as long as the placeholder might be: the count alone would pass."""
    with pytest.raises(EvidenceError, match=says) as raised:
        read(reply)
    assert "DYN_DISABLE_FRONTEND_NVEXT" in str(raised.value)
    assert "1.1.1" in str(raised.value)


def test_the_count_or_the_echo_is_enough_where_the_other_is_not_told() -> None:
    no_echo = answer(nvext={"prompt_token_ids": None}, prompt_token_ids=None)
    assert not read(no_echo).prompt_ids_echoed
    assert read(answer(usage={})).prompt_ids_echoed


@pytest.mark.parametrize(
    "reply",
    [
        answer(completion_token_ids=[36, 34, 420]),
        answer(completion_token_ids=[36, 34, 419, 7]),
        answer(nvext={"completion_token_ids": [36, 419, 34]}),
        answer(logprobs=items([36, 35, 419], LOGPROBS)),
        answer(completion_logprobs=[-0.25, -2.0, -0.1875]),
    ],
)
def test_writers_that_disagree_are_an_error(reply) -> None:
    with pytest.raises(AlignmentError):
        read(reply)


def test_short_items_are_replaced_by_the_workers_list_and_by_nothing_else() -> None:
    short = items(IDS[:2], LOGPROBS[:2])
    assert read(answer(logprobs=short)).tokens.completion_logprobs == LOGPROBS
    assert read(answer(logprobs={"content": None})).tokens.completion_logprobs == LOGPROBS
    with pytest.raises(AlignmentError, match="3 sampled ids came with 2"):
        read(answer(logprobs=short, completion_logprobs=LOGPROBS[:2]))
    with pytest.raises(AlignmentError, match="without log-probabilities"):
        read(answer(logprobs={"content": None}, completion_logprobs=None))


def test_stop_string_the_workers_list_may_be_longer_only_behind_the_same_beginning() -> None:
    longer = {"completion_token_ids": [36, 34, 419, 7], "completion_logprobs": [*LOGPROBS, -0.5]}
    cut = {"nvext": {"completion_token_ids": IDS, "stop_reason": "HO"}}
    assert read(answer(**cut, **longer), stop=("HO",)).tokens.completion_ids == IDS
    assert read(answer(**cut, **longer, logprobs={}), stop=("HO",)).tokens.completion_logprobs == LOGPROBS
    with pytest.raises(AlignmentError):
        read(answer(**cut, **longer))
    with pytest.raises(AlignmentError):
        read(answer(**cut, completion_token_ids=[36, 35, 419, 7]), stop=("HO",))


@pytest.mark.parametrize("sentinel", [-9999.0, -1e30, None])
def test_a_stand_in_for_minus_infinity_is_no_measurement(sentinel) -> None:
    bad = [-0.25, sentinel, -0.1875]
    with pytest.raises(AlignmentError, match="position 1"):
        read(answer(logprobs=items(IDS, bad), completion_logprobs=None))


def test_no_id_is_no_completion() -> None:
    with pytest.raises(EmptyCompletionError):
        read(answer([]))


def test_more_ids_than_asked() -> None:
    with pytest.raises(EvidenceError, match="max_tokens=2"):
        read(answer(), max_tokens=2)


def test_a_stop_id_that_the_engine_sampled_over() -> None:
    """It was not told of the stop, or forgot it; before `min_tokens` a stop id may come."""
    with pytest.raises(EvidenceError, match="stop id 36 came at position 0 of 3"):
        read(answer(), stop_token_ids=(36,))
    assert read(answer(), stop_token_ids=(36,), min_tokens=1).tokens.completion_ids == IDS
    assert read(answer(), stop_token_ids=(419,)).tokens.completion_ids == IDS


def test_fault_captures_as_a_request_of_ours_meets_them(capture) -> None:
    """9025 aborted, 9023 one log-probability short; recorded by a request that asked for `engine_data` only."""
    cases = [
        ("wkb_fault_9025", [36, 34], "cancelled", AbortedError),
        ("wkb_fault_9023", [36, 34, 39], "length", AlignmentError),
    ]
    for name, ids, detailed, expected in cases:
        recorded = capture("dynamo", name)
        nvext = {
            "completion_token_ids": ids,
            "prompt_token_ids": recorded.sent["nvext"]["token_data"],
            "detailed_finish_reason": detailed,
        }
        with pytest.raises(expected):
            recorded.transport.read_generate(
                recorded.request(), recorded.changed({**recorded.answer, "nvext": nvext})
            )
