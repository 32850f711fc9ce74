"""A client without a model: a policy writes the messages, bytes are the token ids.

It keeps every promise of `tokentrue.clients.client.Client`, so that environments, runners and records can be
tested without an engine: prompts are bridged verbatim, every turn says how its prompt was made, and the same
sampling seed gives the same ids.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from tokentrue.clients.client import Prompt
from tokentrue.generation import FinishReason, Usage, make_tokens
from tokentrue.messages import Message, SupportsModelDump, messages_from
from tokentrue.sampling import SamplingParams
from tokentrue.sessions.session import Session
from tokentrue.tokens import TokenIds
from tokentrue.turns import How, Junction, Response, Stitch, TokenKind, TokenSpan, Turn, Why

CLOSE_ID = 256
GENERATION_PROMPT_ID = 257

Policy = Callable[[tuple[Message, ...], random.Random], Message]
"""Writes the next assistant message; draws only from the random numbers that it is given. May raise."""


@dataclass(slots=True)
class _Known:
    turns: list[Turn] = field(default_factory=list)
    messages: tuple[Message, ...] = ()


class ScriptedClient:
    """Answers by a policy.

    Args:
        policy: Writes the messages. A `Message` whose `extra` holds `"truncated": True` ends with `LENGTH`.
        longest_wait: Each answer lets up to this many other tasks go first, drawn from the turn's seed.
    """

    def __init__(self, policy: Policy, longest_wait: int = 3) -> None:
        self._policy = policy
        self._longest_wait = longest_wait
        self._known: dict[str, _Known] = {}
        self.in_flight = 0
        self.most_in_flight = 0

    async def get_response(
        self,
        prompt: Prompt,
        model: str,
        sampling_args: Mapping[str, Any] | SamplingParams | None = None,
        tools: Sequence[Mapping[str, Any] | SupportsModelDump] | None = None,
        *,
        session: Session | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """The policy's next message, as ids."""
        del tools, headers
        sampling = SamplingParams.from_args(sampling_args)
        rng = random.Random(sampling.seed)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            for _ in range(1 + rng.randrange(self._longest_wait + 1)):
                await asyncio.sleep(0)
            messages = messages_from(prompt)
            message = self._policy(messages, rng)
        finally:
            self.in_flight -= 1
        known = self._known.setdefault((session if session is not None else Session()).id, _Known())
        turn = _turn(known, messages, message, rng)
        known.turns.append(turn)
        known.messages = (*messages, message)
        return Response(
            id=turn.request_id,
            model=model,
            message=message,
            finish_reason=turn.finish_reason,
            usage=turn.usage,
            tokens=turn.tokens,
            turn=turn,
        )

    async def close(self) -> None:
        """Nothing is open."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


def message_ids(message: Message) -> list[int]:
    """What a message is as ids: the bytes of its text and calls, then the close."""
    calls = "".join(f"<{call.name}>{call.arguments}" for call in message.tool_calls)
    return [*f"{message.content or ''}{calls}".encode("utf-8", "surrogatepass"), CLOSE_ID]


def _turn(known: _Known, messages: tuple[Message, ...], message: Message, rng: random.Random) -> Turn:
    anchor = known.turns[-1] if known.turns else None
    is_known = bool(known.turns) and messages[: len(known.messages)] == known.messages
    if anchor is None or not is_known:
        new, base = messages, TokenIds()
        why = Why.FIRST_TURN if anchor is None else Why.NO_SHARED_PREFIX
        stitch = Stitch(How.RENDERED, why)
    else:
        new, base = messages[len(known.messages) :], anchor.tokens.all_ids()
        stitch = Stitch(How.BRIDGED, Why.KNOWN_PREFIX, "", Junction.EXACT, anchor.index, len(base))
    added: list[int] = []
    spans: list[TokenSpan] = []
    for owner, written in enumerate(new, start=len(messages) - len(new)):
        start = len(base) + len(added)
        added += message_ids(written)
        spans.append(TokenSpan(start, len(base) + len(added), owner, TokenKind.BODY))
    prompt_ids = base.extended([*added, GENERATION_PROMPT_ID])
    spans.append(TokenSpan(len(prompt_ids) - 1, len(prompt_ids), -1, TokenKind.SCAFFOLD))
    sampled = message_ids(message)
    finish_reason = FinishReason.TOOL_CALLS if message.tool_calls else FinishReason.STOP
    if message.extra.get("truncated") is True:
        finish_reason = FinishReason.LENGTH
    return Turn(
        index=len(known.turns),
        tokens=make_tokens(prompt_ids, sampled, [-rng.random() for _ in sampled]),
        stitch=stitch,
        finish_reason=finish_reason,
        stop_reason=CLOSE_ID,
        usage=Usage(len(prompt_ids), len(sampled), len(base)),
        prompt_spans=tuple(spans),
        request_id=f"scripted-{rng.getrandbits(32):08x}",
    )
