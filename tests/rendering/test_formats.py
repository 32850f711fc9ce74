"""Law 6 for every argument grammar: reading is the inverse of writing, cut anywhere, split anywhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rendering_folders import write_folder
from templates.families import FAMILIES, Family, family_renderer, framed_by
from templates.spoken import TYPED_TOOLS, spoken_messages, with_generated_ids
from tokentrue import Message, Renderer, ToolCall, load_renderer
from tokentrue.rendering.formats.marks import has_mark
from tokentrue.rendering.formats.parsed import CallStatus
from tokentrue.rendering.formats.reasoning import ReasoningState
from tokentrue.rendering.formats.tool_calls import CallsWritten
from tokentrue.rendering.reader import ParsedResponse, response_of
from tokentrue.rendering.streaming import CallDelta, ContentDelta
from tokentrue.tokens import TokenIds

EXAMPLES = int(os.environ.get("TOKENTRUE_EXAMPLES", "12"))
"""Generated messages per law and family; `make test-templates` asks for more."""

laws = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
ASKED = (Message(role="user", content="?"),)


def draw_spoken(data: st.DataObject, family: Family) -> Message:
    return data.draw(
        spoken_messages(family.max_calls, family.text_beside_calls, family.reasoning, family.types_inside)
    )


def read(renderer: Renderer, ids: list[int], prompt: TokenIds | None = None) -> ParsedResponse:
    """What is read of `ids` behind `ASKED`, whose rendering is given where much is read behind it."""
    prompt = renderer.render_ids(ASKED, tools=TYPED_TOOLS) if prompt is None else prompt
    return renderer.parse_response(ids, prompt_ids=prompt, tools=TYPED_TOOLS)


@families
def test_the_grammar_is_recognised_by_its_rendering(family: Family) -> None:
    renderer = family_renderer(family)
    assert renderer.certificate.tool_format == family.grammar
    assert (renderer.reader.reasoning is not None) == (family.reasoning and "is reasoning" not in family.grammar)


@pytest.mark.parametrize(
    ("assistant", "calls"),
    [
        ("{{- m.content or '' }}", CallsWritten.DROPPED),
        (
            "{{- m.content or '' }}{%- for c in m.tool_calls or [] %}{{- c.function.name }}{%- endfor %}",
            CallsWritten.UNREAD,
        ),
        ("{%- if m.tool_calls %}{{- raise_exception('no') }}{%- endif %}{{- m.content }}", CallsWritten.REFUSED),
        ("{{- raise_exception('no') }}", CallsWritten.NOTHING),
    ],
)
def test_a_template_whose_calls_are_not_read_tells_why(assistant: str, calls: CallsWritten) -> None:
    renderer = family_renderer(Family("none", framed_by(assistant), (), "", reasoning=False))
    assert (renderer.certificate.tool_format, renderer.certificate.calls) == (None, calls)


@families
@laws
@given(data=st.data())
def test_law_6_parse_is_the_inverse_of_render_assistant(family: Family, data: st.DataObject) -> None:
    renderer, message = family_renderer(family), draw_spoken(data, family)
    if family.spelled and family.spelled in (message.content or ""):
        return  # a tag that is ordinary text cannot be told from text that spells it
    parsed = read(renderer, renderer.render_assistant(message, tools=TYPED_TOOLS).tolist())
    assert [call.status for call in parsed.tool_calls] == [CallStatus.OK] * len(message.tool_calls)
    expected = message if family.writes_ids else with_generated_ids(message)
    assert parsed.to_message("call") == expected or parsed.to_message("call").digest == expected.digest


@families
@laws
@given(data=st.data())
def test_a_cut_at_any_byte_raises_nothing_and_invents_nothing(family: Family, data: st.DataObject) -> None:
    renderer, message = family_renderer(family), draw_spoken(data, family)
    ids = renderer.render_assistant(message, tools=TYPED_TOOLS).tolist()
    prompt = renderer.render_ids(ASKED, tools=TYPED_TOOLS)
    whole = read(renderer, ids, prompt)
    start = data.draw(st.integers(0, max(len(ids) - 60, 0)))
    for length in range(start, min(start + 60, len(ids))):
        parsed = read(renderer, ids[:length], prompt)
        assert len(parsed.tool_calls) <= max(len(whole.tool_calls), family.spelled is not None)
        for call, known in zip(parsed.tool_calls, whole.tool_calls, strict=False):
            if call.status is CallStatus.OK:
                assert (call.name, call.arguments) == (known.name, known.arguments)
            else:
                assert call.arguments is None
        kept = parsed.to_message()
        assert len(kept.tool_calls) == sum(call.status is CallStatus.OK for call in parsed.tool_calls)


@families
@laws
@given(data=st.data())
def test_any_split_reads_the_same_and_deltas_concatenate_to_it(family: Family, data: st.DataObject) -> None:
    renderer, message = family_renderer(family), draw_spoken(data, family)
    ids = renderer.render_assistant(message, tools=TYPED_TOOLS).tolist()
    for _ in range(data.draw(st.integers(0, 3))):  # disorder: a marker more, a piece less
        at = data.draw(st.integers(0, len(ids)))
        ids[at:at] = [data.draw(st.integers(0, renderer.vocab_size - 1))]
    if data.draw(st.booleans()):
        ids = ids[: data.draw(st.integers(0, len(ids)))]
    check_split(renderer, ids, data)


@families
@laws
@given(data=st.data())
def test_one_id_at_a_time_no_half_character_and_no_half_marker_is_said(
    family: Family, data: st.DataObject
) -> None:
    """Every id is one byte, and what was said is never taken back: so what is said must be what was meant."""
    renderer, message = family_renderer(family), draw_spoken(data, family)
    if family.spelled and family.spelled in (message.content or ""):
        return  # a tag that is ordinary text cannot be told from text that spells it
    reader = renderer.start_reading(prompt_ids=renderer.render_ids(ASKED, tools=TYPED_TOOLS), tools=TYPED_TOOLS)
    said, thought, calls = "", "", 0
    ids = renderer.render_assistant(message, tools=TYPED_TOOLS).tolist()
    for deltas in (*(reader.feed([token_id]) for token_id in ids), reader.finish()):
        for delta in deltas:
            if isinstance(delta, CallDelta):
                wanted = message.tool_calls[calls]
                assert (delta.call.status, delta.call.name) == (CallStatus.OK, wanted.name)
                calls += 1
            elif isinstance(delta, ContentDelta):
                said += delta.text
            else:
                thought += delta.text
            assert (message.content or "").startswith(said)
            assert (message.reasoning_content or "").startswith(thought)
    assert (said, thought, calls) == (
        message.content or "",
        message.reasoning_content or "",
        len(message.tool_calls),
    )


def check_split(renderer: Renderer, ids: list[int], data: st.DataObject) -> None:
    """Fed in pieces, the response is the one that is read at once."""
    prompt = renderer.render_ids(ASKED, tools=TYPED_TOOLS)
    reader = renderer.start_reading(prompt_ids=prompt, tools=TYPED_TOOLS)
    deltas = []
    size = data.draw(st.sampled_from([1, 1, 2, 7, 50]))
    for start in range(0, len(ids), size):
        deltas += reader.feed(ids[start : start + size])
    deltas += reader.finish()
    assert response_of(deltas, reader) == read(renderer, ids)


@families
@laws
@given(data=st.data())
def test_any_ids_can_be_read(family: Family, data: st.DataObject) -> None:
    renderer = family_renderer(family)
    added = [info.id for info in renderer.tokenizer.added_tokens()]
    id_lists = st.lists(st.one_of(st.sampled_from(added), st.integers(0, 255)), max_size=60)
    ids = data.draw(id_lists)
    parsed = read(renderer, ids)
    assert all((call.arguments is None) == (call.status not in READABLE) for call in parsed.tool_calls)
    told = [parsed.content, parsed.reasoning_content or "", *(call.raw for call in parsed.tool_calls)]
    assert not has_mark("".join(told))
    check_split(renderer, ids, data)


READABLE = (CallStatus.OK, CallStatus.UNKNOWN_TOOL)
MARKED = [family for family in FAMILIES if family.tokens]


@pytest.mark.parametrize("family", MARKED, ids=lambda family: family.name)
def test_text_that_spells_a_marker_is_content(family: Family) -> None:
    renderer = family_renderer(family)
    bytes_of = {ord(char): renderer.tokenizer.encode(char)[0] for char in map(chr, range(32, 127))}
    for token in (*family.tokens, "<think>", "[e]"):
        for text in (token, f"a {token} b"):
            spelled = [bytes_of[ord(char)] for char in text]
            template = renderer.render_assistant(
                Message(role="assistant", content="qz"), tools=TYPED_TOOLS
            ).tolist()
            word = [bytes_of[ord("q")], bytes_of[ord("z")]]
            at = next(i for i in range(len(template)) if template[i : i + 2] == word)
            parsed = read(renderer, [*template[:at], *spelled, *template[at + 2 :]])
            assert (parsed.content, parsed.tool_calls) == (text, ())


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("<think>\nI see.\n</think>\n\nYes.", (ReasoningState.CLOSED, "I see.", "Yes.")),
        ("<think>\nI se", (ReasoningState.OPEN, "I se", "")),
        ("</think>\n\nYes.", (ReasoningState.ABSENT, None, "Yes.")),
        ("Yes.", (ReasoningState.ABSENT, None, "Yes.")),
        ("Yes </think> no", (ReasoningState.ABSENT, None, "Yes </think> no")),
    ],
)
def test_reasoning_is_told_open_closed_and_absent(
    text: str, states: tuple[ReasoningState, str | None, str]
) -> None:
    renderer = family_renderer(FAMILIES[0])
    parsed = read(renderer, renderer.tokenizer.encode(text))
    assert (parsed.reasoning, parsed.reasoning_content, parsed.content) == states


@pytest.mark.parametrize(
    ("prompt", "text", "state", "thought", "content"),
    [
        ("[a]<open>think<end>", "I se", ReasoningState.OPEN, "I se", ""),
        ("[a]<open>think<end>", "", ReasoningState.OPEN, "", ""),
        ("", "I see.<close>think<end><open>say<end>Yes", ReasoningState.CLOSED, "I see.", "Yes"),
        ("[a]<open>say<end>", "Yes<close>say<end><close>message<end>[e]", ReasoningState.ABSENT, None, "Yes"),
        ("[a]", "<open>say<end>Yes<close>say<end>", ReasoningState.ABSENT, None, "Yes"),
        ("[a]<open>think<end>", "<open>say<end>Yes", ReasoningState.ABSENT, None, "Yes"),
        ("[a]<open>think<end>", "I<open>say<end>Yes<close>sa", ReasoningState.CLOSED, "I", "Yes<close>sa"),
        ("[a]<open>say<end>", "A<open>b<end>c<end>", ReasoningState.ABSENT, None, "A<open>b<end>c<end>"),
        ("[a]<open>say<end>", "A<close>b<close>say<end>c", ReasoningState.ABSENT, None, "A<close>bc"),
        ("[a]<open>say<end>", "A<close>say<end><open>say<end>B", ReasoningState.ABSENT, None, "A\nB"),
    ],
)
def test_the_prompt_tells_which_element_is_open(
    prompt: str, text: str, state: ReasoningState, thought: str | None, content: str
) -> None:
    renderer = family("elements")
    ids, tail = renderer.tokenizer.encode(text), renderer.tokenizer.encode(prompt)
    parsed = renderer.reader.parse(ids, prompt_tail=tail, tools=TYPED_TOOLS)
    assert (parsed.reasoning, parsed.reasoning_content, parsed.content) == (state, thought, content)
    reader = renderer.reader.start(prompt_tail=tail, tools=TYPED_TOOLS)
    deltas = [delta for token_id in ids for delta in reader.feed([token_id])]
    assert response_of([*deltas, *reader.finish()], reader) == parsed


def test_what_cannot_become_a_tag_is_not_held_back() -> None:
    renderer = family("elements")
    reader = renderer.reader.start(prompt_tail=renderer.tokenizer.encode("[a]<open>say<end>"), tools=TYPED_TOOLS)
    told = [reader.feed([token_id]) for token_id in renderer.tokenizer.encode("<open> tooth")]
    assert ["".join(delta.text for delta in deltas) for deltas in told] == ["", "", "", "", "", "<open> toot", "h"]


def family(name: str) -> Renderer:
    return family_renderer(next(found for found in FAMILIES if found.name == name))


@pytest.mark.parametrize(
    ("name", "text", "status", "arguments"),
    [
        (
            "coder",
            "<tool_call><function=look_up><parameter=i>7</parameter></function></tool_call>",
            CallStatus.OK,
            '{"i": 7}',
        ),
        (
            "coder",
            "<tool_call><function=look_up><parameter=s>7</parameter></function></tool_call>",
            CallStatus.OK,
            '{"s": "7"}',
        ),
        (
            "coder",
            "<tool_call>\n<function=look_up>\n<parameter=i>\nseven\n</parameter>\n</function>\n</tool_call>",
            CallStatus.OK,
            '{"i": "seven"}',
        ),
        ("coder", "<tool_call><function=look_up>loose</function></tool_call>", CallStatus.INVALID_JSON, None),
        (
            "coder",
            "<tool_call><function=><parameter=s>x</parameter></function></tool_call>",
            CallStatus.MISSING_NAME,
            None,
        ),
        ("coder", "<tool_call>look_up(1)</tool_call>", CallStatus.MISSING_NAME, None),
        ("coder", "<tool_call><function=look_up><parameter=s>x", CallStatus.UNCLOSED, None),
        (
            "key_value",
            "<tool_call>look_up<arg_key>b</arg_key><arg_value>true</arg_value></tool_call>",
            CallStatus.OK,
            '{"b": true}',
        ),
        ("key_value", "<tool_call>other</tool_call>", CallStatus.UNKNOWN_TOOL, "{}"),
        ("key_value", "<tool_call>look_up<arg_key>b</arg_key>true</tool_call>", CallStatus.INVALID_JSON, None),
        (
            "section",
            '<calls><call>function<sep>look_up\n```json\n{"a": \n```</call>',
            CallStatus.INVALID_JSON,
            None,
        ),
        ("section", "<calls><call>function<sep>look_up\n```json\n{}\n```", CallStatus.UNCLOSED, None),
        (
            "typed_tags",
            '<<ml>calls><<ml>invoke name="look_up"><<ml>parameter name="s" string="true">7</<ml>parameter>'
            '<<ml>parameter name="x" string="false">7</<ml>parameter>'
            '<<ml>parameter name="y" string="true">7</<ml>parameter></<ml>invoke></<ml>calls>',
            CallStatus.OK,
            '{"s": "7", "x": 7, "y": "7"}',
        ),
        ("typed_tags", '<<ml>calls><<ml>invoke name="look_up">loose</<ml>calls>', CallStatus.INVALID_JSON, None),
        (
            "nested",
            '<ns><calls><ns><invoke name="look_up"><ns><s>7<ns></s><ns><x>7<ns></x>\n<ns></invoke><ns></calls>',
            CallStatus.OK,
            '{"s": "7", "x": 7}',
        ),
        (
            "nested",
            '<ns><calls><ns><invoke name="look_up"><ns><a><ns></a><ns><o> <ns></o><ns></invoke>',
            CallStatus.OK,
            '{"a": [], "o": {}}',
        ),
        ("nested", '<ns><calls><ns><invoke name="look_up"><ns><s>x<ns></s', CallStatus.UNCLOSED, None),
        ("nested", '<ns><calls><ns><invoke name="look_up"><ns><s>x<ns></t>', CallStatus.INVALID_JSON, None),
        (
            "nested",
            '<ns><calls><ns><invoke name="look_up"><ns><s>x<ns></t><ns></invoke><ns></calls>',
            CallStatus.INVALID_JSON,
            None,
        ),
        (
            "nested",
            '<ns><calls><ns><invoke name="look_up"><ns><s>x<ns></s>loose<ns></invoke><ns></calls>',
            CallStatus.INVALID_JSON,
            None,
        ),
        (
            "nested",
            '<ns><calls><ns><invoke name="look_up"><ns><o><ns><k>1<ns></k><ns><k>2<ns></k><ns></o><ns></invoke>'
            "<ns></calls>",
            CallStatus.INVALID_JSON,
            None,
        ),
        (
            "nested",
            '<ns><calls><ns><invoke name="look_up">' + "<ns><a>" * 500 + "<ns></calls>",
            CallStatus.INVALID_JSON,
            None,
        ),
        ("nested", '<ns><calls><ns><invoke name=""><ns></invoke><ns></calls>', CallStatus.MISSING_NAME, None),
        ("nested", "<ns><calls>look_up(1)<ns></calls>", CallStatus.MISSING_NAME, None),
        (
            "elements",
            '<close>think<end><open>tools<end><open>call tool="look_up" index="12"<end>'
            '<open>arg key="s" type="string"<end>7<close>arg<end>'
            '<open>arg key="a&quot;&amp;quot;" type="json"<end>7<close>arg<end><close>call<end>',
            CallStatus.OK,
            '{"s": "7", "a\\"&quot;": 7}',
        ),
        ("elements", '<open>tools<end><open>call tool="look_up" index="1"<end>', CallStatus.UNCLOSED, None),
        ("elements", "<open>tools<end>look_up(1)<close>tools<end>", CallStatus.MISSING_NAME, None),
        (
            "elements",
            '<open>tools<end><open>call tool="look_up" index="1"<end>loose<close>call<end><close>tools<end>',
            CallStatus.INVALID_JSON,
            None,
        ),
        (
            "quoted_tags",
            '<call name="look_up"><arg name="s"><![CDATA[</arg></call><arg name="i">]]></arg></call>',
            CallStatus.OK,
            '{"s": "</arg></call><arg name=\\"i\\">"}',
        ),
        (
            "quoted_tags",
            '<call name="look_up">\n<arg name="s">\n<![CDATA[<]]>\n</arg>\n'
            '<arg name="i"><![CDATA[7]]></arg></call>',
            CallStatus.OK,
            '{"s": "<", "i": 7}',
        ),
        (
            "quoted_tags",
            '<call name="look_up"><arg name="s"><![CDATA[a]]></arg>b]]></arg></call>',
            CallStatus.OK,
            '{"s": "a]]></arg>b"}',
        ),
        ("quoted_tags", '<call name="look_up"><arg name="s"><![CDATA[</call>', CallStatus.UNCLOSED, None),
        ("quoted_tags", '<call name="look_up"><arg name="s">x</arg></cal', CallStatus.UNCLOSED, None),
        ("quoted_tags", '<call name="look_up">x</call>', CallStatus.INVALID_JSON, None),
        ("quoted_tags", '<call name=""><arg name="s">x</arg></call>', CallStatus.MISSING_NAME, None),
        (
            "addressed",
            ' to=look_up<message><calls>\n<f:call name="look_up">\n<f:arg name="s"></calls></f:arg>\n</f:call>\n'
            "</calls>[e]",
            CallStatus.OK,
            '{"s": "</calls>"}',
        ),
        (
            "addressed",
            ' to=look_up<message><calls><f:call name="look_up"></f:call></calls>',
            CallStatus.OK,
            "{}",
        ),
        (
            "addressed",
            ' to=look_up<message><calls>\n<f:call name="look_up">\n<f:arg name="s">x',
            CallStatus.UNCLOSED,
            None,
        ),
        (
            "addressed",
            ' to=look_up<message><calls>\n<f:call name="look_up">\n<f:arg name="s">x[e]',
            CallStatus.INVALID_JSON,
            None,
        ),
        ("addressed", " to=look_up<message>{}[e]", CallStatus.INVALID_JSON, None),
        ("addressed", " to=look_up<message><cal", CallStatus.UNCLOSED, None),
        ("addressed", " to=look_up", CallStatus.UNCLOSED, None),
        ("lines", '<calls>{"name": "look_up", "arguments": {"i": 1}}', CallStatus.OK, '{"i": 1}'),
        ("lines", '<calls>{"name": "look_up", "arguments": {"i": 1', CallStatus.UNCLOSED, None),
        ("lines", "<calls>look_up</calls>", CallStatus.INVALID_JSON, None),
        ("name_as_key", '<calls>[{"look_up": {"i": 1}}]</calls>', CallStatus.OK, '{"i": 1}'),
        ("name_as_key", '<calls>[{"look_up": {}, "send": {}}]</calls>', CallStatus.INVALID_JSON, None),
        ("name_as_key", "<calls>[{}]</calls>", CallStatus.MISSING_NAME, None),
        ("id_first", '<calls><call>x1<name>look_up<args>{"i": 1}</call>', CallStatus.OK, '{"i": 1}'),
        ("id_first", "<calls><call>x1<name><args>{}</call>", CallStatus.MISSING_NAME, None),
        ("id_first", "<calls><call>x1<name>look_up</call>", CallStatus.INVALID_JSON, None),
        ("name_args", '[TOOL_CALLS]look_up[ARGS]{"i": 1}', CallStatus.OK, '{"i": 1}'),
        ("name_args", "[TOOL_CALLS][ARGS]{}[e]", CallStatus.MISSING_NAME, None),
        ("name_args", "[TOOL_CALLS]look_up[ARGS]12[e]", CallStatus.INVALID_JSON, None),
        ("name_args", "[TOOL_CALLS]look_up[ARGS]12", CallStatus.UNCLOSED, None),
        ("recipients", "look_up\n<msg>12[e]", CallStatus.INVALID_JSON, None),
        ("recipients", "look_up\n<msg>12", CallStatus.UNCLOSED, None),
        ("recipients", 'look_up\n<msg>{"i": 1}', CallStatus.OK, '{"i": 1}'),
        ("json_list", "[TOOL_CALLS][][e]", CallStatus.MISSING_NAME, None),
        ("name_as_key", "<calls>[ ]</calls>", CallStatus.MISSING_NAME, None),
        ("python", "<calls>[]</calls>", CallStatus.MISSING_NAME, None),
        ("json_list", '[TOOL_CALLS][{"name": "look_up", "arguments": {"i": 1', CallStatus.UNCLOSED, None),
        ("json_list", '[TOOL_CALLS]{"name": 1}[e]', CallStatus.INVALID_JSON, None),
        (
            "hermes",
            '<tool_call>{"name": "f", "arguments": {"i": 1}, "arguments": {}}</tool_call>',
            CallStatus.INVALID_JSON,
            None,
        ),
        (
            "hermes",
            '<tool_call>{"name": "look_up", "arguments": {"name": "arguments", "arguments": 1}}</tool_call>',
            CallStatus.OK,
            '{"name": "arguments", "arguments": 1}',
        ),
        ("name_as_key", '<calls>[{"look_up": {"i": 1}, "look_up": {}}]</calls>', CallStatus.INVALID_JSON, None),
        (
            "coder",
            "<tool_call><function=look_up><parameter=i>7</parameter><parameter=i>8</parameter></function></tool_call>",
            CallStatus.INVALID_JSON,
            None,
        ),
        ("quoted", "<call>call:look_up{i:1,i:2}</call>", CallStatus.INVALID_JSON, None),
        ("quoted", "<call>call:look_up{o:{i:1,i:2}}</call>", CallStatus.INVALID_JSON, None),
        ("quoted", "<call>call:look_up{s:<q>a,b:{c}<q>,i:-3}</call>", CallStatus.OK, '{"s": "a,b:{c}", "i": -3}'),
        ("quoted", "<call>call:look_up{s:a b}</call>", CallStatus.INVALID_JSON, None),
        ("quoted", "<call>call:look_up{n:-1e999}</call>", CallStatus.INVALID_JSON, None),
        (
            "key_value",
            "<tool_call>look_up<arg_key>n</arg_key><arg_value>1e999</arg_value></tool_call>",
            CallStatus.OK,
            '{"n": "1e999"}',
        ),
        ("quoted", "<call>call:look_up" + "{a:" * 500 + "</call>", CallStatus.INVALID_JSON, None),
        (
            "channels",
            '<channel>commentary to=functions.look_up <message>{"i": 1}<call>',
            CallStatus.OK,
            '{"i": 1}',
        ),
        ("channels", '<channel>commentary to=functions.look_up <message>{"i": ', CallStatus.UNCLOSED, None),
        ("channels", "<channel>commentary to=functions.look_up <message>12<call>", CallStatus.INVALID_JSON, None),
        ("channels", "<channel>commentary to=functions.look_up <message>12", CallStatus.UNCLOSED, None),
        (
            "channels",
            '<channel>commentary to=functions.look_up <message>{"i": <call>',
            CallStatus.INVALID_JSON,
            None,
        ),
        ("opened_once", '<tool_call>{"name": "look_up", "arguments": {}', CallStatus.UNCLOSED, None),
        ("hermes", "<tool_call>" + "[" * 100000 + "</tool_call>", CallStatus.INVALID_JSON, None),
    ],
)
def test_each_kind_of_attempt_has_its_status(
    name: str, text: str, status: CallStatus, arguments: str | None
) -> None:
    renderer = family(name)
    (call,) = read(renderer, renderer.tokenizer.encode(text)).tool_calls
    assert (call.status, call.arguments) == (status, arguments)


@pytest.mark.parametrize(
    ("required", "told"), [([], {"s": "a</parameter>\n<parameter=i>\n7"}), (["i"], {"s": "a", "i": 7})]
)
def test_tags_in_a_value_are_text_unless_a_required_key_was_respaced(required: list[str], told: dict) -> None:
    """Behind `a` the template writes a line break: without it both readings are possible."""
    renderer, function = family("coder"), TYPED_TOOLS[0]["function"]
    tool = {
        "type": "function",
        "function": function | {"parameters": function["parameters"] | {"required": required}},
    }
    text = "<parameter=s>\na</parameter>\n<parameter=i>\n7\n</parameter>\n"
    ids = renderer.tokenizer.encode(f"<tool_call>\n<function=look_up>\n{text}</function>\n</tool_call>")
    (call,) = renderer.parse_response(ids, tools=[tool]).tool_calls
    assert (call.status, json.loads(call.arguments)) == (CallStatus.OK, told)


def test_what_stands_behind_whole_lines_of_calls_is_an_attempt_of_its_own() -> None:
    renderer = family("lines")
    text = '<calls>\n{"name": "look_up", "arguments": {}}\n{"name": "send", "argu\n</calls>'
    calls = read(renderer, renderer.tokenizer.encode(text)).tool_calls
    assert [call.status for call in calls] == [CallStatus.OK, CallStatus.INVALID_JSON]


@pytest.mark.parametrize(
    ("body", "status", "name", "arguments"),
    [
        ('look_up {"a": 1}', CallStatus.OK, "look_up", '{"a": 1}'),
        ('look_up{"a": 1}', CallStatus.OK, "look_up", '{"a": 1}'),
        ("look_up", CallStatus.INVALID_JSON, "look_up", None),
        ("", CallStatus.MISSING_NAME, None, None),
    ],
)
def test_a_name_that_only_white_space_parts_from_its_arguments(
    tmp_path: Path, body: str, status: CallStatus, name: str | None, arguments: str | None
) -> None:
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content }}"
        "{%- for c in m.tool_calls or [] %}{{- '<tool_call>' + c.function.name + ' ' }}"
        "{{- (c.function.arguments | tojson) + '</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    renderer = load_renderer(write_folder(tmp_path, template))
    (call,) = renderer.parse_response(renderer.tokenizer.encode(f"<tool_call>{body}</tool_call>")).tool_calls
    assert (call.status, call.name, call.arguments, call.raw) == (status, name, arguments, body)


_ELEMENTS = next(family for family in FAMILIES if family.name == "elements")
_CALL = '<open>call tool="look_up" index="1"<end>'


@pytest.mark.parametrize(
    ("sampled", "reasoning", "content", "raw"),
    [
        ("Hm<close>", "Hm<close>", "", ()),
        ("Hm<close>thi", "Hm<close>thi", "", ()),
        ("Hm<close>think<end><open>sa", "Hm", "<open>sa", ()),
        ("Hm<close>think<end><open>say<end>Yes<close>say", "Hm", "Yes<close>say", ()),
        ("Hm<close>think<end><open>say<end>Yes<close>say<end><close>mess", "Hm", "Yes<close>mess", ()),
        ("Hm<close>think<end><open>tools<end>" + _CALL + "<open>arg ke", "Hm", "", (_CALL + "<open>arg ke",)),
        ("Hm<close>think<end><open>tools<end>" + _CALL + "<close>too", "Hm", "", (_CALL + "<close>too",)),
    ],
)
def test_half_a_tag_where_a_completion_was_cut_is_text_of_its_element(
    sampled: str, reasoning: str, content: str, raw: tuple[str, ...]
) -> None:
    renderer = family_renderer(_ELEMENTS)
    parsed = read(renderer, renderer.tokenizer.encode(sampled))
    assert (parsed.reasoning_content or "", parsed.content) == (reasoning, content)
    assert tuple(call.raw for call in parsed.tool_calls) == raw
    assert all(call.status is CallStatus.UNCLOSED for call in parsed.tool_calls)


def test_half_the_closer_of_a_section_undoes_no_call() -> None:
    renderer = family_renderer(_ELEMENTS)
    parsed = read(
        renderer,
        renderer.tokenizer.encode("<close>think<end><open>tools<end>" + _CALL + "<close>call<end><close>too"),
    )
    assert [(call.status, call.arguments) for call in parsed.tool_calls] == [(CallStatus.OK, "{}")]


@pytest.mark.parametrize(
    ("written", "status"),
    [
        ('{"s": "x",  "b": true}', CallStatus.OK),
        ("{}", CallStatus.OK),
        ('{"s": ', CallStatus.INVALID_JSON),
        ("7", CallStatus.INVALID_JSON),
        ('["x"]', CallStatus.INVALID_JSON),
        ("", CallStatus.INVALID_JSON),
    ],
)
def test_arguments_that_are_written_as_they_are_keep_their_spelling(written: str, status: CallStatus) -> None:
    """As Kimi-K3 writes them where they came as text; the template itself writes the completion."""
    renderer = family_renderer(_ELEMENTS)
    call = _CALL + '<open>json type="object"<end>' + written + "<close>json<end><close>call<end>"
    sampled = "<close>think<end><open>say<end>Yes<close>say<end><open>tools<end>" + call + "<close>tools<end>"
    ids = renderer.tokenizer.encode(sampled)
    (found,) = read(renderer, ids).tool_calls
    assert (found.status, found.name) == (status, "look_up")
    assert found.arguments == (written if status is CallStatus.OK else None)
    assert found.raw == call
    for length in range(len(ids)):
        for cut in read(renderer, ids[:length]).tool_calls:
            assert (cut.status, cut.arguments) in ((CallStatus.UNCLOSED, None), (status, found.arguments))
    if status is CallStatus.INVALID_JSON and written:
        said = Message(role="assistant", content="Yes", tool_calls=(ToolCall("look_up", written),))
        assert renderer.tokenizer.decode(renderer.render_assistant(said, tools=TYPED_TOOLS)).startswith(sampled)


@pytest.mark.parametrize("written", ["12", "null", "true", '"s"', '["s"]', '[{"s": "x"}]'])
@pytest.mark.parametrize(
    ("name", "begin", "end"),
    [
        ("hermes", '<tool_call>{"name": "look_up", "arguments": ', "}</tool_call>"),
        ("bare", '{"name": "look_up", "parameters": ', "}"),
        ("name_as_key", '<calls>[{"look_up": ', "}]</calls>"),
        ("name_args", "[TOOL_CALLS]look_up[ARGS]", ""),
        ("recipients", "look_up\n<msg>", ""),
        ("channels", "<channel>commentary to=functions.look_up <message>", "<call>"),
    ],
)
def test_arguments_that_are_no_object_are_no_call_in_any_grammar(
    name: str, begin: str, end: str, written: str
) -> None:
    """As in an engine's own tool calls (`transports`): the attempt is told, with what was written."""
    renderer = family(name)
    last = "" if end == "<call>" else "[e]"
    (call,) = read(renderer, renderer.tokenizer.encode(begin + written + end + last)).tool_calls
    assert (call.status, call.name, call.arguments) == (CallStatus.INVALID_JSON, "look_up", None)
    assert written in call.raw
    (call,) = read(renderer, renderer.tokenizer.encode(begin + '{"s": "x"}' + end + last)).tool_calls
    assert (call.status, call.arguments) == (CallStatus.OK, '{"s": "x"}')
