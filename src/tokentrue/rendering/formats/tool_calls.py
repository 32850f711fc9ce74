"""Which grammar of tool calls a template writes: derived by rendering known calls and recognising them.

A grammar is never guessed from a model's name. Each recogniser looks for its own shape in the probes'
renderings; the first whose format then *reads back* every probe that the template can render is the
template's. Where none does, calls are not read, and the certificate says so.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from enum import Enum

from tokentrue.rendering.formats.bare_json import BareJson
from tokentrue.rendering.formats.block_glue import (
    BlockGlue,
    Surroundings,
    take_apart,
)
from tokentrue.rendering.formats.blocks import Blocks
from tokentrue.rendering.formats.elements import elements
from tokentrue.rendering.formats.gemma import QuotedFields
from tokentrue.rendering.formats.harmony import CallBlock, Channels
from tokentrue.rendering.formats.json_calls import JsonLines, JsonList, JsonObject, NamedJson
from tokentrue.rendering.formats.marks import is_mark
from tokentrue.rendering.formats.nested_tags import nested_tags
from tokentrue.rendering.formats.parameters import ParameterTags, Spacing, derive_quote, derive_type_word
from tokentrue.rendering.formats.parsed import (
    CallKeys,
    CallStatus,
    NameAsKey,
    ParsedToolCall,
    ReadPiece,
    Spoken,
    schemas_of,
)
from tokentrue.rendering.formats.probing import (
    KEY,
    NAME,
    OTHER_KEY,
    OTHER_NAME,
    OTHER_VALUE,
    TEXT,
    THOUGHT,
    TOOLS,
    VALUE,
    Probes,
)
from tokentrue.rendering.formats.pythonic import BarePython, PythonList
from tokentrue.rendering.formats.recipients import Recipients
from tokentrue.rendering.formats.tool_format import CallBody, ToolFormat

_READ_BACK: tuple[dict[str, object], ...] = (
    {KEY: VALUE},
    {},
    {KEY: VALUE, OTHER_KEY: OTHER_VALUE},
    {KEY: '7 é\n{"a": 1}', "n": 7, "t": True, "l": [1, "a"], "o": {"k": "v"}},
)
_HARD_TEXT = 'it\'s "so" \\ '
_READ_BACK_UNQUOTED = (*_READ_BACK[:3], {KEY: "7 é", "n": 7, "t": True, "l": [1, "a"], "o": {"k": "it's"}})
"""Strings without quotes are told from the rest of a call only where nothing in them ends a value."""


def derive_tool_format(probes: Probes) -> ToolFormat | None:
    """The template's grammar of tool calls, or None when none of the known grammars reads it back."""
    for recognise in (
        _channels,
        _addressed_messages,
        elements,
        _json_calls,
        _named_json,
        _quoted_fields,
        nested_tags,
        _parameter_tags,
        _python_calls,
        _recipients,
    ):
        recognised = _with_text_frame(recognise(probes), probes)
        if recognised is not None and _reads_back(recognised, probes):
            return recognised
    return None


def _with_text_frame(recognised: ToolFormat | None, probes: Probes) -> ToolFormat | None:
    """The same format; markers that the template puts around text (Command R) carry nothing, as a section's."""
    said = probes.said(probes.message(TEXT))
    if not isinstance(recognised, Blocks) or said is None:
        return recognised
    before, _, behind = said.partition(TEXT)
    if not before or not behind or not all(map(is_mark, before + behind)):
        return recognised
    return replace(recognised, sections=recognised.sections | set(before + behind))


class CallsWritten(Enum):
    """What a template does with the tool calls of a message, and whether they are read in completions."""

    READ = "read"
    UNREAD = "not read"
    DROPPED = "not written"
    REFUSED = "refused"
    NOTHING = "no message is rendered"


def calls_written(probes: Probes, recognised: ToolFormat | None) -> CallsWritten:
    """What becomes of calls, found by looking for a known one in its rendering."""
    if recognised is not None:
        return CallsWritten.READ
    if probes.ended(probes.message(TEXT)) is None:
        return CallsWritten.NOTHING
    called = [replace(probes, ids_carry_names=carry).message(None, {KEY: VALUE}) for carry in (False, True)]
    texts = [text for message in called if (text := probes.ended(message)) is not None]
    if not texts:
        return CallsWritten.REFUSED
    written = any(NAME in text or VALUE in text for text in texts)
    return CallsWritten.UNREAD if written else CallsWritten.DROPPED


def _told_apart(recognised: ToolFormat) -> tuple[dict[str, object], ...]:
    """The arguments to read back; without those that a template cannot write so that they can be told apart."""
    body = recognised.body if isinstance(recognised, (Blocks, BarePython)) else None
    return _READ_BACK_UNQUOTED if isinstance(body, PythonList) and body.bare_strings else _READ_BACK


def _reads_back(recognised: ToolFormat, probes: Probes) -> bool:
    """Whether every probe that the template renders is read as it was; the first ones must be rendered."""
    messages = [probes.message(None, arguments) for arguments in _told_apart(recognised)]
    messages += [probes.message(None, {KEY: VALUE}, {KEY: OTHER_VALUE}), probes.message(TEXT)]
    for message in messages:
        text = probes.said(message)
        if text is None or (message.tool_calls and VALUE not in text and message is messages[0]):
            continue
        pieces = _read(recognised, text)
        calls = [piece for piece in pieces if isinstance(piece, ParsedToolCall)]
        written = [call for call in message.tool_calls if _is_written(call.name, text)]
        if len(calls) != len(written) or (not message.tool_calls and calls):
            return False
        for call, wanted in zip(calls, written, strict=True):
            if call.status is not CallStatus.OK or call.name != wanted.name or call.arguments is None:
                return False
            if json.loads(call.arguments) != wanted.arguments_or_text():
                return False
        said = "".join(piece.text for piece in pieces if isinstance(piece, Spoken)).strip()
        if not message.tool_calls and said != TEXT:
            return False
    return probes.said(messages[0]) is not None


def _is_written(name: str, text: str) -> bool:
    return name in text


def _read(recognised: ToolFormat, text: str) -> list[ReadPiece]:
    reader = recognised.start(schemas_of(TOOLS))
    return reader.feed(text) + reader.finish(stopped=True)


def _around(probes: Probes, core: re.Pattern[str], other_core: re.Pattern[str]) -> Surroundings | None:
    """What stands around the cores of calls; None when a lone call has no core."""
    one = probes.said(probes.message(None, {KEY: VALUE}))
    found = core.search(one) if one is not None else None
    if one is None or found is None:
        return None
    between, after_two = None, ""
    two = probes.said(probes.message(None, {KEY: VALUE}, {KEY: OTHER_VALUE}))
    first = core.search(two) if two is not None else None
    second = other_core.search(two, first.end()) if two is not None and first is not None else None
    if two is not None and first is not None and second is not None:
        between, after_two = two[first.end() : second.start()], two[second.end() :]
    text = probes.said(probes.message(TEXT, {KEY: VALUE}))
    spoken = re.search(rf"{TEXT}(.*?)(?:{core.pattern})", text, re.DOTALL) if text is not None else None
    behind_text = spoken.group(1) if spoken is not None else None
    return Surroundings(one[: found.start()], one[found.end() :], between, after_two, behind_text)


def _object_pattern(name: str, value: str) -> re.Pattern[str]:
    """One JSON object that holds a name and, in an object inside it, a value."""
    flat, inner = r"[^{}]*", rf"\{{[^{{}}]*{value}[^{{}}]*\}}"
    return re.compile(rf"\{{{flat}{name}{flat}{inner}{flat}\}}|\{{{flat}{inner}{flat}{name}{flat}\}}")


def _call_keys(text: str) -> CallKeys | NameAsKey | None:
    try:
        fields = json.loads(text)
    except ValueError:
        return None
    names = [key for key, value in fields.items() if value == NAME]
    values = [key for key, value in fields.items() if value == {KEY: VALUE}]
    ids = [key for key, value in fields.items() if isinstance(value, str) and value.startswith("qzCall")]
    if fields == {NAME: {KEY: VALUE}}:
        return NameAsKey()
    if len(names) != 1 or len(values) != 1:
        return None
    return CallKeys(names[0], values[0], ids[0] if ids else None)


def _json_calls(probes: Probes) -> ToolFormat | None:
    core = _object_pattern(NAME, VALUE)
    around = _around(probes, core, _object_pattern(OTHER_NAME, OTHER_VALUE))
    one = probes.said(probes.message(None, {KEY: VALUE}))
    found = core.search(one) if one is not None else None
    keys = _call_keys(found.group()) if found is not None else None
    if around is None or keys is None:
        return None
    if around.before.rstrip().endswith("[") and around.after.lstrip().startswith("]"):
        return _list_blocks(probes, around, JsonList(keys))
    if isinstance(keys, NameAsKey):
        return None
    if around.before.strip() and around.between is not None and not around.between.strip():
        return _list_blocks(probes, around, JsonLines(keys))
    if not around.before.strip():
        return BareJson(keys, probes.marks) if around.between is None else None
    glue = take_apart(around)
    if glue is None or (glue.open_rest + glue.close_rest).strip():
        return None
    blocks = glue.blocks(probes.marks, JsonObject(keys))
    return replace(blocks, continued_by="{") if glue.opens_once else blocks


def _list_blocks(probes: Probes, around: Surroundings, body: CallBody) -> ToolFormat | None:
    """One block that holds a list of all calls."""
    before = around.before.rstrip().removesuffix("[")
    behind_text = around.behind_text
    if behind_text is not None:
        behind_text = behind_text.rstrip().removesuffix("[")
    glue = take_apart(Surroundings(before, around.after.lstrip().removeprefix("]"), None, "", behind_text))
    if glue is None or glue.open_rest.strip():
        return None
    return glue.blocks(probes.marks, body)


def _python_calls(probes: Probes) -> ToolFormat | None:
    """`NAME(KEY=VALUE)` in a list, with or without quotes around the value."""

    def core(name: str, value: str) -> re.Pattern[str]:
        return re.compile(rf"{name}\({KEY}=(?P<quote>['\"]?){value}['\"]?\)")

    around = _around(probes, core(NAME, VALUE), core(OTHER_NAME, OTHER_VALUE))
    one = probes.said(probes.message(None, {KEY: VALUE}))
    found = core(NAME, VALUE).search(one) if one is not None else None
    if around is None or found is None or not around.before.rstrip().endswith("["):
        return None
    body = PythonList(bare_strings=not found["quote"])
    if found["quote"]:
        hard = probes.said(probes.message(None, {KEY: _HARD_TEXT}))
        body = replace(body, escapes=hard is None or f"={found['quote']}{_HARD_TEXT}{found['quote']})" not in hard)
    is_bare = around.before.strip() == "[" and around.after.strip() == "]"
    return BarePython(body, probes.marks) if is_bare else _list_blocks(probes, around, body)


def _named_json(probes: Probes) -> ToolFormat | None:
    ids = [call.id or "" for call in probes.message(None, {}, {}).tool_calls]
    numbered = _numbered_headers(probes)
    id_is_name = probes.ids_carry_names or numbered is not None
    header, other = numbered or ((ids[0], ids[1]) if probes.ids_carry_names else (NAME, OTHER_NAME))

    def core(head: str, call_id: str, value: str) -> re.Pattern[str]:
        # An id before the name differs from call to call, so it is part of the core.
        before = "" if id_is_name else rf"(?:{call_id}(?P<between>[^{{}}\w]+?))?"
        json_object = rf"\{{[^{{}}]*{value}[^{{}}]*\}}"
        return re.compile(rf"{before}{re.escape(head)}(?P<separator>[^{{}}]*?){json_object}", re.DOTALL)

    first = core(header, ids[0], VALUE)
    around = _around(probes, first, core(other, ids[1], OTHER_VALUE))
    one = probes.said(probes.message(None, {KEY: VALUE}))
    found = first.search(one) if one is not None else None
    glue = take_apart(around) if around is not None else None
    if glue is None or found is None or not found["separator"]:
        return None
    id_separator = (found.groupdict().get("between") or "") if not id_is_name else ""
    separator, id_is_first = found["separator"], bool(id_separator)
    if not id_is_name and ids[0] in separator:
        id_separator, _, separator = separator.partition(ids[0])
    body = NamedJson(
        glue.open_rest,
        separator,
        glue.close_rest,
        id_separator,
        id_is_first=id_is_first,
        id_is_name=id_is_name,
        self_closing=glue.closer is None,
    )
    return glue.blocks(probes.marks, body)


def _numbered_headers(probes: Probes) -> tuple[str, str] | None:
    """`functions.NAME:0` and `functions.NAME:1`, where the template makes these call ids itself (Kimi K2)."""
    two = probes.said(probes.message(None, {KEY: VALUE}, {KEY: OTHER_VALUE}))
    headers = f"functions.{NAME}:0", f"functions.{OTHER_NAME}:1"
    return headers if two is not None and all(header in two for header in headers) else None


def _quoted_fields(probes: Probes) -> ToolFormat | None:
    def core(name: str, value: str) -> re.Pattern[str]:
        return re.compile(rf"{name}\{{{KEY}:(?P<quote>[\ud800-\udfff]){value}(?P=quote)\}}")

    around = _around(probes, core(NAME, VALUE), core(OTHER_NAME, OTHER_VALUE))
    one = probes.said(probes.message(None, {KEY: VALUE}))
    found = core(NAME, VALUE).search(one) if one is not None else None
    glue = take_apart(around) if around is not None else None
    if glue is None or found is None or glue.close_rest.strip():
        return None
    return glue.blocks(probes.marks, QuotedFields(glue.open_rest, found["quote"]))


def _parameter_tags(probes: Probes) -> ToolFormat | None:
    def core(name: str, value: str) -> re.Pattern[str]:
        return re.compile(rf"{name}(?:(?!qz).)*{KEY}(?:(?!qz).)*{value}", re.DOTALL)

    around = _around(probes, core(NAME, VALUE), core(OTHER_NAME, OTHER_VALUE))
    two = probes.said(probes.message(None, {KEY: VALUE, OTHER_KEY: OTHER_VALUE}))
    pattern = rf"{NAME}(.*?){KEY}(.*?){VALUE}(.*?){OTHER_KEY}(.*?){OTHER_VALUE}"
    found = re.search(pattern, two, re.DOTALL) if two is not None else None
    glue = take_apart(around) if around is not None else None
    if glue is None or found is None:
        return None
    to_key, to_value, to_next, _ = found.groups()
    tag = re.search(r"(?:<[\ud800-\udfff]?|[\ud800-\udfff])[^<\ud800-\udfff]*\Z", to_next)
    if tag is None or not to_key.endswith(tag.group()):
        return None
    key_open = tag.group()
    value_end = to_next.removesuffix(key_open)
    return _with_tags(probes, glue, (to_key.removesuffix(key_open), key_open, to_value, value_end))


def _with_tags(probes: Probes, glue: BlockGlue, tags: tuple[str, str, str, str]) -> ToolFormat | None:
    name_close, key_open, key_close, value_end = tags
    if re.fullmatch(r"<[^<>\s]+", glue.opener) and re.fullmatch(r"\s[^<>]+", glue.open_rest):
        # Half a tag of ordinary text would be an opener that text often spells: the whole of it opens a call.
        glue = replace(glue, opener=glue.opener + glue.open_rest, open_rest="")
    value_close = value_end.strip()
    trail = _space_before(value_end)
    if not value_close or not key_close.strip() or not glue.close_rest.startswith(trail + value_close):
        return None
    body = ParameterTags(
        call_open=glue.open_rest.strip(),
        call_close=glue.close_rest.removeprefix(trail + value_close).strip(),
        name_close=name_close.strip(),
        key_open=key_open.strip(),
        key_close=key_close.strip(),
        spacing=Spacing(
            behind_name=_space_behind(name_close) if name_close.strip() else "",
            value_lead=_space_behind(key_close),
            value_trail=trail,
            behind_value=_space_behind(value_end),
            behind_last=_space_before(glue.close_rest.removeprefix(trail + value_close)),
        ),
        value_close=value_close,
        type_word=derive_type_word(probes, key_open, key_close),
        quote=derive_quote(probes, key_close, value_end),
    )
    return replace(glue.blocks(probes.marks, body), quote=body.quote)


def _space_before(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]


def _space_behind(text: str) -> str:
    return text[len(text.rstrip()) :]


def _recipients(probes: Probes) -> ToolFormat | None:
    """`everybody separator TEXT` for text, and each call behind a header that names its tool."""
    said = probes.said(probes.message(TEXT))
    two = probes.said(probes.message(TEXT, {KEY: VALUE}, {KEY: OTHER_VALUE}))
    if said is None or two is None:
        return None
    first, second = (rf"\{{[^{{}}]*{value}[^{{}}]*\}}" for value in (VALUE, OTHER_VALUE))
    found = re.fullmatch(
        rf"(?P<all>[\w.\-]+)(?P<separator>\W+){TEXT}(?P<next>.+?){NAME}(?P=separator){first}"
        rf"(?P=next){OTHER_NAME}(?P=separator){second}",
        two,
        re.DOTALL,
    )
    if found is None or said != found["all"] + found["separator"] + TEXT:
        return None
    return Recipients(probes.marks, found["all"], found["separator"], found["next"])


def _channels(probes: Probes) -> ToolFormat | None:
    """`channel NAME message TEXT` for text, the same with another name for reasoning, `to=` for calls."""
    thinking = probes.said_with_reasoning()
    call = probes.said(probes.message(None, {KEY: VALUE}))
    if thinking is None or call is None:
        return None
    mark = r"[\ud800-\udfff]"
    framed = re.search(
        rf"(?P<channel>{mark})(?P<reasoning>\w+)(?P<message>{mark}){THOUGHT}(?P<end>{mark})"
        rf"(?P<start>{mark})(?P<role>\w+)(?P=channel)(?P<content>\w+)(?P=message){TEXT}",
        thinking,
    )
    addressed = re.search(rf"to=(?P<prefix>[^\s\ud800-\udfff]*?){NAME}.*?\{{.*?\}}(?P<end>{mark})?", call)
    if framed is None or addressed is None:
        return None
    ends = {framed["end"], addressed["end"], *probes.stops} - {None}
    return Channels(
        probes.marks,
        start_mark=framed["start"],
        role=framed["role"],
        channel=framed["channel"],
        message=framed["message"],
        ends=frozenset(end for end in ends if is_mark(end)),
        reasoning_channel=framed["reasoning"],
        recipient_prefix=addressed["prefix"],
    )


def _addressed_messages(probes: Probes) -> ToolFormat | None:
    """` to=NAME message TEXT` for text, for reasoning and for calls; only the recipient tells them apart."""
    thinking = probes.said_with_reasoning()
    mark = r"[\ud800-\udfff]"
    found = thinking and re.match(
        rf" to=(?P<reasoning>\w+)(?P<message>{mark}){THOUGHT}(?P<end>{mark})"
        rf"(?P<start>{mark})(?P<role>\w+) to=(?P<everybody>\w+)(?P=message){TEXT}",
        thinking,
    )
    if not found:
        return None
    # A further call is a message of its own.
    lone = replace(
        probes, frames=((f" to={NAME}{found['message']}", ""),), stops=frozenset({*probes.stops, found["end"]})
    )
    block = _parameter_tags(lone)
    if not isinstance(block, Blocks) or block.closer is None:
        return None
    return Channels(
        probes.marks,
        start_mark=found["start"],
        role=found["role"],
        channel="",
        message=found["message"],
        ends=frozenset(end for end in (found["end"], *probes.stops) if is_mark(end)),
        reasoning_channel=found["reasoning"],
        recipient_prefix="",
        everybody=found["everybody"],
        block=CallBlock(block.opener, block.closer, block.body),
    )
