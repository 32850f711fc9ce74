"""The certificate: what was proved about one template with one tokenizer.

Each probe is a short conversation `M + [a] + N`. It is played as an engine would play it: the prompt
is rendered, the completion is what the template itself writes for `a`, and the bridge for `N` is
compared, id by id, with the full rendering.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from tokentrue.errors import TemplateRenderError
from tokentrue.generation import FinishReason
from tokentrue.messages import Message, ToolCall
from tokentrue.rendering.bridge import Bridge, BridgeBuilder
from tokentrue.rendering.chat_template import RememberingTemplate
from tokentrue.rendering.formats.harmony import Channels
from tokentrue.rendering.formats.tool_calls import CallsWritten
from tokentrue.rendering.formats.tool_format import ToolFormat
from tokentrue.rendering.independence import history_matters_nowhere
from tokentrue.rendering.rewritten_stop import begins_behind_a_user
from tokentrue.rendering.seams import Seam, SeamKind
from tokentrue.rendering.sentinels import mask_new
from tokentrue.rendering.tail import BridgeRefused, FollowUp, Tail, TailFinder
from tokentrue.rendering.template_messages import PROBE_TOOL
from tokentrue.tokens import TokenIds
from tokentrue.turns import Junction


class FollowUpKind(Enum):
    """What comes after a sampled assistant message."""

    USER = "user"
    TOOL = "tool"
    TOOLS = "tools"
    TOOL_THEN_USER = "tool, then user"
    SYSTEM = "system in the middle"
    AFTER_REASONING = "user after reasoning"
    TOOL_AFTER_REASONING = "tool after reasoning"
    TRUNCATED = "user after truncation"


class Verdict(Enum):
    """How a bridged prompt compares with the full rendering of the same conversation."""

    EXACT = "exact"
    EXACT_BEHIND_JUNCTION = "exact behind the junction"
    TEMPLATE_REWRITES_HISTORY = "template rewrites history"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one probe.

    Args:
        kind: What followed the assistant message.
        with_tools: Whether tools were offered.
        verdict: See `Verdict`. `TEMPLATE_REWRITES_HISTORY` means: the bridge is what the template writes
            behind the close (law 2), but a full rendering would change earlier ids, so only the bridge
            keeps what was sampled.
        junction: How the bridge was joined; None when refused.
        detail: The reason of a refusal, or the first differing text of both sides.
        history_free: A synthesised history gives the same bridge, so `history=None` is allowed.
        expected: What stands, or would have to stand, in the bridged prompt where the template writes otherwise;
            "" where there are no two texts to compare.
        template: What the template writes there.
        conversation: The smallest conversation that is refused for the same reason, one line for each message;
            empty when nothing is refused.
    """

    kind: FollowUpKind
    with_tools: bool
    verdict: Verdict
    junction: Junction | None
    detail: str
    history_free: bool
    expected: str = ""
    template: str = ""
    conversation: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was proved about one (template, tokenizer, template kwargs).

    Args:
        template_hash, tokenizer_hash: SHA-256 in hex; what the certificate is valid for.
        close: Spelling of the token that ends an assistant message; None when no bridge was possible.
        stop_ids: The stop set.
        generation_prompt: What the template adds for `add_generation_prompt`.
        reasoning_format, tool_format: The recognised grammars, by name; None when there is none.
        calls: What the template does with tool calls; tells why there is no `tool_format`.
        short_history: Whether a bridge may be found without rendering the whole conversation (law 8).
        findings: One per probe.
        stop_doubts: One sentence for each kind of message whose stop nobody named and the template does not
            show for certain, and how to name it.
        text_as_parts: The roles whose text the template writes only where it is a list of parts; it gets one.
    """

    template_hash: str
    tokenizer_hash: str
    close: str | None
    stop_ids: tuple[int, ...]
    generation_prompt: str
    reasoning_format: str | None
    tool_format: str | None
    calls: CallsWritten
    short_history: bool
    findings: tuple[Finding, ...]
    stop_doubts: tuple[str, ...] = ()
    text_as_parts: tuple[str, ...] = ()

    def finding(self, kind: FollowUpKind, with_tools: bool) -> Finding | None:
        """The result for one kind of follow-up; None when it was not probed."""
        return next((f for f in self.findings if f.kind is kind and f.with_tools == with_tools), None)

    @property
    def bridges_everything(self) -> bool:
        """Whether no probe was refused."""
        return all(finding.verdict is not Verdict.REFUSED for finding in self.findings)


@dataclass(frozen=True, slots=True)
class _Probe:
    kind: FollowUpKind
    assistant: Message
    new: tuple[Message, ...]
    with_tools: bool
    truncated: bool = False


def _call(index: int) -> ToolCall:
    name = PROBE_TOOL["function"]["name"]
    return ToolCall(name=name, arguments=f'{{"qzKey7": "value {index}"}}', id=f"call{index:05d}")


def _result(index: int) -> Message:
    name = PROBE_TOOL["function"]["name"]
    return Message(role="tool", content=f"Result {index}.", tool_call_id=f"call{index:05d}", name=name)


def _probes() -> Iterator[_Probe]:
    said = Message(role="assistant", content="It is 4.")
    thought = Message(role="assistant", content="It is 4.", reasoning_content="Two and two.")
    asked = Message(role="user", content="And five?")
    one = Message(role="assistant", tool_calls=(_call(0),))
    two = Message(role="assistant", content="I ask both.", tool_calls=(_call(0), _call(1)))
    thought_one = Message(role="assistant", reasoning_content="I ask.", tool_calls=(_call(0),))
    system = Message(role="system", content="Be brief.")
    for with_tools in (False, True):
        yield _Probe(FollowUpKind.USER, said, (asked,), with_tools)
        yield _Probe(FollowUpKind.SYSTEM, said, (system, asked), with_tools)
        yield _Probe(FollowUpKind.AFTER_REASONING, thought, (asked,), with_tools)
        yield _Probe(FollowUpKind.TRUNCATED, said, (asked,), with_tools, truncated=True)
    yield _Probe(FollowUpKind.TOOL, one, (_result(0),), True)
    yield _Probe(FollowUpKind.TOOLS, two, (_result(0), _result(1)), True)
    yield _Probe(FollowUpKind.TOOL_THEN_USER, one, (_result(0), asked), True)
    yield _Probe(FollowUpKind.TOOL_AFTER_REASONING, thought_one, (_result(0),), True)


_HISTORY = (
    Message(role="system", content="You answer."),
    Message(role="user", content="What is 2 + 2?"),
)
_BARE_HISTORY = (Message(role="user", content="What is 2 + 2?"),)
_LONG_HISTORY = (
    *_HISTORY,
    Message(role="assistant", content="Four."),
    Message(role="user", content="Are you sure?"),
)


def _judge(builder: BridgeBuilder, probe: _Probe, before: tuple[Message, ...]) -> Finding:
    tools = (PROBE_TOOL,) if probe.with_tools else ()
    follow_up = FollowUp((*before, probe.assistant), probe.new, tools)
    try:
        render, form = builder.tails.template.render_text, builder.tails.form
        prompt = render(form.to_templates(before), tools, add_generation_prompt=True)
        ended = render(form.to_templates(follow_up.history), tools)
        full = render(form.to_templates((*follow_up.history, *probe.new)), tools, add_generation_prompt=True)
    except TemplateRenderError as error:
        return Finding(probe.kind, probe.with_tools, Verdict.REFUSED, None, str(error), history_free=False)
    tail = builder.tails.derive(follow_up)
    if isinstance(tail, BridgeRefused):
        return _refused(builder, probe, follow_up, tail)
    stop = tail.seam.sampled.id
    said = ended[_common(prompt, ended) :]
    for each in builder.stop_ids if tail.seam.is_opener else (stop,):
        said = said.split(builder.tokenizer.id_text(each))[0]
    prompt_ids = TokenIds(builder.tokenizer.encode(prompt))
    sampled = _sampled_behind(builder, prompt, said)
    sampled = sampled[: len(sampled) // 2] if probe.truncated else [*sampled, stop]
    reason = FinishReason.LENGTH if probe.truncated else FinishReason.STOP
    bridge = builder.bridge(prompt_ids, TokenIds(sampled), follow_up, reason)
    if isinstance(bridge, BridgeRefused):
        return _refused(builder, probe, follow_up, bridge)
    found = Finding(
        kind=probe.kind,
        with_tools=probe.with_tools,
        verdict=Verdict.EXACT_BEHIND_JUNCTION,
        junction=bridge.junction,
        detail="",
        history_free=_is_history_free(builder, probe),
    )
    if probe.truncated:
        return found
    if tail.dropped_calls:
        return replace(
            found,
            verdict=Verdict.TEMPLATE_REWRITES_HISTORY,
            detail="the template leaves sampled calls out of its history; only the bridge keeps them",
            expected="; ".join(tail.dropped_calls),
            template=ended[_common(prompt, ended) :],
        )
    thought = probe.assistant.reasoning_content
    if builder.reasoning is not None and thought is not None and thought not in ended:
        return replace(
            found,
            verdict=Verdict.TEMPLATE_REWRITES_HISTORY,
            detail="the template leaves sampled reasoning out of such a message; only the bridge keeps it",
            expected=thought,
            template=ended[_common(prompt, ended) :],
        )
    return _compare(builder, found, bridge, tail.seam, full)


def _refused(builder: BridgeBuilder, probe: _Probe, asked: FollowUp, refused: BridgeRefused) -> Finding:
    """A refusal, shown by the smallest conversation that is refused for the same reason."""
    smaller = (replace(asked, new=asked.new[:count]) for count in range(1, len(asked.new)))
    for each in smaller:
        found = builder.tails.derive(each)
        if isinstance(found, BridgeRefused) and found.why is refused.why:
            asked, refused = each, found
            break
    return Finding(
        kind=probe.kind,
        with_tools=probe.with_tools,
        verdict=Verdict.REFUSED,
        junction=None,
        detail=f"{refused.why.value}: {refused.detail}",
        history_free=False,
        expected=refused.expected,
        template=refused.template,
        conversation=tuple(_told(message) for message in (*asked.history, *asked.new)),
    )


def _told(message: Message) -> str:
    """A message in one line."""
    texts = [message.content or "", *(f"{call.name} {call.arguments}" for call in message.tool_calls)]
    return f"{message.role}: {'; '.join(filter(None, texts))}"


def _sampled_behind(builder: BridgeBuilder, prompt: str, said: str) -> list[int]:
    """The ids of `said` as they continue `prompt`: SentencePiece puts a space before a text of its own."""
    prompt_ids, both = builder.tokenizer.encode(prompt), builder.tokenizer.encode(prompt + said)
    if both[: len(prompt_ids)] == prompt_ids:
        return both[len(prompt_ids) :]
    return builder.tokenizer.encode(said)


def _compare(builder: BridgeBuilder, found: Finding, bridge: Bridge, seam: Seam, full: str) -> Finding:
    full_ids = builder.tokenizer.encode(full)
    if bridge.prompt_ids == full_ids:
        return replace(found, verdict=Verdict.EXACT)
    bridged = bridge.prompt_ids.tolist()
    if bridge.junction is Junction.STOP_REWRITTEN:
        at = bridge.known_len - 1
        stop = builder.tokenizer.id_text(bridged[at])
        leaves_out = seam.kind is SeamKind.NO_STOP
        bridged[at : at + 1] = [] if leaves_out else [seam.close.id]
        if bridged == full_ids:
            told = "leaves out" if leaves_out else f"spells {seam.close.text!r}"
            return replace(found, detail=f"the sampled {stop!r} is kept, which history {told}")
    at = _common(bridged, full_ids)
    ours = builder.tokenizer.decode(bridged[at : at + 12])
    theirs = builder.tokenizer.decode(full_ids[at : at + 12])
    return replace(
        found,
        verdict=Verdict.TEMPLATE_REWRITES_HISTORY,
        detail=f"sampled {ours!r}, full rendering {theirs!r}",
        expected=ours,
        template=theirs,
    )


def _common(left: str | list[int], right: str | list[int]) -> int:
    """Length of the longest common prefix."""
    for position, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return position
    return min(len(left), len(right))


def _is_history_free(builder: BridgeBuilder, probe: _Probe) -> bool:
    minimal = synthesised_history(probe.new)
    if minimal is None:
        return False
    return history_matters_nowhere(builder.tails, minimal, probe.assistant, probe.new, probe.with_tools)


def synthesised_history(new: tuple[Message, ...]) -> tuple[Message, ...] | None:
    """The shortest conversation that `new` can follow; None when a tool message names no call."""
    calls: list[ToolCall] = []
    for message in new:
        if message.role != "tool":
            break
        if message.tool_call_id is None:
            return None
        calls.append(ToolCall(name=message.name or "f", arguments="{}", id=message.tool_call_id))
    said = None if calls else "ok"
    return (Message(role="user", content="?"), Message(role="assistant", content=said, tool_calls=tuple(calls)))


def kind_of(new: tuple[Message, ...]) -> FollowUpKind | None:
    """The kind of follow-up that `new` is; None for one that is not probed."""
    roles = tuple(message.role for message in new)
    if roles == ("user",):
        return FollowUpKind.USER
    if roles == ("tool",):
        return FollowUpKind.TOOL
    if roles and set(roles) == {"tool"}:
        return FollowUpKind.TOOLS
    if roles[-1:] == ("user",) and set(roles[:-1]) == {"tool"}:
        return FollowUpKind.TOOL_THEN_USER
    return None


def certify(builder: BridgeBuilder, tool_format: ToolFormat | None, calls: CallsWritten) -> Certificate:
    """Probe one template and tokenizer; about fifty short renderings."""
    builder = replace(
        builder, tails=replace(builder.tails, template=RememberingTemplate.of(builder.tails.template))
    )
    findings: list[Finding] = []
    for probe in _probes():
        found = _judge(builder, probe, _HISTORY)
        if found.verdict is Verdict.REFUSED:
            # Some templates know no system role; what they do without one is still worth knowing.
            found = _judge(builder, probe, _BARE_HISTORY)
        findings.append(found)
    return Certificate(
        template_hash=builder.tails.template.content_hash,
        tokenizer_hash=builder.tokenizer.content_hash,
        close=_close(builder),
        stop_ids=builder.stop_ids,
        generation_prompt=builder.tails.generation_prompt(_BARE_HISTORY),
        reasoning_format=_reasoning_format(builder, tool_format),
        tool_format=tool_format.name if tool_format is not None else None,
        calls=calls,
        short_history=builder.tails.short_is_enough,
        findings=tuple(findings),
        text_as_parts=builder.tails.form.parts_for,
    )


def _reasoning_format(builder: BridgeBuilder, tool_format: ToolFormat | None) -> str | None:
    if builder.reasoning is not None:
        return f"{builder.reasoning.opener.text}…{builder.reasoning.closer.text}"
    return f"channel {tool_format.reasoning_channel}" if isinstance(tool_format, Channels) else None


def _close(builder: BridgeBuilder) -> str | None:
    said = Message(role="assistant", content="It is 4.")
    tail = builder.tails.derive(FollowUp((*_BARE_HISTORY, said), (Message(role="user", content="Go on."),)))
    return None if isinstance(tail, BridgeRefused) else tail.seam.close.text


def find_opener_ids(tails: TailFinder) -> frozenset[int]:
    """Stop ids with which the template opens the next message instead of closing the last one (GLM)."""
    found: set[int] = set()
    doubtful: list[tuple[Tail, FollowUp]] = []
    for probe in _probes():
        if probe.truncated:
            continue
        asked = FollowUp((*_BARE_HISTORY, probe.assistant), probe.new, (PROBE_TOOL,) if probe.with_tools else ())
        tail = tails.derive(asked)
        if isinstance(tail, BridgeRefused):
            continue
        if tail.seam.is_opener or _opens(tails, tail, asked.new, asked.tools):
            found.add(tail.seam.close.id)
        elif probe.assistant.tool_calls:
            doubtful.append((tail, asked))
    for tail, asked in doubtful if found else ():
        if tail.seam.close.id not in found and _is_in_place_of_an_opener(tails, tail, asked, found):
            found.add(tail.seam.close.id)
    return frozenset(found)


def _is_in_place_of_an_opener(tails: TailFinder, tail: Tail, asked: FollowUp, openers: set[int]) -> bool:
    """Whether behind a message with text an opener stands where behind calls the close of `tail` does.

    TRL's GLM writes `<|observation|>` behind calls only, and in front of a tool's result nowhere else: without it
    the result would be of no role, or of a user. A result that has a marker of its own needs none.
    """
    said = Message(role="assistant", content="It is 4.")
    behind_text = tails.derive(replace(asked, history=(*_BARE_HISTORY, said)))
    if isinstance(behind_text, BridgeRefused) or behind_text.seam.close.id not in openers:
        return False
    lead = tail.text[: tail.text.find(asked.new[0].content or "")]
    found = (tails.tokenizer.added_token_of_id(each) for each in tails.tokenizer.encode(lead))
    return behind_text.text == tail.text and not any(info is not None and info.special for info in found)


def _opens(tails: TailFinder, tail: Tail, new: tuple[Message, ...], tools: tuple[dict[str, Any], ...]) -> bool:
    """Whether a close opens the next message, which begins just so behind a user's, whom that does not end."""

    def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
        listed = tails.form.to_templates(messages)
        return tails.template.render_text(listed, tools, add_generation_prompt=add_generation_prompt)

    begins = begins_behind_a_user(render, mask_new(new, 1)) if tail.seam.kind is SeamKind.CLOSE else None
    close = tail.seam.close.text
    if begins is None or not begins.opening or begins.ended.endswith(close):
        return False
    if tail.seam.close.id in tails.left_off:
        return False
    return begins.opening == close + tail.text[: tail.text.find(new[0].content or "")]
