"""SGLang's wire: what is asked, what comes back, and what is refused on either side.

The replies are recordings of SGLang 0.5.23; where one had to be changed, the change is what the test is about.
"""

from __future__ import annotations

import copy
import json
import re

import pytest

from tokentrue.errors import (
    AbortedError,
    AlignmentError,
    EngineBusyError,
    EngineRequestError,
    EvidenceError,
    InvalidSamplingError,
    InvalidTokenIdError,
    MalformedReplyError,
    OverlongPromptError,
    UnknownFinishError,
)
from tokentrue.generation import ChatRequest, FinishReason, GenerateRequest, VersionSource, WeightSpan
from tokentrue.messages import Message
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.sglang import SglangChat, SglangTransport
from tokentrue.transports.tokenize import read_tokenize, write_tokenize
from tokentrue.transports.transport import HttpReply, ModelCard

SGLANG = SglangTransport()
VOCABULARY = 1024

NO_REPLY = {"bad_neg", "bad_oov", "bad_huge", "health_after_neg"}
"""The server was dead."""

OTHER_ROUTES = {
    *("abort_request", "flush_cache", "get_weights_by_name", "update_bad_path", "update_weight_version"),
    *("update_weights_from_disk", "update_weights_from_disk_back", "continue_abort", "continue_in_place"),
    *("continue_retract", "pause_abort", "pause_in_place", "pause_retract", "get_get_load", "get_get_model_info"),
    *("get_health", "get_health_generate", "get_model_info", "get_server_info", "get_v1_loads", "messages"),
    *("responses", "completions_ids", "detokenize", "tokenize", "openapi_full"),
}
"""Routes that no client of ours calls."""

READ_HERE = {"chat", "chat_stream", "get_v1_models", "tokenize_messages"}


def request(prompt_ids=(1, 2, 3), *, vocab_size=VOCABULARY, context_limit=None, **sampling) -> GenerateRequest:
    return GenerateRequest(
        "tiny",
        TokenIds(prompt_ids),
        SamplingParams.from_args(sampling),
        vocab_size=vocab_size,
        context_limit=context_limit,
    )


def body_of(transport=SGLANG, prompt_ids=(1, 2, 3), **asked) -> dict:
    return json.loads(transport.write_generate(request(prompt_ids, **asked)).body)


@pytest.fixture
def recording(captures_folder):
    """What was sent and the reply, by the recording's name."""

    def read(name: str) -> tuple[dict, HttpReply]:
        found = json.loads((captures_folder / "sglang" / f"{name}.json").read_text())
        response = found["response"]
        return found["request"]["body"], HttpReply(response["status"], {}, json.dumps(response["body"]).encode())

    return read


def test_every_recording_has_its_outcome(captures_folder, token_route_names) -> None:
    names = {path.stem for path in (captures_folder / "sglang").glob("*.json")}
    here = {name for folder, name in token_route_names if folder == "sglang"}
    groups = (here, NO_REPLY, OTHER_ROUTES, READ_HERE)
    assert set().union(*groups) == names
    assert sum(map(len, groups)) == len(names)


def test_body() -> None:
    call = SGLANG.write_generate(request(max_tokens=7))
    assert (call.method, call.path, call.idempotent) == ("POST", "/generate", True)
    assert body_of(
        temperature=0.7,
        top_k=0,
        max_tokens=7,
        min_tokens=2,
        seed=5,
        stop="x",
        stop_token_ids=(5, 6),
        logit_bias={"17": -100.0},
        ignore_eos=True,
        priority=3,
        cache_salt="17",
        logprobs=True,
        prompt_logprobs=0,
        extra_body={"request_id": "r", "regex": "a", "extra_key": "k", "data_parallel_rank": 1},
    ) == {
        "input_ids": [1, 2, 3],
        "return_logprob": True,
        "return_prompt_token_ids": True,
        "logprob_start_len": 0,
        "priority": 3,
        "cache_salt": "17",
        "extra_key": "k",
        "rid": "r",
        "routed_dp_rank": 1,
        "sampling_params": {
            "skip_special_tokens": False,
            "temperature": 0.7,
            "top_k": -1,
            "max_new_tokens": 7,
            "min_new_tokens": 2,
            "sampling_seed": 5,
            "stop": ["x"],
            "stop_token_ids": [5, 6],
            "logit_bias": {"17": -100.0},
            "ignore_eos": True,
            "regex": "a",
        },
    }


def test_every_sampling_parameter_that_is_sent_is_one_that_the_server_knows(recording, captures_folder) -> None:
    """Its complaint about an unknown one lists the others; the fields around them are in its schema."""
    from tokentrue.transports.parameters import SGLANG as ROWS
    from tokentrue.transports.parameters import SGLANG_CHAT as CHAT_ROWS
    from tokentrue.transports.parameters import Sent

    _, reply = recording("bad_bogus_sp")
    known = json.loads(reply.body)["error"]
    schema = json.loads((captures_folder / "sglang" / "openapi_full.json").read_text())["components"]["schemas"]
    paths = {fate.path for fate in ROWS.values() if isinstance(fate, Sent)}
    for path in paths:
        if path[0] == "sampling_params":
            assert f"`{path[1]}`" in known
        else:
            assert path[0] in schema["GenerateReqInput"]["properties"]
    written = body_of(max_tokens=1)
    assert set(written) <= set(schema["GenerateReqInput"]["properties"])
    assert all(f"`{name}`" in known for name in written["sampling_params"])
    chat = {fate.path[0] for fate in CHAT_ROWS.values() if isinstance(fate, Sent)}
    own = set(json.loads(SglangChat().write_chat(ChatRequest("m", (Message("user", "hi"),))).body))
    assert chat | own <= set(schema["ChatCompletionRequest"]["properties"])


@pytest.mark.parametrize("name", ["bad_neg", "bad_oov", "bad_huge"])
def test_the_ids_that_killed_the_server_are_refused_before_they_are_sent(captures_folder, name) -> None:
    sent = json.loads((captures_folder / "sglang" / f"{name}.json").read_text())["request"]["body"]["input_ids"]
    with pytest.raises(InvalidTokenIdError):
        SGLANG.write_generate(request(sent, max_tokens=2))


def test_without_a_known_vocabulary_nothing_is_sent() -> None:
    with pytest.raises(InvalidTokenIdError, match="vocab_size"):
        SGLANG.write_generate(request(vocab_size=None, max_tokens=2))


@pytest.mark.parametrize(
    "asked",
    [
        {"stop_token_ids": (VOCABULARY,)},
        {"logit_bias": {str(VOCABULARY): 1.0}},
        {"logit_bias": {"-1": 1.0}},
        {"token_ids_logprob": [1, VOCABULARY]},
    ],
)
def test_ids_in_other_places_are_refused_too(asked) -> None:
    with pytest.raises(InvalidTokenIdError, match="vocabulary"):
        SGLANG.write_generate(request(max_tokens=2, **asked))


def test_max_tokens_left_out_is_the_room_and_never_a_silent_128() -> None:
    assert body_of(context_limit=2048)["sampling_params"]["max_new_tokens"] == 2048 - 3 - 1
    assert body_of(context_limit=4)["sampling_params"]["max_new_tokens"] == 1
    assert body_of(context_limit=2048, max_tokens=9)["sampling_params"]["max_new_tokens"] == 9
    with pytest.raises(InvalidSamplingError, match="128"):
        body_of()


def test_the_configured_replica_is_in_the_body_and_a_call_may_name_another() -> None:
    ranked = SglangTransport(data_parallel_rank=2)
    assert body_of(ranked, max_tokens=1)["routed_dp_rank"] == 2
    assert body_of(ranked, max_tokens=1, data_parallel_rank=3)["routed_dp_rank"] == 3
    assert "routed_dp_rank" not in body_of(max_tokens=1)


def test_log_probabilities_of_the_prompt(capture) -> None:
    recorded = capture("sglang", "gen_logprob_start0")
    asked = GenerateRequest(
        "tiny", recorded.request().prompt_ids, SamplingParams(max_tokens=8, extra={"prompt_logprobs": 0})
    )
    told = recorded.answer["meta_info"]["input_token_logprobs"]
    generation = SGLANG.read_generate(asked, recorded.reply)
    assert generation.prompt_logprobs == tuple(item[0] for item in told)
    assert len(generation.prompt_logprobs) == 68
    changed = copy.deepcopy(recorded.answer)
    changed["meta_info"]["input_token_logprobs"][5][1] += 1
    with pytest.raises(AlignmentError, match="prompt position 5"):
        SGLANG.read_generate(asked, recorded.changed(changed))
    for wrong in (told[1:], told[:-1], [], [[-1.0, told[0][1], None], *told[1:]]):
        changed["meta_info"]["input_token_logprobs"] = wrong
        with pytest.raises(AlignmentError):
            SGLANG.read_generate(asked, recorded.changed(changed))
    del changed["meta_info"]["input_token_logprobs"]
    with pytest.raises(EvidenceError, match="prompt_logprobs"):
        SGLANG.read_generate(asked, recorded.changed(changed))


def test_what_the_reply_tells_of_itself(capture) -> None:
    recorded = capture("sglang", "gen_after_update")
    generation = SGLANG.read_generate(recorded.request(), recorded.reply)
    assert generation.request_id == recorded.answer["meta_info"]["id"]
    assert generation.weight_spans == (WeightSpan("v1", 0, 8),)
    assert (generation.usage.prompt_tokens, generation.usage.completion_tokens) == (68, 8)
    assert generation.usage.cached_tokens == 0
    assert not generation.prompt_ids_echoed
    echoed = {**recorded.answer, "prompt_token_ids": recorded.sent["input_ids"]}
    assert SGLANG.read_generate(recorded.request(), recorded.changed(echoed)).prompt_ids_echoed


def test_the_stop_id_is_the_last_sampled_id(capture) -> None:
    recorded = capture("sglang", "gen_eos_bias")
    generation = SGLANG.read_generate(recorded.request(), recorded.reply)
    assert generation.tokens.completion_ids.tolist() == [1017]
    assert (generation.finish_reason, generation.stop_reason) == (FinishReason.STOP, 1017)


def with_logprobs(answer: dict) -> dict:
    """A reply to a request that did not ask for log-probabilities, as if it had."""
    changed = copy.deepcopy(answer)
    changed["meta_info"]["output_token_logprobs"] = [[-0.5, token_id, None] for token_id in answer["output_ids"]]
    return changed


def test_a_stop_string_leaves_its_ids_and_must_have_been_asked_for(capture) -> None:
    recorded = capture("sglang", "gen_stop_str")
    reply = recorded.changed(with_logprobs(recorded.answer))
    generation = SGLANG.read_generate(recorded.request(), reply)
    assert (generation.tokens.completion_ids.tolist(), generation.stop_reason) == ([66, 507], "e")
    unasked = GenerateRequest("tiny", recorded.request().prompt_ids, SamplingParams(max_tokens=60))
    with pytest.raises(EvidenceError, match="'e'"):
        SGLANG.read_generate(unasked, reply)
    by_pattern = SamplingParams(max_tokens=60, extra={"stop_regex": "e"})
    assert SGLANG.read_generate(GenerateRequest("tiny", unasked.prompt_ids, by_pattern), reply).stop_reason == "e"


def test_one_of_many_stop_ids(capture) -> None:
    recorded = capture("sglang", "gen_stop_ids")
    generation = SGLANG.read_generate(recorded.request(), recorded.changed(with_logprobs(recorded.answer)))
    assert (generation.tokens.completion_ids.tolist(), generation.stop_reason) == ([162], 162)


def test_the_requests_own_id_comes_back(capture) -> None:
    recorded = capture("sglang", "gen_rid")
    reply = recorded.changed(with_logprobs(recorded.answer))
    assert SGLANG.read_generate(recorded.request(), reply).request_id == "my-rid-1"
    other = GenerateRequest(
        "tiny", recorded.request().prompt_ids, SamplingParams(max_tokens=8, extra={"request_id": "another"})
    )
    with pytest.raises(EvidenceError, match="another"):
        SGLANG.read_generate(other, reply)


CONTRADICTIONS = {
    "prompt_tokens": (lambda a: a["meta_info"].update(prompt_tokens=67), EvidenceError),
    "no prompt_tokens": (lambda a: a["meta_info"].pop("prompt_tokens"), EvidenceError),
    "completion_tokens": (lambda a: a["meta_info"].update(completion_tokens=9), EvidenceError),
    "cached_tokens": (lambda a: a["meta_info"].update(cached_tokens=69), EvidenceError),
    "echo": (lambda a: a.update(prompt_token_ids=[1, 2]), EvidenceError),
    "length": (lambda a: a["meta_info"]["finish_reason"].update(length=7), EvidenceError),
    "stop at nothing": (lambda a: a["meta_info"].update(finish_reason={"type": "stop"}), EvidenceError),
    "stop elsewhere": (
        lambda a: a["meta_info"].update(finish_reason={"type": "stop", "matched": 3}),
        EvidenceError,
    ),
    "NaN": (
        lambda a: a["meta_info"].update(finish_reason={"type": "stop", "matched": "NaN happened"}),
        EvidenceError,
    ),
    "unknown finish": (lambda a: a["meta_info"].update(finish_reason={"type": "tired"}), UnknownFinishError),
    "no finish": (lambda a: a["meta_info"].update(finish_reason=None), AbortedError),
    "another id's logprob": (
        lambda a: a["meta_info"]["output_token_logprobs"][3].__setitem__(1, 5),
        AlignmentError,
    ),
    "a logprob less": (lambda a: a["meta_info"]["output_token_logprobs"].pop(), AlignmentError),
    "no logprob": (lambda a: a["meta_info"]["output_token_logprobs"][0].__setitem__(0, None), AlignmentError),
    "id out of vocabulary": (lambda a: a["output_ids"].__setitem__(0, VOCABULARY), MalformedReplyError),
    "no meta_info": (lambda a: a.pop("meta_info"), MalformedReplyError),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_reply_that_contradicts_itself_or_the_request_is_no_sample(capture, name) -> None:
    change, expected = CONTRADICTIONS[name]
    recorded = capture("sglang", "gen_greedy_lp")
    asked = GenerateRequest(
        "tiny", recorded.request().prompt_ids, SamplingParams(max_tokens=8), vocab_size=VOCABULARY
    )
    SGLANG.read_generate(asked, recorded.reply)
    answer = copy.deepcopy(recorded.answer)
    change(answer)
    with pytest.raises(expected) as raised:
        SGLANG.read_generate(asked, recorded.changed(answer))
    assert type(raised.value) is expected


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (None, "Aborted", AbortedError),
        (503, "the queue is full", EngineBusyError),
        (400, "an unknown grammar", EngineRequestError),
        (400, "Input length (68 tokens) exceeds the maximum allowed length (60 tokens).", OverlongPromptError),
    ],
)
def test_an_abort_is_what_its_status_says(capture, status, message, expected) -> None:
    recorded = capture("sglang", "inflight_abort")
    answer = copy.deepcopy(recorded.answer)
    answer["meta_info"]["finish_reason"].update(message=message, status_code=status)
    assert answer["output_ids"]
    with pytest.raises(AbortedError, match=re.escape(message)) as aborted:
        SGLANG.read_generate(recorded.request(), recorded.changed(answer))
    assert not aborted.value.retryable  # ids are there: given up half way, and not "busy"
    answer["output_ids"], answer["meta_info"]["completion_tokens"] = [], 0
    with pytest.raises(expected) as raised:
        SGLANG.read_generate(recorded.request(), recorded.changed(answer))
    assert type(raised.value) is expected
    assert status == 400 or message in str(raised.value)


def test_the_chat_route_tells_the_ids_of_both_sides(recording) -> None:
    sent, reply = recording("chat")
    asked = ChatRequest(
        "tiny", tuple(Message(**each) for each in sent["messages"]), SamplingParams(max_tokens=8, temperature=0)
    )
    written = json.loads(SglangChat().write_chat(asked).body)
    assert written["messages"] == sent["messages"]
    assert all(written[name] is True for name in ("logprobs", "return_token_ids", "return_prompt_token_ids"))
    found = SglangChat().read_chat(asked, reply)
    choice = json.loads(reply.body)["choices"][0]
    assert found.generation is not None
    tokens = found.generation.tokens
    assert tokens.prompt_ids == choice["prompt_token_ids"]
    assert tokens.completion_ids == choice["response_token_ids"]
    assert tokens.completion_logprobs == [item["logprob"] for item in choice["logprobs"]["content"]]
    assert (found.finish_reason, found.model) == (FinishReason.LENGTH, "tiny")
    assert found.generation.weight_spans == (WeightSpan(None, 0, 8, VersionSource.UNKNOWN),)
    assert found.answer.parsed.content == choice["message"]["content"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c["response_token_ids"].pop(), EvidenceError),
        (lambda c: c["prompt_token_ids"].pop(), EvidenceError),
        (lambda c: c["meta_info"]["output_token_logprobs"][0].__setitem__(1, 3), AlignmentError),
        (lambda c: c.update(finish_reason="stop"), MalformedReplyError),
        (lambda c: c.update(finish_reason="abort"), AbortedError),
    ],
)
def test_a_chat_reply_that_contradicts_itself(recording, change, expected) -> None:
    _, reply = recording("chat")
    answer = json.loads(reply.body)
    change(answer["choices"][0])
    asked = ChatRequest("tiny", (Message("user", "hi"),), SamplingParams(max_tokens=8))
    with pytest.raises(expected):
        SglangChat().read_chat(asked, HttpReply(200, {}, json.dumps(answer).encode()))


@pytest.mark.parametrize("missing", ["response_token_ids", "prompt_token_ids", "meta_info"])
def test_a_chat_reply_without_ids_is_an_answer_that_says_why(recording, missing) -> None:
    _, reply = recording("chat")
    answer = json.loads(reply.body)
    del answer["choices"][0][missing]
    asked = ChatRequest("tiny", (Message("user", "hi"),), SamplingParams(max_tokens=8))
    found = SglangChat().read_chat(asked, HttpReply(200, {}, json.dumps(answer).encode()))
    assert found.generation is None
    assert "return_" in found.tokens_missing


def test_the_chat_route_refuses_to_stream_ids(recording) -> None:
    _, reply = recording("chat_stream")
    with pytest.raises(EngineRequestError, match="streaming"):
        SglangChat().read_chat(ChatRequest("tiny", (Message("user", "hi"),)), reply)


def test_models(recording) -> None:
    _, reply = recording("get_v1_models")
    assert SGLANG.read_models(reply) == (ModelCard("tiny", 2048, "sglang"),)


def test_tokenize_is_written_as_it_was_recorded(recording, captures_folder) -> None:
    sent, reply = recording("tokenize_messages")
    messages = [Message(**message) for message in sent["messages"]]
    written = json.loads(write_tokenize("tiny", messages, (), {}).body)
    schema = json.loads((captures_folder / "sglang" / "openapi_full.json").read_text())["components"]["schemas"]
    assert set(written) <= set(schema["TokenizeRequest"]["properties"])
    assert sent.items() <= written.items()
    chat = json.loads(recording("chat")[1].body)
    assert read_tokenize(reply) == chat["choices"][0]["prompt_token_ids"]
