"""The one decision of the package: how the next prompt is made, and why (pure).

Bridge when the laws can be kept, else render, always saying why (law 5). Nothing else in the package
decides this, and nothing else compares messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokentrue.messages import Message
from tokentrue.rendering.bridge import Bridge
from tokentrue.rendering.renderer import Renderer
from tokentrue.sessions.tree import ConversationTree, chain, root_identity
from tokentrue.tokens import TokenIds
from tokentrue.turns import How, Stitch, TokenSpan, Why


@dataclass(frozen=True, slots=True)
class StitchedPrompt:
    """A prompt, ready to send.

    Args:
        prompt_ids: The ids.
        spans: Who wrote the ids from `stitch.known_len` on; they tile that part. Empty when unknown.
        stitch: How and why.
        hashes: `chain` of the messages, for `ConversationTree.commit`.
    """

    prompt_ids: TokenIds
    spans: tuple[TokenSpan, ...]
    stitch: Stitch
    hashes: tuple[bytes, ...]


def stitch_prompt(
    tree: ConversationTree,
    renderer: Renderer,
    messages: Sequence[Message],
    tools: tuple[dict[str, Any], ...] = (),
) -> StitchedPrompt:
    """Make the prompt for `messages`, from what `tree` knows where that is possible.

    Law 1: a bridged prompt starts with the anchor turn's `prompt_ids + completion_ids`, verbatim; the
    one exception is the junction `opener_dropped`.

    Raises:
        TemplateRenderError: The template refuses the messages.
    """
    hashes = tuple(chain(root_identity(renderer.template.content_hash, tools), messages))
    asked = tree.asked_before(hashes)
    if asked is not None:
        before = tree.turns[asked]
        stitch = replace(before.stitch, why=Why.RETRY_SAME_PROMPT, detail=f"same prompt as turn {asked}")
        return StitchedPrompt(before.tokens.prompt_ids, before.prompt_spans, stitch, hashes)
    known = tree.known_depth(hashes)
    anchor = tree.anchor(hashes, known)
    if anchor is None:
        return _rendered(renderer, messages, tools, hashes, *_why_no_anchor(tree, messages, known))
    depth, turn_index = anchor
    turn = tree.turns[turn_index]
    outcome = renderer.bridge_to_next_turn(
        turn.tokens.prompt_ids,
        turn.tokens.completion_ids,
        messages[depth:],
        history=messages[:depth],
        finish_reason=turn.finish_reason,
        tools=tools,
    )
    if not isinstance(outcome, Bridge):
        return _rendered(renderer, messages, tools, hashes, outcome.why, outcome.detail)
    stitch = Stitch(
        how=How.BRIDGED,
        why=Why.KNOWN_PREFIX,
        junction=outcome.junction,
        anchor_turn=turn_index,
        known_len=outcome.known_len,
    )
    return StitchedPrompt(outcome.prompt_ids, outcome.spans, stitch, hashes)


def _why_no_anchor(tree: ConversationTree, messages: Sequence[Message], known: int) -> tuple[Why, str]:
    foreign = next((i for i, m in enumerate(messages) if m.role == "assistant" and i >= known), None)
    if foreign is None:
        return Why.FIRST_TURN, ""
    if not tree.turns:
        return Why.FIRST_TURN, f"message {foreign} was not sampled in this session"
    return (
        Why.NO_SHARED_PREFIX,
        f"message {known} is the first that this session does not know, and no message before it was sampled here",
    )


def _rendered(
    renderer: Renderer,
    messages: Sequence[Message],
    tools: tuple[dict[str, Any], ...],
    hashes: tuple[bytes, ...],
    why: Why,
    detail: str,
) -> StitchedPrompt:
    rendered = renderer.render(messages, tools=tools)
    return StitchedPrompt(rendered.token_ids, rendered.spans, Stitch(How.RENDERED, why, detail), hashes)
