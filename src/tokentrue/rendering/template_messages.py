"""How a message is handed to a chat template, found out by asking the template.

Templates disagree about two things that OpenAI's shape leaves open: whether tool-call arguments are a
JSON value or its text, and what stands in `content` when an assistant message only calls tools. Both
are probed once per template; the engines' own choice (value, "") comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tokentrue.errors import TemplateRenderError
from tokentrue.messages import Message, ToolCall
from tokentrue.rendering.chat_template import ChatTemplate


class ArgumentsForm(Enum):
    """What a template wants in `tool_calls[].function.arguments`."""

    VALUE = "value"
    TEXT = "text"


class EmptyContent(Enum):
    """What a template wants as the `content` of an assistant message without text."""

    EMPTY = "empty"
    ABSENT = "absent"
    NULL = "null"


@dataclass(frozen=True, slots=True)
class MessageForm:
    """The shape of messages that one template takes."""

    arguments: ArgumentsForm = ArgumentsForm.VALUE
    empty_content: EmptyContent = EmptyContent.EMPTY

    def to_template(self, message: Message) -> dict[str, Any]:
        """`message` as the dict that the template sees.

        Raises:
            TemplateRenderError: The message carries images or audio.
        """
        if message.parts:
            kinds = sorted({str(part.get("type")) for part in message.parts} - {"text"})
            raise TemplateRenderError(
                f"a {message.role} message has parts that are not text ({', '.join(kinds)}): only text is rendered"
            )
        data = message.to_openai()
        if not message.content:
            data["content"] = ""
            if message.role == "assistant" and self.empty_content is EmptyContent.ABSENT:
                del data["content"]
            elif message.role == "assistant" and self.empty_content is EmptyContent.NULL:
                data["content"] = None
        if message.tool_calls:
            data["tool_calls"] = [self._call(call) for call in message.tool_calls]
        return data

    def _call(self, call: ToolCall) -> dict[str, Any]:
        envelope = call.to_openai()
        if self.arguments is ArgumentsForm.VALUE:
            value = call.arguments_or_text()
            envelope["function"]["arguments"] = value if isinstance(value, dict) else call.arguments
        return envelope

    def to_templates(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Each of `messages` as the dict that the template sees."""
        return [self.to_template(message) for message in messages]


_PROBE_NAME, _PROBE_VALUE = "qzName7", "qzValue7"
PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": _PROBE_NAME,
        "description": "Probe.",
        "parameters": {"type": "object", "properties": {"qzKey7": {"type": "string"}}, "required": ["qzKey7"]},
    },
}
PROBE_CALL = ToolCall(name=_PROBE_NAME, arguments=f'{{"qzKey7": "{_PROBE_VALUE}"}}', id="qzCallId7")


def probe_message_form(template: ChatTemplate) -> MessageForm:
    """The first form under which a call-only assistant message survives rendering, else the default."""
    conversation = (Message(role="user", content="qzUser7"), Message(role="assistant", tool_calls=(PROBE_CALL,)))
    for arguments in ArgumentsForm:
        for empty_content in EmptyContent:
            form = MessageForm(arguments, empty_content)
            try:
                text = template.render_text(form.to_templates(conversation), [PROBE_TOOL])
            except TemplateRenderError:
                continue
            rendered = text[text.rfind("qzUser7") :]
            if _PROBE_NAME in rendered and _PROBE_VALUE in rendered and f'\\"{_PROBE_VALUE}' not in rendered:
                return form
    return MessageForm()
