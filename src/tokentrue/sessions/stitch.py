"""The one decision of the package: how the next prompt is made, and why (pure).

Bridge when the laws can be kept, else render, always saying why (law 5). Nothing else in the package
decides this, and nothing else compares messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokentrue.errors import BridgeRefusedError, TemplateRenderError
from tokentrue.generation import FinishReason
from tokentrue.messages import Message
from tokentrue.rendering.bridge import Bridge
from tokentrue.rendering.contract import RendererContract
from tokentrue.rendering.splice import NotSpliced, splice
from tokentrue.rendering.verdict import OnRewrite, SampledStep, Verdict, VerdictKind, judge
from tokentrue.sessions.tree import ConversationTree, chain, root_identity
from tokentrue.sessions.writers import prompt_writers, shifted
from tokentrue.tokens import TokenIds
from tokentrue.turns import CutSpan, How, Stitch, TokenSpan, Turn, Why

_SAME_END = 8
"""How many ids at the end of a prompt the engine and the renderer must agree on: more than a generation prompt."""


@dataclass(frozen=True, slots=True)
class StitchedPrompt:
    """A prompt, ready to send.

    Args:
        prompt_ids: The ids.
        spans: Who wrote the ids from `stitch.known_len` on; they tile that part. Empty when unknown.
        stitch: How and why.
        hashes: `chain` of the messages, for `ConversationTree.commit`.
        is_judged: Whether it was compared with the template's full text and is no rewrite of it.
    """

    prompt_ids: TokenIds
    spans: tuple[TokenSpan, ...]
    stitch: Stitch
    hashes: tuple[bytes, ...]
    is_judged: bool = False


@dataclass(frozen=True, slots=True)
class Anchor:
    """The sampled message that a prompt can be made to extend.

    Args:
        depth: Messages up to and including it.
        turn: The turn that sampled it.
        hashes: `chain` of all messages of the prompt.
    """

    depth: int
    turn: Turn
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class NotExtended:
    """No known ids can be extended to this prompt; `why` and `detail` as on a `Stitch`."""

    why: Why
    detail: str
    hashes: tuple[bytes, ...]


def place_prompt(
    tree: ConversationTree, root: bytes, messages: Sequence[Message]
) -> StitchedPrompt | Anchor | NotExtended:
    """What `tree` knows of `messages`: the very prompt, a sampled message to extend, or nothing and why."""
    hashes = tuple(chain(root, messages))
    asked = tree.asked_before(hashes)
    if asked is not None:
        before = tree.turns[asked]
        stitch = replace(before.stitch, why=Why.RETRY_SAME_PROMPT, detail=f"same prompt as turn {asked}")
        return StitchedPrompt(before.tokens.prompt_ids, before.prompt_spans, stitch, hashes, asked in tree.judged)
    known = tree.known_depth(hashes)
    anchor = tree.anchor(hashes, known)
    depth, turn_index = anchor if anchor is not None else (0, -1)
    untold = next((at for at in range(len(hashes) - 1, depth, -1) if hashes[at] in tree.without_ids), None)
    if untold is not None:
        detail = f"the engine gave no ids for message {untold - 1} when it sampled it"
        return NotExtended(Why.TOKENS_MISSING, detail, hashes)
    if anchor is None:
        return NotExtended(*_why_no_anchor(tree, messages, known, hashes[0]), hashes)
    return Anchor(depth, tree.turns[turn_index], hashes)


def bridged_prompt(anchor: Anchor, bridge: Bridge) -> StitchedPrompt:
    """The prompt that `bridge` makes of the anchor's ids."""
    stitch = Stitch(
        how=How.BRIDGED,
        why=Why.KNOWN_PREFIX,
        junction=bridge.junction,
        anchor_turn=anchor.turn.index,
        known_len=bridge.known_len,
    )
    return StitchedPrompt(bridge.prompt_ids, bridge.spans, stitch, anchor.hashes)


def extend_prompt(
    tree: ConversationTree,
    renderer: RendererContract,
    messages: Sequence[Message],
    tools: tuple[dict[str, Any], ...] = (),
    on_rewrite: OnRewrite = OnRewrite.EXTEND,
) -> StitchedPrompt | NotExtended:
    """The prompt for `messages` from ids that `tree` knows, or the reason why there is none.

    Law 1: a bridged prompt starts with the anchor turn's `prompt_ids + completion_ids`, verbatim; the
    one exception is the junction `opener_dropped`. A spliced one starts with those that are not removed.

    Args:
        on_rewrite: Where the template would now write the history otherwise: keep what was sampled (nothing is
            compared), remove what it removes or give the reason, give the reason, or raise. A prompt that was
            asked before is repeated either way.

    Raises:
        BridgeRefusedError: `on_rewrite` is `REFUSE`, and this is a rewrite.
        TemplateRenderError, UnsupportedParameterError: Only when judged; see `judge`.
    """
    placed = place_prompt(tree, root_identity(renderer.identity, tools), messages)
    if not isinstance(placed, Anchor):
        return placed
    differs = _template_differs(renderer, placed, messages, tools)
    if differs:
        return NotExtended(Why.TEMPLATE_DIFFERS, differs, placed.hashes)
    outcome = renderer.bridge_to_next_turn(
        placed.turn.tokens.prompt_ids,
        placed.turn.tokens.completion_ids,
        messages[placed.depth :],
        history=messages[: placed.depth],
        finish_reason=_how_it_ended(renderer, placed.turn),
        tools=tools,
    )
    if not isinstance(outcome, Bridge):
        return NotExtended(outcome.why, outcome.detail, placed.hashes)
    extended = bridged_prompt(placed, outcome)
    if on_rewrite is OnRewrite.EXTEND:
        return extended
    verdict = judge_prompt(tree, renderer, messages, tools, extended)
    if verdict.kind is not VerdictKind.HISTORY_REWRITE:
        return replace(extended, is_judged=True)
    if on_rewrite is OnRewrite.REFUSE:
        raise BridgeRefusedError(Why.HISTORY_REWRITE.value, str(verdict))
    if on_rewrite is OnRewrite.SPLICE:
        return _spliced(tree, renderer, messages, tools, extended, str(verdict))
    return NotExtended(Why.HISTORY_REWRITE, str(verdict), placed.hashes)


def _spliced(
    tree: ConversationTree,
    renderer: RendererContract,
    messages: Sequence[Message],
    tools: tuple[dict[str, Any], ...],
    extended: StitchedPrompt,
    verdict: str,
) -> StitchedPrompt | NotExtended:
    """`extended` without what the template removed; the reason where it did something else than that."""
    steps = _steps(tree, extended)
    if len(steps) > 1:
        detail = f"{verdict}; turns before message {steps[-1].message} were extended without a verdict"
        return NotExtended(Why.NOT_SPLICED, detail, extended.hashes)
    writers = prompt_writers(
        extended.stitch, extended.spans, lambda turn: tree.turns[turn], lambda turn: tree.asked[turn]
    )
    found = splice(renderer, messages, tools, extended.prompt_ids, writers, steps[0])
    if isinstance(found, NotSpliced):
        return NotExtended(Why.NOT_SPLICED, f"{verdict}; {found.detail}", extended.hashes)
    known = extended.stitch.known_len
    removed = tuple(CutSpan(cut.start, min(cut.end, known)) for cut in found.removed if cut.start < known)
    if not removed:
        detail = f"{verdict}; nothing is removed of what the turns before had"
        return NotExtended(Why.NOT_SPLICED, detail, extended.hashes)
    stitch = replace(
        extended.stitch,
        how=How.SPLICED,
        why=Why.HISTORY_REWRITE,
        detail=verdict,
        known_len=known - sum(cut.end - cut.start for cut in removed),
        removed=removed,
    )
    spans = shifted(extended.spans, found.removed, len(extended.prompt_ids))
    return StitchedPrompt(found.prompt_ids, tuple(spans), stitch, extended.hashes, is_judged=True)


def judge_prompt(
    tree: ConversationTree,
    renderer: RendererContract,
    messages: Sequence[Message],
    tools: tuple[dict[str, Any], ...],
    extended: StitchedPrompt,
) -> Verdict:
    """The verdict on a prompt of `extend_prompt` for the same arguments; raises as `judge` does."""
    return judge(renderer, messages, tools, extended.prompt_ids, _steps(tree, extended))


def _steps(tree: ConversationTree, extended: StitchedPrompt) -> list[SampledStep]:
    """The sampled messages that a verdict on a bridged prompt has to look at, first to last."""
    steps: list[SampledStep] = []
    at = extended.stitch.anchor_turn
    while at is not None:
        turn = tree.turns[at]
        is_bridge = turn.stitch.builds_on_anchor
        prompt_ids = None if is_bridge else turn.tokens.prompt_ids
        steps.append(SampledStep(tree.asked[at], turn.tokens.completion_ids, prompt_ids))
        at = turn.stitch.anchor_turn if is_bridge and at not in tree.judged else None
    return steps[::-1]


def stitch_prompt(
    tree: ConversationTree,
    renderer: RendererContract,
    messages: Sequence[Message],
    tools: tuple[dict[str, Any], ...] = (),
    on_rewrite: OnRewrite = OnRewrite.EXTEND,
) -> StitchedPrompt:
    """`extend_prompt`; where that gives a reason instead, the prompt rendered from nothing.

    Raises:
        TemplateRenderError: The template refuses the messages.
        BridgeRefusedError, UnsupportedParameterError: As `extend_prompt`.
    """
    extended = extend_prompt(tree, renderer, messages, tools, on_rewrite)
    if isinstance(extended, StitchedPrompt):
        return extended
    rendered = renderer.render(messages, tools=tools)
    stitch = Stitch(How.RENDERED, extended.why, extended.detail)
    return StitchedPrompt(rendered.token_ids, rendered.spans, stitch, extended.hashes)


def engine_rendered(hashes: tuple[bytes, ...], prompt_ids: TokenIds, why: Why, detail: str) -> StitchedPrompt:
    """The prompt that an engine made of messages, as it told the ids afterwards; who wrote each is not known."""
    return StitchedPrompt(prompt_ids, (), Stitch(How.ENGINE_RENDERED, why, detail), hashes)


def _template_differs(
    renderer: RendererContract, anchor: Anchor, messages: Sequence[Message], tools: tuple[dict[str, Any], ...]
) -> str:
    """Whether the engine renders otherwise than `renderer`: where, or "" when it does not.

    A prompt that an engine made may begin otherwise (a date, a default system message). It must end alike: that is
    where the generation prompt stands, and what a bridge imitates.
    """
    if anchor.turn.stitch.how is not How.ENGINE_RENDERED:
        return ""
    theirs = anchor.turn.tokens.prompt_ids
    try:
        ours = renderer.render_ids(messages[: anchor.depth - 1], tools=tools)
    except TemplateRenderError as exc:
        return f"the engine rendered what this template refuses: {exc}"
    if ours[-_SAME_END:] == theirs[-_SAME_END:]:
        return ""
    return (
        f"the engine's prompt of {len(theirs)} ids ends with {theirs[-_SAME_END:]}, the renderer's of {len(ours)} "
        f"with {ours[-_SAME_END:]}"
    )


def _how_it_ended(renderer: RendererContract, turn: Turn) -> FinishReason:
    """`STOP` only where the template's own stop ended the turn, so that it may be restored when it was left out.

    A stop string, or a stop id of the caller's, ends a turn as a cut does: the model did not close it.
    """
    ids = turn.tokens.completion_ids
    others = isinstance(turn.stop_reason, str) or (
        len(ids) > 0 and ids[-1] == turn.stop_reason and ids[-1] not in renderer.get_stop_token_ids()
    )
    return FinishReason.LENGTH if others else turn.finish_reason


def _why_no_anchor(
    tree: ConversationTree, messages: Sequence[Message], known: int, root: bytes
) -> tuple[Why, str]:
    foreign = next((i for i, m in enumerate(messages) if m.role == "assistant" and i >= known), None)
    if foreign is None:
        return Why.FIRST_TURN, ""
    if not tree.turns:
        return Why.FIRST_TURN, f"message {foreign} was not sampled in this session"
    if root not in tree.roots:
        return Why.NO_SHARED_PREFIX, "no turn of this session had these tools, with this template and tokenizer"
    return (
        Why.NO_SHARED_PREFIX,
        f"message {known} is the first that this session does not know, and no message before it was sampled here",
    )
