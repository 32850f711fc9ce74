"""What a template writes around a whole message is taken off where it stands, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from real_tokenizers import SHARED
from templates.at_hand import renderer_for, templates_at_hand
from templates.families import ENDED_TEXT, FAMILIES, Family, family_renderer, framed_by
from tokentrue import Renderer
from tokentrue.rendering.formats.frames import Frame, FrameCutter
from tokentrue.rendering.formats.marks import Marks

ALPHABET = "ab <>"


@given(
    text=st.text(ALPHABET, max_size=10),
    frames=st.lists(
        st.tuples(st.text(ALPHABET, max_size=3), st.text(ALPHABET, max_size=2)),
        max_size=3,
        unique_by=lambda frame: frame[0],
    ),
)
def test_a_frame_is_removeprefix_of_the_longest_one_and_removesuffix_in_any_pieces(
    text: str, frames: list[tuple[str, str]]
) -> None:
    standing = [(before, after) for before, after in frames if text.startswith(before)]
    before, after = max(standing, key=lambda frame: len(frame[0]), default=("", ""))
    expected = text.removeprefix(before).removesuffix(after)
    made = [Frame((before,), (after,)) for before, after in frames]
    cutter = FrameCutter(made, Marks())
    assert "".join(map(cutter.push, text)) + cutter.end() == expected
    cutter = FrameCutter(made, Marks())
    assert cutter.push(text) + cutter.end() == expected


def framed() -> Renderer:
    return family_renderer(next(family for family in FAMILIES if family.name == "framed_text"))


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (" final\n<msg>It is <end>", "It is "),
        (" final\n<msg>", ""),
        (" final\n", " final\n"),
        (" fin", " fin"),
        ("", ""),
        ("It is.", "It is."),
        ("It is <end>", "It is <end>"),
        (" final\nIt is.", " final\nIt is."),
        ("It is. final\n<msg>So", "It is. final\n<msg>So"),
        (" final\n<msg> final\n<msg>So", " final\n<msg>So"),
        (" final\n<msg>So <end> on", "So <end> on"),
    ],
)
def test_a_frame_is_taken_off_at_the_very_beginning_only(text: str, content: str) -> None:
    renderer = framed()
    ids = renderer.tokenizer.encode(text)
    assert renderer.parse_response(ids).content == content
    reader = renderer.start_reading()
    deltas = [delta for token_id in ids for delta in reader.feed([token_id])] + list(reader.finish())
    assert "".join(delta.text for delta in deltas) == content


def test_a_frame_whose_tokens_are_only_spelled_is_content() -> None:
    renderer = framed()
    ids = [token_id for char in " final\n<msg>So" for token_id in renderer.tokenizer.encode(char)]
    assert renderer.parse_response(ids).content == " final\n<msg>So"


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/tokenizers is absent: no real templates at hand")
def test_a_template_that_is_read_without_a_frame_has_none() -> None:
    known = {template.name: template for template in templates_at_hand()}
    assert [renderer_for(known[name]).reader.frames for name in ("qwen3", "gpt-oss")] == [(), ()]
    assert [frame.token_ids for frame in renderer_for(known["onnxruntime-extensions/gpt-oss"]).reader.frames] == [
        (200008,),
        (200005, 200008),
    ]


def recipients(name: str = "recipients") -> Renderer:
    return family_renderer(next(family for family in FAMILIES if family.name == name))


@pytest.mark.parametrize(
    ("name", "text", "content", "calls"),
    [
        ("recipients", "Hello there", "Hello there", []),
        ("recipients", "all", "all", []),
        ("recipients", "all\n<msg>Yes\n[a]<to>all\n<msg>No", "Yes\nNo", []),
        ("recipients", "all\n<msg>Yes\n[a]<to>look", "Yes", [("unclosed", None, "look")]),
        ("recipients", "all\n<msg>Yes\n[a]<to>[e]", "Yes", [("missing_name", None, "")]),
        ("recipients", "all\n<msg>Yes\n[a", "Yes\n[a", []),
        ("recipients", 'f\n<msg>{"a": ', "", [("unclosed", "f", '{"a": ')]),
        ("recipients", 'f\n<msg>{"a": [e]', "", [("invalid_json", "f", '{"a": ')]),
        ("recipients", "f\n<msg>{}\n[a]<to>g\n<msg>[e]", "", [("ok", "f", "{}"), ("invalid_json", "g", "")]),
        ("recipients_as_text", "all\na >>> b\n>>>c d\n", "a >>> b\n>>>c d\n", []),
        ("recipients_as_text", 'all\na>>>>f\n{"a":\n1}[e]', "a>", [("ok", "f", '{"a":\n1}')]),
        ("recipients_as_text", "all\na>>>f", "a>>>f", []),
        ("recipients_as_text", f"all\n>>>{'f' * 300}\n[e]", f">>>{'f' * 300}\n", []),
    ],
)
def test_a_message_to_a_recipient_that_is_not_whole_has_a_status_and_is_kept(
    name: str, text: str, content: str, calls: list[tuple[str, str | None, str]]
) -> None:
    renderer = recipients(name)
    ids = renderer.tokenizer.encode(text)
    parsed = renderer.parse_response(ids)
    assert parsed.content == content
    assert [(call.status.value, call.name, call.raw) for call in parsed.tool_calls] == calls
    reader = renderer.start_reading()
    deltas = [delta for token_id in ids for delta in reader.feed([token_id])] + list(reader.finish())
    assert "".join(getattr(delta, "text", "") for delta in deltas) == content


def test_a_frame_may_only_stand_behind_the_text() -> None:
    """Command R: the generation prompt opens what the template closes."""
    family = Family("ended_text", framed_by(ENDED_TEXT), ("</say>",), "", reasoning=False)
    renderer = family_renderer(family)
    assert [len(frame.after) for frame in renderer.reader.frames] == [1]
    for text, content in (("Yes.</say>[e]", "Yes."), ("Yes.</say> No", "Yes.</say> No"), ("Ye", "Ye")):
        assert renderer.parse_response(renderer.tokenizer.encode(text)).content == content


def test_what_stands_behind_the_text_is_found_also_where_history_begins_it_with_white_space() -> None:
    """Reka-Edge: the space is what a model samples behind the colon, and the lines are the template's."""
    family = Family("spaced_text", framed_by("{{- ' ' + (m.content or '') + '\\n\\n' }}"), (), "", reasoning=False)
    renderer = family_renderer(family)
    assert [(frame.before, frame.after) for frame in renderer.reader.frames] == [((), ("\n\n",))]
    for text, content in ((" Yes.\n\n[e]", " Yes."), ("Yes.\n\n[e]", "Yes."), (" Yes.\n\nNo", " Yes.\n\nNo")):
        assert renderer.parse_response(renderer.tokenizer.encode(text)).content == content
