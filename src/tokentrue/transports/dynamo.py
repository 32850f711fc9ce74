"""NVIDIA Dynamo's chat route with token ids in `nvext.token_data`, `POST /v1/chat/completions`.

The frontend (1.3 and later) skips template and tokenizer when `token_data` is there. It needs valid
`messages` all the same, and that placeholder is the danger of this route: a frontend older than 1.2, or
one with DYN_DISABLE_FRONTEND_NVEXT=1, ignores `nvext` and answers the placeholder with a 200. So law 4
is checked three ways: `usage.prompt_tokens`, the echoed prompt ids, and that `nvext` was honoured at
all (without that last one, a prompt that happens to be as long as the placeholder would pass).

Sampled ids come from up to three writers. The frontend writes `nvext.completion_token_ids` and
`choices[].logprobs.content[].token_id` from what it delivered. The worker (only `dynamo.vllm`) writes
`nvext.engine_data` from what it sampled, which is more when a stop *string* cut the answer inside a
chunk, and is absent when the string cut it before the last chunk. All that are present must agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from tokentrue.errors import (
    AbortedError,
    AlignmentError,
    EvidenceError,
    MalformedReplyError,
    UnknownFinishError,
    UnsupportedParameterError,
)
from tokentrue.generation import (
    FinishReason,
    GenerateRequest,
    Generation,
    PartialGeneration,
    PromptLogprobs,
    Usage,
    make_tokens,
)
from tokentrue.sampling import SamplingParams
from tokentrue.transports.bodies import JSON_HEADERS, check_prompt, json_bytes, with_ids
from tokentrue.transports.evidence import (
    LOGPROB_TOLERANCE,
    NOT_THERE,
    LogprobsWire,
    UsageWire,
    aborted_with,
    asks_prompt_logprobs,
    check_completion,
    check_partial,
    check_prompt_count,
    check_stop,
    check_subsequence,
    check_values,
    echo_equals,
    finish_reason_from,
    finish_reason_or,
    is_absent,
    keeps_ids,
    paired_logprobs,
    prompt_logprobs_from,
)
from tokentrue.transports.models import models_call, read_model_cards
from tokentrue.transports.parameters import DYNAMO, Fate, OnUnsupported, place_parameters, warn_once
from tokentrue.transports.refusals import ServerWords, refusal, unreadable
from tokentrue.transports.transport import HttpCall, HttpReply, ModelCard

CHAT_PATH = "/v1/chat/completions"

PLACEHOLDER = ({"role": "user", "content": ""},)
"""The shortest message list that 1.6.1 accepts; an empty list is a 400."""

ASKED_FIELDS = ("engine_data", "completion_token_ids", "prompt_token_ids", "stop_reason", "detailed_finish_reason")
"""What every request asks back. A frontend that does not know one of them leaves it out."""

NVEXT_KEYS = frozenset(
    {
        *("greed_sampling", "use_raw_prompt", "annotations", "backend_instance_id", "token_data"),
        *("max_thinking_tokens", "cache_salt", "extra_fields", "metadata_upload", "prefill_worker_id"),
        *("decode_worker_id", "dp_rank", "prefill_dp_rank", "agent_hints", "request_timestamp_ms"),
        *("routing_constraints", "router"),
    }
)
HINT_KEYS = frozenset({"priority", "strict_priority", "osl", "speculative_prefill", "latency_sensitivity"})

WORDS = ServerWords(
    name="Dynamo",
    route_advice="this path is served by `python -m dynamo.frontend`; check the base URL",
)
ADVICE = (
    "unset DYN_DISABLE_FRONTEND_NVEXT on the frontend and use Dynamo 1.3 or later (1.1.1 and older ignore "
    "nvext.token_data and answer the placeholder message)"
)


class EngineDataWire(msgspec.Struct):
    """`nvext.engine_data`: what the worker says of its own completion."""

    completion_token_ids: list[int] | None = None
    completion_logprobs: list[float | None] | None = None
    prompt_token_ids: msgspec.Raw = NOT_THERE
    prompt_logprobs: msgspec.Raw = NOT_THERE
    finished: bool | None = None


class NvextWire(msgspec.Struct):
    """`nvext` of a reply."""

    engine_data: EngineDataWire | None = None
    completion_token_ids: list[int] | None = None
    prompt_token_ids: msgspec.Raw = NOT_THERE
    prompt_logprobs: msgspec.Raw = NOT_THERE
    stop_reason: int | str | None = None
    detailed_finish_reason: str | None = None


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None
    logprobs: LogprobsWire | None = None
    message: _Message | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice]
    id: str | None = None
    model: str | None = None
    usage: UsageWire | None = None
    nvext: NvextWire | None = None
    prompt_logprobs: msgspec.Raw = NOT_THERE


_DECODER = msgspec.json.Decoder(_Reply)


@dataclass(frozen=True, slots=True)
class DynamoTransport:
    """The codec that `renderer_transport="dynamo"` selects.

    Args:
        send_tools: Also send `request.tools`, so that a frontend with a tool parser reads the calls. They
            are already part of the rendered prompt; nothing here needs them.
        on_unsupported: What a parameter that this route cannot take does.
    """

    name: str = "dynamo"
    send_tools: bool = False
    on_unsupported: OnUnsupported = OnUnsupported.RAISE

    def write_generate(self, request: GenerateRequest) -> HttpCall:
        """The bytes that ask for one completion of exactly `request.prompt_ids`.

        `priority` keeps its sign: for `nvext.agent_hints.priority`, too, higher is sooner.

        Raises:
            UnsupportedParameterError: Dynamo would refuse the parameter, or a key of the caller's `nvext`.
            InvalidTokenIdError: The prompt is empty or has an id outside the vocabulary.
        """
        check_prompt(request)
        nvext, body = nvext_and_body(request.sampling, DYNAMO, self.name, self.on_unsupported)
        nvext_json = with_ids("token_data", request.prompt_ids.json_items(), json_bytes(nvext, self.name))
        body = {"model": request.model, "messages": PLACEHOLDER, "stream": False, "logprobs": True, **body}
        if self.send_tools and request.tools:
            body["tools"] = request.tools
        rest = json_bytes(body, self.name)
        return HttpCall(
            "POST",
            CHAT_PATH,
            body=rest[:-1] + b',"nvext":' + nvext_json + b"}",
            headers=JSON_HEADERS,
            idempotent=True,
        )

    def read_generate(self, request: GenerateRequest, reply: HttpReply) -> Generation:
        """The completion in `reply`, with laws 3 and 4 checked against `request`.

        Raises:
            EvidenceError: The frontend ignored the ids, or cannot show that it used them; says what to switch.
            AbortedError: The turn was given up half way, also where the frontend calls that "stop".
            AlignmentError: The writers of ids disagree, or log-probabilities are missing or misaligned.
            EngineError, OverlongPromptError: Whatever else the reply is.
            EmptyCompletionError: No id was sampled.
        """
        answer = _decoded(request, reply)
        if len(answer.choices) != 1:
            raise MalformedReplyError(f"one completion was asked for, {len(answer.choices)} came", status=200)
        choice, nvext = answer.choices[0], answer.nvext or NvextWire()
        check_prompt_count(request, answer.usage, ADVICE)
        ids = _sampled_ids(request, choice, nvext)
        finish_reason = finish_reason_or(choice.finish_reason, lambda: _partial(request, ids, answer, nvext))
        echoed = _check_used(request, answer.usage, nvext)
        try:
            _check_finished(request, finish_reason, ids, answer.usage, nvext)
        except (AbortedError, UnknownFinishError) as exc:
            if ids is None or not keeps_ids(exc, nvext.detailed_finish_reason):
                raise
            raise aborted_with(exc, lambda: _partial(request, ids, answer, nvext)) from None
        if ids is None:
            raise _no_ids()
        check_completion(request, ids, answer.usage, nvext.stop_reason)
        check_stop(request, ids, finish_reason, nvext.stop_reason)
        logprobs = _logprobs(request, ids, choice, nvext)
        return Generation(
            tokens=make_tokens(request.prompt_ids, ids, logprobs),
            finish_reason=finish_reason,
            stop_reason=nvext.stop_reason,
            request_id=answer.id or "",
            model=answer.model or "",
            usage=answer.usage.usage() if answer.usage is not None else Usage(),
            prompt_ids_echoed=echoed,
            text=choice.message.content if choice.message is not None else None,
            prompt_logprobs=_prompt_logprobs(request, answer, nvext),
        )

    def write_models(self) -> HttpCall:
        """The request for the list of served models."""
        return models_call()

    def read_models(self, reply: HttpReply) -> tuple[ModelCard, ...]:
        """The served models.

        Raises:
            EngineError: The reply is no model list.
        """
        return read_model_cards(reply, WORDS)


def _no_ids() -> EvidenceError:
    return EvidenceError(f"the reply carries no sampled ids; {ADVICE}", status=200)


def _partial(
    request: GenerateRequest, ids: list[int] | None, answer: _Reply, nvext: NvextWire
) -> PartialGeneration:
    if ids is None:
        raise _no_ids()
    check_partial(request, ids, answer.usage)
    logprobs = _logprobs(request, ids, answer.choices[0], nvext) if ids else []
    return PartialGeneration(
        tokens=make_tokens(request.prompt_ids, ids, logprobs),
        request_id=answer.id or "",
        usage=answer.usage.usage() if answer.usage is not None else Usage(),
    )


def nvext_and_body(
    sampling: SamplingParams, table: Mapping[str, Fate], where: str, on_unsupported: OnUnsupported
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The caller's parameters as the request's `nvext` and as the rest of its body.

    Raises:
        UnsupportedParameterError: Dynamo would refuse a parameter, or a key of the caller's `nvext`.
    """
    sampling = _with_stops_kept(sampling, where, on_unsupported)
    own = _checked_nvext(sampling.extra.get("nvext"))
    others = {key: value for key, value in sampling.extra.items() if key != "nvext"}
    body = place_parameters(replace(sampling, extra=others), table, where, on_unsupported)
    nvext = _merged_nvext(own, body.pop("nvext", {}))
    if asks_prompt_logprobs(sampling) and "prompt_logprobs" not in nvext["extra_fields"]:
        nvext["extra_fields"].append("prompt_logprobs")
    return nvext, body


def _with_stops_kept(sampling: SamplingParams, where: str, on_unsupported: OnUnsupported) -> SamplingParams:
    """Parameters with which the frontend keeps every stop: with `ignore_eos` 1.6.1 drops them all in silence.

    Raises:
        UnsupportedParameterError: Both are asked for, and `on_unsupported` is not to leave `ignore_eos` out.
    """
    stops = [name for name in ("stop", "stop_token_ids") if getattr(sampling, name)]
    if not sampling.ignore_eos or not stops:
        return sampling
    advice = f"with it the frontend drops {' and '.join(stops)} without a word; give it without them"
    error = UnsupportedParameterError("ignore_eos", where, advice)
    if on_unsupported is OnUnsupported.RAISE:
        raise error
    warn_once(str(error))
    return replace(sampling, ignore_eos=False, extra=dict(sampling.extra))


def _object(value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UnsupportedParameterError(name, "dynamo", f"it must be an object, not {value!r}")
    return {key: item for key, item in value.items() if item is not None}


def _checked_nvext(value: Any) -> dict[str, Any]:
    """A copy of the caller's `nvext`, without None values.

    Raises:
        UnsupportedParameterError: The frontend (deny_unknown_fields) would answer 400 to a key of it, or
            it brings its own prompt ids.
    """
    nvext = _object(value, "nvext")
    if "token_data" in nvext:
        raise UnsupportedParameterError("nvext.token_data", "dynamo", "the prompt ids are the whole prompt")
    hints = _object(nvext.pop("agent_hints", None), "nvext.agent_hints")
    for prefix, keys, known in (("nvext", nvext, NVEXT_KEYS), ("nvext.agent_hints", hints, HINT_KEYS)):
        for key in keys:
            if key not in known:
                advice = f"it knows only {', '.join(sorted(known))}"
                raise UnsupportedParameterError(f"{prefix}.{key}", "dynamo", advice)
    names = nvext.get("extra_fields", ())
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise UnsupportedParameterError("nvext.extra_fields", "dynamo", f"it must list names, not {names!r}")
    return {**nvext, "agent_hints": hints} if hints else nvext


def _merged_nvext(own: dict[str, Any], placed: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's `nvext` with the parameters that belong there and the fields that every request asks.

    Raises:
        UnsupportedParameterError: `cache_salt` or `priority` is given in both with two values.
    """
    merged = dict(own)
    hints = {**own.get("agent_hints", {})}
    for target, source, prefix in (
        (hints, placed.get("agent_hints", {}), "nvext.agent_hints"),
        (merged, placed, "nvext"),
    ):
        for key, value in source.items():
            if key != "agent_hints" and target.setdefault(key, value) != value:
                advice = f"it is given twice: {target[key]!r} and {value!r}"
                raise UnsupportedParameterError(f"{prefix}.{key}", "dynamo", advice)
    if hints:
        merged["agent_hints"] = hints
    merged["extra_fields"] = list(dict.fromkeys((*own.get("extra_fields", ()), *ASKED_FIELDS)))
    return merged


def _decoded(request: GenerateRequest, reply: HttpReply) -> _Reply:
    refused = refusal(reply, request, WORDS)
    if refused is not None:
        raise refused
    try:
        return _DECODER.decode(reply.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise unreadable(reply, request, WORDS, str(exc)) from exc


def _item_ids(choice: _Choice) -> list[int] | None:
    """The ids that the log-probability items name, or None when any of them names none."""
    if choice.logprobs is None or choice.logprobs.content is None:
        return None
    named = [item.maybe_id() for item in choice.logprobs.content]
    ids = [token_id for token_id in named if token_id is not None]
    return ids if len(ids) == len(named) else None


def _sampled_ids(request: GenerateRequest, choice: _Choice, nvext: NvextWire) -> list[int] | None:
    """The ids that were delivered, or None when the reply names none.

    Raises:
        AlignmentError: Two writers disagree.
    """
    worker = nvext.engine_data.completion_token_ids if nvext.engine_data is not None else None
    items = _item_ids(choice)
    written = [
        ids for ids in (nvext.completion_token_ids, items if request.sampling.stop else worker) if ids is not None
    ]
    ids = next(iter(written), items if items is not None else worker)
    if ids is None:
        return None
    # A stop string is matched by the frontend, in the text: the worker's list may go on behind it.
    cut_by_text = bool(request.sampling.stop) and choice.finish_reason != "length"
    if worker is not None and worker != ids and not (cut_by_text and worker[: len(ids)] == ids):
        raise AlignmentError(
            f"nvext.engine_data has {len(worker)} sampled ids and the frontend delivered {len(ids)} others",
            status=200,
        )
    return ids


def _check_used(request: GenerateRequest, usage: UsageWire | None, nvext: NvextWire) -> bool:
    """Law 4: whether the prompt ids were echoed; anything that does not show that they were used raises."""
    worker = nvext.engine_data
    by_frontend = echo_equals(request, nvext.prompt_token_ids, "nvext.prompt_token_ids", ADVICE)
    by_worker = worker is not None and echo_equals(
        request, worker.prompt_token_ids, "nvext.engine_data.prompt_token_ids", ADVICE
    )
    echoed = by_frontend or by_worker
    counted = usage is not None and usage.prompt_tokens is not None
    honoured = nvext.completion_token_ids is not None or (
        worker is not None and worker.completion_token_ids is not None
    )
    if not echoed and not (counted and honoured):
        raise EvidenceError(f"nothing in the reply shows that the prompt ids were used; {ADVICE}", status=200)
    return echoed


def _check_finished(
    request: GenerateRequest,
    finish_reason: FinishReason,
    ids: Sequence[int] | None,
    usage: UsageWire | None,
    nvext: NvextWire,
) -> None:
    """Tell a finished turn from one that was given up and is called "stop" all the same.

    The frontend maps a cancelled or aborted request to a 200 with `finish_reason` "stop" and whatever text
    there was. What distinguishes it: `detailed_finish_reason` (1.5 and later) keeps the worker's word,
    "cancelled". Without that field a finish must be vouched for: by the worker's `finished: true`, by the
    stop string or stop id that ended it, or by `max_tokens` being reached. Nothing vouches for a worker that
    died or was cancelled. On 1.3 and 1.4 `finished: true` is not enough, since `dynamo.vllm` says so of an
    abort as well (its handlers only exempt "error"); those releases are known by
    `nvext.completion_token_ids` without `nvext.prompt_token_ids`.

    Raises:
        AbortedError: The turn was given up, or nothing vouches for its end.
        MalformedReplyError: The two finish reasons contradict each other.
    """
    worker = nvext.engine_data
    if worker is not None and worker.finished is False:
        raise AbortedError("the worker says that the turn is not finished", status=200)
    if nvext.detailed_finish_reason is not None:
        # "eos" is Dynamo's internal name of a stop at the model's own end-of-sequence id.
        detailed = "stop" if nvext.detailed_finish_reason == "eos" else nvext.detailed_finish_reason
        if finish_reason_from(detailed) is not finish_reason:
            raise MalformedReplyError(
                f"finish_reason {finish_reason.value!r} contradicts detailed_finish_reason {detailed!r}",
                status=200,
            )
        return
    if finish_reason is FinishReason.LENGTH:
        vouched = _reached_max_tokens(request, ids, usage)
    else:
        vouched = _ended_by_stop(request, ids, nvext.stop_reason)
    hides_aborts = nvext.completion_token_ids is not None and is_absent(nvext.prompt_token_ids)
    trusted = worker is not None and worker.finished is True
    if hides_aborts and finish_reason is FinishReason.STOP:
        trusted = False
    if not vouched and not trusted:
        raise AbortedError(
            f"finish_reason is {finish_reason.value!r}, but nothing in the reply vouches for it: the worker was "
            f"cancelled or died, or nvext.extra_fields were not honoured",
            status=200,
        )


def _reached_max_tokens(request: GenerateRequest, ids: Sequence[int] | None, usage: UsageWire | None) -> bool:
    counted = usage.completion_tokens if usage is not None else None
    sampled = len(ids) if ids is not None else counted
    return sampled is not None and sampled == request.sampling.max_tokens


def _ended_by_stop(request: GenerateRequest, ids: Sequence[int] | None, stop_reason: int | str | None) -> bool:
    if isinstance(stop_reason, str):
        return stop_reason in request.sampling.stop
    if not ids:
        return False
    return ids[-1] == stop_reason or ids[-1] in request.sampling.stop_token_ids


def _logprobs(request: GenerateRequest, ids: list[int], choice: _Choice, nvext: NvextWire) -> list[float]:
    """One log-probability for each id: the frontend's items when they align, else the worker's list.

    Raises:
        AlignmentError: Neither aligns, or both do and they differ.
    """
    worker = _worker_logprobs(ids, nvext.engine_data)
    items = choice.logprobs.content if choice.logprobs is not None else None
    if worker is not None and (items is None or len(items) != len(ids)):
        check_subsequence(ids, items or ())
        return worker
    values = paired_logprobs(ids, choice.logprobs)
    for position, (mine, theirs) in enumerate(zip(values, worker or (), strict=False)):
        if abs(mine - theirs) > LOGPROB_TOLERANCE * max(1.0, abs(mine)):
            raise AlignmentError(
                f"the log-probability at position {position} is {mine} by the frontend and {theirs} by the worker",
                status=200,
            )
    return values


def _prompt_logprobs(request: GenerateRequest, answer: _Reply, nvext: NvextWire) -> PromptLogprobs | None:
    """From both places in `nvext` and from the body, whichever are filled; the body's copy is rounded to fp32."""
    worker = nvext.engine_data.prompt_logprobs if nvext.engine_data is not None else NOT_THERE
    return prompt_logprobs_from(request, worker, nvext.prompt_logprobs, answer.prompt_logprobs)


def _worker_logprobs(ids: Sequence[int], worker: EngineDataWire | None) -> list[float] | None:
    """The worker's log-probabilities of `ids`, or None when it gave none that belong to its own ids."""
    if worker is None or worker.completion_logprobs is None or worker.completion_token_ids is None:
        return None
    if len(worker.completion_logprobs) != len(worker.completion_token_ids):
        return None
    return check_values(worker.completion_logprobs[: len(ids)])
