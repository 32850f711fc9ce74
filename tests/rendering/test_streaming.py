"""The parts of streaming: ids to marked text, and text that is held back until it is certain."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from real_tokenizers import unpack_real
from templates.families import FAMILIES, family_renderer
from templates.spoken import TYPED_TOOLS
from tokentrue import Message, Renderer, ToolCall
from tokentrue.rendering.formats.held_text import TrimmedText, held_length
from tokentrue.rendering.formats.marks import MarkedDecoder, Marks, has_mark
from tokentrue.rendering.formats.reasoning import ReasoningFormat
from tokentrue.rendering.reader import Reader
from tokentrue.rendering.streaming import CallDelta, ContentDelta, Delta, ReasoningDelta
from tokentrue.rendering.tokenizer import Tokenizer

pieces = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@pytest.fixture(scope="module", params=["tinyllama", "mistral-nemo"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One tokenizer of SentencePiece with byte tokens, one of byte-level BPE."""
    return Tokenizer.load(unpack_real(request.param, tmp_path_factory.mktemp(request.param)))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_split_of_any_ids_decodes_to_the_same_marked_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    words = ["héllo", " wörld", "\n\n", "漢字", "🙂🙂", "<s>", "</s>", "  x", "\t", "\x00"]
    id_lists = st.one_of(
        st.lists(st.integers(0, 400), max_size=80),
        st.lists(st.integers(0, 31000), max_size=60),
        st.lists(st.sampled_from(words), max_size=20).map(lambda found: tokenizer.encode("".join(found))),
    )
    ids = data.draw(id_lists)
    marks = Marks().including(tokenizer, [info.id for info in tokenizer.added_tokens()[:3]])
    before = data.draw(st.none() | st.integers(0, 400))
    whole = MarkedDecoder(marks, tokenizer, before)
    expected = whole.feed(ids) + whole.finish()
    decoder, given_out, position = MarkedDecoder(marks, tokenizer, before), "", 0
    for size in data.draw(pieces) * (len(ids) + 1):
        given_out += decoder.feed(ids[position : position + size])
        position += size
        assert expected.startswith(given_out)
        if position >= len(ids):
            break
    assert given_out + decoder.finish() == expected


def test_a_space_behind_plain_text_is_real_and_behind_a_marker_is_not(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode("Say hello")
    assert MarkedDecoder(Marks(), tokenizer, before=whole[0]).feed(whole[1:]) == " hello"


@given(
    st.text("ab\n ", max_size=12), st.sampled_from(["", "\n", "a\n", " \n"]), st.sampled_from(["", "\n", "\n\n"])
)
def test_trimmed_text_is_removeprefix_and_removesuffix_in_pieces(text: str, lead: str, trail: str) -> None:
    for cut in (False, True):
        trimmed = TrimmedText(lead, trail)
        given_out = "".join(trimmed.push(char) for char in text) + trimmed.end(cut=cut)
        expected = text.removeprefix(lead)
        assert given_out == (expected.removesuffix(trail) if cut else expected)


def test_what_may_become_a_marker_is_held() -> None:
    assert held_length("x<tool", ["<tool_call>"]) == 5
    assert held_length("x<tool ", ["<tool_call>"]) == 0
    assert held_length("x\n<", ["\n<tool_call>", "<tool_call>"]) == 2


def streamed(renderer: Renderer, message: Message) -> list[Delta]:
    reader = renderer.start_reading(renderer.render_ids([Message(role="user", content="?")], tools=TYPED_TOOLS))
    ids = renderer.render_assistant(message, tools=TYPED_TOOLS)
    return [delta for token_id in ids for delta in reader.feed([token_id])] + list(reader.finish())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_deltas_come_early_and_never_hold_half_a_character_or_a_marker(family) -> None:
    call = ToolCall("look_up", '{"s": "漢字"}', "functions.look_up:0")
    thought = "Hm 🙂" if family.reasoning else None
    content = "Ja, 漢字 🙂!" if family.text_beside_calls else None
    message = Message(role="assistant", content=content, reasoning_content=thought, tool_calls=(call,))
    deltas = streamed(family_renderer(family), message)
    said = [delta.text for delta in deltas if isinstance(delta, ContentDelta)]
    thoughts = [delta.text for delta in deltas if isinstance(delta, ReasoningDelta)]
    assert ("".join(said), "".join(thoughts)) == (content or "", thought or "")
    assert all(len(text) == 1 for text in thoughts)
    assert not any("\ufffd" in text or has_mark(text) for text in said + thoughts)
    calls = [delta.call for delta in deltas if isinstance(delta, CallDelta)]
    assert [(found.name, found.arguments) for found in calls] == [("look_up", '{"s": "漢字"}')]
    if content is not None:
        assert len(said) >= len(content) - 1


def test_a_reasoning_marker_among_text_is_spelled_out() -> None:
    """Also where the format of calls has no use for that marker."""
    family = next(found for found in FAMILIES if found.name == "bare")
    renderer = family_renderer(family)
    opener, closer = (renderer.tokenizer.added_token(text) for text in ("<think>", "</think>"))
    assert opener is not None
    assert closer is not None
    reasoning = ReasoningFormat(opener, closer, lead="", trail="", gap="")
    reader = Reader(renderer.tokenizer, renderer.reader.stop_ids, reasoning, renderer.tool_format)
    parsed = reader.parse(renderer.tokenizer.encode("Yes </think> no <think>"))
    assert parsed.content == "Yes </think> no <think>"
