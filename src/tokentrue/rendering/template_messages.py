"""How a message is handed to a chat template, found out by asking the template.

Templates disagree about three things that OpenAI's shape leaves open: whether text is text or a list of parts
(`[{"type": "text", "text": ...}]`: Idefics, SmolVLM, LLaVA), whether tool-call arguments are a JSON value or its
text, and what stands in `content` when an assistant message only calls tools. All are probed once per template;
the engines' own choice (text, value, "") comes first.

Text that a template iterates over is lost without a word, or raises deep inside of it. vLLM decides by reading the
template's source, for a whole template; here it is decided by role and by what the template writes, so a template
that takes both keeps getting text, and one that has text for one role and parts for another gets just that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """The shape of messages that one template takes.

    Args:
        parts_for: The roles whose text is a list of parts, because as text the template loses it.
    """

    arguments: ArgumentsForm = ArgumentsForm.VALUE
    empty_content: EmptyContent = EmptyContent.EMPTY
    parts_for: tuple[str, ...] = ()

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
        if isinstance(data.get("content"), str) and message.role in self.parts_for:
            data["content"] = [text_part(data["content"])]
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


def text_part(text: str) -> dict[str, str]:
    """A part of a message's content that is text."""
    return {"type": "text", "text": text}


_PROBE_NAME, _PROBE_VALUE = "qzName7", "qzValue7"
PROBE_KEY = "qzKey7"
PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": _PROBE_NAME,
        "description": "Probe.",
        "parameters": {"type": "object", "properties": {PROBE_KEY: {"type": "string"}}, "required": [PROBE_KEY]},
    },
}
PROBE_CALL = ToolCall(name=_PROBE_NAME, arguments=f'{{"{PROBE_KEY}": "{_PROBE_VALUE}"}}', id="qzCallId7")


_ASKED, _SAID = Message(role="user", content="qzUser7"), Message(role="assistant", content="qzSaid7")
_CALLED = Message(role="assistant", tool_calls=(PROBE_CALL,))
_RESULT = Message(role="tool", content="qzResult7", tool_call_id=PROBE_CALL.id, name=PROBE_CALL.name)


def probe_message_form(template: ChatTemplate) -> MessageForm:
    """The first form under which texts, and a call-only assistant message, survive rendering, else the default."""
    form = MessageForm()
    form = _with_parts_for(template, form, (_ASKED,))
    form = _with_parts_for(template, form, (_ASKED, _SAID))
    for role in ("system", "developer"):
        form = _with_parts_for(template, form, (Message(role=role, content="qzRule7"), _ASKED))
    return _with_parts_for(template, _probe_calls(template, form), (_ASKED, _CALLED, _RESULT))


def _with_parts_for(template: ChatTemplate, form: MessageForm, conversation: tuple[Message, ...]) -> MessageForm:
    """`form`, with parts for the role whose text is asked about, where only so the template writes that text.

    Asked about is the last message, or the first where that is a rule for the whole conversation. Without tools
    first: a template that is for tools only raises then, whatever the form.
    """
    asked = conversation[-1] if conversation[-1] is not _ASKED else conversation[0]
    with_parts = replace(form, parts_for=(*form.parts_for, asked.role))
    for tools in ((), (PROBE_TOOL,)):
        for each in (form, with_parts):
            if _writes(template, each.to_templates(conversation), tools, asked.content or ""):
                return each
    return form


def _writes(
    template: ChatTemplate, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]], text: str
) -> bool:
    try:
        written = template.render_text(messages, tools)
    except TemplateRenderError:
        return False
    # A template that takes text only may print the part itself, as Python or as JSON.
    part = text_part(text)
    return text in written and repr(part) not in written and json.dumps(part) not in written


def _probe_calls(template: ChatTemplate, taken: MessageForm) -> MessageForm:
    """`taken`, with the first form for calls under which one survives rendering, else the default."""
    for arguments in ArgumentsForm:
        for empty_content in EmptyContent:
            form = replace(taken, arguments=arguments, empty_content=empty_content)
            try:
                text = template.render_text(form.to_templates((_ASKED, _CALLED)), [PROBE_TOOL])
            except TemplateRenderError:
                continue
            rendered = text[text.rfind("qzUser7") :]
            if _PROBE_NAME in rendered and _PROBE_VALUE in rendered and f'\\"{_PROBE_VALUE}' not in rendered:
                return form
    return taken
