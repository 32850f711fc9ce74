"""Chat completions on recorded bytes: ids are grafted from wherever an engine puts them, or named as missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokentrue.errors import (
    AbortedError,
    AlignmentError,
    EngineBusyError,
    EngineFailureError,
    EngineRequestError,
    EvidenceError,
    MalformedReplyError,
    MaxTokensTooLargeError,
    OverlongPromptError,
    TokentrueError,
    UnsupportedParameterError,
)
from tokentrue.generation import ChatRequest, FinishReason, GenerateRequest
from tokentrue.messages import Message, messages_from
from tokentrue.rendering.reader import MALFORMED_KEY
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.openai_chat import DynamoChat, VllmChat
from tokentrue.transports.parameters import TABLES, OnUnsupported, Sent
from tokentrue.transports.transport import HttpReply

ASKED = (Message("user", "hi"),)
TOOL = {"type": "function", "function": {"name": "get_weather"}}


def chat(*, tools=(), **sampling) -> ChatRequest:
    return ChatRequest("tiny", ASKED, SamplingParams.from_args(sampling), tuple(tools))


def reply_of(answer, status=200, **headers) -> HttpReply:
    return HttpReply(status, headers, json.dumps(answer).encode())


def recorded(folder: Path, name: str) -> tuple[dict, HttpReply, dict]:
    """What was sent, the reply as it came, and its body."""
    found = json.loads((folder / f"{name}.json").read_text())
    response = found["response"]
    return found["request"]["body"], reply_of(response["body"], response["status"]), response["body"]


def sampling_of(sent: dict) -> dict:
    names = {"max_tokens", "max_completion_tokens", "temperature", "stop", "stop_token_ids"}
    return {name: value for name, value in sent.items() if name in names}


def read(captures: Path, name: str, transport):
    sent, reply, answer = recorded(captures, name)
    return transport.read_chat(chat(tools=sent.get("tools") or (), **sampling_of(sent)), reply), answer


@pytest.mark.parametrize(
    "name",
    ["chat_token_ids_logprobs", "chat_logprobs_strtokens", "S_chat_forced_toolcall"],
)
def test_vllm_ids_and_logprobs_are_those_of_the_reply(captures_folder, name) -> None:
    read_reply, answer = read(captures_folder / "vllm", name, VllmChat())
    choice = answer["choices"][0]
    tokens = read_reply.generation.tokens
    assert tokens.prompt_ids == answer["prompt_token_ids"]
    assert tokens.completion_ids == choice["token_ids"]
    assert tokens.completion_logprobs == [item["logprob"] for item in choice["logprobs"]["content"]]
    assert read_reply.tokens_missing == ""


def test_vllm_without_ids_is_an_answer_without_tokens_and_says_why(captures_folder) -> None:
    read_reply, answer = read(captures_folder / "vllm", "E_chat_logprobs", VllmChat())
    assert read_reply.generation is None
    assert "return_token_ids" in read_reply.tokens_missing
    assert read_reply.answer.parsed.content == answer["choices"][0]["message"]["content"]


def test_vllm_ids_without_logprobs_are_no_half_sample(captures_folder) -> None:
    _, _, answer = recorded(captures_folder / "vllm", "chat_token_ids_logprobs")
    answer["choices"][0]["logprobs"] = None
    found = VllmChat().read_chat(chat(max_tokens=8), reply_of(answer))
    assert found.generation is None
    assert "log-probabilities" in found.tokens_missing


@pytest.mark.parametrize("change", ["short", "long", "other"])
def test_vllm_logprobs_that_are_not_those_of_the_ids_are_an_error(captures_folder, change) -> None:
    _, _, answer = recorded(captures_folder / "vllm", "chat_token_ids_logprobs")
    items = answer["choices"][0]["logprobs"]["content"]
    if change == "short":
        items.pop()
    elif change == "long":
        items.append(items[0])
    else:
        items[0]["token"] = "token_id:1"
    with pytest.raises(AlignmentError):
        VllmChat().read_chat(chat(max_tokens=8), reply_of(answer))


def test_a_prompt_that_is_counted_otherwise_than_it_is_told_is_an_error(captures_folder) -> None:
    _, _, answer = recorded(captures_folder / "vllm", "chat_token_ids_logprobs")
    answer["usage"]["prompt_tokens"] += 1
    with pytest.raises(EvidenceError):
        VllmChat().read_chat(chat(max_tokens=8), reply_of(answer))


def test_several_choices_are_refused(captures_folder) -> None:
    _, reply, _ = recorded(captures_folder / "vllm", "chat_n2")
    with pytest.raises(MalformedReplyError, match="2 came"):
        VllmChat().read_chat(chat(), reply)


@pytest.mark.parametrize("word", ["abort", None, "error: x"])
def test_an_abort_is_an_error_and_never_a_sample(captures_folder, word) -> None:
    _, _, answer = recorded(captures_folder / "vllm", "chat_token_ids_logprobs")
    answer["choices"][0]["finish_reason"] = word
    with pytest.raises(AbortedError):
        VllmChat().read_chat(chat(max_tokens=8), reply_of(answer))


# -- Dynamo ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *(
            f"chunk{size}_{what}"
            for size in (1, 4, 64)
            for what in ("plain", "length", "unicode_cut", "think_tool")
        ),
        *(
            f"chunk{size}_{what}"
            for size in (1, 4, 64)
            for what in ("stop_str", "stop_str_partial", "stop_tok_mid")
        ),
        "toolparser_with_tools_logprobs",
    ],
)
def test_dynamo_ids_are_what_the_frontend_delivered_also_where_engine_data_is_absent_or_longer(
    captures_folder, name
) -> None:
    """Seen as a reply to messages: the prompt's ids are those that the reply tells."""
    _, _, answer = recorded(captures_folder / "dynamo", name)
    found, _ = read(captures_folder / "dynamo", name, DynamoChat())
    nvext = answer["nvext"]
    assert found.generation is not None, found.tokens_missing
    tokens = found.generation.tokens
    assert tokens.completion_ids == nvext["completion_token_ids"]
    assert tokens.prompt_ids == nvext["prompt_token_ids"]
    assert tokens.completion_logprobs == [i["logprob"] for i in answer["choices"][0]["logprobs"]["content"]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("env_dyn_disable_frontend_nvext_tito", "DYN_DISABLE_FRONTEND_NVEXT"),
        ("mk_chat_plain", "nvext"),
        ("mk4k_tito_logprobs", "without log-probabilities"),
    ],
)
def test_dynamo_without_ids_is_an_answer_without_tokens_and_says_why(captures_folder, name, words) -> None:
    found, answer = read(captures_folder / "dynamo", name, DynamoChat())
    assert found.generation is None
    assert words in found.tokens_missing
    assert found.answer.parsed.content == (answer["choices"][0]["message"]["content"] or "")


FAULTS = {
    9001: (EngineRequestError, False),
    9002: (EngineRequestError, False),
    9003: (EngineRequestError, False),
    9004: (EngineFailureError, False),
    9005: (EngineFailureError, False),
    9006: (EngineBusyError, True),
    9007: (EngineBusyError, True),
    9008: (EngineBusyError, True),
    9009: (EngineBusyError, True),
    9010: (EngineFailureError, False),
    9011: (AbortedError, False),
    9012: (EngineRequestError, False),
    9020: (EngineFailureError, False),
    9021: (EngineFailureError, False),
    9022: (AbortedError, False),
}


@pytest.mark.parametrize("seed", FAULTS)
def test_every_recorded_fault_is_one_typed_error(captures_folder, seed) -> None:
    expected, retryable = FAULTS[seed]
    sent, reply, _ = recorded(captures_folder / "dynamo", f"wkb_fault_{seed}")
    with pytest.raises(TokentrueError) as raised:
        DynamoChat().read_chat(chat(**sampling_of(sent)), reply)
    assert type(raised.value) is expected
    assert raised.value.retryable is retryable


def test_one_logprob_too_few_is_an_error(captures_folder) -> None:
    """Fault 9023, with the ids that the recorded request did not ask for: three ids, two log-probabilities."""
    sent, _, answer = recorded(captures_folder / "dynamo", "wkb_fault_9023")
    answer["nvext"] = {"completion_token_ids": [36, 34, 39], "prompt_token_ids": sent["nvext"]["token_data"]}
    answer["nvext"]["detailed_finish_reason"] = "length"
    with pytest.raises(AlignmentError, match="3 sampled ids came with 2"):
        DynamoChat().read_chat(chat(**sampling_of(sent)), reply_of(answer))


def test_a_cancelled_turn_that_is_called_stop_is_an_error_once_the_detailed_word_is_asked(captures_folder) -> None:
    """Fault 9025: 200, "stop", two ids; the request asks `detailed_finish_reason`, which tells."""
    sent, _, answer = recorded(captures_folder / "dynamo", "wkb_fault_9025")
    answer.setdefault("nvext", {})["detailed_finish_reason"] = "cancelled"
    with pytest.raises(AbortedError):
        DynamoChat().read_chat(chat(**sampling_of(sent)), reply_of(answer))


@pytest.mark.parametrize(
    ("transport", "answer", "max_tokens", "expected"),
    [
        pytest.param(
            DynamoChat(),
            {
                "message": "Invalid request",
                "code": 400,
                "details": {"type": "context_length", "limit": 2048, **told},
            },
            max_tokens,
            expected,
            id=f"dynamo-{told['actual']}-{max_tokens}",
        )
        for told, max_tokens, expected in [
            ({"actual": 3000}, None, OverlongPromptError),
            ({"actual": 3000}, 4, OverlongPromptError),
            ({"actual": 2048}, 4, OverlongPromptError),
            ({"actual": 3000}, 3000, OverlongPromptError),
            ({"actual": 2050}, 4, MaxTokensTooLargeError),
            ({"actual": 3000}, 2000, MaxTokensTooLargeError),
        ]
    ]
    + [
        pytest.param(VllmChat(), {"error": {"message": words, "code": 400}}, 100, expected, id=f"vllm-{number}")
        for number, (words, expected) in enumerate(
            [
                (
                    "This model's maximum context length is 2048 tokens. However, your prompt contains 2100 input "
                    "tokens, which exceeds this limit even without any output tokens.",
                    OverlongPromptError,
                ),
                (
                    "This model's maximum context length is 2048 tokens. However, you requested 100 output tokens "
                    "and your prompt contains at least 1949 input tokens, for a total of at least 2049 tokens.",
                    MaxTokensTooLargeError,
                ),
                (
                    "The decoder prompt (length 2100) is longer than the maximum model length of 2048.",
                    OverlongPromptError,
                ),
                (
                    "This model's maximum context length is 2048 tokens. However, you requested 2100 tokens (2000 "
                    "in the messages, 100 in the completion).",
                    MaxTokensTooLargeError,
                ),
            ]
        )
    ],
)
def test_a_long_prompt_is_told_apart_from_a_large_max_tokens(transport, answer, max_tokens, expected) -> None:
    with pytest.raises(TokentrueError) as raised:
        transport.read_chat(chat(max_tokens=max_tokens), reply_of(answer, 400))
    assert type(raised.value) is expected
    assert raised.value.limit == 2048


# -- What the engine parsed --------------------------------------------------------------------------------------


def test_the_engines_reading_reaches_the_message(captures_folder) -> None:
    found, answer = read(captures_folder / "dynamo", "toolparser_with_tools_logprobs", DynamoChat())
    wire = answer["choices"][0]["message"]
    message = found.answer.to_message("call_1")
    assert (message.content, message.reasoning_content) == (wire["content"], wire["reasoning_content"])
    assert [call.to_openai() for call in message.tool_calls] == wire["tool_calls"]
    assert found.answer.parsed.has_ok_call
    assert found.finish_reason is FinishReason.STOP, "whether it is tool_calls is decided by the calls"


@pytest.mark.parametrize(
    ("call", "status"),
    [
        ({"id": "a", "function": {"name": "get_weather", "arguments": '{"city": '}}, "invalid_json"),
        ({"id": "a", "function": {"name": "get_weather", "arguments": "3"}}, "invalid_json"),
        ({"id": "a", "function": {"name": "get_weather"}}, "invalid_json"),
        ({"id": "a", "function": {"name": "", "arguments": "{}"}}, "missing_name"),
        ({"id": "a"}, "missing_name"),
        ({"id": "a", "function": {"name": "nope", "arguments": "{}"}}, "unknown_tool"),
    ],
)
def test_a_malformed_call_keeps_its_text_and_status_and_does_not_finish_a_turn(
    captures_folder, call, status
) -> None:
    _, _, answer = recorded(captures_folder / "vllm", "chat_token_ids_logprobs")
    answer["choices"][0] |= {"message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}
    parsed = VllmChat().read_chat(chat(tools=[TOOL], max_tokens=8), reply_of(answer)).answer
    assert [each.status.value for each in parsed.parsed.tool_calls] == [status]
    assert not parsed.parsed.has_ok_call
    message = parsed.to_message("call_1")
    assert message.tool_calls or message.extra["malformed_tool_calls"][0]["status"] == status


def test_a_call_without_an_id_gets_one() -> None:
    message = {"tool_calls": [{"function": {"name": "get_weather", "arguments": "{}"}}]}
    answer = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}
    found = VllmChat().read_chat(chat(tools=[TOOL]), reply_of(answer)).answer.to_message("call_7")
    assert [call.id for call in found.tool_calls] == ["call_7_0"]


# -- What is sent ------------------------------------------------------------------------------------------------


def test_vllm_is_asked_for_ids_and_for_logprobs_that_name_them() -> None:
    body = json.loads(VllmChat().write_chat(chat(max_tokens=3, tools=[TOOL], priority=2, cache_salt="s")).body)
    assert body["return_token_ids"] is True
    assert body["return_tokens_as_token_ids"] is True
    assert body["logprobs"] is True
    assert body["stream"] is False
    assert body["max_completion_tokens"] == 3
    assert body["tools"] == [TOOL]
    assert (body["priority"], body["cache_salt"]) == (-2, "s")


def test_priority_zero_is_a_value_on_both_routes() -> None:
    assert json.loads(VllmChat().write_chat(chat(priority=0)).body)["priority"] == 0
    nvext = json.loads(DynamoChat().write_chat(chat(priority=0)).body)["nvext"]
    assert nvext["agent_hints"] == {"priority": 0}


def test_dynamo_is_asked_for_ids_beside_what_the_caller_asks_and_gets_no_token_data() -> None:
    nvext = {"extra_fields": ["timing", "engine_data"], "agent_hints": {"osl": 7}}
    asked = chat(extra_body={"nvext": nvext}, priority=3, cache_salt="17", max_tokens=2, stop_token_ids=[5])
    body = json.loads(DynamoChat().write_chat(asked).body)
    assert body["nvext"]["extra_fields"][:4] == [
        "timing",
        "engine_data",
        "completion_token_ids",
        "prompt_token_ids",
    ]
    assert body["nvext"]["agent_hints"] == {"osl": 7, "priority": 3}
    assert body["nvext"]["cache_salt"] == "17"
    assert "token_data" not in body["nvext"]
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    assert (body["max_completion_tokens"], body["stop_token_ids"], body["logprobs"]) == (2, [5], True)
    assert not {"priority", "cache_salt", "return_token_ids", "max_tokens"} & set(body)


@pytest.mark.parametrize("name", ["return_token_ids", "spaces_between_special_tokens", "bad_words", "x_foo", "n"])
def test_what_dynamo_answers_400_to_is_refused_by_name_or_left_out_when_that_is_asked(name, caplog) -> None:
    value = 2 if name == "n" else True
    with pytest.raises(UnsupportedParameterError, match=name):
        DynamoChat().write_chat(chat(**{name: value}))
    lenient = DynamoChat(on_unsupported=OnUnsupported.WARN)
    assert name not in json.loads(lenient.write_chat(chat(**{name: value})).body)


def test_what_is_left_out_is_logged_once(caplog) -> None:
    lenient = VllmChat(on_unsupported=OnUnsupported.WARN)
    for _ in range(2):
        lenient.write_chat(chat(a_parameter_of_this_test=1))
    assert [line.getMessage() for line in caplog.records if "a_parameter_of_this_test" in line.getMessage()][
        1:
    ] == []


def test_everything_that_is_sent_to_vllm_chat_is_a_field_of_its_request(captures_folder) -> None:
    found = json.loads((captures_folder / "vllm" / "openapi_full.json").read_text())
    schemas = found.get("response", {}).get("body", found)["components"]["schemas"]
    known = set(schemas["ChatCompletionRequest"]["properties"])
    sent = {fate.path[0] for fate in TABLES["vllm chat"].values() if isinstance(fate, Sent)}
    assert sent <= known, sent - known


@pytest.mark.parametrize("where", ["vllm chat", "dynamo chat"])
def test_no_fixed_or_refused_key_of_the_body_can_be_given_by_a_caller(where) -> None:
    transport = {"vllm chat": VllmChat(), "dynamo chat": DynamoChat()}[where]
    for name in ("messages", "tools", "stream", "model", "token_ids"):
        with pytest.raises(UnsupportedParameterError, match=name):
            transport.write_chat(ChatRequest("tiny", ASKED, SamplingParams(extra={name: "x"})))


def test_what_only_this_package_writes_into_a_message_is_not_sent() -> None:
    asked = ChatRequest("m", messages_from([{"role": "assistant", "content": "x", "malformed_tool_calls": [{}]}]))
    assert json.loads(VllmChat().write_chat(asked).body)["messages"] == [{"role": "assistant", "content": "x"}]


# -- /v1/chat/completions/tokens ---------------------------------------------------------------------------------


def test_ids_travel_beside_the_messages_and_must_be_echoed(captures_folder) -> None:
    _, _, answer = recorded(captures_folder / "vllm", "chat_token_ids_logprobs")
    request = GenerateRequest("tiny", TokenIds(answer["prompt_token_ids"]), SamplingParams(max_tokens=8))
    call = VllmChat().write_chat_tokens(request, ASKED)
    assert call.path == "/v1/chat/completions/tokens"
    assert json.loads(call.body)["tokens"] == answer["prompt_token_ids"]
    found = VllmChat().read_chat_tokens(request, reply_of(answer))
    assert found.generation.tokens.completion_ids == answer["choices"][0]["token_ids"]
    for wrong in (None, [*answer["prompt_token_ids"][:-1], 3]):
        answer["prompt_token_ids"] = wrong
        with pytest.raises(EvidenceError):
            VllmChat().read_chat_tokens(request, reply_of(answer))


@pytest.mark.parametrize("text", ["{}", '{"city": "Par"}'])
def test_a_call_that_the_engine_made_of_a_truncated_answer_is_kept_as_text_only(captures_folder, text) -> None:
    """Dynamo's hermes parser closes what `max_tokens` cut off, so the arguments are not the model's."""
    _, _, answer = recorded(captures_folder / "vllm", "S_chat_forced_toolcall")
    choice = answer["choices"][0]
    calls = [{"id": f"c{n}", "type": "function", "function": {"name": "get_weather"}} for n in range(2)]
    calls[0]["function"]["arguments"] = '{"city": "Rome"}'
    calls[1]["function"]["arguments"] = text
    choice["message"]["tool_calls"], choice["finish_reason"] = calls, "length"
    message = VllmChat().read_chat(chat(), reply_of(answer)).answer.to_message("call_1")
    assert [(call.id, call.arguments) for call in message.tool_calls] == [("c0", '{"city": "Rome"}')]
    (malformed,) = message.extra[MALFORMED_KEY]
    assert malformed["status"] == "unclosed"
    assert json.dumps(text) in malformed["raw"]
