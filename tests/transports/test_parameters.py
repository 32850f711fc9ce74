"""One table says where every parameter goes; it agrees with what the servers accept."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from tokentrue.errors import InvalidTokenIdError, UnsupportedParameterError
from tokentrue.generation import GenerateRequest
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.dynamo import ASKED_FIELDS, DynamoTransport
from tokentrue.transports.parameters import TABLES, OnUnsupported, Refused
from tokentrue.transports.vllm import VllmTransport

BOTH = pytest.mark.parametrize("transport", [VllmTransport(), DynamoTransport()], ids=["vllm", "dynamo"])


def body_of(transport, *, tools=(), vocab_size=None, prompt_ids=(1, 2, 3), **sampling) -> dict:
    request = GenerateRequest(
        "m", TokenIds(prompt_ids), SamplingParams.from_args(sampling), vocab_size=vocab_size, tools=tools
    )
    return json.loads(transport.write_generate(request).body)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_field_of_sampling_params_has_a_row(table) -> None:
    assert {field.name for field in fields(SamplingParams)} - {"extra"} <= set(table)


@pytest.mark.parametrize("name", ["dynamo", "dynamo chat"])
def test_the_dynamo_rows_agree_with_the_recorded_probe_of_every_field(captures_folder, name) -> None:
    """A key that 1.6.1 refuses is refused before it is sent; one that it accepts is sent or has its own place."""
    probe = json.loads((captures_folder / "dynamo" / "SWEEP_top_level_fields.json").read_text())
    known_unknowns = {"x_foo"}
    for key, row in probe.items():
        status = row["chat"][0]
        fate = TABLES[name].get(key)
        if status == 400 and key not in ("priority", "logprobs", "stream_options"):
            assert fate is None or isinstance(fate, Refused), f"{key} is sent and 1.6.1 answers 400"
        # It takes logit_bias as well, and does nothing (tests/dynamo/test_routes.py).
        if status == 200 and key not in ("n", "max_completion_tokens", "logit_bias"):
            assert fate is not None, f"1.6.1 accepts {key} and the table does not know it"
            assert not isinstance(fate, Refused), f"1.6.1 accepts {key} and it is refused"
        assert fate is not None or key in known_unknowns, f"{key} has no row"


@pytest.mark.parametrize(
    "key", ["return_token_ids", "spaces_between_special_tokens", "bad_words", "best_of", "x_foo"]
)
def test_what_dynamo_refuses_is_named_before_it_is_sent(key) -> None:
    with pytest.raises(UnsupportedParameterError, match=key):
        body_of(DynamoTransport(), **{key: True})


@pytest.mark.parametrize("stops", [{"stop_token_ids": (9,)}, {"stop": ("x",)}], ids=str)
def test_dynamo_would_drop_the_stops_of_a_request_with_ignore_eos(stops, caplog) -> None:
    """What its worker receives then has neither (1.6.1); without stops, and on vLLM's route, it is sent."""
    with pytest.raises(UnsupportedParameterError, match=f"drops {next(iter(stops))} "):
        body_of(DynamoTransport(), ignore_eos=True, **stops)
    sent = body_of(DynamoTransport(on_unsupported=OnUnsupported.WARN), ignore_eos=True, **stops)
    assert "ignore_eos" not in sent
    assert stops.keys() <= sent.keys()
    assert f"drops {next(iter(stops))} " in caplog.text
    assert body_of(DynamoTransport(), ignore_eos=True)["ignore_eos"] is True
    assert body_of(VllmTransport(), ignore_eos=True, **stops)["sampling_params"]["ignore_eos"] is True


def test_what_vllm_would_ignore_in_silence_is_refused() -> None:
    with pytest.raises(UnsupportedParameterError, match="tempperature"):
        body_of(VllmTransport(), tempperature=1.0)


@BOTH
def test_more_than_one_choice_is_refused(transport) -> None:
    with pytest.raises(UnsupportedParameterError, match="'n'"):
        body_of(transport, n=2)
    assert "n" not in body_of(transport, n=1)


@BOTH
def test_an_empty_prompt_and_ids_outside_the_vocabulary_are_never_sent(transport) -> None:
    with pytest.raises(InvalidTokenIdError, match="no ids"):
        body_of(transport, prompt_ids=())
    with pytest.raises(InvalidTokenIdError, match="100"):
        body_of(transport, prompt_ids=(1, 100), vocab_size=100)
    with pytest.raises(InvalidTokenIdError, match="stop token id 100"):
        body_of(transport, vocab_size=100, stop_token_ids=(100,))


@BOTH
@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_a_value_that_is_no_json_is_refused_and_not_written_as_null(transport, value) -> None:
    with pytest.raises(UnsupportedParameterError, match="no JSON"):
        body_of(transport, prompt_logprobs=value)


def test_vllm_body() -> None:
    body = body_of(
        VllmTransport(),
        temperature=0.0,
        max_completion_tokens=7,
        stop="x",
        stop_token_ids=(5, 6),
        priority=3,
        cache_salt="17",
        extra_body={"return_token_ids": True, "structured_outputs": {"regex": "a"}, "vllm_xargs": {"k": 1}},
    )
    assert body == {
        "token_ids": [1, 2, 3],
        "model": "m",
        "return_token_ids": True,
        "priority": -3,
        "cache_salt": "17",
        "sampling_params": {
            "temperature": 0.0,
            "max_tokens": 7,
            "stop": ["x"],
            "stop_token_ids": [5, 6],
            "logprobs": 1,
            "skip_special_tokens": False,
            "structured_outputs": {"regex": "a"},
            "extra_args": {"k": 1},
        },
    }


def test_dynamo_body() -> None:
    own = {"agent_hints": {"osl": 9}, "extra_fields": ["timing", "engine_data"], "backend_instance_id": None}
    body = body_of(
        DynamoTransport(),
        top_k=-1,
        max_tokens=7,
        stop_token_ids=(5, 6),
        priority=3,
        cache_salt="17",
        frequency_penalty=0.5,
        extra_body={"nvext": own, "tool_choice": "none"},
    )
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": ""}],
        "stream": False,
        "logprobs": True,
        "top_k": -1,
        "max_completion_tokens": 7,
        "stop_token_ids": [5, 6],
        "frequency_penalty": 0.5,
        "tool_choice": "none",
        "nvext": {
            "token_data": [1, 2, 3],
            "agent_hints": {"osl": 9, "priority": 3},
            "cache_salt": "17",
            "extra_fields": ["timing", "engine_data", *ASKED_FIELDS[1:]],
        },
    }
    assert own["agent_hints"] == {"osl": 9}, "the caller's own object is left alone"


@pytest.mark.parametrize(
    ("nvext", "named"),
    [
        ({"no_such": 1}, "nvext.no_such"),
        ({"agent_hints": {"foo": 1}}, "nvext.agent_hints.foo"),
        ({"token_data": [1]}, "nvext.token_data"),
        ({"extra_fields": "engine_data"}, "nvext.extra_fields"),
        ({"agent_hints": [1]}, "nvext.agent_hints"),
        ([1], "nvext"),
        ({"cache_salt": "18"}, "nvext.cache_salt"),
        ({"agent_hints": {"priority": 4}}, "nvext.agent_hints.priority"),
    ],
)
def test_a_callers_nvext_is_checked_key_by_key(nvext, named) -> None:
    with pytest.raises(UnsupportedParameterError, match=f"'{named}'"):
        body_of(DynamoTransport(), cache_salt="17", priority=3, nvext=nvext)


def test_tools_are_sent_only_where_asked() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    assert "tools" not in body_of(DynamoTransport(), tools=(tool,))
    assert body_of(DynamoTransport(send_tools=True), tools=(tool,))["tools"] == [tool]


@pytest.mark.parametrize("asked", [True, 0, 1])
def test_asking_for_what_is_asked_anyway_changes_nothing(asked) -> None:
    assert body_of(VllmTransport(), logprobs=asked)["sampling_params"]["logprobs"] == 1
    assert "top_logprobs" not in body_of(DynamoTransport(), logprobs=asked)


def test_alternatives_may_be_asked_and_log_probabilities_may_not_be_switched_off() -> None:
    assert body_of(VllmTransport(), logprobs=True, top_logprobs=5)["sampling_params"]["logprobs"] == 5
    assert body_of(DynamoTransport(), logprobs=True, top_logprobs=5)["top_logprobs"] == 5
    for transport in (VllmTransport(), DynamoTransport()):
        with pytest.raises(UnsupportedParameterError, match="logprobs"):
            body_of(transport, logprobs=False)


def test_two_values_for_one_place_are_refused() -> None:
    with pytest.raises(UnsupportedParameterError, match="given twice"):
        body_of(VllmTransport(), vllm_xargs={"a": 1}, extra_args={"a": 2})


@BOTH
def test_a_fixed_value_may_be_repeated_and_not_changed(transport) -> None:
    assert body_of(transport, stream=False)
    with pytest.raises(UnsupportedParameterError, match="stream"):
        body_of(transport, stream=True)
