"""Known assistant messages, rendered through a template, as marked text: what grammars are recognised in."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from tokentrue.errors import TemplateRenderError
from tokentrue.messages import Message, ToolCall
from tokentrue.rendering.chat_template import ChatTemplate
from tokentrue.rendering.formats.marks import Marks
from tokentrue.rendering.formats.reasoning import ReasoningFormat, derive_reasoning
from tokentrue.rendering.template_messages import MessageForm
from tokentrue.rendering.tokenizer import Tokenizer

NAME, OTHER_NAME = "qzName7", "qzOther8"
KEY, OTHER_KEY = "qzKeyA7", "qzKeyB8"
VALUE, OTHER_VALUE = "qzValue7", "qzWorth8"
TEXT, THOUGHT = "qzText7", "qzThought7"
_ASKED = "qzAsked7"


def _tool(name: str) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": "A key."} for key in (KEY, OTHER_KEY)}
    properties |= {
        key: {"type": kind, "description": "A key."}
        for key, kind in (("n", "integer"), ("t", "boolean"), ("l", "array"), ("o", "object"))
    }
    parameters = {"type": "object", "properties": properties, "required": [KEY]}
    return {"type": "function", "function": {"name": name, "description": "Probe.", "parameters": parameters}}


TOOLS = (_tool(NAME), _tool(OTHER_NAME))
_CALL_IDS = (("qzCall007", "qzCall008"), (f"functions.{NAME}:0", f"functions.{OTHER_NAME}:1"))
"""Nine letters, which Mistral demands; and ids that carry the name, which is all that Kimi writes."""


@dataclass(frozen=True, slots=True)
class Probes:
    """A template under examination.

    Args:
        marks: Every added token that any probe's rendering holds.
        stops: The stop tokens, as marked text.
        ids_carry_names: The template writes the call id and not the name.
        frames: What it writes before and behind a whole message, as marked text.
    """

    template: ChatTemplate
    form: MessageForm
    tokenizer: Tokenizer
    reasoning: ReasoningFormat | None
    marks: Marks = field(default_factory=Marks)
    stops: frozenset[str] = frozenset()
    ids_carry_names: bool = False
    frames: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(
        cls, template: ChatTemplate, form: MessageForm, tokenizer: Tokenizer, stop_ids: tuple[int, ...]
    ) -> Probes:
        """Find the marks, and which kind of call ids the template needs."""
        probes = cls(template, form, tokenizer, derive_reasoning(template, form, tokenizer))
        ids: list[int] = []
        for carry in (False, True):
            probes = replace(probes, ids_carry_names=carry)
            called = probes.message(TEXT, {KEY: VALUE}), probes.message(None, {KEY: VALUE}, {KEY: VALUE})
            for message in (probes.message(TEXT), probes.thinking(), probes.message(None, {KEY: VALUE}), *called):
                ids += probes.completion_ids(message) or []
        marks = Marks().including(tokenizer, [*stop_ids, *ids])
        stops = frozenset(char for stop in stop_ids if (char := marks.char(stop)) is not None)
        probes = replace(probes, marks=marks, stops=stops, ids_carry_names=False)
        lone = probes.said(probes.message(None, {KEY: VALUE}))
        return replace(probes, ids_carry_names=lone is None or NAME not in lone)

    def message(self, text: str | None, *calls: dict[str, Any]) -> Message:
        """An assistant message that calls the probe tools with these arguments."""
        ids = _CALL_IDS[int(self.ids_carry_names)]
        written = tuple(
            ToolCall(name, json.dumps(value), call_id)
            for name, value, call_id in zip((NAME, OTHER_NAME), calls, ids, strict=False)
        )
        return Message(role="assistant", content=text, tool_calls=written)

    def thinking(self) -> Message:
        """An assistant message with reasoning and text."""
        return Message(role="assistant", content=TEXT, reasoning_content=THOUGHT)

    def completion_ids(self, message: Message) -> list[int] | None:
        """The ids that the template writes for `message` behind the generation prompt; None when it refuses."""
        found = self.prompt_and_completion(message)
        return found[1] if found is not None else None

    def prompt_and_completion(self, message: Message) -> tuple[list[int], list[int]] | None:
        """The ids of the prompt, and those that the template writes for `message`; None when it refuses.

        Where the generation prompt is no part of history, what both have in common is the prompt.
        """
        found = self._prompt_and_whole(message)
        if found is None:
            return None
        prompt, whole = found
        prompt_ids = self.tokenizer.encode(prompt)
        if whole.startswith(prompt):
            return prompt_ids, self.tokenizer.encode(whole[len(prompt) :])
        whole_ids = self.tokenizer.encode(whole)
        same = 0
        while same < min(len(prompt_ids), len(whole_ids)) and prompt_ids[same] == whole_ids[same]:
            same += 1
        return prompt_ids[:same], whole_ids[same:]

    def _prompt_and_whole(self, message: Message) -> tuple[str, str] | None:
        asked = Message(role="user", content=_ASKED)
        try:
            prompt = self.template.render_text(self.form.to_templates([asked]), TOOLS, add_generation_prompt=True)
            whole = self.template.render_text(self.form.to_templates([asked, message]), TOOLS)
        except TemplateRenderError:
            return None
        return prompt, whole

    def said(self, message: Message) -> str | None:
        """`message` as marked text, without frame and reasoning, the stop token, and what is behind it."""
        text = self.ended(message)
        if text is None:
            return None
        frames = [frame for frame in self.frames if text.startswith(frame[0])]
        if frames:
            before, after = max(frames)
            text = text.removeprefix(before).removesuffix(after)
        form = self.reasoning
        closer = self.marks.char(form.closer.id) if form is not None else None
        if form is None or closer is None or closer not in text:
            return text
        return text[text.find(closer) + 1 :].removeprefix(form.gap)

    def said_with_reasoning(self) -> str | None:
        """Reasoning and text as marked text; None when the template refuses them."""
        return self.ended(self.thinking())

    def ended(self, message: Message) -> str | None:
        """`message` as marked text, up to the stop token; None when the template refuses it."""
        ids = self.completion_ids(message)
        if ids is None:
            return None
        text = self.marks.of_ids(ids, self.tokenizer)
        ends = [position for stop in self.stops if (position := text.find(stop)) > 0]
        return text[: min(ends)] if ends else text
