"""The log-probabilities of the prompt: asked for, one for each prompt id, each about that id; or an error."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from tokentrue.errors import AlignmentError, EvidenceError, MalformedReplyError
from tokentrue.generation import ChatRequest, FinishReason, GenerateRequest, Generation, make_tokens
from tokentrue.messages import Message
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.dynamo import DynamoTransport
from tokentrue.transports.openai_chat import DynamoChat, VllmChat
from tokentrue.transports.transport import HttpReply

TOKEN_ROUTES = pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("vllm", "generate_prompt_logprobs"),
        ("vllm", "v031_generate_prompt_lp"),
        ("vllm", "cache_6_prompt_logprobs"),
        ("dynamo_vllm", "generate_prompt_logprobs"),
        ("dynamo", "gen_prompt_logprobs"),
        ("dynamo", "wk_chat_top_prompt_logprobs"),
        ("dynamo", "wk_chat_tito_all_extra"),
    ],
)


def asking(request: GenerateRequest, value: object = 0) -> GenerateRequest:
    """The same request, with the prompt's log-probabilities."""
    return replace(request, sampling=replace(request.sampling, extra={"prompt_logprobs": value}))


def with_logprobs(answer: dict) -> dict:
    """The recorded answer; where no log-probabilities of the sampled ids were asked for, with some."""
    choice = answer["choices"][0]
    ids = choice.get("token_ids") or answer["nvext"]["engine_data"]["completion_token_ids"]
    if choice.get("logprobs") is None:
        choice["logprobs"] = {"content": [{"token": f"token_id:{each}", "logprob": -1.0} for each in ids]}
    return json.loads(json.dumps(answer))


def lists_in(answer: dict) -> list[list]:
    """Every copy of the list in an answer."""
    nvext = answer.get("nvext") or {}
    holders = (answer, nvext, nvext.get("engine_data") or {})
    return [holder["prompt_logprobs"] for holder in holders if holder.get("prompt_logprobs") is not None]


@TOKEN_ROUTES
def test_each_prompt_id_has_the_value_that_the_reply_gives_it(capture, folder, name) -> None:
    recorded = capture(folder, name)
    answer = with_logprobs(recorded.answer)
    request = asking(recorded.request())
    found = recorded.transport.read_generate(request, recorded.changed(answer)).prompt_logprobs
    told = lists_in(answer)[0]
    pairs = zip(request.prompt_ids, told, strict=True)
    assert found == tuple(entry and entry[str(token_id)]["logprob"] for token_id, entry in pairs)
    assert found[0] is None
    assert len(found) == len(request.prompt_ids) > 4


@TOKEN_ROUTES
def test_they_are_not_read_unless_they_were_asked_for(capture, folder, name) -> None:
    recorded = capture(folder, name)
    answer = with_logprobs(recorded.answer)
    for copy in lists_in(answer):
        copy[:] = ["no such thing"]
    reply = recorded.changed(answer)
    assert recorded.transport.read_generate(recorded.request(), reply).prompt_logprobs is None
    assert recorded.transport.read_generate(asking(recorded.request(), False), reply).prompt_logprobs is None


def drop_last(entries: list) -> None:
    entries.pop()


def one_more(entries: list) -> None:
    entries.append(entries[-1])


def another_id(entries: list) -> None:
    entries[2] = {"7": {"logprob": -1.0}}


def shifted(entries: list) -> None:
    entries[:] = [None, None, *entries[1:-1]]


def null_inside(entries: list) -> None:
    entries[3] = None


def first_is_told(entries: list) -> None:
    entries[0] = entries[1]


def no_value(entries: list) -> None:
    next(iter(entries[2].values()))["logprob"] = None


def sentinel(entries: list) -> None:
    next(iter(entries[2].values()))["logprob"] = -9999.0


def above_zero(entries: list) -> None:
    next(iter(entries[2].values()))["logprob"] = 0.5


def no_objects(entries: list) -> None:
    entries[1] = -0.5


@TOKEN_ROUTES
@pytest.mark.parametrize(
    "change",
    [drop_last, one_more, another_id, shifted, null_inside, first_is_told, no_value, sentinel, above_zero],
)
def test_a_list_that_does_not_belong_to_the_prompt_is_an_error(capture, folder, name, change) -> None:
    recorded = capture(folder, name)
    answer = with_logprobs(recorded.answer)
    for copy in lists_in(answer):
        change(copy)
    with pytest.raises(AlignmentError):
        recorded.transport.read_generate(asking(recorded.request()), recorded.changed(answer))


@TOKEN_ROUTES
def test_a_list_of_something_else_cannot_be_read(capture, folder, name) -> None:
    recorded = capture(folder, name)
    answer = with_logprobs(recorded.answer)
    no_objects(lists_in(answer)[0])
    with pytest.raises(MalformedReplyError, match="prompt_logprobs"):
        recorded.transport.read_generate(asking(recorded.request()), recorded.changed(answer))


@pytest.mark.parametrize(
    ("folder", "name"), [("vllm", "generate_logprobs1_return_ids"), ("dynamo", "wk_chat_tito_logprobs")]
)
def test_asked_for_and_missing_is_an_error(capture, folder, name) -> None:
    recorded = capture(folder, name)
    with pytest.raises(EvidenceError, match="prompt_logprobs"):
        recorded.transport.read_generate(asking(recorded.request()), recorded.reply)


def test_alternatives_may_come_first(capture) -> None:
    recorded = capture("vllm", "generate_prompt_logprobs")
    answer = with_logprobs(recorded.answer)
    (copy,) = lists_in(answer)
    own = copy[1]
    copy[1] = {"7": {"logprob": -0.1, "rank": 1}, **own}
    found = recorded.transport.read_generate(asking(recorded.request(), 1), recorded.changed(answer))
    assert found.prompt_logprobs[1] == next(iter(own.values()))["logprob"]


def test_two_copies_that_differ_are_an_error_and_rounding_is_none(capture) -> None:
    recorded = capture("dynamo", "wk_chat_top_prompt_logprobs")
    answer = with_logprobs(recorded.answer)
    answer["nvext"]["engine_data"]["prompt_logprobs"][2]["20"]["logprob"] = -0.2500001
    assert recorded.transport.read_generate(asking(recorded.request()), recorded.changed(answer))
    answer["nvext"]["engine_data"]["prompt_logprobs"][2]["20"]["logprob"] = -0.26
    with pytest.raises(AlignmentError, match="prompt position 2"):
        recorded.transport.read_generate(asking(recorded.request()), recorded.changed(answer))


def test_the_chat_route_of_vllm_gives_them_for_the_ids_that_it_tells(captures_folder) -> None:
    recorded = json.loads((captures_folder / "vllm" / "chat_prompt_logprobs.json").read_text())
    answer = with_logprobs(recorded["response"]["body"])
    request = ChatRequest("tiny", (Message("user", "hi"),), SamplingParams(extra={"prompt_logprobs": 0}))
    read = VllmChat().read_chat(request, HttpReply(200, {}, json.dumps(answer).encode()))
    pairs = zip(answer["prompt_token_ids"], answer["prompt_logprobs"], strict=True)
    assert read.generation.prompt_logprobs == tuple(e and e[str(each)]["logprob"] for each, e in pairs)
    answer["prompt_logprobs"] = None
    with pytest.raises(EvidenceError, match="prompt_logprobs"):
        VllmChat().read_chat(request, HttpReply(200, {}, json.dumps(answer).encode()))


def test_the_chat_route_of_dynamo_gives_them_for_the_ids_that_it_tells(captures_folder) -> None:
    recorded = json.loads((captures_folder / "dynamo" / "wk_chat_tito_all_extra.json").read_text())
    request = ChatRequest("tiny", (Message("user", "hi"),), SamplingParams(extra={"prompt_logprobs": 1}))
    reply = HttpReply(200, {}, json.dumps(recorded["response"]["body"]).encode())
    found = DynamoChat().read_chat(request, reply).generation
    assert found.prompt_logprobs == (None, -0.625, -0.25, -0.875, -0.5)


@pytest.mark.parametrize("asked", [{}, {"prompt_logprobs": 0}])
def test_dynamo_is_asked_for_them_by_both_of_their_names(asked) -> None:
    request = GenerateRequest("m", TokenIds([1, 2]), SamplingParams(extra=asked))
    body = json.loads(DynamoTransport().write_generate(request).body)
    assert ("prompt_logprobs" in body["nvext"]["extra_fields"]) == bool(asked)
    assert body.get("prompt_logprobs") == asked.get("prompt_logprobs")


@pytest.mark.parametrize(
    "values",
    [
        (),
        (None,),
        (None, -1.0, -1.0),
        (-1.0, -1.0),
        (None, None),
        (None, math.nan),
        (None, -math.inf),
        (None, 1.0),
    ],
)
def test_a_generation_with_other_values_cannot_be_built(values) -> None:
    tokens = make_tokens(TokenIds([1, 2]), [3], [-0.5])
    with pytest.raises(AlignmentError):
        Generation(tokens, FinishReason.STOP, prompt_logprobs=values)
    assert Generation(tokens, FinishReason.STOP, prompt_logprobs=(None, -0.5)).prompt_logprobs == (None, -0.5)
