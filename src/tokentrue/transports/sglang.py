"""SGLang's own route, `POST /generate`: token ids in, token ids out; and its chat route.

Written from recorded replies of SGLang 0.5.23. What differs from vLLM, all of it measured there:

- **An id outside the vocabulary kills the server**, for everybody: its scheduler indexes out of range. So
  nothing is sent before every id has been held against `GenerateRequest.vocab_size`, which is demanded here.
- **`max_new_tokens` left out means 128**, not the room. So it is always sent: what the caller asked for, or the
  room.
- **Log-probabilities are those at the temperature that was sampled at.** At another temperature than 1 (or 0,
  which is greedy) they are not the log-softmax of the logits.
- The stop id is the last of `output_ids`, with a log-probability; a stop string leaves all its ids there.
- Errors come as `{"error": {"message"}}`, `{"error": "..."}` and `{"object": "error", "message"}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tokentrue.errors import (
    AbortedError,
    AlignmentError,
    EvidenceError,
    InvalidSamplingError,
    InvalidTokenIdError,
    MalformedReplyError,
    UnknownFinishError,
)
from tokentrue.generation import (
    ChatRequest,
    FinishReason,
    GenerateRequest,
    Generation,
    PartialGeneration,
    PromptLogprobs,
    Usage,
    make_tokens,
)
from tokentrue.tokens import TokenIds
from tokentrue.transports.bodies import JSON_HEADERS, check_prompt, json_bytes, with_ids
from tokentrue.transports.evidence import (
    NOT_THERE,
    SpanWire,
    aborted_with,
    asks_prompt_logprobs,
    check_completion,
    check_partial,
    check_prompt_count,
    check_stop,
    check_values,
    echo_equals,
    finish_reason_from,
    is_absent,
    weight_spans_from,
)
from tokentrue.transports.models import models_call, read_model_cards
from tokentrue.transports.openai_chat import (
    ChatReply,
    chat_body,
    chat_reply,
    decoded_chat,
    only_choice,
)
from tokentrue.transports.parameters import SGLANG, SGLANG_CHAT, OnUnsupported, place_parameters
from tokentrue.transports.refusals import AnyRequest, ServerWords, refusal, reported_inside, unreadable
from tokentrue.transports.transport import HttpCall, HttpReply, ModelCard

GENERATE_PATH = "/generate"
CHAT_PATH = "/v1/chat/completions"

WORDS = ServerWords(
    name="SGLang",
    route_advice="this path is served by `python -m sglang.launch_server`; check the base URL",
)
_ADVICE = "whatever answers here is no SGLang"
_NAN = "NaN happened"
"""The stop string that SGLang names when its logits were not numbers."""

Item = tuple[float | None, int, str | None]
"""Log-probability, id, and the id's text when that was asked for."""


class _Finish(msgspec.Struct):
    type: str
    matched: int | str | None = None
    length: int | None = None
    message: str | None = None
    status_code: int | None = None


class _Meta(msgspec.Struct):
    """`meta_info`."""

    finish_reason: _Finish | None = None
    id: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    dp_rank: int | None = None
    weight_versions: list[SpanWire] | None = None
    output_token_logprobs: list[Item] | None = None
    input_token_logprobs: msgspec.Raw = NOT_THERE

    def usage(self) -> Usage:
        """The counts as a value of the vocabulary."""
        return Usage(self.prompt_tokens, self.completion_tokens, self.cached_tokens)


class _Reply(msgspec.Struct):
    output_ids: list[int]
    meta_info: _Meta
    text: str | None = None
    prompt_token_ids: msgspec.Raw = NOT_THERE


_DECODER = msgspec.json.Decoder(_Reply)
_META = msgspec.json.Decoder(_Meta)
_ITEMS = msgspec.json.Decoder(list[Item])


@dataclass(frozen=True, slots=True)
class SglangTransport:
    """The codec that `renderer_transport="sglang"` selects.

    Args:
        on_unsupported: What a parameter that this route cannot take does.
        data_parallel_rank: The replica of every request; this route reads it from the body alone.
    """

    name: str = "sglang"
    on_unsupported: OnUnsupported = OnUnsupported.RAISE
    data_parallel_rank: int | None = None

    def write_generate(self, request: GenerateRequest) -> HttpCall:
        """The bytes that ask for one completion of exactly `request.prompt_ids`.

        Without `max_tokens` the room is asked for, less one: releases before 0.5.20 refuse a prompt and a
        completion that fill the context together, and later ones do not sample the last token either.
        `priority` keeps its sign: SGLang serves higher numbers first.

        Raises:
            UnsupportedParameterError: A parameter has no place (`transports/parameters.py`).
            InvalidTokenIdError: The prompt is empty, an id is outside the vocabulary, or how large that is is not
                known.
            InvalidSamplingError: There is no `max_tokens`, and the context limit is not known.
        """
        _check_ids(request)
        body = place_parameters(request.sampling, SGLANG, self.name, self.on_unsupported)
        asked = body.pop("sampling_params", {})
        sampling = {"skip_special_tokens": False, "max_new_tokens": _max_new_tokens(request), **asked}
        if self.data_parallel_rank is not None:
            body.setdefault("routed_dp_rank", self.data_parallel_rank)
        body = {"sampling_params": sampling, "return_logprob": True, "return_prompt_token_ids": True, **body}
        return HttpCall(
            "POST",
            GENERATE_PATH,
            body=with_ids("input_ids", request.prompt_ids.json_items(), json_bytes(body, self.name)),
            headers=JSON_HEADERS,
            idempotent=True,
        )

    def read_generate(self, request: GenerateRequest, reply: HttpReply) -> Generation:
        """The completion in `reply`, with laws 3 and 4 checked against `request`.

        Raises:
            EngineError, OverlongPromptError: The reply is an error, or contradicts what was asked.
            AlignmentError: Log-probabilities are missing or are not those of the sampled ids, or of the prompt's.
            EmptyCompletionError: No id was sampled.
        """
        answer = _decoded(request, reply)
        meta = answer.meta_info
        try:
            finish_reason = _finish_reason(meta, request, reply, answer.output_ids)
        except (AbortedError, UnknownFinishError) as exc:
            if meta.finish_reason is None:
                raise
            raise aborted_with(exc, lambda: _partial(request, answer, meta)) from None
        if meta.prompt_tokens is None:
            raise EvidenceError(f"the reply does not count the prompt's tokens; {_ADVICE}", status=200)
        echoed = echo_equals(request, answer.prompt_token_ids, "prompt_token_ids", _ADVICE)
        stop_reason = _checked(request, answer.output_ids, meta, finish_reason)
        _check_asked_back(request, meta, self.data_parallel_rank)
        if not (isinstance(stop_reason, str) and request.sampling.extra.get("stop_regex")):
            check_stop(request, answer.output_ids, finish_reason, stop_reason)
        return _generation(request, answer.output_ids, meta, finish_reason, echoed, answer.text)

    def write_models(self) -> HttpCall:
        """The request for the list of served models."""
        return models_call()

    def read_models(self, reply: HttpReply) -> tuple[ModelCard, ...]:
        """The served models.

        Raises:
            EngineError: The reply is no model list.
        """
        return read_model_cards(reply, WORDS)


@dataclass(frozen=True, slots=True)
class SglangChat:
    """Chat completions as SGLang serves them, with the ids of the prompt and of the answer; never streamed."""

    name: str = "sglang chat"
    on_unsupported: OnUnsupported = OnUnsupported.RAISE

    def write_chat(self, request: ChatRequest) -> HttpCall:
        """See `ChatTransport`. `meta_info` is asked for: there each log-probability names its id."""
        placed = place_parameters(request.sampling, SGLANG_CHAT, self.name, self.on_unsupported)
        told = {"return_token_ids": True, "return_prompt_token_ids": True, "return_meta_info": True}
        body = json_bytes({**chat_body(request), **told, **placed}, self.name)
        return HttpCall("POST", CHAT_PATH, body, JSON_HEADERS, idempotent=True)

    def read_chat(self, request: ChatRequest, reply: HttpReply) -> ChatReply:
        """See `ChatTransport`."""
        answer = decoded_chat(request, reply, WORDS)
        choice = only_choice(answer)
        finish_reason = finish_reason_from(choice.finish_reason)
        if choice.response_token_ids is None or choice.prompt_token_ids is None:
            missing = "the server did not return token ids: it does not know `return_token_ids`"
            return chat_reply(request, answer, finish_reason, None, missing)
        if is_absent(choice.meta_info):
            missing = "the ids came without log-probabilities: the server does not know `return_meta_info`"
            return chat_reply(request, answer, finish_reason, None, missing)
        meta = _decoded_meta(choice.meta_info)
        told = GenerateRequest(request.model, TokenIds(choice.prompt_token_ids), request.sampling)
        if _finish_reason(meta, request, reply) is not finish_reason:
            raise MalformedReplyError(
                f"finish_reason {choice.finish_reason!r} contradicts that of meta_info, {meta.finish_reason!r}",
                status=200,
            )
        check_prompt_count(told, answer.usage, "the ids that it tells are not those that it used")
        check_completion(told, choice.response_token_ids, answer.usage)
        _checked(told, choice.response_token_ids, meta, finish_reason)
        generation = _generation(
            told, choice.response_token_ids, meta, finish_reason, echoed=True, text=choice.message.content
        )
        return chat_reply(request, answer, finish_reason, generation)


def _check_ids(request: GenerateRequest) -> None:
    """Refuse what would take the server down.

    Raises:
        InvalidTokenIdError: See `SglangTransport.write_generate`.
    """
    if request.vocab_size is None:
        raise InvalidTokenIdError(
            "SGLang dies of an id outside its vocabulary, and how large that is is not known here, so the ids "
            "cannot be checked: give GenerateRequest.vocab_size (a renderer's `vocab_size`)"
        )
    check_prompt(request)
    biased = request.sampling.logit_bias or {}
    scored = request.sampling.extra.get("token_ids_logprob") or ()
    for name, ids in (("logit_bias", biased), ("token_ids_logprob", scored)):
        for given in ids:
            token_id = int(given) if isinstance(given, str) and given.isdecimal() else given
            if not isinstance(token_id, int) or not 0 <= token_id < request.vocab_size:
                raise InvalidTokenIdError(
                    f"{name} has {given!r}, which is no id of the vocabulary of {request.vocab_size}"
                )


def _max_new_tokens(request: GenerateRequest) -> int:
    asked = request.sampling.max_tokens
    if asked is not None:
        return asked
    if request.context_limit is None:
        raise InvalidSamplingError(
            "max_tokens is not given, and the engine does not tell its context limit: SGLang would stop after 128 "
            "tokens without a word; give max_tokens"
        )
    return max(request.context_limit - len(request.prompt_ids) - 1, 1)


def _decoded(request: GenerateRequest, reply: HttpReply) -> _Reply:
    refused = refusal(reply, request, WORDS)
    if refused is not None:
        raise refused
    try:
        return _DECODER.decode(reply.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise unreadable(reply, request, WORDS, str(exc)) from exc


def _decoded_meta(raw: msgspec.Raw) -> _Meta:
    try:
        return _META.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise MalformedReplyError(f"meta_info cannot be read: {exc}", status=200) from exc


def _finish_reason(meta: _Meta, request: AnyRequest, reply: HttpReply, ids: Sequence[int] = ()) -> FinishReason:
    """Why sampling ended; an abort keeps what the engine says of it.

    An abort with a status is a refusal where nothing was sampled. With `ids` it is a turn that was given up half
    way, whatever the status: to call it busy would have it sampled anew.

    Raises:
        AbortedError, EngineError, OverlongPromptError: The turn was given up, or refused inside a 200.
    """
    told = meta.finish_reason
    if told is not None and told.type == "abort":
        if told.status_code is not None and not ids:
            raise reported_inside(told.message or "", told.status_code, reply, request, WORDS)
        status = 200 if told.status_code is None else told.status_code
        raise AbortedError("the engine gave up the turn", status=status, detail=told.message or "")
    return finish_reason_from(told.type if told is not None else None)


def _checked(
    request: GenerateRequest, ids: Sequence[int], meta: _Meta, finish_reason: FinishReason
) -> int | str | None:
    """What stopped it, after the counts and `finish_reason` were held against the ids.

    Raises:
        EmptyCompletionError, EvidenceError, MalformedReplyError: They contradict each other.
    """
    check_prompt_count(request, meta, _ADVICE)
    told = meta.finish_reason
    check_completion(request, ids, meta, told.matched if told is not None else None)
    if told is None:
        return None
    if finish_reason is FinishReason.LENGTH and told.length is not None and told.length != len(ids):
        raise EvidenceError(
            f"the engine says that it stopped at {told.length} ids, and {len(ids)} came", status=200
        )
    if finish_reason is FinishReason.STOP and told.matched is None:
        raise EvidenceError("the engine says that it stopped, and not at what", status=200)
    if told.matched == _NAN and _NAN not in request.sampling.stop:
        raise EvidenceError("the engine stopped because its logits were not numbers (NaN)", status=200)
    return told.matched


def _check_asked_back(request: GenerateRequest, meta: _Meta, rank: int | None) -> None:
    """The request's own id and replica, where the caller named them."""
    extra = request.sampling.extra
    own_id = extra.get("request_id", extra.get("rid"))
    if own_id is not None and meta.id != own_id:
        raise EvidenceError(f"request_id {own_id!r} was sent, and the reply is to {meta.id!r}", status=200)
    asked = extra.get("data_parallel_rank", rank)
    if asked is not None and meta.dp_rank is not None and meta.dp_rank != asked:
        raise EvidenceError(f"replica {asked} was asked for, and {meta.dp_rank} answered", status=200)


def _generation(
    request: GenerateRequest,
    ids: Sequence[int],
    meta: _Meta,
    finish_reason: FinishReason,
    echoed: bool,
    text: str | None,
) -> Generation:
    return Generation(
        tokens=make_tokens(request.prompt_ids, ids, _logprobs(ids, meta.output_token_logprobs)),
        finish_reason=finish_reason,
        stop_reason=meta.finish_reason.matched if meta.finish_reason is not None else None,
        request_id=meta.id,
        usage=meta.usage(),
        prompt_ids_echoed=echoed,
        weight_spans=weight_spans_from(meta.weight_versions),
        text=text,
        prompt_logprobs=_prompt_logprobs(request, meta.input_token_logprobs),
    )


def _partial(request: GenerateRequest, answer: _Reply, meta: _Meta) -> PartialGeneration:
    check_prompt_count(request, meta, _ADVICE)
    echo_equals(request, answer.prompt_token_ids, "prompt_token_ids", _ADVICE)
    ids = answer.output_ids
    check_partial(request, ids, meta)
    return PartialGeneration(
        tokens=make_tokens(request.prompt_ids, ids, _logprobs(ids, meta.output_token_logprobs) if ids else []),
        request_id=meta.id,
        usage=meta.usage(),
        weight_spans=weight_spans_from(meta.weight_versions) if ids else (),
    )


def _logprobs(ids: Sequence[int], items: Sequence[Item] | None) -> list[float]:
    """One log-probability for each sampled id, each item having named its id (law 3).

    Raises:
        AlignmentError: They are missing, fewer or more, or an item is about another id.
    """
    if items is None:
        raise AlignmentError(f"{len(ids)} sampled ids came without log-probabilities", status=200)
    return _paired(ids, items, "position")


def _paired(ids: Sequence[int], items: Sequence[Item], place: str, start: int = 0) -> list[float]:
    if len(items) != len(ids):
        raise AlignmentError(f"{len(ids)} ids came with {len(items)} log-probabilities", status=200)
    for position, (token_id, item) in enumerate(zip(ids, items, strict=True), start):
        if item[1] != token_id:
            raise AlignmentError(
                f"{place} {position} has the id {token_id}, and its log-probability is for {item[1]}", status=200
            )
    return check_values([item[0] for item in items], place, start)


def _prompt_logprobs(request: GenerateRequest, raw: msgspec.Raw) -> PromptLogprobs | None:
    """The log-probability of each prompt id; None when they were not asked for.

    Raises:
        EvidenceError: They were asked for and are not there.
        AlignmentError: There is not one for each id, or one is about another id.
        MalformedReplyError: It is no list of them.
    """
    if not asks_prompt_logprobs(request.sampling):
        return None
    if is_absent(raw):
        raise EvidenceError("prompt_logprobs were asked for, and the reply has none", status=200)
    try:
        items = _ITEMS.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise MalformedReplyError(f"input_token_logprobs cannot be read: {exc}", status=200) from exc
    if items and items[0][0] is not None:
        raise AlignmentError(f"the first prompt id follows nothing, and has {items[0][0]!r}", status=200)
    ids: list[Any] = request.prompt_ids.tolist()
    if not items or items[0][1] != ids[0]:
        raise AlignmentError(f"{len(ids)} prompt ids came with {len(items)} prompt_logprobs", status=200)
    return (None, *_paired(ids[1:], items[1:], "prompt position", 1))
