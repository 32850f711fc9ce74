"""Reading a completion: ids to content, reasoning and tool calls. The inverse of `render_assistant`.

Law 6: `parse(render_assistant(m)) == m`, and parsing never changes ids. Markers are matched as ids,
so text that merely spells one is content. White space is taken off only where, and only as much as,
the template itself writes it between the parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokentrue.messages import Message
from tokentrue.rendering.formats.frames import Frame, derive_frames, marked
from tokentrue.rendering.formats.parsed import CallStatus, ParsedToolCall, call_of, schemas_of
from tokentrue.rendering.formats.probing import Probes
from tokentrue.rendering.formats.reasoning import ReasoningFormat, ReasoningState
from tokentrue.rendering.formats.tool_calls import derive_tool_format
from tokentrue.rendering.formats.tool_format import ToolFormat
from tokentrue.rendering.streaming import (
    CallDelta,
    ContentDelta,
    Delta,
    ReadingRules,
    ReasoningDelta,
    StreamingReader,
)
from tokentrue.rendering.tokenizer import Tokenizer

MALFORMED_KEY = "malformed_tool_calls"
"""Key of `Message.extra` under which unreadable calls are kept, as `{"raw", "status"}` objects."""


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """One completion, read. Every attempted call is in `tool_calls`, with its status.

    Args:
        unread: Why a plugged-in reader could not read it; `content` is then all of its text as it was sampled.
    """

    content: str
    reasoning_content: str | None
    reasoning: ReasoningState
    tool_calls: tuple[ParsedToolCall, ...]
    stop_id: int | None
    unread: str = ""

    @property
    def has_ok_call(self) -> bool:
        """Whether at least one call can be carried out."""
        return any(call.status is CallStatus.OK for call in self.tool_calls)

    def to_message(self, call_id_prefix: str = "call", *, turn: int | None = None) -> Message:
        """The assistant message: readable calls in `tool_calls`, the others in `extra`.

        Args:
            call_id_prefix: Ids are `<prefix>_<index>` where the grammar writes none; make the prefix unique
                within a conversation.
            turn: With the index of the turn, ids are nine digits instead: Mistral's template takes no others.
        """
        ids = [
            f"{call_id_prefix}_{i}" if turn is None else f"{turn:06d}{i:03d}" for i in range(len(self.tool_calls))
        ]
        readable = [call_of(call, call_id) for call, call_id in zip(self.tool_calls, ids, strict=True)]
        malformed = [
            {"raw": call.raw, "status": call.status.value}
            for call, message_form in zip(self.tool_calls, readable, strict=True)
            if message_form is None
        ]
        return Message(
            role="assistant",
            content=self.content or None,
            reasoning_content=self.reasoning_content,
            tool_calls=tuple(call for call in readable if call is not None),
            extra={MALFORMED_KEY: malformed} if malformed else {},
        )


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the completions of one model."""

    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    reasoning: ReasoningFormat | None
    tools: ToolFormat | None
    frames: tuple[Frame, ...] = ()

    def start(
        self, *, prompt_tail: Sequence[int] = (), tools: Sequence[Mapping[str, Any]] = ()
    ) -> StreamingReader:
        """A reader for one completion, fed as it is sampled.

        Args:
            prompt_tail: The last ids of the prompt, from the generation prompt on: they tell whether the
                generation prompt left reasoning open.
            tools: The offered tools, in OpenAI's envelope: a call to another one is `UNKNOWN_TOOL`, and
                their schemas type parameters that are written as text. Empty: not judged.
        """
        rules = ReadingRules(
            self.tokenizer,
            self.stop_ids,
            self.reasoning,
            self.tools,
            schemas_of(tools),
            tuple(prompt_tail),
            self.frames,
        )
        return StreamingReader(rules)

    def parse(
        self,
        ids: Sequence[int],
        *,
        prompt_tail: Sequence[int] = (),
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> ParsedResponse:
        """Read one completion, with or without its stop id; arguments as for `start`."""
        reader = self.start(prompt_tail=prompt_tail, tools=tools)
        deltas = reader.feed(ids) + reader.finish()
        return response_of(deltas, reader)


def response_of(deltas: Sequence[Delta], reader: StreamingReader) -> ParsedResponse:
    """The response that a finished reader gave out in `deltas`."""
    thoughts = [delta.text for delta in deltas if isinstance(delta, ReasoningDelta)]
    state = reader.reasoning
    return ParsedResponse(
        content="".join(delta.text for delta in deltas if isinstance(delta, ContentDelta)),
        reasoning_content=None if state is ReasoningState.ABSENT else "".join(thoughts),
        reasoning=state,
        tool_calls=tuple(delta.call for delta in deltas if isinstance(delta, CallDelta)),
        stop_id=reader.stop_id,
    )


_PROMPT_TAIL = 16


def derive_reader(probes: Probes, stop_ids: Sequence[int]) -> Reader:
    """What reads the completions of a template, all of it recognised in known messages that it wrote."""
    reader = Reader(probes.tokenizer, frozenset(stop_ids), probes.reasoning, derive_tool_format(probes))
    reader = _with_frames(reader, probes)
    if reader.tools is not None or not reader.frames:
        return reader
    # The grammar of calls may stand behind a frame.
    framed = tuple(
        (marked(frame.before, probes.marks), marked(frame.after, probes.marks)) for frame in reader.frames
    )
    tools = derive_tool_format(replace(probes, frames=framed))
    return _with_frames(replace(reader, tools=tools), probes)


def _with_frames(reader: Reader, probes: Probes) -> Reader:
    def read(frames: tuple[Frame, ...], prompt: list[int], ids: list[int]) -> str:
        ends = [position for position, token_id in enumerate(ids) if token_id in reader.stop_ids]
        said = ids[: ends[0] + 1] if ends else ids
        return replace(reader, frames=frames).parse(said, prompt_tail=prompt[-_PROMPT_TAIL:]).content

    return replace(reader, frames=derive_frames(probes, read))
