"""Every recorded reply of a token route becomes the right sample or the right error."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokentrue import errors
from tokentrue.generation import FinishReason, VersionSource

OUTCOMES = [
    line.split()
    for line in (Path(__file__).parent / "outcomes.txt").read_text().splitlines()
    if not line.startswith("#")
]


def expected_sample(folder: str, answer: dict) -> tuple[list[int], list[float], str]:
    """Ids, log-probabilities and finish reason, read straight from the JSON."""
    if folder == "sglang" and "meta_info" in answer:
        meta = answer["meta_info"]
        return (
            answer["output_ids"],
            [item[0] for item in meta["output_token_logprobs"]],
            meta["finish_reason"]["type"],
        )
    choice = answer["choices"][0]
    nvext = answer.get("nvext", {})
    ids = choice.get("token_ids")
    if ids is None:
        ids = nvext.get("completion_token_ids") or nvext["engine_data"]["completion_token_ids"]
    return ids, [item["logprob"] for item in choice["logprobs"]["content"]], choice["finish_reason"]


def test_no_capture_is_left_out(token_route_names) -> None:
    assert {(folder, name) for folder, name, *_ in OUTCOMES} == token_route_names
    assert len(OUTCOMES) == len(token_route_names), "a capture is listed twice"


@pytest.mark.parametrize("row", OUTCOMES, ids=lambda row: f"{row[0]}-{row[1]}")
def test_outcome(capture, row) -> None:
    folder, name, outcome, *rest = row
    recorded = capture(folder, name)
    assert recorded.is_stream == ("stream" in rest)
    if not outcome.isdecimal():
        with pytest.raises(getattr(errors, outcome)) as raised:
            recorded.transport.read_generate(recorded.request(), recorded.reply)
        assert type(raised.value) is getattr(errors, outcome)
        assert len(str(raised.value)) < 1500
        return
    generation = recorded.transport.read_generate(recorded.request(), recorded.reply)
    ids, logprobs, finish = expected_sample(folder, recorded.answer)
    assert generation.tokens.completion_ids.tolist() == ids
    assert len(ids) == int(outcome)
    assert generation.tokens.completion_logprobs.tolist() == logprobs
    assert generation.tokens.prompt_ids.tolist() == recorded.request().prompt_ids.tolist()
    assert rest[0] == {"tool_calls": "stop"}.get(finish, finish)
    assert generation.finish_reason is FinishReason(rest[0])


def test_the_echo_and_the_versions_of_weights_are_read(capture) -> None:
    recorded = capture("vllm", "generate_logprobs1_return_ids")
    generation = recorded.transport.read_generate(recorded.request(), recorded.reply)
    assert generation.prompt_ids_echoed
    assert [(s.version, s.start, s.end) for s in generation.weight_spans] == [(None, 0, 8)]
    assert generation.usage.prompt_tokens == 68
    assert generation.usage.cached_tokens == 64


def test_weights_that_changed_under_a_completion_give_two_spans(capture) -> None:
    recorded = capture("vllm", "S_inflight_weight_swap_result")
    spans = recorded.transport.read_generate(recorded.request(), recorded.reply).weight_spans
    told = recorded.answer["choices"][0]["weight_versions"]
    assert [(s.start, s.end) for s in spans] == [(t["start"], t["end"]) for t in told]
    assert [t["version"] for t in told] == ["default", spans[1].version]
    assert (spans[0].version, spans[0].source) == (None, VersionSource.UNKNOWN)
    assert len(spans) == 2


def test_a_stop_string_ends_at_what_was_delivered_not_at_what_was_sampled(capture) -> None:
    """The worker's list goes on for three ids behind the stop string that the frontend found."""
    recorded = capture("dynamo", "chunk64_stop_str")
    generation = recorded.transport.read_generate(recorded.request(), recorded.reply)
    assert len(recorded.answer["nvext"]["engine_data"]["completion_token_ids"]) == 9
    assert generation.tokens.completion_ids.tolist() == [279, 75, 357, 3934, 473, 609]
    assert generation.stop_reason == "this"
