"""How a template writes reasoning, derived by rendering a known one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from tokentrue.errors import TemplateRenderError
from tokentrue.messages import Message
from tokentrue.rendering.chat_template import ChatTemplate
from tokentrue.rendering.template_messages import MessageForm
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

    A template that never writes reasoning in history (DeepSeek-R1) may still open it in its generation
    prompt; then the white space that the model puts around is not known, and none is taken off.
    """
    conversation = (
        Message(role="user", content=_USER),
        Message(role="assistant", content=_CONTENT, reasoning_content=_REASONING),
    )
    try:
        text = template.render_text(form.to_templates(conversation))
    except TemplateRenderError:
        return None
    start, end = text.find(_REASONING), text.find(_CONTENT)
    user_end = text.find(_USER) + len(_USER)
    if start < user_end or end < start:
        return _from_generation_prompt(template, form, tokenizer) if start < 0 else None
    before = _split_marker(text[user_end:start], tokenizer)
    after = _split_marker(text[start + len(_REASONING) : end], tokenizer)
    if before is None or after is None or before[2].strip() or after[0].strip() or after[2].strip():
        return None
    return ReasoningFormat(before[1], after[1], lead=before[2], trail=after[0], gap=after[2])


def _from_generation_prompt(
    template: ChatTemplate, form: MessageForm, tokenizer: Tokenizer
) -> ReasoningFormat | None:
    asked = form.to_templates([Message(role="user", content=_USER)])
    try:
        text = template.render_text(asked, add_generation_prompt=True)
    except TemplateRenderError:
        return None
    found = _split_marker(text[text.rfind(_USER) + len(_USER) :], tokenizer)
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
