"""Conversations which a real vLLM is made to sample in splits that no tokenizer would choose, by two paths.

Structured outputs fix the *text* of every answer, and the template writes that text back unchanged; the model has
random weights, so it chooses among all tokens that spell it. What is left is the one thing that text cannot carry:
which tokens were sampled. MITO sends messages and lets vLLM render them anew, TITO sends ids.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from servers.vllm.server import BLOCK_TOKENS, MODEL_NAME
from tokentrue import Message, Session, session_samples
from tokentrue.clients.client import Client
from tokentrue.turns import Turn

TOOL_FLAGS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
TURNS = 6

_CALL_MARKERS = {"692": 50.0, "693": 50.0}
"""A bias for `<tool_call>` and `</tool_call>`, where the text allows them: spelled in pieces they are no call."""

_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "price_of",
        "description": "The price of an item.",
        "parameters": {
            "type": "object",
            "properties": {"item": {"type": "string"}, "count": {"type": "integer"}},
            "required": ["item", "count"],
        },
    },
}
_ITEMS = ("table", "lantern", "bread", "red notebook", "green tea", "umbrella", "pencil case", "mirror")


@dataclass(frozen=True, slots=True)
class PlayedTurn:
    """What one turn shows.

    Args:
        turn: The turn as the client committed it; one without ids stops the play.
        kept: Whether the prompt begins with all ids of the turn before; True for the first.
        lost_at: Position of the first id that differs from the turn before; None when there is none.
        whole_blocks: Tokens in the blocks that the turn before left in the prefix cache.
        cached: Tokens that vLLM says it found there.
    """

    turn: Turn
    kept: bool
    lost_at: int | None
    whole_blocks: int
    cached: int


@dataclass(frozen=True, slots=True)
class Played:
    """One conversation by one path; `samples` is how many training sequences its turns make."""

    turns: tuple[PlayedTurn, ...]
    samples: int


def answers(conversation: int) -> list[str]:
    """The texts that the model is made to write: calls of a tool, then a sentence."""
    draw = random.Random(conversation)
    calls = [
        f'<tool_call>\n{{"name": "price_of", "arguments": {{"item": "{draw.choice(_ITEMS)}", '
        f'"count": {draw.randrange(2, 90)}}}}}\n</tool_call>'
        for _ in range(TURNS - 1)
    ]
    return [*calls, f"The sum is {draw.randrange(100, 9999)} and the best item is the {draw.choice(_ITEMS)}."]


async def play(client: Client, path: str, conversation: int) -> Played:
    """Play one conversation; paths and conversations share nothing in the prefix cache.

    Raises:
        RuntimeError: An answer is not the text it was made to be, or came without ids.
    """
    session, messages = Session(), [Message("user", f"What is the sum of order {conversation}?")]
    played: list[PlayedTurn] = []
    for number, text in enumerate(answers(conversation)):
        asked = {
            "temperature": 1.0,
            "seed": 1000 * conversation + number,
            "max_tokens": 160,
            "logit_bias": _CALL_MARKERS,
            "structured_outputs": {"choice": [text]},
            "cache_salt": f"{path} {conversation}",
        }
        response = await client.get_response(messages, MODEL_NAME, asked, [_TOOL], session=session)
        if response.turn is None:
            raise RuntimeError(f"{path}, turn {number}: {response.tokens_missing}")
        is_call = number < TURNS - 1
        if bool(response.message.tool_calls) != is_call:
            raise RuntimeError(f"{path}, turn {number}: wanted {text!r}, got {response.message!r}")
        played.append(_looked_at(response.turn, played[-1].turn if played else None))
        messages.append(response.message)
        messages += [
            Message("tool", f'{{"price": {7 * number + 3}}}', tool_call_id=call.id, name=call.name)
            for call in response.message.tool_calls
        ]
    return Played(tuple(played), len(session_samples(session.turns).samples))


def _looked_at(turn: Turn, before: Turn | None) -> PlayedTurn:
    cached = turn.usage.cached_tokens or 0
    if before is None:
        return PlayedTurn(turn, True, None, 0, cached)
    known, prompt = before.tokens.all_ids().tolist(), turn.tokens.prompt_ids.tolist()
    lost_at = first_difference(known, prompt)
    # The last sampled id was never computed, so it is in no block.
    return PlayedTurn(turn, lost_at is None, lost_at, (len(known) - 1) // BLOCK_TOKENS * BLOCK_TOKENS, cached)


def first_difference(known: Sequence[int], prompt: Sequence[int]) -> int | None:
    """Where `prompt` first has another id than `known`, or ends; None when it begins with all of `known`."""
    same = next((at for at, (a, b) in enumerate(zip(known, prompt, strict=False)) if a != b), None)
    return same if same is not None or len(prompt) >= len(known) else len(prompt)
