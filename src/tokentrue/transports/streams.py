"""Streams of the token routes: events in, deltas out, and in the end the same `Generation` as of a whole reply.

The pieces of a stream are put together to the very body that the server sends when it does not stream, and that
body goes through the transport's own reader. So one routine checks laws 3 and 4 of both, and there is no second
way to read a reply. vLLM and Dynamo send what is new in each event; SGLang repeats everything from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import msgspec

from tokentrue.errors import (
    AlignmentError,
    ConnectionLostError,
    MalformedReplyError,
    TokentrueError,
    UnsupportedParameterError,
)
from tokentrue.generation import Delta, GenerateRequest, Generation, PartialGeneration, make_tokens
from tokentrue.transports.evidence import LogprobItem, LogprobsWire, is_absent, paired_logprobs
from tokentrue.transports.refusals import excerpt
from tokentrue.transports.transport import HttpCall, HttpReply, Transport

_STREAMED = b'"stream":true,"stream_options":{"include_usage":true}'
_END = b"[DONE]"

Members = dict[str, msgspec.Raw]
"""A JSON object whose values are left undecoded."""

_OBJECT = msgspec.json.Decoder(Members)
_CHOICES = msgspec.json.Decoder(list[Members])
_IDS = msgspec.json.Decoder(list[int])
_ITEM = msgspec.json.Decoder(LogprobItem)


class _RawContent(msgspec.Struct):
    content: list[msgspec.Raw] | None = None


_CONTENT = msgspec.json.Decoder(_RawContent)


class EventStream:
    """Splits the bytes of an event stream into the data of its events, however the network has cut them."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event whose line is complete now; comments and other fields are left out."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


class Assembly(Protocol):
    """Puts the events of one wire together."""

    def add(self, event: bytes, members: Members) -> Delta | None:
        """Take one event in; gives the ids that are new in it, or None when there are none.

        Raises:
            AlignmentError: Its ids and log-probabilities do not belong together.
            MalformedReplyError: It contradicts an earlier event, or is about more than one completion.
            msgspec.MsgspecError: It has not the shape of an event.
        """
        ...

    def whole(self) -> bytes:
        """The body of the reply that would have come without streaming."""
        ...


def _given(members: Mapping[str, msgspec.Raw], left_out: Sequence[str] = ()) -> Members:
    return {key: value for key, value in members.items() if key not in left_out and not is_absent(value)}


def _only_choice(members: Members) -> Members | None:
    choices = _CHOICES.decode(members.get("choices", b"[]"))
    if len(choices) > 1 or (choices and bytes(choices[0].get("index", b"0")) != b"0"):
        raise MalformedReplyError("the stream is about more than one completion", status=200)
    return choices[0] if choices else None


def _delta(ids: Sequence[int], items: Sequence[msgspec.Raw]) -> Delta | None:
    if not ids and not items:
        return None
    wire = LogprobsWire([_ITEM.decode(each) for each in items])
    return Delta(tuple(ids), tuple(paired_logprobs(ids, wire)))


class _Choice:
    """One choice in the making: lists are joined, of everything else the last word counts."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.items: list[msgspec.Raw] = []
        self.others: Members = {}

    def add_items(self, choice: Members) -> list[msgspec.Raw]:
        """Join the log-probability items of one event; gives them back."""
        logprobs = choice.get("logprobs", msgspec.Raw())
        found = [] if is_absent(logprobs) else _CONTENT.decode(logprobs).content or []
        self.items += found
        return found


class VllmAssembly:
    """vLLM's `/inference/v1/generate`: each event has the ids that are new, the first one the prompt's."""

    def __init__(self) -> None:
        self._top: Members = {}
        self._choice = _Choice()

    def add(self, event: bytes, members: Members) -> Delta | None:
        """See `Assembly.add`."""
        del event
        self._top |= _given(members, ("choices",))
        choice = _only_choice(members)
        if choice is None:
            return None
        told = choice.get("token_ids", msgspec.Raw())
        ids = [] if is_absent(told) else _IDS.decode(told)
        self._choice.ids += ids
        self._choice.others |= _given(choice, ("token_ids", "logprobs"))
        return _delta(ids, self._choice.add_items(choice))

    def whole(self) -> bytes:
        """See `Assembly.whole`."""
        made = self._choice
        choice = {**made.others, "token_ids": made.ids, "logprobs": {"content": made.items}}
        return msgspec.json.encode({**self._top, "choices": [choice]})


class _Text(msgspec.Struct):
    content: str | None = None


_TEXT = msgspec.json.Decoder(_Text)


class DynamoAssembly:
    """Dynamo's chat route: ids in `nvext` and with the log-probabilities, text in `delta`."""

    def __init__(self) -> None:
        self._top: Members = {}
        self._nvext: Members = {}
        self._has_nvext_ids = False
        self._choice = _Choice()
        self._text: list[str] = []

    def add(self, event: bytes, members: Members) -> Delta | None:
        """See `Assembly.add`."""
        del event
        self._top |= _given(members, ("choices", "nvext", "object"))
        nvext = members.get("nvext", msgspec.Raw())
        told = {} if is_absent(nvext) else _given(_OBJECT.decode(nvext))
        ids = _IDS.decode(told.pop("completion_token_ids")) if "completion_token_ids" in told else None
        self._nvext |= told
        choice = _only_choice(members) or {}
        self._choice.others |= _given(choice, ("delta", "logprobs"))
        text = choice.get("delta", msgspec.Raw())
        self._text.append("" if is_absent(text) else _TEXT.decode(text).content or "")
        items = self._choice.add_items(choice)
        if ids is None:
            # Not asked for, or a frontend that does not know the field: each item names its id.
            named = [_ITEM.decode(each).maybe_id() for each in items]
            return _delta([each for each in named if each is not None], items)
        self._has_nvext_ids = True
        self._choice.ids += ids
        return _delta(ids, items)

    def whole(self) -> bytes:
        """See `Assembly.whole`."""
        made = self._choice
        nvext = {**self._nvext, **({"completion_token_ids": made.ids} if self._has_nvext_ids else {})}
        message = {"role": "assistant", "content": "".join(self._text)}
        choice = {**made.others, "message": message, "logprobs": {"content": made.items}}
        return msgspec.json.encode({**self._top, "choices": [choice], **({"nvext": nvext} if nvext else {})})


class _SglangMeta(msgspec.Struct):
    output_token_logprobs: list[tuple[float | None, int, str | None]] | None = None


class _SglangEvent(msgspec.Struct):
    output_ids: list[int]
    meta_info: _SglangMeta


_SGLANG = msgspec.json.Decoder(_SglangEvent)


class SglangAssembly:
    """SGLang's `/generate`: every event is the whole reply so far, so the last one is the whole reply."""

    def __init__(self) -> None:
        self._last = b"{}"
        self._ids: list[int] = []

    def add(self, event: bytes, members: Members) -> Delta | None:
        """See `Assembly.add`."""
        del members
        told = _SGLANG.decode(event)
        known = len(self._ids)
        if told.output_ids[:known] != self._ids:
            raise MalformedReplyError(f"an event of the stream changes the first {known} ids", status=200)
        self._last, self._ids = event, told.output_ids
        items = (told.meta_info.output_token_logprobs or [])[known:]
        ids = self._ids[known:]
        if not ids and not items:
            return None
        wire = LogprobsWire([LogprobItem(logprob, token_id) for logprob, token_id, _ in items])
        return Delta(tuple(ids), tuple(paired_logprobs(ids, wire)))

    def whole(self) -> bytes:
        """See `Assembly.whole`."""
        return self._last


_ASSEMBLIES: Mapping[str, type[VllmAssembly | DynamoAssembly | SglangAssembly]] = {
    "vllm": VllmAssembly,
    "dynamo": DynamoAssembly,
    "sglang": SglangAssembly,
}


def stream_call(transport: Transport, request: GenerateRequest) -> HttpCall:
    """The call that asks for the same completion as `transport.write_generate`, as a stream.

    Raises:
        UnsupportedParameterError: This transport has no stream of ids, or a parameter has no place.
        InvalidTokenIdError: As of `write_generate`.
    """
    if transport.name not in _ASSEMBLIES:
        raise UnsupportedParameterError("stream", transport.name, f"only {', '.join(_ASSEMBLIES)} stream ids")
    call = transport.write_generate(request)
    # The model's name and placeholder messages stand before it, where a quote is escaped; so the first is the key.
    if b'"stream":false' in call.body:
        body = call.body.replace(b'"stream":false', _STREAMED, 1)
    else:
        body = call.body[:-1] + b"," + _STREAMED + b"}"
    return replace(call, body=body, headers={**call.headers, "accept": "text/event-stream"})


def no_stream(transport: Transport, request: GenerateRequest, reply: HttpReply) -> None:
    """Say what a reply is that is no event stream.

    Raises:
        TokentrueError: Always: the server's error, or that it does not stream.
    """
    transport.read_generate(request, reply)
    raise MalformedReplyError("a stream was asked for and a whole reply came", status=reply.status)


class StreamReader:
    """Reads one stream. Pure: bytes go in as they come, deltas come out, and in the end the generation.

    Args:
        transport: The codec that wrote the call.
        request: What was asked.
        hidden: Takes secrets out of bytes that go into an error.
    """

    def __init__(
        self, transport: Transport, request: GenerateRequest, hidden: Callable[[bytes], bytes] = bytes
    ) -> None:
        self._transport = transport
        self._request = request
        self._hidden = hidden
        self._events = EventStream()
        self._assembly: Assembly = _ASSEMBLIES[transport.name]()
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._is_over = False

    def feed(self, chunk: bytes) -> Iterator[Delta]:
        """What is new in `chunk`.

        Raises:
            EngineError: An event is an error, or no event of this wire; `partial` gives what came before it.
        """
        for event in self._events.feed(chunk):
            if event == _END:
                self._is_over = True
                continue
            delta = self._delta_of(event)
            if delta is not None:
                self._ids += delta.token_ids
                self._logprobs += delta.logprobs
                yield delta

    def generation(self) -> Generation:
        """The completion, when the stream has ended; laws 3 and 4 are checked as on a whole reply.

        Raises:
            ConnectionLostError: It ended without its end mark.
            AlignmentError: The deltas are not what the whole reply says.
            EngineError: Whatever else `Transport.read_generate` says of the whole.
        """
        if not self._is_over:
            raise ConnectionLostError(f"the stream broke off after {len(self._ids)} ids, without its end mark")
        generation = self._transport.read_generate(self._request, HttpReply(200, {}, self._assembly.whole()))
        tokens = generation.tokens
        if tokens.completion_ids != self._ids or tokens.completion_logprobs != self._logprobs:
            raise AlignmentError("the ids or log-probabilities of the stream are not those of its end", status=200)
        return generation

    @property
    def has_begun(self) -> bool:
        """Whether a delta has been given."""
        return bool(self._ids)

    def partial(self) -> PartialGeneration:
        """What has been given as deltas so far."""
        return PartialGeneration(make_tokens(self._request.prompt_ids, self._ids, self._logprobs))

    def _delta_of(self, event: bytes) -> Delta | None:
        try:
            members = _OBJECT.decode(event)
            if "error" not in members or is_absent(members["error"]):
                return self._assembly.add(event, members)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise MalformedReplyError(
                f"an event of the stream cannot be read: {exc}", status=200, detail=excerpt(self._hidden(event))
            ) from exc
        raise self._error_in(event)

    def _error_in(self, event: bytes) -> TokentrueError:
        """The transport's own error for an event that is one."""
        try:
            self._transport.read_generate(
                self._request, HttpReply(200, {}, b"data: " + self._hidden(event) + b"\n\n")
            )
        except TokentrueError as exc:
            return exc
        return MalformedReplyError("an error in the stream was read as a sample", status=200)
