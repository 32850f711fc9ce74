"""Grammars of tool calls, each derived by rendering a known call and recognising it.

A grammar is never guessed from a model's name: `derive_tool_format` renders one call and two calls
through the template and takes the first grammar that reads both back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import msgspec

from tokentrue.errors import TemplateRenderError
from tokentrue.messages import Message, ToolCall
from tokentrue.rendering.chat_template import ChatTemplate
from tokentrue.rendering.template_messages import PROBE_CALL, PROBE_TOOL, MessageForm
from tokentrue.rendering.tokenizer import AddedTokenInfo, Tokenizer

_RAW_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT = msgspec.json.Decoder(str)


class CallStatus(Enum):
    """What became of one attempted tool call."""

    OK = "ok"
    INVALID_JSON = "invalid_json"
    UNCLOSED = "unclosed"
    UNKNOWN_TOOL = "unknown_tool"
    MISSING_NAME = "missing_name"


@dataclass(frozen=True, slots=True)
class ParsedToolCall:
    """One attempted call. `raw` is what the model wrote between the markers; `arguments` is JSON text.

    `name` and `arguments` are None where they could not be read; they are never replaced by `{}`.
    """

    raw: str
    status: CallStatus
    name: str | None = None
    arguments: str | None = None


@dataclass(frozen=True, slots=True)
class TextAndCalls:
    """A completion without its reasoning: the text around the calls, and the calls in order."""

    text: str
    calls: tuple[ParsedToolCall, ...]


class ToolFormat(Protocol):
    """One grammar of tool calls."""

    @property
    def name(self) -> str:
        """The grammar's name, as a certificate prints it."""
        ...

    def read(self, ids: Sequence[int], tokenizer: Tokenizer, gap: str = "") -> TextAndCalls:
        """Read ids without reasoning and without the stop id. Never raises on model output.

        Args:
            gap: White space that the template writes between reasoning and what follows; taken off.
        """
        ...


def read_json_call(raw: str, name_key: str, arguments_key: str) -> ParsedToolCall:
    """Read `{"<name_key>": …, "<arguments_key>": …}`; the arguments keep the model's own spelling."""
    try:
        fields = _RAW_OBJECT.decode(raw.strip().encode("utf-8", "surrogatepass"))
    except msgspec.DecodeError:
        return ParsedToolCall(raw, CallStatus.INVALID_JSON)
    try:
        name = _TEXT.decode(bytes(fields[name_key]))
    except (KeyError, msgspec.DecodeError):
        return ParsedToolCall(raw, CallStatus.MISSING_NAME)
    if not name:
        return ParsedToolCall(raw, CallStatus.MISSING_NAME)
    if arguments_key not in fields:
        return ParsedToolCall(raw, CallStatus.INVALID_JSON, name=name)
    return ParsedToolCall(raw, CallStatus.OK, name, bytes(fields[arguments_key]).decode("utf-8"))


@dataclass(frozen=True, slots=True)
class JsonInTags:
    """`<tool_call>\\n{"name": …, "arguments": …}\\n</tool_call>` with added tokens as tags (Qwen, Hermes).

    `before_first` and `between` are the template's white space before the first and further calls.
    """

    opener: AddedTokenInfo
    closer: AddedTokenInfo
    name_key: str
    arguments_key: str
    before_first: str
    between: str

    @property
    def name(self) -> str:
        return f"json in {self.opener.text}…{self.closer.text}"

    def read(self, ids: Sequence[int], tokenizer: Tokenizer, gap: str = "") -> TextAndCalls:
        """Match the tags as ids, so that text which merely spells them stays content."""
        texts: list[str] = []
        calls: list[ParsedToolCall] = []
        position = 0
        listed = list(ids)
        while self.opener.id in listed[position:]:
            start = listed.index(self.opener.id, position)
            texts.append(tokenizer.decode(listed[position:start]))
            try:
                end = listed.index(self.closer.id, start)
            except ValueError:
                calls.append(ParsedToolCall(tokenizer.decode(listed[start + 1 :]), CallStatus.UNCLOSED))
                position = len(listed)
                break
            # A second opener before the closer means that the first call was never closed.
            reopened = [i for i in range(start + 1, end) if listed[i] == self.opener.id]
            if reopened:
                raw = tokenizer.decode(listed[start + 1 : reopened[0]])
                calls.append(ParsedToolCall(raw, CallStatus.UNCLOSED))
                position = reopened[0]
                continue
            raw = tokenizer.decode(listed[start + 1 : end])
            calls.append(read_json_call(raw, self.name_key, self.arguments_key))
            position = end + 1
        texts.append(tokenizer.decode(listed[position:]))
        texts[0] = texts[0].removeprefix(gap)
        return TextAndCalls(self._outer_text(texts), tuple(calls))

    def _outer_text(self, texts: list[str]) -> str:
        if len(texts) == 1:
            return texts[0]
        first, *inner, last = texts
        kept = [first.removesuffix(self.before_first) if self.before_first else first]
        kept += [text for text in inner if text != self.between]
        return "".join(kept) + last


@dataclass(frozen=True, slots=True)
class BareJson:
    """The whole completion is `{"name": …, "parameters": …}` (Llama 3): one call, no text around it."""

    name_key: str
    arguments_key: str

    @property
    def name(self) -> str:
        return f"bare json with {self.name_key!r} and {self.arguments_key!r}"

    def read(self, ids: Sequence[int], tokenizer: Tokenizer, gap: str = "") -> TextAndCalls:
        """A call is what begins like one: `{` and the name key first."""
        text = tokenizer.decode(ids).removeprefix(gap)
        if not re.match(rf'\s*\{{\s*"{re.escape(self.name_key)}"', text):
            return TextAndCalls(text, ())
        call = read_json_call(text, self.name_key, self.arguments_key)
        if call.status is CallStatus.INVALID_JSON and call.name is None and not text.rstrip().endswith("}"):
            call = ParsedToolCall(text, CallStatus.UNCLOSED)
        return TextAndCalls("", (call,))


def _json_keys(text: str) -> tuple[str, str] | None:
    try:
        fields = _RAW_OBJECT.decode(text.encode())
    except msgspec.DecodeError:
        return None
    names = [key for key, raw in fields.items() if bytes(raw) == f'"{PROBE_CALL.name}"'.encode()]
    values = [key for key, raw in fields.items() if b"qzValue7" in bytes(raw)]
    if len(names) != 1 or len(values) != 1:
        return None
    return names[0], values[0]


def _last_added(text: str, tokenizer: Tokenizer) -> AddedTokenInfo | None:
    found = [info for info in tokenizer.added_tokens() if info.text in text]
    return max(found, key=lambda info: (text.rfind(info.text), len(info.text)), default=None)


def _first_added(text: str, tokenizer: Tokenizer) -> AddedTokenInfo | None:
    found = [info for info in tokenizer.added_tokens() if info.text in text]
    return min(found, key=lambda info: (text.find(info.text), -len(info.text)), default=None)


def _render_calls(template: ChatTemplate, form: MessageForm, content: str | None, count: int) -> str | None:
    message = Message(role="assistant", content=content, tool_calls=(PROBE_CALL,) * count)
    try:
        text = template.render_text(
            form.to_templates((Message(role="user", content="qzUser7"), message)), [PROBE_TOOL]
        )
    except TemplateRenderError:
        return None
    return text[text.rfind("qzUser7") + len("qzUser7") :]


def _braces(text: str) -> tuple[int, int] | None:
    name_at = text.find(PROBE_CALL.name)
    start = text.rfind("{", 0, name_at) if name_at >= 0 else -1
    if start < 0:
        return None
    depth = 0
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return start, position + 1
    return None


def derive_tool_format(
    template: ChatTemplate, form: MessageForm, tokenizer: Tokenizer, close_texts: Sequence[str]
) -> ToolFormat | None:
    """The template's grammar of tool calls, or None when none of the known grammars reads it back.

    Args:
        close_texts: The spellings of the stop tokens: a closing tag is never one of them.
    """
    one = _render_calls(template, form, None, 1)
    if one is None:
        return None
    braces = _braces(one)
    keys = _json_keys(one[slice(*braces)]) if braces else None
    if braces is None or keys is None:
        return None
    opener = _last_added(one[: braces[0]], tokenizer)
    closer = _first_added(one[braces[1] :], tokenizer)
    tagged = (
        opener is not None
        and closer is not None
        and closer.text not in close_texts
        and not one[one.rfind(opener.text, 0, braces[0]) + len(opener.text) : braces[0]].strip()
        and not one[braces[1] : one.find(closer.text, braces[1])].strip()
    )
    if not tagged:
        return BareJson(*keys)
    assert opener is not None
    assert closer is not None
    with_text = _render_calls(template, form, "qzText7", 1) or ""
    before_first = ""
    if "qzText7" in with_text:
        after_text = with_text[with_text.find("qzText7") + len("qzText7") :]
        before_first = after_text[: after_text.find(opener.text)]
    two = _render_calls(template, form, None, 2) or ""
    closed_at = two.find(closer.text)
    reopened_at = two.find(opener.text, closed_at)
    between = two[closed_at + len(closer.text) : reopened_at] if 0 <= closed_at < reopened_at else ""
    if before_first.strip() or between.strip():
        return None
    return JsonInTags(opener, closer, *keys, before_first, between)


def judge_tools(calls: Sequence[ParsedToolCall], tool_names: frozenset[str]) -> tuple[ParsedToolCall, ...]:
    """The same calls, with `UNKNOWN_TOOL` on those whose name was not offered; no names, no judgement."""
    return tuple(_judged(call, tool_names) for call in calls)


def _judged(call: ParsedToolCall, tool_names: frozenset[str]) -> ParsedToolCall:
    if not tool_names or call.status is not CallStatus.OK or call.name in tool_names:
        return call
    return ParsedToolCall(call.raw, CallStatus.UNKNOWN_TOOL, call.name, call.arguments)


def call_of(parsed: ParsedToolCall, call_id: str) -> ToolCall | None:
    """The message form of a call whose name and arguments could be read, else None."""
    if parsed.name is None or parsed.arguments is None:
        return None
    return ToolCall(name=parsed.name, arguments=parsed.arguments, id=call_id)
