"""Recorded streams: however the bytes are cut, the deltas are the whole; what breaks off is no sample."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentrue.errors import (
    AbortedError,
    AlignmentError,
    ConnectionLostError,
    EngineFailureError,
    EngineRequestError,
    MalformedReplyError,
    OverlongPromptError,
    TokentrueError,
    UnsupportedParameterError,
)
from tokentrue.generation import FinishReason, GenerateRequest, VersionSource
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.dynamo import DynamoTransport
from tokentrue.transports.openai_chat import VllmChat
from tokentrue.transports.sglang import SglangTransport
from tokentrue.transports.streams import EventStream, StreamReader, stream_call
from tokentrue.transports.vllm import VllmTransport

TRANSPORTS = {"vllm": VllmTransport, "dynamo": DynamoTransport, "sglang": SglangTransport}
GOOD = [
    ("vllm", "generate_stream"),
    ("vllm", "v031_generate_stream"),
    ("dynamo", "wk_chat_tito_stream"),
    ("dynamo", "wk_chat_tito_stream_usage"),
    ("sglang", "gen_stream"),
]


@pytest.fixture(scope="session")
def recorded(captures_folder):
    """The request and the stream of one capture."""

    def load(folder, name):
        told = json.loads((captures_folder / folder / f"{name}.json").read_text())
        body, answer = told["request"]["body"], told["response"]
        lines = answer["sse"] if "sse" in answer else answer["body"]
        lines = lines["sse_lines"] if isinstance(lines, dict) else lines
        nvext = body.get("nvext") or {}
        ids = body.get("token_ids") or body.get("input_ids") or nvext.get("token_data")
        sampling = body.get("sampling_params") or body
        most = sampling.get("max_tokens") or sampling.get("max_new_tokens")
        request = GenerateRequest("tiny", TokenIds(ids), SamplingParams(max_tokens=most), vocab_size=1024)
        return request, "".join(f"{line}\n\n" for line in lines).encode()

    return load


def reader_of(folder, request) -> StreamReader:
    return StreamReader(TRANSPORTS[folder](), request)


def read(folder, request, pieces):
    """The deltas and the end."""
    reader = reader_of(folder, request)
    deltas = [delta for piece in pieces for delta in reader.feed(piece)]
    return deltas, reader.generation()


@pytest.mark.parametrize(("folder", "name"), GOOD)
def test_the_deltas_are_the_whole(recorded, folder, name) -> None:
    request, stream = recorded(folder, name)
    deltas, end = read(folder, request, [stream])
    assert len(deltas) > 1
    assert end.tokens.prompt_ids == request.prompt_ids
    assert end.tokens.completion_ids == [each for delta in deltas for each in delta.token_ids]
    assert end.tokens.completion_logprobs == [each for delta in deltas for each in delta.logprobs]
    assert end.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)


def test_what_a_stream_tells_of_itself_arrives(recorded) -> None:
    _, end = read("vllm", *_one(recorded("vllm", "generate_stream")))
    assert end.prompt_ids_echoed
    assert (end.usage.prompt_tokens, end.usage.completion_tokens, end.usage.cached_tokens) == (68, 8, 64)
    assert [(span.version, span.source) for span in end.weight_spans] == [(None, VersionSource.UNKNOWN)]
    _, end = read("dynamo", *_one(recorded("dynamo", "wk_chat_tito_stream_usage")))
    assert end.text
    assert end.usage.prompt_tokens == len(end.tokens.prompt_ids)
    _, end = read("sglang", *_one(recorded("sglang", "gen_stream")))
    assert end.usage.cached_tokens == 67


def _one(request_and_stream):
    request, stream = request_and_stream
    return request, [stream]


@pytest.mark.parametrize(("folder", "name"), GOOD)
def test_byte_by_byte_is_the_same(recorded, folder, name) -> None:
    request, stream = recorded(folder, name)
    whole = read(folder, request, [stream])
    assert read(folder, request, [stream[at : at + 1] for at in range(len(stream))]) == whole
    assert read(folder, request, [stream.replace(b"\n", b"\r\n")]) == whole
    assert read(folder, request, [b": keep-alive\n\n" + stream]) == whole


@given(data=st.data())
def test_any_cut_of_the_bytes_gives_the_same_events(data) -> None:
    events = data.draw(
        st.lists(st.binary(max_size=8).map(lambda text: text.replace(b"\n", b"").strip()), max_size=6)
    )
    stream = b"".join(b"data: " + event + b"\n\n" for event in events)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)))) | {0, len(stream)})
    split = EventStream()
    found = [each for at, to in itertools.pairwise(cuts) for each in split.feed(stream[at:to])]
    assert found == [event.strip() for event in events]


@pytest.mark.parametrize(("folder", "name"), GOOD)
def test_a_stream_that_breaks_off_is_no_sample_and_tells_what_came(recorded, folder, name) -> None:
    """Cut behind every line: no prefix of a good stream is ever taken for a completion."""
    request, stream = recorded(folder, name)
    deltas, _ = read(folder, request, [stream])
    lines = stream.splitlines(keepends=True)
    for end in range(len(lines) - 2):
        reader = reader_of(folder, request)
        came = list(reader.feed(b"".join(lines[:end])))
        with pytest.raises(ConnectionLostError, match="broke off"):
            reader.generation()
        assert came == deltas[: len(came)]
        assert reader.partial().tokens.completion_ids == [each for delta in came for each in delta.token_ids]


@pytest.mark.parametrize(("folder", "name"), GOOD)
def test_a_stream_without_its_finish_is_given_up_not_finished(recorded, folder, name) -> None:
    """Its end mark came, and no event said why sampling ended."""
    request, stream = recorded(folder, name)
    events = stream.split(b"\n\n")
    kept = [each for each in events if b'"finish_reason":"' not in each and b'"finish_reason":{' not in each]
    with pytest.raises(AbortedError):
        read(folder, request, [b"\n\n".join(kept)])


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("vllm", "bad_generate_stream_overlong", OverlongPromptError),
        ("sglang", "bad_stream_overlong", OverlongPromptError),
        ("dynamo", "wkb_fault_stream_9001", EngineRequestError),
        ("dynamo", "wkb_fault_stream_9004", EngineFailureError),
    ],
)
def test_an_error_inside_the_stream_is_the_error_that_a_whole_reply_would_be(
    recorded, folder, name, expected
) -> None:
    with pytest.raises(expected):
        read(folder, *_one(recorded(folder, name)))


def test_an_error_in_the_middle_keeps_what_came(recorded) -> None:
    request, stream = recorded("vllm", "generate_stream")
    first, second, *_ = stream.split(b"\n\n")
    dead = b'data: {"error":{"message":"EngineCore encountered an issue","type":"InternalServerError","code":500}}'
    reader = reader_of("vllm", request)
    with pytest.raises(EngineFailureError, match="EngineCore"):
        list(reader.feed(b"\n\n".join([first, second, dead, b"data: [DONE]", b""])))
    assert reader.partial().tokens.completion_ids == [162, 945]


def test_ids_without_their_log_probabilities_are_refused_at_once(recorded) -> None:
    """Recorded without asking for them."""
    with pytest.raises(AlignmentError, match="1 sampled ids came with 0 log-probabilities"):
        read("vllm", *_one(recorded("vllm", "generate_stream_interval")))


@pytest.mark.parametrize(
    ("folder", "event"),
    [
        ("vllm", b"not json"),
        ("vllm", b'{"choices":[{"index":1,"token_ids":[1]}]}'),
        ("vllm", b'{"choices":[{},{}]}'),
        ("vllm", b'{"choices":[{"token_ids":"12"}]}'),
        ("dynamo", b'{"nvext":{"completion_token_ids":7}}'),
        ("sglang", b'{"output_ids":[1]}'),
        ("sglang", b"[]"),
    ],
)
def test_an_event_that_is_none_is_malformed(folder, event) -> None:
    reader = reader_of(folder, GenerateRequest("m", TokenIds([1]), vocab_size=9))
    with pytest.raises(MalformedReplyError):
        list(reader.feed(b"data: " + event + b"\n\n"))


def test_sglang_may_not_change_what_it_has_told() -> None:
    reader = reader_of("sglang", GenerateRequest("m", TokenIds([1]), vocab_size=9))
    event = b'data: {"output_ids":[%d],"meta_info":{"output_token_logprobs":[[-1.0,%d,null]]}}\n\n'
    assert [delta.token_ids for delta in reader.feed(event % (3, 3))] == [(3,)]
    with pytest.raises(MalformedReplyError, match="changes the first 1 ids"):
        list(reader.feed(event % (4, 4)))


@pytest.mark.parametrize("folder", TRANSPORTS)
def test_the_call_is_the_whole_calls_with_streaming_on(folder) -> None:
    transport = TRANSPORTS[folder]()
    request = GenerateRequest('m","stream":false,"x', TokenIds([1, 2]), SamplingParams(max_tokens=4), vocab_size=9)
    call, whole = stream_call(transport, request), transport.write_generate(request)
    told, plain = json.loads(call.body), json.loads(whole.body)
    assert told.pop("stream") is True
    assert told.pop("stream_options") == {"include_usage": True}
    plain.pop("stream", None)
    assert told == plain
    assert call.headers["accept"] == "text/event-stream"


def test_another_transport_has_no_stream() -> None:
    with pytest.raises(UnsupportedParameterError, match="only vllm, dynamo, sglang stream"):
        stream_call(VllmChat(), GenerateRequest("m", TokenIds([1])))


def test_a_secret_in_an_error_is_hidden() -> None:
    request = GenerateRequest("m", TokenIds([1]))
    reader = StreamReader(VllmTransport(), request, lambda text: text.replace(b"sk-1", b"***"))
    with pytest.raises(TokentrueError) as raised:
        list(reader.feed(b'data: {"error":{"message":"bad key sk-1","code":401}}\n\n'))
    assert "sk-1" not in str(raised.value)
    assert "***" in str(raised.value)
