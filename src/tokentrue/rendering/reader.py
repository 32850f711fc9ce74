"""Reading a completion: ids to content, reasoning and tool calls. The inverse of `render_assistant`.

Law 6: `parse(render_assistant(m)) == m`, and parsing never changes ids. Markers are matched as ids,
so text that merely spells one is content. White space is taken off only where, and only as much as,
the template itself writes it between the parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from tokentrue.messages import Message
from tokentrue.rendering.formats.reasoning import ReasoningFormat
from tokentrue.rendering.formats.tool_calls import (
    CallStatus,
    ParsedToolCall,
    TextAndCalls,
    ToolFormat,
    call_of,
    judge_tools,
)
from tokentrue.rendering.tokenizer import Tokenizer

MALFORMED_KEY = "malformed_tool_calls"
"""Key of `Message.extra` under which unreadable calls are kept, as `{"raw", "status"}` objects."""


class ReasoningState(Enum):
    """What the completion did about reasoning."""

    ABSENT = "absent"
    CLOSED = "closed"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """One completion, read. Every attempted call is in `tool_calls`, with its status."""

    content: str
    reasoning_content: str | None
    reasoning: ReasoningState
    tool_calls: tuple[ParsedToolCall, ...]
    stop_id: int | None

    @property
    def has_ok_call(self) -> bool:
        """Whether at least one call can be carried out."""
        return any(call.status is CallStatus.OK for call in self.tool_calls)

    def to_message(self, call_id_prefix: str = "call") -> Message:
        """The assistant message: readable calls in `tool_calls`, the others in `extra`.

        Args:
            call_id_prefix: Ids are `<prefix>_<index>`; make it unique within a conversation.
        """
        readable = [call_of(call, f"{call_id_prefix}_{i}") for i, call in enumerate(self.tool_calls)]
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

    def parse(
        self, ids: Sequence[int], *, prompt_tail: Sequence[int] = (), tool_names: frozenset[str] = frozenset()
    ) -> ParsedResponse:
        """Read one completion.

        Args:
            ids: The sampled ids, with or without the stop id.
            prompt_tail: The last ids of the prompt, back to the last stop id: they tell whether the
                generation prompt left reasoning open.
            tool_names: Offered tools; a call to another one is `UNKNOWN_TOOL`. Empty: not judged.
        """
        listed = list(ids)
        stop_id = listed[-1] if listed and listed[-1] in self.stop_ids else None
        if stop_id is not None:
            listed = listed[:-1]
        reasoning_text, state, rest = self._split_reasoning(listed, prompt_tail)
        gap = self.reasoning.gap if self.reasoning is not None and state is ReasoningState.CLOSED else ""
        if state is ReasoningState.OPEN or self.tools is None:
            found = TextAndCalls(self.tokenizer.decode(rest).removeprefix(gap), ())
        else:
            found = self.tools.read(rest, self.tokenizer, gap)
        return ParsedResponse(found.text, reasoning_text, state, judge_tools(found.calls, tool_names), stop_id)

    def _split_reasoning(
        self, ids: list[int], prompt_tail: Sequence[int]
    ) -> tuple[str | None, ReasoningState, list[int]]:
        form = self.reasoning
        if form is None:
            return None, ReasoningState.ABSENT, ids
        start = 0
        lead = form.lead
        if form.is_open(prompt_tail):
            # The prompt's own tail already holds the opener, and perhaps its white space.
            after_opener = list(prompt_tail)[_last_index(prompt_tail, form.opener.id) + 1 :]
            lead = lead.removeprefix(self.tokenizer.decode(after_opener)) if after_opener else lead
        elif form.opener.id in ids and not self.tokenizer.decode(ids[: ids.index(form.opener.id)]).strip():
            start = ids.index(form.opener.id) + 1
        else:
            return None, ReasoningState.ABSENT, ids
        if form.closer.id not in ids[start:]:
            return self.tokenizer.decode(ids[start:]).removeprefix(lead), ReasoningState.OPEN, []
        end = ids.index(form.closer.id, start)
        text = self.tokenizer.decode(ids[start:end]).removeprefix(lead)
        return text.removesuffix(form.trail), ReasoningState.CLOSED, ids[end + 1 :]


def _last_index(ids: Sequence[int], wanted: int) -> int:
    return max(position for position, token_id in enumerate(ids) if token_id == wanted)
