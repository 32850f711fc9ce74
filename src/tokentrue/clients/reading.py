"""A completion, read: whatever a renderer does with it, what was sampled is kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from tokentrue.errors import UnreadCompletionError
from tokentrue.raised import raised_line
from tokentrue.rendering.contract import RendererContract, TellsText
from tokentrue.rendering.formats.reasoning import ReasoningState
from tokentrue.rendering.reader import ParsedResponse
from tokentrue.tokens import TurnTokens
from tokentrue.turns import Response

_LOGGER = logging.getLogger(__name__)


def read_completion(
    renderer: RendererContract, tokens: TurnTokens, tools: Sequence[dict[str, Any]]
) -> ParsedResponse:
    """What the sampled ids say.

    A renderer must not raise here. Where it does, or gives what is no `ParsedResponse`, the content is the text of
    the ids if the renderer tells it, `unread` says what was raised and where, and a warning is logged.
    """
    ids = tokens.completion_ids
    try:
        parsed = renderer.parse_response(ids, prompt_ids=tokens.prompt_ids, tools=tools)
        if isinstance(parsed, ParsedResponse):
            parsed.to_message()  # what cannot be made a message was not read
            return parsed
        told = f"it gave a {type(parsed).__name__} and not a ParsedResponse"
    except Exception as exc:  # noqa: BLE001  a sample outlives whatever a renderer raises
        told = raised_line(exc)
    unread = f"{type(renderer).__name__}.parse_response cannot read {len(ids)} sampled ids: {told}"
    _LOGGER.warning("%s; the ids are kept as they were sampled", unread)
    sampled = ids.tolist()
    stop_id = sampled[-1] if sampled and sampled[-1] in renderer.get_stop_token_ids() else None
    text = ""
    if isinstance(renderer, TellsText):
        try:
            text = renderer.text_of(sampled if stop_id is None else sampled[:-1])
        except Exception as exc:  # noqa: BLE001  a sample outlives whatever a renderer raises
            unread += f"; nor does text_of tell their text: {raised_line(exc)}"
    return ParsedResponse(text, None, ReasoningState.ABSENT, (), stop_id, unread)


def answered(response: Response, parsed: ParsedResponse) -> Response:
    """`response`, if there is anything to answer with.

    Raises:
        UnreadCompletionError: The completion could not be read, and nothing is known of its text.
    """
    if parsed.unread and not parsed.content:
        raise UnreadCompletionError(parsed.unread, response)
    return response
