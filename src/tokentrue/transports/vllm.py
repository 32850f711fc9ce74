"""vLLM's token route, `POST /inference/v1/generate`: token ids in, token ids out.

Written for vLLM 0.16 to 0.33, and for Dynamo's route of the same shape. The differences that matter:
log-probability items name their id as `"token": "token_id:N"` before 0.32 and as `"token_id": N` since;
`usage` came with 0.28; `stop_reason` and `weight_versions` with 0.32; Dynamo sends none of the three.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from tokentrue.errors import AbortedError, MalformedReplyError
from tokentrue.generation import GenerateRequest, Generation, PartialGeneration, Usage, make_tokens
from tokentrue.transports.bodies import JSON_HEADERS, check_prompt, json_bytes, with_ids
from tokentrue.transports.evidence import (
    ABORTED_WORDS,
    NOT_THERE,
    LogprobsWire,
    SpanWire,
    UsageWire,
    aborted_with,
    check_completion,
    check_partial,
    check_prompt_count,
    check_stop,
    echo_equals,
    finish_reason_or,
    paired_logprobs,
    prompt_logprobs_from,
    stop_reason_from,
    weight_spans_from,
)
from tokentrue.transports.models import models_call, read_model_cards
from tokentrue.transports.parameters import VLLM, OnUnsupported, place_parameters
from tokentrue.transports.refusals import ServerWords, refusal, unreadable
from tokentrue.transports.transport import HttpCall, HttpReply, ModelCard

GENERATE_PATH = "/inference/v1/generate"

WORDS = ServerWords(
    name="vLLM",
    route_advice=(
        "start `vllm serve` with --enable-scale-out (a Dynamo frontend: DYN_VLLM_ENABLE_INFERENCE_V1_GENERATE=1, "
        "or use the transport 'dynamo'; for an SGLang use the transport 'sglang')"
    ),
)
_ADVICE = "whatever answers here is no token route"


class _Choice(msgspec.Struct):
    token_ids: list[int]
    finish_reason: str | None = None
    logprobs: LogprobsWire | None = None
    stop_reason: int | str | None = None
    weight_versions: list[SpanWire] | None = None
    text: str | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice]
    request_id: str | None = None
    model: str | None = None
    usage: UsageWire | None = None
    prompt_token_ids: msgspec.Raw = NOT_THERE
    prompt_logprobs: msgspec.Raw = NOT_THERE


_DECODER = msgspec.json.Decoder(_Reply)


@dataclass(frozen=True, slots=True)
class VllmTransport:
    """The codec that `renderer_transport="vllm"` selects.

    Args:
        on_unsupported: What a parameter that this route cannot take does.
    """

    name: str = "vllm"
    on_unsupported: OnUnsupported = OnUnsupported.RAISE

    def write_generate(self, request: GenerateRequest) -> HttpCall:
        """The bytes that ask for one completion of exactly `request.prompt_ids`.

        `logprobs` is 1, not 0: both give the sampled id's log-probability, but 0 reads as "none" where a
        server tests for truth. `return_token_ids` makes the server echo the prompt (0.31 and later).
        `priority` is negated: vLLM serves lower numbers first.

        Raises:
            UnsupportedParameterError: A parameter has no place (`transports/parameters.py`).
            InvalidTokenIdError: The prompt is empty or has an id outside the vocabulary.
        """
        check_prompt(request)
        body = place_parameters(request.sampling, VLLM, self.name, self.on_unsupported)
        asked = body.pop("sampling_params", {})
        sampling = {"logprobs": 1, "skip_special_tokens": False, **asked}
        body = {"model": request.model, "sampling_params": sampling, "return_token_ids": True, **body}
        rest = json_bytes(body, self.name)
        return HttpCall(
            "POST",
            GENERATE_PATH,
            body=with_ids("token_ids", request.prompt_ids.json_items(), rest),
            headers=JSON_HEADERS,
            idempotent=True,
        )

    def read_generate(self, request: GenerateRequest, reply: HttpReply) -> Generation:
        """The completion in `reply`, with laws 3 and 4 checked against `request`.

        A reply without `usage` and without an echo is taken: this route has no other input than the ids,
        so unlike Dynamo's chat route it cannot have answered something else.

        Raises:
            EngineError, OverlongPromptError: The reply is an error, or contradicts what was asked.
            AlignmentError: Log-probabilities are missing or are not those of the sampled ids, or of the prompt's.
            EmptyCompletionError: No id was sampled.
            AbortedError: The turn was given up; `partial` has what was sampled.
        """
        answer = _decoded(request, reply)
        if len(answer.choices) != 1:
            raise MalformedReplyError(f"one completion was asked for, {len(answer.choices)} came", status=200)
        check_prompt_count(request, answer.usage, _ADVICE)
        echoed = echo_equals(request, answer.prompt_token_ids, "prompt_token_ids", _ADVICE)
        choice = answer.choices[0]
        try:
            finish_reason = finish_reason_or(choice.finish_reason, lambda: _partial(request, answer, choice))
        except AbortedError as exc:
            if choice.finish_reason not in ABORTED_WORDS:
                raise
            raise aborted_with(exc, lambda: _partial(request, answer, choice)) from None
        check_completion(request, choice.token_ids, answer.usage, choice.stop_reason)
        check_stop(request, choice.token_ids, finish_reason, choice.stop_reason)
        logprobs = paired_logprobs(choice.token_ids, choice.logprobs)
        return Generation(
            tokens=make_tokens(request.prompt_ids, choice.token_ids, logprobs),
            finish_reason=finish_reason,
            stop_reason=stop_reason_from(choice.finish_reason, choice.stop_reason),
            request_id=answer.request_id or "",
            model=answer.model or "",
            usage=answer.usage.usage() if answer.usage is not None else Usage(),
            prompt_ids_echoed=echoed,
            weight_spans=weight_spans_from(choice.weight_versions),
            text=choice.text,
            prompt_logprobs=prompt_logprobs_from(request, answer.prompt_logprobs),
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


def _partial(request: GenerateRequest, answer: _Reply, choice: _Choice) -> PartialGeneration:
    check_partial(request, choice.token_ids, answer.usage)
    logprobs = paired_logprobs(choice.token_ids, choice.logprobs) if choice.token_ids else []
    return PartialGeneration(
        tokens=make_tokens(request.prompt_ids, choice.token_ids, logprobs),
        request_id=answer.request_id or "",
        usage=answer.usage.usage() if answer.usage is not None else Usage(),
        weight_spans=weight_spans_from(choice.weight_versions) if choice.token_ids else (),
    )


def _decoded(request: GenerateRequest, reply: HttpReply) -> _Reply:
    refused = refusal(reply, request, WORDS)
    if refused is not None:
        raise refused
    try:
        return _DECODER.decode(reply.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise unreadable(reply, request, WORDS, str(exc)) from exc
