"""Closes that a template leaves out behind the last message, told from openers, which are left out there too.

GLM ends a message with the opener of the next one, so behind the last message there is none. vLLM's
template_chatml, Apriel, Hy3 and Apertus write a close only once a message follows, which looks alike and means
something else: a close belongs to the sampled message. A stop that was sampled in its place is all that message
needs, where an opener must still be written; and what stands in front of a close ends a text that was cut.

A close is proved by the message that follows: behind a user's message it begins in the very same words, without
that token (Apriel, Hy3, Apertus); or the template ends a user's message with it too, once an answer is asked for,
although it does not begin a conversation with it (template_chatml). What neither shows counts as an opener: then
the worst is a close too many, and no message loses its role.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokentrue.errors import TemplateRenderError
from tokentrue.messages import Message
from tokentrue.rendering.rewritten_stop import BehindAUser, Render, begins_behind_a_user
from tokentrue.rendering.sentinels import mask_new
from tokentrue.rendering.tail import BridgeRefused, FollowUp, TailFinder
from tokentrue.rendering.template_messages import PROBE_CALL, PROBE_TOOL

_ASKED, _SAID = Message(role="user", content="What is 2 + 2?"), Message(role="assistant", content="It is 4.")
_AGAIN = Message(role="user", content="And five?")
_CALLED = Message(role="assistant", tool_calls=(PROBE_CALL,))
_RESULT = Message(role="tool", content="Result.", tool_call_id=PROBE_CALL.id, name=PROBE_CALL.name)


def find_left_off(tails: TailFinder) -> frozenset[int]:
    """The ids of the closes that the template leaves out behind the last message, where that is proved."""
    asked = (
        FollowUp((_ASKED, _SAID), (_AGAIN,)),
        FollowUp((_ASKED, _SAID), (_AGAIN,), (PROBE_TOOL,)),
        FollowUp((_ASKED, _CALLED), (_RESULT,), (PROBE_TOOL,)),
    )
    found = (_close_left_off(tails, each) for each in asked)
    return frozenset(close for close in found if close is not None)


def _close_left_off(tails: TailFinder, asked: FollowUp) -> int | None:
    tail = tails.derive(asked)
    if isinstance(tail, BridgeRefused) or not tail.seam.is_opener:
        return None

    def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
        listed = tails.form.to_templates(messages)
        return tails.template.render_text(listed, asked.tools, add_generation_prompt=add_generation_prompt)

    begins = begins_behind_a_user(render, mask_new(asked.new, 1))
    if begins is None:
        return None
    close, lead = tail.seam.close, tail.text[: tail.text.find(asked.new[0].content or "")]
    if close.text in begins.opening:
        is_close = begins.opening == close.text + lead and _ends_a_user(render, begins, close.text)
    else:
        is_close = bool(lead.strip()) and lead.strip() == begins.opening.strip()
    return close.id if is_close else None


def _ends_a_user(render: Render, begins: BehindAUser, close: str) -> bool:
    """Whether `close` ends a user's message that an answer is asked for, and stands nowhere in front of it."""
    said = _ASKED.content or ""
    try:
        front, found, behind = render((_ASKED,), True).partition(said)
    except TemplateRenderError:
        return False
    return bool(found) and close not in front and behind.startswith(begins.ended + close)
