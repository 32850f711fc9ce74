"""Generated requests and mutated replies: what is written is what was asked, and no wrong sample is read."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokentrue.errors import TokentrueError
from tokentrue.generation import GenerateRequest
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.dynamo import ASKED_FIELDS, DynamoTransport
from tokentrue.transports.transport import HttpReply
from tokentrue.transports.vllm import VllmTransport

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

PROMPTS = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=20), min_size=1, max_size=4).filter(any)
KEPT = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(-1, 100),
    "min_p": st.floats(0, 1),
    "min_tokens": st.integers(0, 9),
    "seed": st.integers(0, 2**31),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.1, 3),
    "presence_penalty": st.floats(-2, 2),
    "stop": st.lists(st.text(min_size=1), min_size=1, max_size=3),
    "stop_token_ids": st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=3),
}
SAMPLING = st.fixed_dictionaries({}, optional=KEPT)

GOOD = [
    ("vllm", "generate_logprobs1_return_ids"),
    ("vllm", "B_generate_scripted_regex"),
    ("vllm", "v031_generate"),
    ("dynamo", "chunk1_stop_tok_mid"),
    ("dynamo", "chunk64_stop_str"),
    ("dynamo", "chunk1_stop_str"),
    ("dynamo", "toolparser_with_tools_logprobs"),
    ("dynamo", "gen_logprobs1"),
]
UNREDUNDANT = {"logprob", "completion_logprobs", "stop_reason", "version", "cached_tokens"}
"""Keys that nothing else in a reply tells twice, so that another value cannot be noticed."""


def roped(pieces) -> TokenIds:
    rope = TokenIds()
    for piece in pieces:
        rope = rope.extended(piece)
    return rope


@QUICK
@given(PROMPTS, SAMPLING, st.text(min_size=1), st.integers(-5, 5), st.one_of(st.none(), st.integers(1, 9)))
def test_vllm_writes_what_was_asked(pieces, kept, model, priority, max_tokens) -> None:
    sampling = SamplingParams.from_args({**kept, "priority": priority, "max_tokens": max_tokens})
    call = VllmTransport().write_generate(GenerateRequest(model, roped(pieces), sampling))
    limit = {} if max_tokens is None else {"max_tokens": max_tokens}
    assert (call.method, call.path) == ("POST", "/inference/v1/generate")
    assert json.loads(call.body) == {
        "token_ids": [token_id for piece in pieces for token_id in piece],
        "model": model,
        "return_token_ids": True,
        "priority": -priority,
        "sampling_params": {"logprobs": 1, "skip_special_tokens": False, **kept, **limit},
    }


@QUICK
@given(PROMPTS, SAMPLING, st.text(min_size=1), st.integers(-5, 5), st.one_of(st.none(), st.integers(1, 9)))
def test_dynamo_writes_what_was_asked(pieces, kept, model, priority, max_tokens) -> None:
    sampling = SamplingParams.from_args({**kept, "priority": priority, "max_tokens": max_tokens})
    call = DynamoTransport().write_generate(GenerateRequest(model, roped(pieces), sampling))
    limit = {} if max_tokens is None else {"max_completion_tokens": max_tokens}
    assert (call.method, call.path) == ("POST", "/v1/chat/completions")
    assert json.loads(call.body) == {
        "model": model,
        "messages": [{"role": "user", "content": ""}],
        "stream": False,
        "logprobs": True,
        **kept,
        **limit,
        "nvext": {
            "token_data": [token_id for piece in pieces for token_id in piece],
            "agent_hints": {"priority": priority},
            "extra_fields": list(ASKED_FIELDS),
        },
    }


def sample(generation) -> tuple:
    tokens = generation.tokens
    return tokens.completion_ids.tolist(), tokens.completion_logprobs.tolist(), generation.finish_reason


def places(value, path=()) -> list[tuple]:
    """The path of every member and item of a JSON value; of a prompt, the first and the last."""
    found = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value))) if len(value) < 12 else [0, 1, len(value) - 1]
    else:
        return found
    for key in keys:
        found.append((*path, key))
        found.extend(places(value[key], (*path, key)))
    return found


def altered(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1 if isinstance(value, int) else value - 0.5
    if isinstance(value, str):
        return value + "x"
    return [] if isinstance(value, (list, dict)) else 1


def mutations(answer):
    """Every reply that differs from `answer` by one member dropped, nulled, altered, retyped or doubled."""
    for path in places(answer):
        for kind in ("drop", "null", "alter", "retype", "double"):
            changed = copy.deepcopy(answer)
            owner = changed
            for key in path[:-1]:
                owner = owner[key]
            key = path[-1]
            if kind == "drop":
                del owner[key]
            elif kind == "null":
                owner[key] = None
            elif kind == "alter":
                owner[key] = altered(owner[key])
            elif kind == "retype":
                owner[key] = {"a": [owner[key]]}
            elif isinstance(owner, list):
                owner.insert(key, copy.deepcopy(owner[key]))
            else:
                owner["doubled_" + key] = owner[key]
            yield kind, path, changed


@pytest.mark.parametrize(("folder", "name"), GOOD)
def test_one_change_of_a_good_reply_is_noticed_or_changes_nothing(capture, folder, name) -> None:
    recorded = capture(folder, name)
    request = recorded.request()
    good = sample(recorded.transport.read_generate(request, recorded.reply))
    noticed = 0
    for kind, path, answer in mutations(recorded.answer):
        try:
            read = sample(recorded.transport.read_generate(request, recorded.changed(answer)))
        except TokentrueError:
            noticed += 1
            continue
        if kind == "alter" and UNREDUNDANT & {key for key in path if isinstance(key, str)}:
            continue
        assert read == good, f"{kind} at {path} gives another sample"
    assert noticed > 20


@pytest.mark.parametrize(("folder", "name"), GOOD[:5])
def test_every_truncation_is_an_error(capture, folder, name) -> None:
    recorded = capture(folder, name)
    request = recorded.request()
    for length in range(len(recorded.reply.body)):
        with pytest.raises(TokentrueError):
            recorded.transport.read_generate(request, HttpReply(200, {}, recorded.reply.body[:length]))


@QUICK
@given(st.binary(max_size=200), st.sampled_from([200, 204, 302, 400, 404, 418, 500, 502, 503]))
def test_garbage_is_an_error_of_the_tree(body, status) -> None:
    request = GenerateRequest("m", TokenIds([1]), SamplingParams())
    for transport in (VllmTransport(), DynamoTransport()):
        with pytest.raises(TokentrueError):
            transport.read_generate(request, HttpReply(status, {}, body))
        with pytest.raises(TokentrueError):
            transport.read_models(HttpReply(status, {}, body))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 2**70), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["choices", "error", "message", "detail", "code", "usage", "nvext", "data", "token_ids"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@QUICK
@given(JSON, st.sampled_from([200, 400, 404, 500]))
def test_any_json_is_an_error_of_the_tree(answer, status) -> None:
    request = GenerateRequest("m", TokenIds([1]), SamplingParams())
    reply = HttpReply(status, {}, json.dumps(answer).encode())
    for transport in (VllmTransport(), DynamoTransport()):
        with pytest.raises(TokentrueError):
            transport.read_generate(request, reply)
