"""Stop tokens found by asking the template, for folders that name too few.

generation_config.json is the truth about where an engine stops. A folder without it names only the
tokenizer's eos, which for some families is not what ends a message: phi-3 ends one with `<|end|>`,
GLM with the next message's opener. Both can be read off the template, as long as the message is plain
text; what ends a *tool call* (Gemma, harmony) cannot, and is left to the caller.
"""

from __future__ import annotations

from tokentrue.errors import TemplateRenderError
from tokentrue.messages import Message
from tokentrue.rendering.chat_template import ChatTemplate
from tokentrue.rendering.sentinels import sentinel
from tokentrue.rendering.template_messages import PROBE_CALL, PROBE_TOOL, MessageForm
from tokentrue.rendering.tokenizer import AddedTokenInfo, Tokenizer

_SAID, _NEW = sentinel("A", 0), sentinel("N", 0)


def derive_stop_ids(template: ChatTemplate, form: MessageForm, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids with which the template ends a plain message, or opens the next one in its place."""
    user = Message(role="user", content="?")
    said = Message(role="assistant", content=_SAID)
    ended = _behind(template, form, (user, said), _SAID, tools=False)
    followed = _behind(template, form, (user, said, Message(role="user", content=_NEW)), _SAID, tools=False)
    if ended is None or followed is None:
        return ()
    close = _first_added(ended, tokenizer)
    if close is not None:
        return (close.id,)
    found = [_first_added(followed.split(_NEW)[0], tokenizer)]
    call = Message(role="assistant", tool_calls=(PROBE_CALL,))
    result = Message(role="tool", content=_NEW, tool_call_id=PROBE_CALL.id, name=PROBE_CALL.name)
    ended = _behind(template, form, (user, call), "qzValue7", tools=True)
    followed = _behind(template, form, (user, call, result), "qzValue7", tools=True)
    if ended is not None and followed is not None and followed.startswith(ended):
        found.append(_first_added(followed[len(ended) :].split(_NEW)[0], tokenizer))
    return tuple(dict.fromkeys(info.id for info in found if info is not None))


def _behind(
    template: ChatTemplate, form: MessageForm, messages: tuple[Message, ...], word: str, *, tools: bool
) -> str | None:
    try:
        text = template.render_text(form.to_templates(messages), [PROBE_TOOL] if tools else [])
    except TemplateRenderError:
        return None
    at = text.rfind(word)
    return text[at + len(word) :] if at >= 0 else None


def _first_added(text: str, tokenizer: Tokenizer) -> AddedTokenInfo | None:
    found = [info for info in tokenizer.added_tokens() if info.text in text]
    return min(found, key=lambda info: (text.find(info.text), -len(info.text)), default=None)
