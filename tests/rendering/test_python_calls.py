"""Calls written as Python: only literals, never evaluated, and what is none keeps its text and has a status."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from templates.families import FAMILIES, UNQUOTED, family_renderer
from templates.spoken import TYPED_TOOLS, inner
from tokentrue import Message, Renderer, ToolCall
from tokentrue.rendering.formats.parsed import CallStatus
from tokentrue.rendering.formats.python_literals import NotLiteral, whole_literal
from tokentrue.rendering.formats.typed_values import typed_value

plain_json = st.recursive(
    st.one_of(inner, st.text(max_size=8), st.floats(allow_nan=False, allow_infinity=False)),
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(st.text(max_size=3), below, max_size=3)),
    max_leaves=6,
)


@given(value=plain_json)
def test_what_python_or_json_writes_is_read_back(value: Any) -> None:
    assert whole_literal(repr(value)) == value
    assert whole_literal(json.dumps(value, ensure_ascii=False)) == value


@given(text=st.text(alphabet="'\"\\[]{}(),:019.eE-+_ntxruTrueNoefals \n", max_size=24))
def test_what_is_read_is_what_python_reads(text: str) -> None:
    """`ast.literal_eval` is the oracle wherever both take a text; what ours takes beyond it is told below."""
    try:
        mine = whole_literal(text)
    except NotLiteral:
        return
    try:
        known = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        beyond = ("\n", "true", "false", "null")
        assert any(word in text for word in beyond)
        return
    except SyntaxWarning:
        return
    assert json.dumps(mine) == json.dumps(known)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "1e999",
            "-1e999",
            "nan",
            "inf",
            "b'x'",
            "f'x'",
            "{1: 2}",
            "{1}",
            "1j",
            "007",
            "1x",
            "0x",
            "x",
            "f()",
            "[1, 2",
            "'a",
        ),
        *("1 + 1", "'\\x4'", "'\\777'", "9" * 5000, "[" * 100000, "{'k': " * 100000, "-" * 100000 + "1", ""),
        *("lambda: 1", "{**x}"),
    ],
    ids=lambda text: text[:12],
)
def test_what_json_cannot_hold_is_no_literal(text: str) -> None:
    with pytest.raises(NotLiteral):
        whole_literal(text)


@pytest.mark.parametrize("text", [r"'\d+\.\w'", r"'\8'", r'"\ "'])
def test_an_escape_that_python_does_not_know_is_its_text_and_no_warning(text: str) -> None:
    assert whole_literal(text) == text[1:-1]


def read(renderer: Renderer, text: str) -> tuple[str, list[tuple[str, str | None, str | None]]]:
    """Content, and status, name and arguments of each call; whole and id by id."""
    ids = renderer.tokenizer.encode(text)
    parsed = renderer.parse_response(ids, tools=TYPED_TOOLS)
    reader = renderer.start_reading(tools=TYPED_TOOLS)
    deltas = [delta for token_id in ids for delta in reader.feed([token_id])] + list(reader.finish())
    assert "".join(getattr(delta, "text", "") for delta in deltas) == parsed.content
    assert all(call.raw for call in parsed.tool_calls if call.status is not CallStatus.OK)
    return parsed.content, [(call.status.value, call.name, call.arguments) for call in parsed.tool_calls]


def family(name: str) -> Renderer:
    return family_renderer(next(found for found in FAMILIES if found.name == name))


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("[look_up()]", [("ok", "look_up", "{}")]),
        ("[look_up(i=1, s='x'), send()]", [("ok", "look_up", '{"i": 1, "s": "x"}'), ("ok", "send", "{}")]),
        ('[ look_up( i = 1,s="x" ) , send( ) ]', [("ok", "look_up", '{"i": 1, "s": "x"}'), ("ok", "send", "{}")]),
        ("[look_up(from=1, a-b=None)]", [("ok", "look_up", '{"from": 1, "a-b": null}')]),
        ("[my.tool-1(a=true)]", [("unknown_tool", "my.tool-1", '{"a": true}')]),
        ("[look_up(s='[send()]')]", [("ok", "look_up", '{"s": "[send()]"}')]),
        ("[look_up('x')]", [("invalid_json", "look_up", None)]),
        ("[look_up(s=x)]", [("invalid_json", "look_up", None)]),
        ("[look_up(i=1e999)]", [("invalid_json", "look_up", None)]),
        ("[look_up(i=1, i=2)]", [("invalid_json", "look_up", None)]),
        ("[look_up(**{'i': 1})]", [("invalid_json", "look_up", None)]),
        (f"[look_up(a={'[' * 5000})]", [("invalid_json", "look_up", None)]),
        (f"[look_up(i={'9' * 5000})]", [("invalid_json", "look_up", None)]),
        ("[look_up(i=__import__('os').getpid())]", [("invalid_json", "look_up", None)]),
        ("[look_up(i=1), send(i=x)]", [("ok", "look_up", '{"i": 1}'), ("invalid_json", "send", None)]),
        ("[(i=1)]", [("missing_name", None, None)]),
        ("look_up", [("invalid_json", None, None)]),
    ],
)
def test_calls_in_a_block_have_their_status(text: str, calls: list[tuple[str, str | None, str | None]]) -> None:
    assert read(family("python"), f"Well.<calls>{text}</calls>[e]") == ("Well.", calls)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("[look_up(i=1)][e]", "", [("ok", "look_up", '{"i": 1}')]),
        ("[look_up(i=1)]\n[e]", "", [("ok", "look_up", '{"i": 1}')]),
        ("[look_up(i=1)] is it.[e]", " is it.", [("ok", "look_up", '{"i": 1}')]),
        ("[look_up(i=1), send(i=", "", [("ok", "look_up", '{"i": 1}'), ("unclosed", None, None)]),
        ("[look_up(i=[e]", "", [("invalid_json", "look_up", None)]),
        ("[look_up('x')][e]", "", [("invalid_json", "look_up", None)]),
        ("[other(i=1)][e]", "", [("unknown_tool", "other", '{"i": 1}')]),
        ("[f(x)] is a value[e]", "[f(x)] is a value", []),
        ("[a link](https://x.y)[e]", "[a link](https://x.y)", []),
        ("[1, 2][e]", "[1, 2]", []),
        ("[look_", "[look_", []),
        (f"[{' ' * 3000}look_up(i=1)]", f"[{' ' * 3000}look_up(i=1)]", []),
        ("So: [look_up(i=1)][e]", "So: [look_up(i=1)]", []),
    ],
)
def test_a_completion_that_begins_like_a_call_is_one(
    text: str, content: str, calls: list[tuple[str, str | None, str | None]]
) -> None:
    assert read(family("bare_python"), text) == (content, calls)


def test_strings_without_quotes_are_recognised_and_read_where_they_can_be_told() -> None:
    renderer = family_renderer(UNQUOTED)
    assert renderer.certificate.tool_format == UNQUOTED.grammar
    for arguments, is_told in (
        ({"s": "San Francisco", "i": 7, "b": True}, True),
        ({"s": "7", "text": "null", "n": 1.5}, True),
        ({"s": "", "a": ["it's", None], "o": {"k": "x, y=1"}}, True),
        ({"s": " a: b? "}, True),
        ({"s": "San Francisco, CA"}, False),
        ({"s": "f(x)"}, False),
        ({"s": "it's"}, False),
    ):
        said = Message(role="assistant", tool_calls=(ToolCall("look_up", json.dumps(arguments), "call_0"),))
        ids = renderer.render_assistant(said, tools=TYPED_TOOLS)
        (call,) = renderer.parse_response(ids, tools=TYPED_TOOLS).tool_calls
        if is_told:
            assert call.status is CallStatus.OK
            assert json.loads(call.arguments or "") == arguments
        else:
            assert (call.status, call.arguments) == (CallStatus.INVALID_JSON, None)
            assert str(arguments["s"]) in call.raw
    quoted = read(renderer, """[look_up(s="San Francisco, CA", text='7')][e]""")
    assert quoted == ("", [("ok", "look_up", '{"s": "San Francisco, CA", "text": "7"}')])


@pytest.mark.parametrize("digits", ["9" * 400, "0x" + "f" * 400, "0b" + "1" * 2000, "1_000" * 90])
def test_a_whole_number_is_no_float_and_is_read_however_large_it_is(digits: str) -> None:
    number = int(digits, 0)
    assert whole_literal(f"{{'n': {digits}}}") == {"n": number}
    assert typed_value(f"{{'n': {digits}}}") == {"n": number}


@pytest.mark.parametrize("digits", ["9" * 5000, "0x" + "f" * 5000])
def test_a_number_that_nobody_can_write_as_json_is_no_literal(digits: str) -> None:
    with pytest.raises(NotLiteral):
        whole_literal(digits)
    assert typed_value(f"[{digits}]") == f"[{digits}]"
