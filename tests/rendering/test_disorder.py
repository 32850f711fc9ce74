"""Reading whatever comes: never an exception, nothing lost, at once as in pieces, and in time that grows with it.

The short suite takes the byte-wise families and a few real templates; `make test-templates` takes every template
at hand, and many more completions each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from templates.at_hand import Template, renderer_for, templates_at_hand
from templates.disorder import check_disorder, disorders
from templates.families import FAMILIES, UNQUOTED, Family, family_renderer
from templates.spoken import TYPED_TOOLS
from tokentrue import Message, ToolCall
from tokentrue.rendering.formats.parsed import schemas_of

ALL = "TOKENTRUE_ALL_TEMPLATES" in os.environ
COMPLETIONS = max(40, 3 * int(os.environ.get("TOKENTRUE_EXAMPLES", "12")))
FEW = ("tinyllama", "llama.cpp/meetkai-functionary-medium-v3.2")
TEMPLATES = [template for template in templates_at_hand() if ALL or template.name in FEW]
needs_data = pytest.mark.skipif(not TEMPLATES, reason="../shared/tokenizers is absent: no real templates at hand")
families = pytest.mark.parametrize("family", [*FAMILIES, UNQUOTED], ids=lambda family: family.name)


@families
def test_disorder_in_every_grammar(family: Family) -> None:
    renderer = family_renderer(family)
    for found in disorders(renderer, seed=5, count=COMPLETIONS):
        check_disorder(renderer, found)


@needs_data
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_disorder_with_every_real_tokenizer(template: Template) -> None:
    renderer = renderer_for(template)
    for found in disorders(renderer, seed=6, count=COMPLETIONS):
        check_disorder(renderer, found)


@pytest.mark.parametrize(
    ("name", "text", "content", "calls"),
    [
        ("channels", "Hello you<start>assistant<channel>final<message>Hi", "Hello you\nHi", []),
        ("channels", "Hello<channel>final<message>Hi", "Hello<channel>final\nHi", []),
        ("channels", "<channel>final I forgot the mark[e]", "<channel>final I forgot the mark", []),
        ("channels", "<channel>final<message>Hi<end> and on", "Hi\n and on", []),
        (
            "channels",
            "<channel>final<message>Hi<end><start>look_up to=assistant<channel>final<message>7",
            "Hi\nlook_up to=assistant<channel>final\n7",
            [],
        ),
        ("channels", "<channel>final<message>Hi<end><start>assistant<channel>fin", "Hi", []),
        ("addressed", " to=self<message>Hm<end><start>assistant to=al", "", []),
        ("addressed", "<message>Hi<end><start>assistant to=all<message>You", "Hi\nYou", []),
        ("addressed", " to=f<message>Hi", "", [("unclosed", "f", "Hi")]),
        (
            "addressed",
            " to=all<message>Hi<end><start>f to=assistant<message>7",
            "Hi\nf to=assistant\n7",
            [],
        ),
        ("channels", " to=functions.f<channel>x<message>{", "", [("unclosed", "f", "{")]),
        (
            "channels",
            " to=functions.f<channel>x<start>assistant<channel>final<message>Hi",
            "Hi",
            [("unclosed", None, " to=functions.f<channel>x")],
        ),
        (
            "coder",
            "<tool_call>So:</function><function=look_up></function></tool_call>",
            "",
            [("missing_name", None, "So:</function>"), ("ok", "look_up", "<function=look_up></function>")],
        ),
    ],
)
def test_text_where_none_belongs_is_kept(
    name: str, text: str, content: str, calls: list[tuple[str, str | None, str]]
) -> None:
    renderer = family_renderer(next(family for family in FAMILIES if family.name == name))
    parsed = renderer.reader.parse(renderer.tokenizer.encode(text))
    assert parsed.content == content
    assert [(call.status.value, call.name, call.raw) for call in parsed.tool_calls] == calls


HOSTILE = (
    ("hermes", "", "<tool_call>", ""),
    ("hermes_as_text", "", "<tool_call>", ""),
    ("hermes", "<tool_call>", "{", "</tool_call>"),
    ("opened_once", "<tool_call>{}</tool_call>", "{", ""),
    ("coder", "<tool_call><function=look_up>", "<parameter=s>", "</tool_call>"),
    ("coder", "<tool_call><function=look_up>", "<parameter=s>x</parameter>y</function>", "</tool_call>"),
    ("coder", "<tool_call>", "<function=look_up>", "</tool_call>"),
    ("invoke", '<calls><invoke name="look_up">', '<parameter name="', "</calls>"),
    ("nested", '<ns><calls><ns><invoke name="look_up">', "<ns><a>", "<ns></calls>"),
    ("nested", '<ns><calls><ns><invoke name="look_up">', "<ns><invoke>x<ns></invoke>", "<ns></s><ns></calls>"),
    ("nested", "<ns><calls>", '<ns><invoke name="look_up"><ns><s>', "<ns></calls>"),
    ("key_value", "<tool_call>look_up", "<arg_key>s</arg_key>", "</tool_call>"),
    ("section", "<calls>", "<call>", ""),
    ("numbered", "<calls><call>", "functions.f:1", "<sep>{}</call>"),
    ("json_list", "[TOOL_CALLS]", "[", "[e]"),
    ("json_list", "[TOOL_CALLS][", '{"name": "f", "arguments": {}}, ', "[e]"),
    ("quoted", "<call>call:look_up{", "s:<q>", "</call>"),
    ("python", "<calls>[", "look_up(s='", "</calls>"),
    ("bare_python", "", "[look_up(", ""),
    ("recipients", "", "\n[a]<to>a\n<msg>", ""),
    ("recipients_as_text", "", ">>>a\n", ""),
    ("quoted_tags", "", '<call name="', ""),
    ("quoted_tags", '<call name="look_up">', '<arg name="s"><![CDATA[', ""),
    ("quoted_tags", '<call name="look_up"><arg name="s">', "<![CDATA[x]]>", "</arg></call>"),
    ("addressed", "", " to=a<message>", "[e]"),
    ("addressed", " to=look_up<message><calls>", '<f:call name="a">', "[e]"),
    ("elements", "", "<open>", ""),
    ("elements", "", "<open>say<end>", ""),
    ("elements", "<open>", " ", ""),
    ("elements", "<open>tools<end>", '<open>call tool="look_up" index="1"<end>', "<close>tools<end>"),
    ("elements", "<open>tools<end>", '<open>arg key="', "<close>tools<end>"),
    ("channels", "", "<start>", ""),
    ("channels", "", "<channel>analysis<message>x<end>", ""),
    ("channels", "", "to=", ""),
    ("framed_text", "", " final\n", ""),
)
MOST_RATIO = 9.0
"""Of the time for four times as much: four where work grows with the completion, sixteen where with its square."""


def ratio(read: Callable[[int], object], size: int) -> float:
    """How much longer four times as much takes, by the processor's time; the least of some attempts.

    A busy machine disturbs one or two of them.
    """

    def seconds(units: int) -> float:
        began = time.process_time()
        read(units)
        return time.process_time() - began

    found = float("inf")
    for _ in range(12):
        found = min(found, seconds(4 * size) / max(seconds(size), 1e-9))
        if found < MOST_RATIO:
            break
    return found


@pytest.mark.parametrize(("name", "begin", "unit", "end"), HOSTILE, ids=lambda part: part[:24])
def test_a_completion_that_is_opened_over_and_over_is_read_in_time(
    name: str, begin: str, unit: str, end: str
) -> None:
    renderer = family_renderer(next(family for family in FAMILIES if family.name == name))
    first, repeated, last = (renderer.tokenizer.encode(text) for text in (begin, unit, end))

    def read(units: int) -> object:
        return renderer.reader.parse([*first, *repeated * units, *last], tools=TYPED_TOOLS)

    assert ratio(read, 3 + 6000 // len(repeated)) < MOST_RATIO


@pytest.mark.parametrize("name", ["hermes", "bare", "bare_python", "channels", "recipients", "framed_text"])
def test_a_long_call_in_small_pieces_is_read_in_time(name: str) -> None:
    """A piece must not cost what came before it: copying the text so far shows only where it is long."""
    family = next(family for family in FAMILIES if family.name == name)
    renderer = family_renderer(family)
    form = renderer.tool_format
    assert form is not None
    call = ToolCall("look_up", '{"s": "x"}', "functions.look_up:0")
    ids = renderer.render_assistant(Message(role="assistant", tool_calls=(call,)), tools=TYPED_TOOLS)
    written = form.marks.of_ids(ids, renderer.tokenizer)
    begin = written[: written.index("x") + 1]

    def read(pieces: int) -> object:
        reader = form.start(schemas_of(TYPED_TOOLS))
        reader.feed(begin)
        for _ in range(pieces):
            reader.feed("xxxx")
        return reader.finish(stopped=False)

    assert ratio(read, 25_000) < MOST_RATIO
