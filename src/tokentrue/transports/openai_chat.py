"""`POST /v1/chat/completions` with messages: the engine renders the prompt, and tells its ids.

On vLLM the ids are asked with `return_token_ids` and come as `prompt_token_ids` and `choices[0].token_ids`; on
Dynamo with `nvext.extra_fields`, and come in `nvext`; SGLang's codec is in `sglang.py`. Once a reply has told
the prompt's ids, laws 3 and 4 are checked by the same code as for a prompt that was sent as ids. A reply that
carries no ids is an answer without tokens and says why; a reply whose ids contradict each other is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from tokentrue.errors import EmptyCompletionError, EvidenceError, MalformedReplyError
from tokentrue.generation import (
    ChatRequest,
    FinishReason,
    GenerateRequest,
    Generation,
    PartialGeneration,
    Usage,
    make_tokens,
)
from tokentrue.messages import Message
from tokentrue.rendering.formats.parsed import CallStatus, ParsedToolCall, judged, schemas_of
from tokentrue.rendering.formats.reasoning import ReasoningState
from tokentrue.rendering.reader import MALFORMED_KEY, ParsedResponse
from tokentrue.tokens import TokenIds
from tokentrue.transports import dynamo, vllm
from tokentrue.transports.bodies import JSON_HEADERS, check_prompt, json_bytes, with_ids
from tokentrue.transports.dynamo import CHAT_PATH, DynamoTransport, NvextWire, nvext_and_body
from tokentrue.transports.evidence import (
    NOT_THERE,
    LogprobsWire,
    UsageWire,
    check_completion,
    check_partial,
    check_prompt_count,
    check_stop,
    check_values,
    decoded_ids,
    echo_equals,
    finish_reason_from,
    finish_reason_or,
    is_absent,
    paired_logprobs,
    prompt_logprobs_from,
    stop_reason_from,
)
from tokentrue.transports.parameters import DYNAMO_CHAT, VLLM_CHAT, OnUnsupported, place_parameters
from tokentrue.transports.refusals import AnyRequest, ServerWords, refusal, unreadable
from tokentrue.transports.transport import HttpCall, HttpReply

CHAT_TOKENS_PATH = "/v1/chat/completions/tokens"

_ADVICE = "this route must use the ids in `tokens`; if it renders the messages instead, do not use it"


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: Any = None


class _Call(msgspec.Struct):
    id: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class ChoiceWire(msgspec.Struct):
    """One choice; the last three are SGLang's."""

    message: _Message
    finish_reason: str | None = None
    logprobs: LogprobsWire | None = None
    token_ids: list[int] | None = None
    stop_reason: int | str | None = None
    response_token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    meta_info: msgspec.Raw = NOT_THERE


class ReplyWire(msgspec.Struct):
    """A chat completion of any of the engines."""

    choices: list[ChoiceWire]
    id: str | None = None
    model: str | None = None
    usage: UsageWire | None = None
    prompt_token_ids: msgspec.Raw = NOT_THERE
    prompt_logprobs: msgspec.Raw = NOT_THERE
    nvext: NvextWire | None = None


_DECODER = msgspec.json.Decoder(ReplyWire)


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """An assistant message as the engine parsed it.

    In an answer that `max_tokens` ended the last call is `UNCLOSED`: what the engine shows of it may be made up.
    """

    parsed: ParsedResponse
    call_ids: tuple[str | None, ...]

    def to_message(self, call_id_prefix: str) -> Message:
        """The message; a call keeps the engine's id, or gets `<prefix>_<index>`."""
        message = self.parsed.to_message(call_id_prefix)
        own = {f"{call_id_prefix}_{index}": call_id for index, call_id in enumerate(self.call_ids) if call_id}
        calls = tuple(replace(call, id=own.get(call.id or "", call.id)) for call in message.tool_calls)
        return replace(message, tool_calls=calls)


@dataclass(frozen=True, slots=True)
class ChatReply:
    """One chat completion.

    Args:
        answer: What the engine reads in its own completion.
        finish_reason: `STOP` or `LENGTH`; whether it is `TOOL_CALLS` follows from the answer.
        generation: The ids, after laws 3 and 4 were checked; None when the reply carries none.
        tokens_missing: Why `generation` is None; "" when it is there.
        answered_by: The endpoint of a fleet that sampled it.
    """

    answer: EngineAnswer
    finish_reason: FinishReason
    generation: Generation | None
    tokens_missing: str
    id: str
    model: str
    usage: Usage
    answered_by: str = ""


class ChatTransport(Protocol):
    """Writes chat requests for one engine and reads its replies; pure, stateless."""

    @property
    def name(self) -> str:
        """The table of its parameters, in `parameters.TABLES`."""
        ...

    def write_chat(self, request: ChatRequest) -> HttpCall:
        """The bytes that ask for the next assistant message, with its ids.

        Raises:
            UnsupportedParameterError: The engine has no place for a parameter.
        """
        ...

    def read_chat(self, request: ChatRequest, reply: HttpReply) -> ChatReply:
        """The answer in `reply`, with laws 3 and 4 checked where it carries ids.

        Raises:
            EngineError, OverlongPromptError: Whatever else the reply is; see `tokentrue.errors`.
        """
        ...


@dataclass(frozen=True, slots=True)
class VllmChat:
    """Chat completions as vLLM 0.16 to 0.33 serves them."""

    name: str = "vllm chat"
    on_unsupported: OnUnsupported = OnUnsupported.RAISE

    def write_chat(self, request: ChatRequest) -> HttpCall:
        """See `ChatTransport`. Each log-probability is asked to name its id, which is how law 3 is proved."""
        return _post(CHAT_PATH, json_bytes(self._body(request), self.name))

    def read_chat(self, request: ChatRequest, reply: HttpReply) -> ChatReply:
        """See `ChatTransport`."""
        answer = decoded_chat(request, reply, vllm.WORDS)
        choice = only_choice(answer)
        missing = _vllm_missing(answer, choice)
        prompt_ids = decoded_ids(answer.prompt_token_ids, "prompt_token_ids") or []
        told = GenerateRequest(request.model, TokenIds(prompt_ids), request.sampling)
        finish_reason = finish_reason_or(
            choice.finish_reason, lambda: _vllm_partial(told, answer, choice, missing)
        )
        if missing:
            return chat_reply(request, answer, finish_reason, None, missing)
        return chat_reply(request, answer, finish_reason, _vllm_generation(told, answer, choice, finish_reason))

    def write_chat_tokens(self, request: GenerateRequest, messages: Sequence[Message]) -> HttpCall:
        """The bytes for `/v1/chat/completions/tokens`: the chat body, with the prompt's ids in `tokens`.

        Raises:
            UnsupportedParameterError: The engine has no place for a parameter.
            InvalidTokenIdError: The prompt is empty or has an id outside the vocabulary.
        """
        check_prompt(request)
        chat = ChatRequest(request.model, tuple(messages), request.sampling, request.tools)
        rest = json_bytes(self._body(chat), self.name)
        return _post(CHAT_TOKENS_PATH, with_ids("tokens", request.prompt_ids.json_items(), rest))

    def read_chat_tokens(self, request: GenerateRequest, reply: HttpReply) -> ChatReply:
        """The answer to `write_chat_tokens`.

        The messages that travel beside the ids render to about as many tokens, so that a count proves nothing
        here: the prompt's ids must be echoed.

        Raises:
            EvidenceError: The reply does not show that the ids were used.
            EngineError, OverlongPromptError: Whatever else the reply is.
        """
        answer = decoded_chat(request, reply, vllm.WORDS)
        choice = only_choice(answer)
        missing = _vllm_missing(answer, choice)
        finish_reason = finish_reason_or(
            choice.finish_reason, lambda: _vllm_partial(request, answer, choice, missing)
        )
        check_prompt_count(request, answer.usage, _ADVICE)
        if not echo_equals(request, answer.prompt_token_ids, "prompt_token_ids", _ADVICE):
            raise EvidenceError(f"the reply does not echo the prompt's ids; {_ADVICE}", status=200)
        if missing:
            raise EvidenceError(missing, status=200)
        generation = _vllm_generation(request, answer, choice, finish_reason)
        return chat_reply(request, answer, finish_reason, generation)

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        placed = place_parameters(request.sampling, VLLM_CHAT, self.name, self.on_unsupported)
        body = chat_body(request)
        return {**body, "return_token_ids": True, "return_tokens_as_token_ids": True, **placed}


@dataclass(frozen=True, slots=True)
class DynamoChat:
    """Chat completions as Dynamo 1.3 and later serve them."""

    name: str = "dynamo chat"
    on_unsupported: OnUnsupported = OnUnsupported.RAISE

    def write_chat(self, request: ChatRequest) -> HttpCall:
        """See `ChatTransport`. `nvext.token_data` is left out: an empty list would be a prompt of no ids."""
        nvext, placed = nvext_and_body(request.sampling, DYNAMO_CHAT, self.name, self.on_unsupported)
        return _post(CHAT_PATH, json_bytes({**chat_body(request), **placed, "nvext": nvext}, self.name))

    def read_chat(self, request: ChatRequest, reply: HttpReply) -> ChatReply:
        """See `ChatTransport`."""
        answer = decoded_chat(request, reply, dynamo.WORDS)
        choice = only_choice(answer)
        finish_reason = finish_reason_from(choice.finish_reason)
        prompt_ids, missing = _dynamo_prompt_ids(answer)
        if missing:
            _check_dynamo_word(answer, finish_reason)
            return chat_reply(request, answer, finish_reason, None, missing)
        told = GenerateRequest(request.model, TokenIds(prompt_ids), request.sampling)
        generation = DynamoTransport().read_generate(told, reply)
        return chat_reply(request, answer, finish_reason, generation)


def read_answer(request: AnyRequest, reply: HttpReply, words: ServerWords) -> EngineAnswer:
    """The assistant message of a chat completion whose ids are read elsewhere.

    Raises:
        EngineError, OverlongPromptError: The reply is something else.
    """
    return _engine_answer(only_choice(decoded_chat(request, reply, words)), request.tools)


def wire_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as they are sent, without what only this package writes into them."""
    return [{k: v for k, v in message.to_openai().items() if k != MALFORMED_KEY} for message in messages]


def _post(path: str, body: bytes) -> HttpCall:
    return HttpCall("POST", path, body=body, headers=JSON_HEADERS, idempotent=True)


def chat_body(request: ChatRequest) -> dict[str, Any]:
    """What every engine is asked in the same words."""
    body: dict[str, Any] = {"model": request.model, "messages": wire_messages(request.messages)}
    if request.tools:
        body["tools"] = request.tools
    return {**body, "stream": False, "logprobs": True}


def decoded_chat(request: AnyRequest, reply: HttpReply, words: ServerWords) -> ReplyWire:
    """The chat completion in `reply`.

    Raises:
        EngineError, OverlongPromptError: The reply is something else.
    """
    refused = refusal(reply, request, words)
    if refused is not None:
        raise refused
    try:
        return _DECODER.decode(reply.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise unreadable(reply, request, words, str(exc)) from exc


def only_choice(answer: ReplyWire) -> ChoiceWire:
    """Its one choice.

    Raises:
        MalformedReplyError: There are more, or none.
    """
    if len(answer.choices) != 1:
        raise MalformedReplyError(f"one completion was asked for, {len(answer.choices)} came", status=200)
    return answer.choices[0]


def chat_reply(
    request: AnyRequest,
    answer: ReplyWire,
    finish_reason: FinishReason,
    generation: Generation | None,
    tokens_missing: str = "",
) -> ChatReply:
    """The answer as a value of the vocabulary.

    Raises:
        EmptyCompletionError: The engine counts no sampled id, and tells none.
    """
    usage = answer.usage.usage() if answer.usage is not None else Usage()
    if generation is None and usage.completion_tokens == 0:
        raise EmptyCompletionError("the engine finished without sampling a single id")
    return ChatReply(
        answer=_engine_answer(answer.choices[0], request.tools),
        finish_reason=finish_reason,
        generation=generation,
        tokens_missing=tokens_missing,
        id=answer.id or "",
        model=answer.model or "",
        usage=usage,
    )


def _engine_answer(choice: ChoiceWire, tools: Sequence[Mapping[str, Any]]) -> EngineAnswer:
    schemas, message = schemas_of(tools), choice.message
    calls = message.tool_calls or []
    read = [judged(_parsed_call(call), schemas) for call in calls]
    if read and choice.finish_reason == "length":
        # Dynamo's hermes parser completes what was cut off: half a call comes as `{}`, or as `{"b": 2}` for 23.
        read[-1] = ParsedToolCall(read[-1].raw, CallStatus.UNCLOSED, read[-1].name)
    reasoning = message.reasoning_content if message.reasoning_content is not None else message.reasoning
    parsed = ParsedResponse(
        content=message.content or "",
        reasoning_content=reasoning,
        reasoning=ReasoningState.ABSENT if reasoning is None else ReasoningState.CLOSED,
        tool_calls=tuple(read),
        stop_id=None,
    )
    return EngineAnswer(parsed, tuple(call.id for call in calls))


def _parsed_call(call: _Call) -> ParsedToolCall:
    """The call with its status. Arguments that are no JSON object are kept in `raw`, never replaced."""
    function = call.function if call.function is not None else _Function()
    given = function.arguments
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    raw = json.dumps({"name": function.name, "arguments": given}, ensure_ascii=False)
    if not function.name:
        return ParsedToolCall(raw, CallStatus.MISSING_NAME)
    try:
        is_object = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        return ParsedToolCall(raw, CallStatus.INVALID_JSON, name=function.name)
    return ParsedToolCall(raw, CallStatus.OK, function.name, text)


def _vllm_missing(answer: ReplyWire, choice: ChoiceWire) -> str:
    if choice.token_ids is None or is_absent(answer.prompt_token_ids):
        return "the server did not return token ids: it does not know `return_token_ids`"
    if choice.logprobs is None or choice.logprobs.content is None:
        return "the ids came without log-probabilities"
    return ""


def _vllm_generation(
    request: GenerateRequest, answer: ReplyWire, choice: ChoiceWire, finish_reason: FinishReason
) -> Generation:
    ids = choice.token_ids or []
    check_prompt_count(request, answer.usage, "the ids that it tells are not those that it used")
    check_completion(request, ids, answer.usage)
    check_stop(request, ids, finish_reason, choice.stop_reason)
    return Generation(
        tokens=make_tokens(request.prompt_ids, ids, _vllm_logprobs(ids, choice.logprobs)),
        finish_reason=finish_reason,
        stop_reason=stop_reason_from(choice.finish_reason, choice.stop_reason),
        request_id=answer.id or "",
        model=answer.model or "",
        usage=answer.usage.usage() if answer.usage is not None else Usage(),
        prompt_ids_echoed=True,
        text=choice.message.content,
        prompt_logprobs=prompt_logprobs_from(request, answer.prompt_logprobs),
    )


def _vllm_partial(
    request: GenerateRequest, answer: ReplyWire, choice: ChoiceWire, missing: str
) -> PartialGeneration:
    """What was sampled before an end that nobody knows."""
    ids = choice.token_ids or []
    if missing or not echo_equals(request, answer.prompt_token_ids, "prompt_token_ids", _ADVICE):
        raise EvidenceError(missing or "the reply does not echo the prompt's ids", status=200)
    check_partial(request, ids, answer.usage)
    return PartialGeneration(
        tokens=make_tokens(request.prompt_ids, ids, _vllm_logprobs(ids, choice.logprobs) if ids else []),
        request_id=answer.id or "",
        usage=answer.usage.usage() if answer.usage is not None else Usage(),
    )


def _vllm_logprobs(ids: Sequence[int], wire: LogprobsWire | None) -> list[float]:
    """As `paired_logprobs`; where not one item names an id (the text of the token instead), by count alone."""
    items = wire.content if wire is not None else None
    if items and len(items) == len(ids) and all(item.maybe_id() is None for item in items):
        return check_values([item.logprob for item in items])
    return paired_logprobs(ids, wire)


def _dynamo_prompt_ids(answer: ReplyWire) -> tuple[list[int], str]:
    """The ids that the frontend rendered, and "" — or why this reply makes no sample."""
    nvext = answer.nvext
    if nvext is None:
        return (
            [],
            "the reply has no nvext: the frontend has DYN_DISABLE_FRONTEND_NVEXT set, or is no Dynamo >= 1.3",
        )
    worker = nvext.engine_data
    told = decoded_ids(nvext.prompt_token_ids, "nvext.prompt_token_ids")
    if told is None and worker is not None:
        told = decoded_ids(worker.prompt_token_ids, "nvext.engine_data.prompt_token_ids")
    if not told:
        return [], "the reply tells no prompt ids: neither the frontend (1.5 and later) nor the worker gave them"
    sampled = nvext.completion_token_ids is not None or (
        worker is not None and worker.completion_token_ids is not None
    )
    if not sampled:
        return [], "the reply tells no sampled ids"
    by_worker = worker is not None and worker.completion_logprobs is not None
    choice_logprobs = answer.choices[0].logprobs
    if not by_worker and (choice_logprobs is None or choice_logprobs.content is None):
        return [], "the ids came without log-probabilities"
    return told, ""


def _check_dynamo_word(answer: ReplyWire, finish_reason: FinishReason) -> None:
    """Without ids, too, a turn that was given up is none.

    Raises:
        AbortedError: The frontend's detailed word, or the worker, says so.
        MalformedReplyError: Two finish reasons contradict each other.
    """
    nvext = answer.nvext
    if nvext is None:
        return
    if nvext.engine_data is not None and nvext.engine_data.finished is False:
        finish_reason_from("cancelled")
    word = nvext.detailed_finish_reason
    if word is not None and finish_reason_from("stop" if word == "eos" else word) is not finish_reason:
        raise MalformedReplyError(f"finish_reason {finish_reason.value!r} contradicts {word!r}", status=200)
