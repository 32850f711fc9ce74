"""`GET /v1/models`: one reader for every server that speaks it."""

from __future__ import annotations

import msgspec

from tokentrue.transports.refusals import ServerWords, refusal, unreadable
from tokentrue.transports.transport import HttpCall, HttpReply, ModelCard

MODELS_PATH = "/v1/models"


class _Card(msgspec.Struct):
    id: str
    owned_by: str | None = None
    max_model_len: int | None = None
    context_window: int | None = None
    context_length: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


_DECODER = msgspec.json.Decoder(_Cards)


def models_call() -> HttpCall:
    """The request for the list of served models."""
    return HttpCall("GET", MODELS_PATH, headers={"accept": "application/json"}, idempotent=True)


def read_model_cards(reply: HttpReply, words: ServerWords) -> tuple[ModelCard, ...]:
    """The served models; vLLM tells `max_model_len`, Dynamo `context_window`, and 0 means "not known".

    Raises:
        EngineError: The reply is no model list.
    """
    refused = refusal(reply, None, words)
    if refused is not None:
        raise refused
    try:
        cards = _DECODER.decode(reply.body).data
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise unreadable(reply, None, words, str(exc)) from exc
    return tuple(ModelCard(card.id, _limit(card), card.owned_by or "") for card in cards)


def _limit(card: _Card) -> int | None:
    told = (card.max_model_len, card.context_window, card.context_length)
    return next((limit for limit in told if limit is not None and limit > 0), None)
