"""What our workers read from and write to a Dynamo frontend, without a Dynamo."""

from __future__ import annotations

from servers.dynamo.fault_worker import completion_of, logprob_of, reply_text
from servers.dynamo.request_log import RequestLogWriter, read_requests
from servers.dynamo.worker_wire import Completion, WorkOrder, write_chunks

CHAT = {
    "model": "m",
    "token_ids": [5, 6, 7],
    "stop_conditions": {"max_tokens": 9, "stop_token_ids": [40], "stop_token_ids_hidden": [40, 41], "stop": None},
    "sampling_options": {"temperature": 0.5, "top_p": None, "seed": 3, "n": None},
    "output_options": {"logprobs": 1},
    "extra_args": {"nvext": {"extra_fields": ["engine_data"], "token_in": True}},
}
GENERATE = {
    "model": "m",
    "token_ids": [5, 6, 7],
    "stop_conditions": {"max_tokens": 9, "stop_token_ids_hidden": None},
    "sampling_options": {"temperature": None},
    "output_options": {},
    "extra_args": {"vllm_tito": {"sampling_params": {"max_tokens": 4, "logprobs": 0, "temperature": 1.0}}},
}


def test_the_chat_route_spreads_the_parameters_over_three_sections() -> None:
    order = WorkOrder.read(CHAT, (41,))
    assert order.prompt_ids == (5, 6, 7)
    assert order.max_tokens == 9
    assert order.stop_token_ids == (40, 41)
    assert order.sampling == {"temperature": 0.5, "seed": 3}
    assert order.top_logprobs == 1
    assert order.wants_engine_data
    assert order.token_in


def test_the_generate_route_passes_sampling_params_on_and_they_win() -> None:
    order = WorkOrder.read(GENERATE, (41,))
    assert order.max_tokens == 4
    assert order.stop_token_ids == (41,)
    assert order.sampling == {"temperature": 1.0}
    assert order.top_logprobs == 0
    assert order.token_in
    assert not order.wants_engine_data


def test_ignore_eos_takes_the_models_end_out_of_the_stop_ids() -> None:
    request = {"token_ids": [1], "stop_conditions": {"ignore_eos": True, "stop_token_ids": [9]}}
    assert WorkOrder.read(request, (41,)).stop_token_ids == (9,)


def test_chunks_of_any_size_carry_the_same_ids_and_logprobs() -> None:
    order = WorkOrder.read(CHAT, ())
    completion = Completion((11, 12, 13, 40), (-0.5, -0.25, -0.125, -1.0), "stop", stop_reason=40)
    for size in range(1, 6):
        chunks = list(write_chunks(order, completion, str, size))
        assert tuple(each for chunk in chunks for each in chunk["token_ids"]) == completion.token_ids
        assert tuple(each for chunk in chunks for each in chunk["log_probs"]) == completion.logprobs
        assert all(len(chunk["top_logprobs"]) == len(chunk["token_ids"]) for chunk in chunks)
        assert [chunk.get("finish_reason") for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
        assert chunks[-1]["engine_data"] == {
            "completion_token_ids": [11, 12, 13, 40],
            "completion_logprobs": [-0.5, -0.25, -0.125, -1.0],
            "prompt_token_ids": [5, 6, 7],
            "finished": True,
        }


def test_the_sampled_id_comes_first_among_its_alternatives_and_only_once() -> None:
    completion = Completion((11,), (-2.0,), "length", alternatives=(((12, -0.1), (11, -2.0)),))
    (chunk,) = write_chunks(WorkOrder.read(CHAT, ()), completion, str, 1)
    assert [row["token_id"] for row in chunk["top_logprobs"][0]] == [11, 12]


def test_no_logprobs_are_written_when_none_were_asked_for() -> None:
    order = WorkOrder.read({"token_ids": [1], "output_options": {}}, ())
    (chunk,) = write_chunks(order, Completion((11,), (-2.0,), "length"), str, 1)
    assert "log_probs" not in chunk
    assert "engine_data" not in chunk


def test_the_deterministic_reply_changes_with_every_single_id() -> None:
    prompt = [3, 1, 4, 1, 5, 9]
    replies = {reply_text([*prompt[:i], prompt[i] + 1, *prompt[i + 1 :]]) for i in range(len(prompt))}
    assert len(replies | {reply_text(prompt)}) == len(prompt) + 1


def test_a_deterministic_reply_is_cut_at_a_stop_id_or_at_max_tokens() -> None:
    reply = [50, 51, 40]
    stopped = completion_of(WorkOrder.read(CHAT, ()), reply, 100)
    assert (stopped.token_ids, stopped.finish_reason, stopped.stop_reason) == ((50, 51, 40), "stop", None)
    endless = {"token_ids": [1], "stop_conditions": {"max_tokens": 5}}
    cut = completion_of(WorkOrder.read(endless, ()), reply, 100)
    assert (cut.token_ids, cut.finish_reason) == ((50, 51, 40, 50, 51), "length")
    assert cut.logprobs == tuple(logprob_of(each) for each in cut.token_ids)


def test_reading_the_request_log_gives_what_was_written(tmp_path) -> None:
    path = tmp_path / "requests.jsonl"
    for _ in range(2):  # a worker that was started twice
        log = RequestLogWriter(path)
        log.ended(log.received(CHAT), "stop", [11, 12])
        log.received(GENERATE)
        log.close()
    with path.open("a") as file:
        file.write('{"event": "rece')  # it was killed in the middle of a line
    logged = read_requests(path)
    assert [each.how for each in logged] == ["stop", None, "stop", None]
    assert logged[0].request == CHAT
    assert logged[0].prompt_ids == (5, 6, 7)
    assert logged[0].completion_ids == (11, 12)
    assert [each.token_in for each in logged] == [True, False, True, False]


def test_an_empty_log_has_no_requests(tmp_path) -> None:
    assert read_requests(tmp_path / "nothing.jsonl") == []
