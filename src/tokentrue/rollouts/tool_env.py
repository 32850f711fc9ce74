"""`ToolEnv`: the model calls typed Python functions, and whatever goes wrong in a call is told to the model."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Any

from tokentrue.messages import Message
from tokentrue.rendering.reader import MALFORMED_KEY
from tokentrue.rollouts.environment import Eventually, MultiTurnEnv, NewMessage, StateT, TaskT, eventually

_ADVICE = {
    "invalid_json": "its arguments are not valid JSON",
    "unclosed": "it was not closed",
    "unknown_tool": "there is no such tool",
    "missing_name": "it names no tool",
}
_SHOWN_CHARS = 200


class ToolEnv(MultiTurnEnv[TaskT, StateT], ABC):
    """Answers each call of a turn with one tool message, in the order of the calls.

    The calls of one turn run one after the other, so that a tool with a memory sees them in the order in which
    the model wrote them. An unknown tool, wrong arguments, a malformed call and an exception in a tool are
    answers; none of them ends the episode. A message without any call goes to `user_response`.
    """

    def user_response(self, messages: Sequence[Message], state: StateT) -> Eventually[Sequence[NewMessage]]:
        """What the user says to a message without calls; empty (the default) ends the episode."""
        del messages, state
        return ()

    async def env_response(self, messages: Sequence[Message], state: StateT) -> Sequence[NewMessage]:
        """One tool message per call, or `user_response` when the model called nothing."""
        last = messages[-1]
        answers = [
            Message(role="tool", content=(await state.tools.call(call)).text, tool_call_id=call.id, name=call.name)
            for call in last.tool_calls
        ]
        answers += [_answer_malformed(attempt) for attempt in malformed_calls(last)]
        return answers or await eventually(self.user_response(messages, state))


def malformed_calls(message: Message) -> tuple[dict[str, Any], ...]:
    """The attempted calls of a message that could not be read."""
    attempts = message.extra.get(MALFORMED_KEY)
    if not isinstance(attempts, (list, tuple)):
        return ()
    return tuple(dict(attempt) for attempt in attempts)


def _answer_malformed(attempt: dict[str, Any]) -> Message:
    status, raw = str(attempt.get("status", "")), str(attempt.get("raw", ""))
    reason = _ADVICE.get(status, status or "it could not be read")
    shown = raw if len(raw) <= _SHOWN_CHARS else raw[:_SHOWN_CHARS] + "…"
    call_id = attempt.get("id")
    return Message(
        role="tool",
        content=f"error: this tool call could not be read, {reason}: {shown}",
        tool_call_id=call_id if isinstance(call_id, str) else None,
    )
