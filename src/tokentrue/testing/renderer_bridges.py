"""The bridges of a renderer, judged: laws 1 and 2, junctions, spans, and what must be refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tokentrue.messages import Message
from tokentrue.rendering.bridge import Bridge
from tokentrue.rendering.contract import RendererContract, TellsText
from tokentrue.rendering.formats.reasoning import ReasoningState
from tokentrue.rendering.tail import BridgeRefused
from tokentrue.testing.renderer_cases import Ending, RendererCase
from tokentrue.testing.renderer_report import RendererCheck
from tokentrue.testing.renderer_turns import NotTried, PlayedTurn, ids_of, play
from tokentrue.turns import FALLBACKS, Junction, TokenKind, TokenSpan

Told = Mapping[RendererCheck, str | NotTried]
"""What was found by check: "" where it holds."""


def _bridge(renderer: RendererContract, turn: PlayedTurn) -> Bridge | BridgeRefused:
    return renderer.bridge_to_next_turn(
        turn.prompt_ids,
        turn.completion_ids,
        turn.new,
        history=turn.history,
        finish_reason=turn.finish_reason,
        tools=turn.tools,
    )


def judge_bridge(renderer: RendererContract, case: RendererCase) -> Told:
    """Everything that one bridge promises."""
    turn = play(renderer, case)
    bridge = _bridge(renderer, turn)
    if isinstance(bridge, BridgeRefused):
        raise NotTried(f"refused, {bridge.why.value} ({case.ending.name})")
    return {
        RendererCheck.VERBATIM: _verbatim(turn, bridge, renderer.vocab_size),
        RendererCheck.FAITHFUL: _faithful(renderer, turn, bridge),
        RendererCheck.JUNCTION: _junction(turn, bridge, case.ending),
        RendererCheck.SPANS: judge_spans(
            bridge.spans, bridge.known_len, len(bridge.prompt_ids), turn.new, len(turn.history)
        ),
    }


def _verbatim(turn: PlayedTurn, bridge: Bridge, vocab_size: int) -> str:
    known = turn.known_ids
    if bridge.junction is Junction.OPENER_DROPPED:
        known = known[:-1]
    ids = bridge.prompt_ids.tolist()
    if ids != [*known, *bridge.added_ids]:
        at = next(
            (i for i, (a, b) in enumerate(zip(ids, known, strict=False)) if a != b), min(len(ids), len(known))
        )
        return f"the prompt is not prompt + completion + added: position {at} of {len(known)} known ids"
    if not all(0 <= each < vocab_size for each in bridge.added_ids):
        return f"an added id is outside the vocabulary of {vocab_size}"
    return ""


def _faithful(renderer: RendererContract, turn: PlayedTurn, bridge: Bridge) -> str:
    added, tail, close = list(bridge.added_ids), turn.tail_ids, turn.close_id
    inserted, behind = added[: len(added) - len(tail)], added[len(added) - len(tail) :]
    told = f"added {added}, where a full rendering has {tail} behind the close {close}"
    if behind != tail:
        return told
    stop = turn.completion_ids[-1]
    if bridge.junction is Junction.EXACT or bridge.junction is Junction.OPENER_SHARED:
        return "" if not inserted and stop == close else told
    if bridge.junction is Junction.STOP_REWRITTEN:
        return "" if inserted in ([], [close]) else told
    # Where history spells the stop otherwise, a stop that was left out may be put back as it was sampled.
    ends = (close, turn.stop_id) if bridge.junction is Junction.CLOSE_RESTORED else (close,)
    if not inserted or inserted[-1] not in ends:
        return told
    if len(inserted) > 1:
        state = renderer.parse_response(turn.completion_ids, turn.prompt_ids).reasoning
        is_ended = state is ReasoningState.OPEN or _is_written(renderer, turn, added)
        return "" if is_ended and bridge.junction is Junction.CLOSE_ADDED else told
    return ""


def _is_written(renderer: RendererContract, turn: PlayedTurn, added: list[int]) -> bool:
    """Whether a full rendering ends with what was added: a text is ended by more than its close (Command R7B)."""
    full = ids_of(renderer, [*turn.history, *turn.new], turn.tools)
    if isinstance(renderer, TellsText):
        return renderer.text_of(full).endswith(renderer.text_of(added))
    return full[len(full) - len(added) :] == added


def _junction(turn: PlayedTurn, bridge: Bridge, ending: Ending) -> str:
    expected = {
        Ending.CLEAN: (Junction.EXACT, Junction.OPENER_SHARED),
        Ending.STRIPPED: (Junction.CLOSE_RESTORED,),
        Ending.CUT: (Junction.CLOSE_ADDED,),
        Ending.OTHER_STOP: (Junction.STOP_REWRITTEN, Junction.OPENER_DROPPED),
    }[ending]
    if ending is Ending.CLEAN and turn.stop_id != turn.close_id:
        expected = (Junction.STOP_REWRITTEN,)
    if bridge.junction in expected:
        return ""
    return f"the junction is {bridge.junction.value!r} for a completion that ended {ending.value}"


def judge_spans(
    spans: Sequence[TokenSpan],
    start: int,
    end: int,
    new: Sequence[Message],
    first: int,
    leaves_out: Callable[[int], bool] | None = None,
) -> str | NotTried:
    """Whether spans tile `start` to `end`, and the new messages, numbered from `first`, wrote something.

    Args:
        leaves_out: Whether the renderer writes nothing of a message, which then has no id to own: a template may
            know no tool role. None where none may be left out: a bridge is refused then.
    """
    if not spans:
        return NotTried("it is not told who wrote which id")
    position = start
    for span in spans:
        if span.start != position or span.end <= span.start:
            return f"a span begins at {span.start} and ends at {span.end}, where one should begin at {position}"
        if not -1 <= span.owner < first + len(new):
            return f"a span belongs to message {span.owner} of {first + len(new)}"
        position = span.end
    if position != end:
        return f"the spans end at {position}, the ids at {end}"
    wrote = {span.owner for span in spans if span.kind is TokenKind.BODY}
    silent = [first + i for i, message in enumerate(new) if (message.content or "").strip()]
    missing = [each for each in silent if each not in wrote]
    lost = missing if leaves_out is None else [each for each in missing if not leaves_out(each)]
    if missing and not lost:
        return NotTried("the renderer leaves out the text of a message")
    return f"messages {lost} wrote no id" if lost else ""


def judge_refusals(renderer: RendererContract, case: RendererCase) -> Told:
    """What no renderer may bridge."""
    turn = play(renderer, case)
    middle = len(turn.completion_ids) // 2
    broken = [*turn.completion_ids[:middle], turn.stop_id, *turn.completion_ids[middle:], turn.stop_id]
    answer = Message(role="assistant", content="Not sampled.")
    for told, completion, new in (
        (f"a stop in the middle, at {middle} of {len(broken)}", broken, turn.new),
        ("no new message", turn.completion_ids, ()),
        ("an assistant message that was not sampled", turn.completion_ids, (*turn.new, answer)),
    ):
        outcome = renderer.bridge_to_next_turn(
            turn.prompt_ids,
            completion,
            new,
            history=turn.history,
            finish_reason=turn.finish_reason,
            tools=turn.tools,
        )
        if not isinstance(outcome, BridgeRefused):
            return {RendererCheck.REFUSES: f"bridged, with {told}"}
        if outcome.why not in FALLBACKS or not outcome.detail:
            return {RendererCheck.REFUSES: f"refused without a reason, with {told}"}
    return {RendererCheck.REFUSES: ""}
