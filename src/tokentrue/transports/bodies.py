"""Request bodies written by joining bytes: known ids are spliced in, never re-serialised (law 8)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokentrue.errors import InvalidTokenIdError, UnsupportedParameterError
from tokentrue.generation import GenerateRequest

JSON_HEADERS: Mapping[str, str] = {"content-type": "application/json", "accept": "application/json"}


def json_bytes(value: Mapping[str, Any], where: str) -> bytes:
    """`value` as compact JSON.

    Raises:
        UnsupportedParameterError: Something in it is no JSON value (NaN and infinity included, which
            some encoders would silently write as null).
    """
    for name, item in value.items():
        try:
            json.dumps(item, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as exc:
            raise UnsupportedParameterError(name, where, f"its value is no JSON: {exc}") from exc
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def with_ids(name: str, ids_json: bytes, rest: bytes) -> bytes:
    """The JSON object `rest` with the member `name`, an array of `ids_json`, put in front."""
    head = b'{"' + name.encode() + b'":[' + ids_json + b"]"
    return head + (b"}" if rest == b"{}" else b"," + rest[1:])


def check_prompt(request: GenerateRequest) -> None:
    """Refuse, before anything is sent, ids that no engine can take.

    Raises:
        InvalidTokenIdError: The prompt is empty (Dynamo would answer 200 to it), or an id of the prompt
            or of the stop set is outside the vocabulary.
    """
    if not len(request.prompt_ids):
        raise InvalidTokenIdError("the prompt has no ids: there is nothing to continue")
    if request.vocab_size is None:
        return
    highest = int(request.prompt_ids.array().max())
    if highest >= request.vocab_size:
        raise InvalidTokenIdError(
            f"token id {highest} of the prompt is outside the vocabulary of {request.vocab_size}"
        )
    for stop_id in request.sampling.stop_token_ids:
        if stop_id >= request.vocab_size:
            raise InvalidTokenIdError(f"stop token id {stop_id} is outside the vocabulary of {request.vocab_size}")
