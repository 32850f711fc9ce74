"""How a template writes reasoning, derived by rendering a known one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from tokentrue.errors import TemplateRenderError
from tokentrue.messages import Message
from tokentrue.rendering.chat_template import ChatTemplate
from tokentrue.rendering.template_messages import PROBE_CALL, PROBE_TOOL, MessageForm
from tokentrue.rendering.tokenizer import AddedTokenInfo, Tokenizer

_USER, _REASONING, _CONTENT = "qzUser3", "qzReason3", "qzContent3"


class ReasoningState(Enum):
    """What a completion did about reasoning."""

    ABSENT = "absent"
    CLOSED = "closed"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Reasoning between two added tokens, with the white space that the template puts around it.

    The template writes `before + opener + lead + reasoning + trail + closer + gap + content`.
    """

    opener: AddedTokenInfo
    closer: AddedTokenInfo
    lead: str
    trail: str
    gap: str

    @property
    def closing_text(self) -> str:
        """What stands between reasoning and content."""
        return self.trail + self.closer.text + self.gap

    def is_open(self, ids: Sequence[int]) -> bool:
        """Whether reasoning is still open at the end of `ids`."""
        for token_id in reversed(ids):
            if token_id == self.closer.id:
                return False
            if token_id == self.opener.id:
                return True
        return False


def _split_marker(text: str, tokenizer: Tokenizer) -> tuple[str, AddedTokenInfo, str] | None:
    found = [(text.find(info.text), info) for info in tokenizer.added_tokens() if info.text in text]
    if not found:
        return None
    # The last marker before the reasoning opens it: what stands further left is the role header.
    position, info = max(found, key=lambda item: (item[0], len(item[1].text)))
    return text[:position], info, text[position + len(info.text) :]


def derive_reasoning(template: ChatTemplate, form: MessageForm, tokenizer: Tokenizer) -> ReasoningFormat | None:
    """The template's reasoning format, or None when it writes no reasoning between added tokens.

    Some templates keep reasoning in history only beside a call (Gemma), so that is asked as well. A template
    that never writes it in history (DeepSeek-R1) may still open it in its generation prompt; then the white
    space that the model puts around is not known, and none is taken off.
    """
    said = Message(role="assistant", content=_CONTENT, reasoning_content=_REASONING)
    called = Message(role="assistant", reasoning_content=_REASONING, tool_calls=(PROBE_CALL,))
    written = False
    for message, tools in ((said, []), (called, [PROBE_TOOL])):
        try:
            text = template.render_text(form.to_templates([Message(role="user", content=_USER), message]), tools)
        except TemplateRenderError:
            continue
        written = written or _REASONING in text
        found = _between_marks(text, tokenizer)
        if found is not None:
            return found
    return None if written else _from_generation_prompt(template, form, tokenizer)


def _between_marks(text: str, tokenizer: Tokenizer) -> ReasoningFormat | None:
    """`opener lead REASONING trail closer gap`; the lead may hold a word, such as the channel's name."""
    start, user_end = text.find(_REASONING), text.find(_USER) + len(_USER)
    if start < user_end:
        return None
    behind = text[start + len(_REASONING) :]
    before = _split_marker(text[user_end:start], tokenizer)
    marks = [
        (behind.find(info.text), -len(info.text), info) for info in tokenizer.added_tokens() if info.text in behind
    ]
    if before is None or not marks:
        return None
    at, _, closer = min(marks, key=lambda item: item[:2])
    trail, rest = behind[:at], behind[at + len(closer.text) :]
    gap = rest[: len(rest) - len(rest.lstrip())]
    # Behind the closer comes what was said, or a call; a role header there is another frame (harmony).
    first = _split_marker(rest[: rest.find(_CONTENT)], tokenizer) if _CONTENT in rest else None
    if before[1].text in rest:
        # Reasoning has markers of its own; one that frames other text as well is no such marker.
        return None
    if trail.strip() or first is not None or not re.fullmatch(r"\s*(?:\w+\n)?", before[2]):
        return None
    if _CONTENT in rest and not rest.startswith(gap + _CONTENT):
        return None
    return ReasoningFormat(before[1], closer, lead=before[2], trail=trail, gap=gap)


def _from_generation_prompt(
    template: ChatTemplate, form: MessageForm, tokenizer: Tokenizer
) -> ReasoningFormat | None:
    """Two added tokens `<x>` and `</x>`, one of which the generation prompt ends with."""
    asked = form.to_templates([Message(role="user", content=_USER)])
    try:
        without = template.render_text(asked)
        prompt = template.render_text(asked, add_generation_prompt=True)
    except TemplateRenderError:
        return None
    if not prompt.startswith(without):
        return None
    found = _split_marker(prompt[len(without) :], tokenizer)
    if found is None or found[2].strip():
        return None
    _, last, behind = found
    bracket, rest = last.text[:1], last.text[1:]
    opener = tokenizer.added_token(bracket + rest.removeprefix("/"))
    closer = tokenizer.added_token(f"{bracket}/{rest.removeprefix('/')}")
    if opener is None or closer is None or opener == closer:
        return None
    is_open = last == opener
    return ReasoningFormat(opener, closer, lead=behind if is_open else "", trail="", gap="" if is_open else behind)
