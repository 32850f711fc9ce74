"""Where every sampling parameter goes on each transport: the one table.

A parameter is sent (perhaps renamed or converted), fixed (the transport itself decides the value, the
caller may only repeat it), or refused with advice. There is no fourth fate: vLLM ignores unknown keys
with a 200 and Dynamo refuses them with a 400, so neither may be left to the server.

Dynamo's rows are those of a field-by-field probe of the 1.6.1 frontend's `/v1/chat/completions`;
vLLM's are the fields of `SamplingParams` and of `GenerateRequest` in 0.32; SGLang's those that 0.5.23
lists in its schema and in its complaint about an unknown sampling parameter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from functools import lru_cache
from typing import Any

from tokentrue.errors import UnsupportedParameterError
from tokentrue.sampling import SamplingParams

_LOGGER = logging.getLogger(__name__)


class OnUnsupported(Enum):
    """What a parameter that an engine cannot take does: it raises, or it is left out with a warning."""

    RAISE = "raise"
    WARN = "warn"


class _Nothing:
    """The type of `NOTHING`."""


NOTHING = _Nothing()
"""What a converter gives back when the value asks for what happens anyway."""


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Sent:
    """The parameter is written at `path` in the request body, through `convert`."""

    path: tuple[str, ...]
    convert: Callable[[Any], Any] = _same


@dataclass(frozen=True, slots=True)
class Fixed:
    """The transport decides this value; a caller may say the same, and nothing else."""

    value: Any
    advice: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The engine has no place for the parameter."""

    advice: str


Fate = Sent | Fixed | Refused


def _negated(value: int) -> int:
    # vLLM: lower is earlier. SamplingParams and Dynamo: higher is sooner; Dynamo's own vLLM worker
    # negates on the way to its engine.
    return -value


def _alternatives(value: Any) -> Any:
    """How many log-probabilities for each position; one, that of the sampled id, is asked anyway."""
    if isinstance(value, int) and value is not False and value >= 0:
        return value if value > 1 else NOTHING
    raise ValueError(f"every sampled id needs its log-probability, so {value!r} cannot be asked")


def _alternatives_or_all(value: Any) -> Any:
    # vLLM reads -1 as "the whole vocabulary".
    return value if value == -1 else _alternatives(value)


def _sent(place: tuple[str, ...], *names: str) -> dict[str, Fate]:
    return {name: Sent((*place, name)) for name in names}


def _refused(advice: str, *names: str) -> dict[str, Fate]:
    return {name: Refused(advice) for name in names}


_RENDERED = "the prompt is already rendered to ids; give it to the renderer"
_ONE_CHOICE = "one request samples one completion; send several requests"
_NO_STREAM = "replies are read whole"
_PROMPT_IS_IDS = "the prompt ids are the whole prompt"
_HEADER_DP = "send the header X-data-parallel-rank"
_NO_BEAM = "beam search has no sampled log-probabilities"
_HIDDEN_TOOLS = "tool definitions are part of the rendered prompt"

_ANYWHERE: dict[str, Fate] = {
    "stream": Fixed(False, _NO_STREAM),
    "model": Refused("it is named by the request"),
    **_refused("give it as max_tokens", "max_completion_tokens", "max_new_tokens"),
    **_refused(_NO_STREAM, "stream_options", "stream_interval"),
    **_refused(_ONE_CHOICE, "n", "best_of"),
    **_refused(_NO_BEAM, "use_beam_search", "length_penalty", "early_stopping"),
    **_refused(_PROMPT_IS_IDS, "messages", "prompt", "prompt_token_ids", "token_ids", "tokens", "prompt_embeds"),
    **_refused(_PROMPT_IS_IDS, "echo", "suffix", "truncate_prompt_tokens", "add_special_tokens"),
    **_refused(_PROMPT_IS_IDS, "features", "content_parts", "mm_hashes"),
    **_refused(_RENDERED, "chat_template", "documents", "include_reasoning"),
    **_refused(_HEADER_DP, "data_parallel_rank"),
    **_refused("send the header X-Session-ID", "session_id"),
}

_SP = ("sampling_params",)
_NO_FIELD = "no field of this route means it, and vLLM would ignore it without a word"

VLLM: Mapping[str, Fate] = {
    **_ANYWHERE,
    **_sent(_SP, "temperature", "top_p", "top_k", "min_p", "max_tokens", "min_tokens", "seed", "stop"),
    **_sent(_SP, "stop_token_ids", "ignore_eos", "logit_bias"),
    **_sent(_SP, "frequency_penalty", "presence_penalty", "repetition_penalty"),
    "priority": Sent(("priority",), _negated),
    "cache_salt": Sent(("cache_salt",)),
    "logprobs": Sent((*_SP, "logprobs"), _alternatives_or_all),
    "top_logprobs": Sent((*_SP, "logprobs"), _alternatives_or_all),
    **_sent(_SP, "allowed_token_ids", "bad_words", "structured_outputs", "prompt_logprobs", "detokenize"),
    **_sent(_SP, "include_stop_str_in_output", "spaces_between_special_tokens", "logprob_token_ids"),
    **_sent(_SP, "thinking_token_budget", "repetition_detection", "routed_experts_prompt_start"),
    **_sent(_SP, "skip_reading_prefix_cache", "extra_args"),
    "vllm_xargs": Sent((*_SP, "extra_args")),
    **_sent((), "request_id", "kv_transfer_params", "ec_transfer_params"),
    **_sent((), "reasoning_ended", "reasoning_parser_kwargs"),
    "skip_special_tokens": Fixed(False, "ids are read, never text"),
    "return_token_ids": Fixed(True, "the echo of the prompt is evidence"),
    "output_mode": Fixed("tokens", "text mode has no ids beside the log-probabilities"),
    "return_tokens_as_token_ids": Fixed(True, "ids are always returned"),
    "flat_logprobs": Fixed(False, "one item for each sampled id is read"),
    **_refused("the reply's shape depends on it", "output_kind"),
    **_refused(
        "use structured_outputs",
        *("response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
        *("guided_decoding_backend", "structural_tag"),
    ),
    **_refused(
        _RENDERED, "chat_template_kwargs", "chat_template_args", "add_generation_prompt", "reasoning_effort"
    ),
    **_refused(_RENDERED, "continue_final_message", "thinking"),
    **_refused(_HIDDEN_TOOLS, "tools", "tool_choice", "parallel_tool_calls"),
    "nvext": Refused("it belongs to the transport 'dynamo'"),
}

_NO_DYNAMO = "Dynamo 1.6.1 answers 400 to any key it does not know"

_CHAT_ANYWHERE: dict[str, Fate] = {
    **_ANYWHERE,
    **_refused(
        "the messages are the prompt", "prompt", "prompt_token_ids", "token_ids", "tokens", "prompt_embeds"
    ),
    **_refused("they are given as the prompt", "messages"),
    **_refused("they are given as tools of the call", "tools"),
    **_refused("a turn ends with the assistant's own message", "echo", "suffix"),
}

VLLM_CHAT: Mapping[str, Fate] = {
    **_CHAT_ANYWHERE,
    **_sent((), "temperature", "top_p", "top_k", "min_p", "min_tokens", "seed", "stop", "stop_token_ids"),
    **_sent((), "ignore_eos", "logit_bias", "frequency_penalty", "presence_penalty", "repetition_penalty"),
    "max_tokens": Sent(("max_completion_tokens",)),
    "priority": Sent(("priority",), _negated),
    "cache_salt": Sent(("cache_salt",)),
    "logprobs": Sent(("top_logprobs",), _alternatives_or_all),
    "top_logprobs": Sent(("top_logprobs",), _alternatives_or_all),
    **_sent((), "response_format", "structured_outputs", "tool_choice", "parallel_tool_calls", "reasoning_effort"),
    **_sent((), "chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"),
    **_sent((), "documents", "include_reasoning", "mm_processor_kwargs", "media_io_kwargs", "add_special_tokens"),
    **_sent((), "truncate_prompt_tokens", "truncation_side", "allowed_token_ids", "bad_words", "prompt_logprobs"),
    **_sent((), "include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens"),
    **_sent((), "logprob_token_ids", "thinking_token_budget", "repetition_detection", "request_id", "user"),
    **_sent((), "vllm_xargs", "kv_transfer_params", "ec_transfer_params", "routed_experts_prompt_start"),
    "return_token_ids": Fixed(True, "a turn without its ids is no sample"),
    "return_tokens_as_token_ids": Fixed(True, "each log-probability names the id that it is for"),
    **_refused(
        "use structured_outputs",
        *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend"),
        *("structural_tag",),
    ),
    "nvext": Refused("it belongs to the transport 'dynamo'"),
}

DYNAMO: Mapping[str, Fate] = {
    **_ANYWHERE,
    **_sent((), "temperature", "top_p", "top_k", "min_p", "min_tokens", "seed", "stop", "stop_token_ids"),
    **_sent((), "ignore_eos", "frequency_penalty", "presence_penalty", "repetition_penalty"),
    "max_tokens": Sent(("max_completion_tokens",)),
    "priority": Sent(("nvext", "agent_hints", "priority")),
    "cache_salt": Sent(("nvext", "cache_salt")),
    # On this route `logprobs` is a boolean, always true here; an integer means `top_logprobs`.
    "logprobs": Sent(("top_logprobs",), _alternatives),
    "top_logprobs": Sent(("top_logprobs",), _alternatives),
    **_sent((), "prompt_logprobs", "allowed_token_ids", "bad_words_token_ids"),
    **_sent((), "include_stop_str_in_output", "skip_special_tokens", "detokenize", "logprob_token_ids"),
    **_sent((), "add_generation_prompt", "continue_final_message", "chat_template_kwargs"),
    **_sent((), "chat_template_args", "mm_processor_kwargs", "media_io_kwargs", "reasoning_effort", "thinking"),
    **_sent((), "guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend"),
    **_sent((), "return_tokens_as_token_ids", "thinking_token_budget", "response_format", "tool_choice"),
    **_sent((), "parallel_tool_calls", "store", "metadata", "service_tier", "user", "prediction", "modalities"),
    "nvext": Sent(("nvext",)),
    **_refused(
        _NO_DYNAMO,
        *("return_token_ids", "spaces_between_special_tokens", "bad_words", "request_id", "vllm_xargs"),
        *("logits_processors", "kv_transfer_params", "weight_version", "verbosity", "extra_args"),
    ),
    **_refused(_NO_DYNAMO + "; ask nvext.extra_fields", "routed_experts", "return_routed_experts"),
    **_refused(_NO_DYNAMO + "; use guided_json, guided_regex, ...", "structured_outputs", "structural_tag"),
    **_refused("the transport decides whether tools are sent", "tools"),
    **_refused("Dynamo 1.6.1 takes it with a 200 and passes it on to no worker", "logit_bias"),
}

DYNAMO_CHAT: Mapping[str, Fate] = {
    **DYNAMO,
    **{name: fate for name, fate in _CHAT_ANYWHERE.items() if isinstance(fate, Refused)},
}
"""The same route without `nvext.token_data`: the frontend renders, and refuses the same keys."""

_NO_SGLANG = "SGLang 0.5.23 refuses an unknown sampling parameter and ignores any other unknown field"
_USE_GRAMMAR = "use json_schema, regex, ebnf, choice or structural_tag"


def _top_k(value: int) -> int:
    # SGLang refuses 0; "all tokens" is -1 there.
    return -1 if value == 0 else value


def _from_the_start(value: Any) -> int:
    """SGLang counts from where in the prompt on, and gives no alternatives without those of the completion."""
    if value is False or not isinstance(value, int) or value < 0:
        raise ValueError(f"it must be 0 or more, not {value!r}")
    return 0


SGLANG: Mapping[str, Fate] = {
    **_ANYWHERE,
    **_sent(_SP, "temperature", "top_p", "min_p", "stop", "stop_token_ids", "ignore_eos", "logit_bias"),
    **_sent(_SP, "frequency_penalty", "presence_penalty", "repetition_penalty"),
    "top_k": Sent((*_SP, "top_k"), _top_k),
    "max_tokens": Sent((*_SP, "max_new_tokens")),
    "min_tokens": Sent((*_SP, "min_new_tokens")),
    "seed": Sent((*_SP, "sampling_seed")),
    **_sent((), "priority", "cache_salt", "extra_key", "rid", "lora_path", "custom_logit_processor"),
    "logprobs": Sent(("top_logprobs_num",), _alternatives),
    "top_logprobs": Sent(("top_logprobs_num",), _alternatives),
    "prompt_logprobs": Sent(("logprob_start_len",), _from_the_start),
    "request_id": Sent(("rid",)),
    "data_parallel_rank": Sent(("routed_dp_rank",)),
    **_sent(_SP, "json_schema", "regex", "ebnf", "structural_tag", "choice", "stop_regex", "no_stop_trim"),
    **_sent(_SP, "spaces_between_special_tokens", "custom_params"),
    **_sent((), "token_ids_logprob", "bootstrap_host", "bootstrap_port", "bootstrap_room", "routing_key"),
    "return_logprob": Fixed(True, "every sampled id needs its log-probability"),
    "return_prompt_token_ids": Fixed(True, "the echo of the prompt is evidence"),
    "return_token_ids": Fixed(True, "ids are always returned"),
    "return_text_in_logprobs": Fixed(False, "ids are read, never text"),
    "skip_special_tokens": Fixed(False, "ids are read, never text"),
    **_refused("give it as prompt_logprobs", "logprob_start_len"),
    **_refused("give it as top_logprobs", "top_logprobs_num"),
    **_refused("give it as seed", "sampling_seed"),
    **_refused("give it as min_tokens", "min_new_tokens"),
    **_refused("give it as data_parallel_rank", "routed_dp_rank"),
    **_refused(_PROMPT_IS_IDS, "text", "input_ids", "input_embeds", "session_params"),
    **_refused(_NO_BEAM, "beam_width"),
    **_refused("the ids are always kept", "include_stop_str_in_output"),
    **_refused(
        _USE_GRAMMAR,
        *("structured_outputs", "response_format", "guided_json", "guided_regex", "guided_choice"),
        *("guided_grammar", "guided_decoding_backend"),
    ),
    **_refused(
        _RENDERED, "chat_template_kwargs", "chat_template_args", "add_generation_prompt", "reasoning_effort"
    ),
    **_refused(_RENDERED, "continue_final_message", "thinking"),
    **_refused(_HIDDEN_TOOLS, "tools", "tool_choice", "parallel_tool_calls"),
    **_refused(_NO_SGLANG, "allowed_token_ids", "bad_words", "bad_words_token_ids", "vllm_xargs", "extra_args"),
    "nvext": Refused("it belongs to the transport 'dynamo'"),
}

SGLANG_CHAT: Mapping[str, Fate] = {
    **_CHAT_ANYWHERE,
    **_sent((), "temperature", "top_p", "min_p", "min_tokens", "seed", "stop", "stop_token_ids", "ignore_eos"),
    **_sent((), "logit_bias", "frequency_penalty", "presence_penalty", "repetition_penalty"),
    "top_k": Sent(("top_k",), _top_k),
    "max_tokens": Sent(("max_completion_tokens",)),
    **_sent((), "priority", "cache_salt", "extra_key", "rid", "lora_path", "custom_logit_processor"),
    "logprobs": Sent(("top_logprobs",), _alternatives),
    "top_logprobs": Sent(("top_logprobs",), _alternatives),
    "request_id": Sent(("rid",)),
    "data_parallel_rank": Sent(("routed_dp_rank",)),
    **_sent((), "response_format", "regex", "ebnf", "stop_regex", "no_stop_trim", "skip_special_tokens"),
    **_sent((), "tool_choice", "parallel_tool_calls", "reasoning_effort", "thinking", "chat_template_kwargs"),
    **_sent((), "continue_final_message", "separate_reasoning", "mm_processor_kwargs", "custom_params", "user"),
    **_sent((), "bootstrap_host", "bootstrap_port", "bootstrap_room"),
    "return_token_ids": Fixed(True, "a turn without its ids is no sample"),
    "return_prompt_token_ids": Fixed(True, "a turn without its ids is no sample"),
    "return_meta_info": Fixed(True, "there each log-probability names the id that it is for"),
    **_refused("this route does not tell them; use the renderer client", "prompt_logprobs"),
    **_refused("give it as data_parallel_rank", "routed_dp_rank"),
    **_refused("the messages are the prompt", "input_ids", "session_params"),
    **_refused("use response_format, regex or ebnf", "structured_outputs", "guided_json", "guided_regex"),
    **_refused("use response_format, regex or ebnf", "guided_choice", "guided_grammar", "structural_tag"),
    **_refused("use response_format, regex or ebnf", "guided_decoding_backend", "json_schema", "choice"),
    **_refused(_NO_SGLANG, "allowed_token_ids", "bad_words", "bad_words_token_ids", "vllm_xargs", "extra_args"),
    "nvext": Refused("it belongs to the transport 'dynamo'"),
}

TABLES: Mapping[str, Mapping[str, Fate]] = {
    "vllm": VLLM,
    "vllm chat": VLLM_CHAT,
    "dynamo": DYNAMO,
    "dynamo chat": DYNAMO_CHAT,
    "sglang": SGLANG,
    "sglang chat": SGLANG_CHAT,
}
"""Every table by the name that errors and the documentation give it."""

UNKNOWN: Mapping[str, str] = {
    "vllm": _NO_FIELD,
    "vllm chat": _NO_FIELD,
    "dynamo": _NO_DYNAMO,
    "dynamo chat": _NO_DYNAMO,
    "sglang": _NO_SGLANG,
    "sglang chat": _NO_SGLANG,
}
"""Advice for a parameter that has no row."""


def given_parameters(sampling: SamplingParams) -> dict[str, Any]:
    """What the caller asked for: fields that differ from "not given", then `extra`."""
    asked: dict[str, Any] = {}
    for field in fields(SamplingParams):
        value = getattr(sampling, field.name)
        if field.name == "extra" or value is None or value is False or value == ():
            continue
        if field.name == "n" and value == 1:
            continue
        asked[field.name] = list(value) if isinstance(value, tuple) else value
    for name, value in sampling.extra.items():
        if value is not None:
            asked[name] = value
    return asked


def _place(body: dict[str, Any], path: tuple[str, ...], value: Any, parameter: str, where: str) -> None:
    target = body
    for key in path[:-1]:
        target = target.setdefault(key, {})
    if path[-1] in target and target[path[-1]] != value:
        raise UnsupportedParameterError(parameter, where, f"it is given twice: {target[path[-1]]!r} and {value!r}")
    target[path[-1]] = value


def place_parameters(
    sampling: SamplingParams,
    table: Mapping[str, Fate],
    where: str,
    on_unsupported: OnUnsupported = OnUnsupported.RAISE,
) -> dict[str, Any]:
    """The part of a request body that the caller's parameters make, nested as `table` says.

    Args:
        where: The table's name, for the error and for `UNKNOWN`.
        on_unsupported: `WARN` leaves a parameter that cannot be sent out, and logs that once.

    Raises:
        UnsupportedParameterError: A parameter is refused, unknown, of a type that its place cannot
            hold, or given twice with two values; names it.
    """
    body: dict[str, Any] = {}
    for name, value in given_parameters(sampling).items():
        try:
            _place_one(body, name, value, table, where)
        except UnsupportedParameterError as exc:
            if on_unsupported is OnUnsupported.RAISE:
                raise
            warn_once(str(exc))
    return body


def _place_one(body: dict[str, Any], name: str, value: Any, table: Mapping[str, Fate], where: str) -> None:
    fate = table.get(name, Refused(UNKNOWN.get(where, "it has no row in the table")))
    if isinstance(fate, Refused):
        raise UnsupportedParameterError(name, where, fate.advice)
    if isinstance(fate, Fixed):
        if value is not fate.value and value != fate.value:
            raise UnsupportedParameterError(name, where, f"it is always {fate.value!r}: {fate.advice}")
        return
    try:
        written = fate.convert(value)
    except ValueError as exc:
        raise UnsupportedParameterError(name, where, str(exc)) from exc
    if written is not NOTHING:
        _place(body, fate.path, written, name, where)


@lru_cache(maxsize=1024)
def warn_once(words: str) -> None:
    """Log that a parameter is left out, once for each wording."""
    # Thousands of rollouts leave the same parameter out; one line says so.
    _LOGGER.warning("%s; it is left out", words)
