"""What a Dynamo 1.6.1 frontend hands a Python worker, and what it takes back. Pure: no Dynamo, no sockets.

The shapes of the answer, `engine_data` above all, are those of `dynamo.vllm` 1.6.1 (`vllm/handlers.py`,
`_accumulate_engine_data`), so that a client meets here what it meets in front of a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_ENGINE_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "min_tokens",
    "ignore_eos",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


@dataclass(frozen=True, slots=True)
class WorkOrder:
    """One request as a worker needs it.

    Args:
        prompt_ids: What to continue, ids as the frontend sent them.
        max_tokens: None when the client gave no limit.
        stop_token_ids: Everything that ends sampling; the model's own end unless the client ignores it.
        sampling: Further parameters by their OpenAI names, None-valued ones dropped.
        top_logprobs: How many alternatives per id, or None when no log-probabilities are wanted.
        wants_prompt_logprobs: The client asked for the log-probabilities of its prompt.
        wants_engine_data: The client asked for `nvext.engine_data`.
        token_in: The ids came from the client (`nvext.token_data`), not from the frontend's tokenizer.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int | None
    stop_token_ids: tuple[int, ...]
    sampling: Mapping[str, Any]
    top_logprobs: int | None
    wants_prompt_logprobs: bool
    wants_engine_data: bool
    token_in: bool

    @classmethod
    def read(cls, request: Mapping[str, Any], end_ids: Sequence[int]) -> WorkOrder:
        """Read the frontend's request; `end_ids` are the model's own, from generation_config.json.

        Both token routes end here: `/v1/chat/completions` spreads the parameters over three sections, while
        `/inference/v1/generate` passes the client's `sampling_params` on in `extra_args.vllm_tito`.
        """
        extra = request.get("extra_args") or {}
        nvext = extra.get("nvext") or {}
        passed_on = extra.get("vllm_tito") or {}
        given: dict[str, Any] = {}
        for section in ("stop_conditions", "sampling_options", "output_options"):
            given.update(_without_none(request.get(section) or {}))
        given.update(_without_none(passed_on.get("sampling_params") or {}))
        stops: list[int] = []
        for key in ("stop_token_ids", "stop_token_ids_visible", "stop_token_ids_hidden"):
            stops.extend(given.get(key, ()))
        ends = () if given.get("ignore_eos") else tuple(end_ids)
        return cls(
            prompt_ids=tuple(request.get("token_ids") or ()),
            max_tokens=given.get("max_tokens"),
            stop_token_ids=tuple(dict.fromkeys((*stops, *ends))),
            sampling={name: given[name] for name in _ENGINE_SAMPLING if name in given},
            top_logprobs=given.get("logprobs"),
            wants_prompt_logprobs=given.get("prompt_logprobs") is not None,
            wants_engine_data="engine_data" in (nvext.get("extra_fields") or ()),
            token_in=bool(nvext.get("token_in") or passed_on),
        )


def _without_none(section: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in section.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Completion:
    """What was sampled: ids, their log-probabilities, and the alternatives `(id, logprob)` at each place.

    `prompt_logprobs` has one value for each prompt id after the first; a worker that cannot tell has none.
    `cached_tokens` counts the prompt ids that a prefix cache had; None when there is no cache.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    stop_reason: int | None = None
    alternatives: tuple[tuple[tuple[int, float], ...], ...] = field(default=())
    prompt_logprobs: tuple[float, ...] = ()
    cached_tokens: int | None = None


def write_chunks(
    order: WorkOrder, completion: Completion, token_text: Callable[[int], str], tokens_per_chunk: int
) -> Iterator[dict[str, Any]]:
    """The chunks to yield; the last one tells why it ended, the counts, and `engine_data` when asked for."""
    length = len(completion.token_ids)
    for start in range(0, length, tokens_per_chunk):
        end = min(start + tokens_per_chunk, length)
        chunk: dict[str, Any] = {"token_ids": list(completion.token_ids[start:end]), "index": 0}
        if order.top_logprobs is not None:
            chunk["log_probs"] = list(completion.logprobs[start:end])
            chunk["top_logprobs"] = [_ranked(completion, place, token_text) for place in range(start, end)]
        if end == length:
            chunk.update(_ending(order, completion))
        yield chunk


def _ranked(completion: Completion, place: int, token_text: Callable[[int], str]) -> list[dict[str, Any]]:
    sampled = (completion.token_ids[place], completion.logprobs[place])
    others = completion.alternatives[place] if completion.alternatives else ()
    rows = [sampled, *(each for each in others if each[0] != sampled[0])]
    return [
        {"rank": rank, "token_id": token_id, "token": token_text(token_id), "logprob": logprob}
        for rank, (token_id, logprob) in enumerate(rows, start=1)
    ]


def _ending(order: WorkOrder, completion: Completion) -> dict[str, Any]:
    prompt_len, completion_len = len(order.prompt_ids), len(completion.token_ids)
    ending: dict[str, Any] = {
        "finish_reason": completion.finish_reason,
        "completion_usage": {
            "prompt_tokens": prompt_len,
            "completion_tokens": completion_len,
            "total_tokens": prompt_len + completion_len,
        },
    }
    if completion.cached_tokens is not None:
        ending["completion_usage"]["prompt_tokens_details"] = {"cached_tokens": completion.cached_tokens}
    if completion.stop_reason is not None:
        ending["stop_reason"] = completion.stop_reason
    if order.wants_engine_data:
        ending["engine_data"] = {
            "completion_token_ids": list(completion.token_ids),
            "finished": True,
            "prompt_token_ids": list(order.prompt_ids),
        }
        if order.top_logprobs is not None:
            ending["engine_data"]["completion_logprobs"] = list(completion.logprobs)
    if order.wants_prompt_logprobs and completion.prompt_logprobs:
        entries = zip(order.prompt_ids[1:], completion.prompt_logprobs, strict=True)
        told = [None, *({str(token_id): {"logprob": value, "rank": 1}} for token_id, value in entries)]
        ending.setdefault("engine_data", {})["prompt_logprobs"] = told
    return ending
