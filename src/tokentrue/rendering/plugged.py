"""A renderer of the `renderers` package under our contract: what it returns is checked, never passed on unseen.

The package writes and reads by hand-written rules per family. What it promises is close to our laws, and not the
same: it drops what was sampled behind a stop, gives None for "no" without a reason, cannot be told how sampling
ended, and knows neither the history nor the name of the tool whose result comes back. So, here:

- What can be judged without it is: a stop in the middle, nothing new, an assistant message among the new ones.
- Law 1 and the vocabulary are checked on every bridge.
- Law 2 is checked on every bridge: what it adds must be all that its own full rendering has behind the sampled
  message. The whole history is rendered for that, twice: that a short one would do is proved of no plug-in.
- Where the engine left the stop out, each stop is tried in turn, and law 2 says which one it was.

A breach of a law is a refusal with the evidence in it, `Why.PLUG_IN_BREACH`; the turn is then rendered anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol

from tokentrue.errors import (
    RendererContractError,
    SpelledMarkerWarning,
    TemplateRenderError,
    TokentrueError,
    UnsupportedParameterError,
)
from tokentrue.generation import FinishReason
from tokentrue.messages import Message, messages_from, tools_from
from tokentrue.rendering.bridge import Bridge, check_follow_up, check_stops
from tokentrue.rendering.contract import Messages, RendererContract, Tools
from tokentrue.rendering.formats.parsed import CallStatus, ParsedToolCall, judged, schemas_of
from tokentrue.rendering.formats.reasoning import ReasoningState
from tokentrue.rendering.markers import ControlMarkers
from tokentrue.rendering.plugged_seam import behind_said, seam_of, shared_end
from tokentrue.rendering.reader import ParsedResponse
from tokentrue.rendering.rendered import UNKNOWN_WRITERS, RenderedTokens
from tokentrue.rendering.tail import BridgeRefused, FollowUp
from tokentrue.rendering.tokenizer import Tokenizer
from tokentrue.tokens import TokenIds
from tokentrue.turns import Junction, TokenKind, TokenSpan, Why

_LOGGER = logging.getLogger(__name__)

_STATUS = {
    "ok": CallStatus.OK,
    "invalid_json": CallStatus.INVALID_JSON,
    "malformed_structure": CallStatus.INVALID_JSON,
    "unclosed_block": CallStatus.UNCLOSED,
    "missing_name": CallStatus.MISSING_NAME,
    "unknown_tool": CallStatus.UNKNOWN_TOOL,
}
_Behind = Callable[[], list[int] | BridgeRefused]
"""Gives what the full rendering has behind the sampled message; renders on its first call only."""

_REMEMBERED = 65_536
"""How many warnings are remembered as given."""


class _Rendered(Protocol):
    """What we read of the package's `RenderedTokens`."""

    token_ids: list[int]
    message_indices: list[int]
    is_content: list[bool]


class PlugIn(Protocol):
    """What we call of a renderer of the package; its custom renderers have the same methods."""

    def render(
        self, messages: list[Any], *, tools: list[Any] | None = None, add_generation_prompt: bool = False
    ) -> Any:
        """Messages to ids."""
        ...

    def parse_response(
        self, token_ids: list[int], *, tools: list[Any] | None = None, prompt_ids: list[int] | None = None
    ) -> Any:
        """Ids to a message."""
        ...

    def get_stop_token_ids(self) -> list[int]:
        """The ids that end a completion."""
        ...

    def bridge_to_next_turn(
        self,
        previous_prompt_ids: list[int],
        previous_completion_ids: list[int],
        new_messages: list[Any],
        *,
        tools: list[Any] | None = None,
    ) -> Any:
        """The next prompt, or None."""
        ...


@dataclass(frozen=True, slots=True)
class PluggedRenderer:
    """Keeps `RendererContract` with a renderer of the package behind it; see the module.

    Args:
        plug_in: The renderer; it must use the same vocabulary as `tokenizer`.
        tokenizer: Says which ids there are, and what they spell.
        name: What stands for the plug-in, its version and its configuration in messages and in `identity`.
        remake: Makes the same one with further template kwargs; None where that is not known.

    Raises:
        RendererContractError: It has no stop ids, or some outside the vocabulary, or cannot render a greeting.
    """

    plug_in: PlugIn = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    name: str
    remake: Callable[[Mapping[str, Any]], PluggedRenderer] | None = field(default=None, repr=False, compare=False)
    identity: str = field(init=False, repr=False)
    _stop_ids: tuple[int, ...] = field(init=False, repr=False)
    _closes: frozenset[int] = field(init=False, repr=False)
    _markers: ControlMarkers = field(init=False, repr=False, compare=False)
    _told: set[tuple[bytes, str]] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        stops = tuple(self.plug_in.get_stop_token_ids())
        if not stops or not self._are_ids(stops):
            raise RendererContractError(
                f"{self.name}: its stop ids {list(stops)} are none, or not all ids of tokens"
            )
        object.__setattr__(self, "_stop_ids", stops)
        object.__setattr__(self, "_markers", ControlMarkers.of(self.tokenizer, (), stops))
        try:
            one, other = [
                self.render_ids([_user("?"), Message(role="assistant", content=text), _user("!")]).tolist()
                for text in ("qz", "7")
            ]
        except TemplateRenderError as exc:
            raise RendererContractError(f"{self.name} cannot render a greeting: {exc}") from exc
        # What both end with begins with the close; harmony writes another one than the stop that was sampled.
        behind = [each for each in shared_end(one, other) if self.tokenizer.added_token_of_id(each) is not None]
        object.__setattr__(self, "_closes", frozenset({*behind[:1], *stops}))
        # A date in the prompt makes two renderers differ that are configured alike.
        digest = hashlib.sha256(repr(one).encode()).hexdigest()
        object.__setattr__(self, "identity", f"{self.name}/{self.tokenizer.content_hash}/{digest[:16]}")

    @property
    def vocab_size(self) -> int:
        """One more than the largest id of the tokenizer."""
        return self.tokenizer.vocab_size

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included; lossy where they cut a character."""
        return self.tokenizer.decode(ids)

    def get_stop_token_ids(self) -> tuple[int, ...]:
        """The ids that the plug-in names."""
        return self._stop_ids

    def with_template_kwargs(self, template_kwargs: Mapping[str, Any]) -> PluggedRenderer:
        """The plug-in made again with further template kwargs.

        Raises:
            UnsupportedParameterError: It does not know them, or cannot be made again.
        """
        if self.remake is None:
            advice = "make the renderer with them, instead of giving them with a call"
            raise UnsupportedParameterError("chat_template_kwargs", self.name, advice)
        return self.remake(template_kwargs)

    def render_ids(
        self, messages: Messages, *, tools: Tools | None = None, add_generation_prompt: bool = True
    ) -> TokenIds:
        """The ids of `messages`; raises as `render` does."""
        return self.render(messages, tools=tools, add_generation_prompt=add_generation_prompt).token_ids

    def render(
        self, messages: Messages, *, tools: Tools | None = None, add_generation_prompt: bool = True
    ) -> RenderedTokens:
        """The ids of `messages` and, where the plug-in tells, who wrote each.

        Raises:
            InvalidMessageError: A message is not in OpenAI chat shape.
            TemplateRenderError: The plug-in refuses the messages, or would leave arguments out that are no JSON.
            RendererContractError: It gave ids that are no tokens.
        """
        listed, offered = messages_from(messages), tools_from(tools)
        asked = [_for_plug_in(message) for message in listed]
        self._tell(listed)
        try:
            rendered = self.plug_in.render(
                asked, tools=list(offered) or None, add_generation_prompt=add_generation_prompt
            )
        except Exception as exc:
            raise TemplateRenderError(f"{self.name} cannot render these messages: {told_of(exc)}") from exc
        ids = list(rendered.token_ids)
        if not self._are_ids(ids):
            raise RendererContractError(f"{self.name} rendered ids outside the vocabulary of {self.vocab_size}")
        text = self.tokenizer.decode(ids)
        self._check_arguments(listed, text)
        return RenderedTokens(TokenIds(ids), _spans(rendered, 0, 0), self._stop_ids, text)

    def _tell(self, messages: Sequence[Message]) -> None:
        """Warn of each special token that a message spells, once for each: the package makes it that id."""
        for index, message in enumerate(messages):
            said = (message.content, message.reasoning_content, *(call.arguments for call in message.tool_calls))
            for match in (found for text in said if text for found in self._markers.find(text)):
                marker = self._markers.text_of(match.id)
                if (message.digest, marker) not in self._told:
                    if len(self._told) >= _REMEMBERED:
                        self._told.clear()
                    self._told.add((message.digest, marker))
                    told = f"message {index} ({message.role}) spells the special token {marker!r}"
                    warnings.warn(f"{told}: it becomes that token's id", SpelledMarkerWarning, stacklevel=4)

    def _check_arguments(self, messages: Sequence[Message], text: str) -> None:
        for index, message in enumerate(messages):
            for call in message.tool_calls:
                if isinstance(call.arguments_or_text(), str) and call.arguments not in text:
                    raise TemplateRenderError(
                        f"{self.name} leaves out the arguments of a call to {call.name!r} in message {index}, "
                        f"which are not a JSON object: {call.arguments[:80]!r}"
                    )

    def bridge_to_next_turn(
        self,
        previous_prompt_ids: Sequence[int],
        previous_completion_ids: Sequence[int],
        new_messages: Messages,
        *,
        history: Messages | None = None,
        finish_reason: FinishReason | None = None,
        tools: Tools | None = None,
    ) -> Bridge | BridgeRefused:
        """The plug-in's bridge, when it keeps laws 1 and 2; see the module.

        `history` must be given: law 2 speaks of it.

        Raises:
            InvalidMessageError: A message is not in OpenAI chat shape.
        """
        new, offered = messages_from(new_messages), tools_from(tools)
        known = messages_from(history) if history is not None else ()
        if not known or known[-1].role != "assistant":
            told = "a plugged-in renderer is held against its full rendering: give `history`, sampled message last"
            return BridgeRefused(Why.HISTORY_NEEDED, told)
        prompt, completion = TokenIds(previous_prompt_ids), TokenIds(previous_completion_ids)
        asked = FollowUp(known, new, offered)
        refused = check_follow_up(asked) or check_stops(completion, self._stop_ids)
        if refused is not None:
            return refused
        behind: _Behind = cache(lambda: self._behind_said(asked))
        stopped = len(completion) > 0 and completion[-1] in self._stop_ids
        if stopped or finish_reason not in (FinishReason.STOP, FinishReason.TOOL_CALLS):
            return self._bridge(prompt, completion, asked, behind)
        return self._with_stop_restored(prompt, completion, asked, behind)

    def _with_stop_restored(
        self, prompt: TokenIds, completion: TokenIds, asked: FollowUp, behind: _Behind
    ) -> Bridge | BridgeRefused:
        refusals: list[BridgeRefused] = []
        for how in (Junction.EXACT, Junction.STOP_REWRITTEN):
            if how is Junction.STOP_REWRITTEN and self._closes <= set(self._stop_ids):
                break  # only where history never spells the stop as it is sampled (harmony) may it be another one
            for stop in self._stop_ids:
                outcome = self._bridge(prompt, completion.extended((stop,)), asked, behind)
                if isinstance(outcome, Bridge) and outcome.junction is how:
                    return _restored(outcome, stop, asked)
                if isinstance(outcome, BridgeRefused):
                    refusals.append(outcome)
        if refusals:
            return refusals[0]
        return BridgeRefused(
            Why.PLUG_IN_BREACH, f"{self.name}: no stop id is how its full rendering ends the message"
        )

    def _bridge(
        self, prompt: TokenIds, completion: TokenIds, asked: FollowUp, behind: _Behind
    ) -> Bridge | BridgeRefused:
        try:
            found = self.plug_in.bridge_to_next_turn(
                prompt.tolist(), completion.tolist(), _new_messages(asked), tools=list(asked.tools) or None
            )
        except Exception as exc:  # noqa: BLE001 - whatever it raises is the reason of the refusal
            return BridgeRefused(Why.PLUG_IN_REFUSED, f"{self.name} raised {told_of(exc)}")
        if found is None:
            return BridgeRefused(Why.PLUG_IN_REFUSED, self._no_reason())
        ids, before = list(found.token_ids), [*prompt.tolist(), *completion.tolist()]
        breach = self._breach_of_law_1(ids, before)
        if breach:
            return BridgeRefused(Why.PLUG_IN_BREACH, f"{self.name}: {breach}")
        added = ids[len(before) :]
        seam = self._proved_seam(prompt, completion, added, behind())
        if isinstance(seam, BridgeRefused):
            return seam
        inserted, junction = seam
        spans = _spans(found, len(before) + inserted, len(asked.history))
        if spans and inserted:
            spans = (_seam(len(before), inserted, asked), *spans)
        return Bridge(TokenIds(ids), tuple(added), junction, spans)

    def _no_reason(self) -> str:
        kept = getattr(self.plug_in, "effective_thinking_retention", None)
        told = f"; its thinking_retention is {kept!r}" if kept is not None else ""
        return f"{self.name} gave None, which tells no reason{told}"

    def _breach_of_law_1(self, ids: list[int], before: list[int]) -> str:
        if ids[: len(before)] != before:
            at = next((i for i, (a, b) in enumerate(zip(ids, before, strict=False)) if a != b), len(ids))
            return f"the bridge does not begin with prompt and completion (law 1): position {at} of {len(before)}"
        if len(ids) == len(before):
            return "the bridge adds nothing, not even a generation prompt"
        if not self._are_ids(ids[len(before) :]):
            return f"the bridge adds ids outside the vocabulary of {self.vocab_size}"
        return ""

    def _proved_seam(
        self, prompt: TokenIds, completion: TokenIds, added: list[int], behind: list[int] | BridgeRefused
    ) -> tuple[int, Junction] | BridgeRefused:
        """How many of `added` were put in to end the message, and the junction; law 2, or a refusal."""
        if isinstance(behind, BridgeRefused):
            return behind
        last = completion[-1] if len(completion) else None
        seam = seam_of(last, added, behind, self._stop_ids)
        if seam is not None and (seam[0] == 0 or self._may_insert(prompt, completion, added[: seam[0]])):
            return seam
        return self._breach_of_law_2(
            f"behind the sampled message its rendering has {behind}, and the bridge adds {added} behind {last}"
        )

    def _behind_said(self, asked: FollowUp) -> list[int] | BridgeRefused:
        """What the full rendering has behind the sampled message, from its close on."""
        try:
            return behind_said(
                lambda messages: self.render_ids(messages, tools=asked.tools).tolist(), asked, self._closes
            )
        except TokentrueError as exc:
            return self._breach_of_law_2(str(exc))

    def _breach_of_law_2(self, told: str) -> BridgeRefused:
        return BridgeRefused(Why.PLUG_IN_BREACH, f"{self.name}: the bridge is not what it renders (law 2): {told}")

    def _may_insert(self, prompt: TokenIds, completion: TokenIds, inserted: list[int]) -> bool:
        """In front of a close there is nothing to put in, unless reasoning was left open."""
        if len(inserted) == 1:
            return True
        parsed = self.parse_response(completion, prompt)
        return parsed.reasoning is ReasoningState.OPEN

    def parse_response(
        self, ids: Sequence[int], prompt_ids: Sequence[int] = (), tools: Tools | None = None
    ) -> ParsedResponse:
        """Read a completion; arguments as in the contract.

        Where the plug-in raises, or gives what cannot be, the sample is not lost: all of its text is the content,
        `unread` says why, and a warning is logged.
        """
        sampled, offered = TokenIds(ids).tolist(), tools_from(tools)
        stop_id = sampled[-1] if sampled and sampled[-1] in self._stop_ids else None
        try:
            return self._read(sampled, TokenIds(prompt_ids).tolist(), offered, stop_id)
        except Exception as exc:  # noqa: BLE001 - a sample outlives whatever a reader raises
            told = f"{self.name} cannot read {len(sampled)} sampled ids: {told_of(exc)}"
        _LOGGER.warning("%s; their text is kept as it was sampled", told)
        text = self.tokenizer.decode(sampled if stop_id is None else sampled[:-1])
        return ParsedResponse(text, None, ReasoningState.ABSENT, (), stop_id, told)

    def _read(
        self, sampled: list[int], prompt: list[int], offered: tuple[dict[str, Any], ...], stop_id: int | None
    ) -> ParsedResponse:
        parsed = self.plug_in.parse_response(list(sampled), tools=list(offered) or None, prompt_ids=prompt)
        schemas = schemas_of(offered)
        thought: str | None = parsed.reasoning_content
        if not isinstance(parsed.content or "", str) or not isinstance(thought or "", str):
            raise RendererContractError("it gave content or reasoning that is no text")
        state = ReasoningState.ABSENT if thought is None else ReasoningState.CLOSED
        if parsed.reasoning_complete is False:
            state, thought = ReasoningState.OPEN, thought or ""
        return ParsedResponse(
            content=parsed.content or "",
            reasoning_content=thought,
            reasoning=state,
            tool_calls=tuple(judged(self._call(call), schemas) for call in parsed.tool_calls),
            stop_id=stop_id,
        )

    def _call(self, call: Any) -> ParsedToolCall:
        status = _STATUS.get(str(call.status))
        if status is None:
            raise RendererContractError(f"{self.name} gave a call the status {call.status!r}, which is not known")
        arguments = call.arguments
        if arguments is not None and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        if status is CallStatus.OK and (not call.name or arguments is None):
            raise RendererContractError(
                f"{self.name} calls a call ok that has no name or no arguments: {call.raw!r}"
            )
        return ParsedToolCall(str(call.raw), status, call.name or None, arguments, call.id or None)

    def _are_ids(self, ids: Sequence[int]) -> bool:
        return all(type(each) is int and 0 <= each < self.vocab_size for each in ids)


_KEEPS: type[RendererContract] = PluggedRenderer  # held by the type checker


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def told_of(exc: Exception) -> str:
    """An exception in one line."""
    told = " ".join(str(exc).split())[:400]
    return f"{type(exc).__name__}: {told}" if told else type(exc).__name__


def _for_plug_in(message: Message) -> dict[str, Any]:
    """A message as the package takes one.

    Raises:
        TemplateRenderError: It has parts that are not text.
    """
    if message.parts:
        raise TemplateRenderError(f"a {message.role} message has parts that are not text: only text is rendered")
    data = message.to_openai()
    data.setdefault("content", "")
    return data


def _new_messages(asked: FollowUp) -> list[dict[str, Any]]:
    """The new messages, with the name of its tool on each result: the package is not given the call it answers."""
    names = {call.id: call.name for message in asked.history for call in message.tool_calls if call.id is not None}
    found = [_for_plug_in(message) for message in asked.new]
    for message in found:
        if message["role"] == "tool" and "name" not in message and message.get("tool_call_id") in names:
            message["name"] = names[message["tool_call_id"]]
    return found


def _restored(bridge: Bridge, stop: int, asked: FollowUp) -> Bridge:
    """`bridge` was made behind a stop that the engine left out: the stop is part of what is added."""
    seam = _seam(bridge.known_len - 1, 1, asked)
    spans = (seam, *bridge.spans) if bridge.spans else ()
    added = (stop, *bridge.added_ids)
    return replace(bridge, added_ids=added, junction=Junction.CLOSE_RESTORED, spans=spans)


def _seam(start: int, length: int, asked: FollowUp) -> TokenSpan:
    """What was put in to end the sampled message: nobody's text."""
    return TokenSpan(start, start + length, len(asked.history) - 1, TokenKind.SCAFFOLD)


def _spans(rendered: _Rendered, start: int, first_message: int) -> tuple[TokenSpan, ...]:
    """Who wrote each id from `start` on; no spans where the package does not tell."""
    owners, bodies = rendered.message_indices, rendered.is_content
    if not len(owners) == len(bodies) == len(rendered.token_ids):
        return UNKNOWN_WRITERS
    spans: list[TokenSpan] = []
    for position in range(start, len(owners)):
        owner = owners[position] + first_message if owners[position] >= 0 else -1
        kind = TokenKind.BODY if bodies[position] and owner >= 0 else TokenKind.SCAFFOLD
        if spans and spans[-1].owner == owner and spans[-1].kind is kind:
            spans[-1] = replace(spans[-1], end=position + 1)
        else:
            spans.append(TokenSpan(position, position + 1, owner, kind))
    return tuple(spans)
