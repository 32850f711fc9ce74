"""A text that was cut is ended as the template ends one: with all that it writes in front of the close."""

from __future__ import annotations

from pathlib import Path

import pytest

from played import Play, user
from rendering_folders import write_folder
from templates.families import FAMILIES, family_renderer
from tokentrue import Message, Renderer, load_renderer
from tokentrue.generation import FinishReason
from tokentrue.rendering.bridge import Bridge
from tokentrue.rollouts.proof import prove
from tokentrue.testing import check_renderer
from tokentrue.turns import Junction

LINE = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '\\n<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""It ends a message with a line break, as Apriel's and Nemotron's do."""
FRAME = LINE.replace("m.content + '\\n<|im_end|>", "'<think>' + m.content + '</think><|im_end|>").replace(
    "think", "im_say"
)
"""It puts a frame of markers around a text, as Command R7B's does."""

_THOUGHT = "('<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' if m.role == 'assistant' else '')"
THINKS = LINE.replace("m.content + ", _THOUGHT + " + m.content + ").replace(
    "assistant\\n' }}", "assistant\\n<think>\\n' }}"
)
"""It keeps reasoning, and ends a message with a line break."""
FORGETS = THINKS.replace("if m.role == 'assistant'", "if m.role == 'assistant' and loop.last")
"""As Nemotron Nano v2: its history has no reasoning."""


def ended(renderer: Renderer, content: str, sampled: str) -> str:
    """What a bridge puts behind a cut text; the whole prompt must be the template's."""
    history = [user("Hi"), Message(role="assistant", content=content)]
    prompt, new = renderer.render_ids(history[:1]), [user("And?")]
    found = renderer.bridge_to_next_turn(
        prompt, renderer.tokenizer.encode(sampled), new, history=history, finish_reason=FinishReason.LENGTH
    )
    assert isinstance(found, Bridge)
    assert found.junction is Junction.CLOSE_ADDED
    assert renderer.text_of(found.prompt_ids) == renderer.render_text([*history, *new])
    return renderer.tokenizer.decode(found.added_ids).partition("<|im_end|>")[0]


@pytest.mark.parametrize(("sampled", "added"), [("It is", "\n"), ("It is\n", ""), ("It is. " * 40 + "So", "\n")])
def test_the_line_break_in_front_of_the_close_is_put_there_once(tmp_path: Path, sampled: str, added: str) -> None:
    renderer = load_renderer(write_folder(tmp_path, LINE))
    assert ended(renderer, sampled.removesuffix("\n"), sampled) == added


@pytest.mark.parametrize(("sampled", "added"), [("<im_say>It is", "</im_say>"), ("<im_say>It is</im_say>", "")])
def test_a_frame_is_closed(tmp_path: Path, sampled: str, added: str) -> None:
    renderer = load_renderer(write_folder(tmp_path, FRAME))
    assert ended(renderer, "It is", sampled) == added


def test_what_the_template_would_trim_is_ended_by_the_close_alone(tmp_path: Path) -> None:
    renderer = load_renderer(write_folder(tmp_path, LINE.replace("m.content + ", "m.content.strip() + ")))
    history = [user("Hi"), Message(role="assistant", content="It is  ")]
    sampled = renderer.tokenizer.encode("It is  ")
    found = renderer.bridge_to_next_turn(
        renderer.render_ids(history[:1]),
        sampled,
        [user("And?")],
        history=history,
        finish_reason=FinishReason.LENGTH,
    )
    assert isinstance(found, Bridge)
    assert renderer.tokenizer.decode(found.added_ids).startswith("<|im_end|>")


@pytest.mark.parametrize(
    ("sampled", "said", "added"),
    [
        ("So", Message(role="assistant", reasoning_content="So"), "\n</think>\n\n\n"),
        ("So\n</think>", Message(role="assistant", reasoning_content="So"), "\n\n\n"),
        ("So\n</think>\n\n", Message(role="assistant", reasoning_content="So"), "\n"),
        ("So\n</think>\n\nIt", Message(role="assistant", reasoning_content="So", content="It"), "\n"),
    ],
)
def test_reasoning_that_was_cut_is_ended_as_a_message_without_text_is(
    tmp_path: Path, sampled: str, said: Message, added: str
) -> None:
    """The whole prompt is the template's, down to the line break in front of the close."""
    renderer = load_renderer(write_folder(tmp_path, THINKS))
    prompt, new = renderer.render_ids([user("Hi")]), [user("And?")]
    ids = renderer.tokenizer.encode(sampled)
    assert renderer.parse_response(ids, prompt_ids=prompt).to_message() == said
    found = renderer.bridge_to_next_turn(
        prompt, ids, new, history=[user("Hi"), said], finish_reason=FinishReason.LENGTH
    )
    assert isinstance(found, Bridge)
    assert renderer.tokenizer.decode(found.added_ids).partition("<|im_end|>")[0] == added
    assert renderer.text_of(found.prompt_ids) == renderer.render_text([user("Hi"), said, *new])


@pytest.mark.parametrize(("sampled", "added"), [("So", "\n</think>\n\n\n"), ("So\n</think>", "\n")])
def test_reasoning_that_history_forgets_is_ended_alike(tmp_path: Path, sampled: str, added: str) -> None:
    """Behind it the template's message without text ends with the line break too."""
    renderer = load_renderer(write_folder(tmp_path, FORGETS))
    history = [user("Hi"), Message(role="assistant", reasoning_content="So")]
    found = renderer.bridge_to_next_turn(
        renderer.render_ids(history[:1]),
        renderer.tokenizer.encode(sampled),
        [user("And?")],
        history=history,
        finish_reason=FinishReason.LENGTH,
    )
    assert isinstance(found, Bridge)
    text = renderer.tokenizer.decode(found.added_ids)
    assert text.startswith(added + "<|im_end|>\n")
    full = renderer.render_text([*history, user("And?")])
    assert full.endswith(text.removeprefix(added[:-1]))


def test_a_frame_that_was_never_opened_is_not_closed_behind_reasoning(tmp_path: Path) -> None:
    framed = THINKS.replace(
        "m.content + '\\n<|im_end|>", "('<im_say>' + m.content + '</im_say>' if m.content else '') + '<|im_end|>"
    )
    renderer = load_renderer(write_folder(tmp_path, framed))
    history = [user("Hi"), Message(role="assistant", reasoning_content="So")]
    prompt, sampled = renderer.render_ids(history[:1]), renderer.tokenizer.encode("So")
    found = renderer.bridge_to_next_turn(
        prompt, sampled, [user("And?")], history=history, finish_reason=FinishReason.LENGTH
    )
    assert isinstance(found, Bridge)
    assert renderer.text_of(found.prompt_ids) == renderer.render_text([*history, user("And?")])


@pytest.mark.parametrize("template", [THINKS, FORGETS], ids=["kept", "forgotten"])
def test_the_laws_know_how_cut_reasoning_is_ended(tmp_path: Path, template: str) -> None:
    renderer = load_renderer(write_folder(tmp_path, template))
    play = Play(renderer, [user("Hi")], tools=())
    for said in ("So", "So\n</think>", "So\n</think>\n\n", "So\n</think>\n\nIt"):
        play.sample(renderer.tokenizer.encode(said), FinishReason.LENGTH)
        play.answer(user("And?"))
    play.say("So\n</think>\n\nHo\n")
    played = play.done()
    assert all(record.turn.stitch.junction is Junction.CLOSE_ADDED for record in played.turns[1:])
    proof = prove([played.episode], played.turns, renderer)
    assert proof.holds, [check for check in proof.checks if not check.holds]
    check_renderer(renderer, turns=16).raise_if_broken()


@pytest.mark.parametrize("template", [LINE, FRAME])
def test_the_laws_and_the_conformance_suite_know_how_a_cut_text_is_ended(tmp_path: Path, template: str) -> None:
    renderer = load_renderer(write_folder(tmp_path, template))
    play = Play(renderer, [user("Hi")], tools=())
    said = "It is so." if template is LINE else "<im_say>It is so."
    play.sample(renderer.tokenizer.encode(said), FinishReason.LENGTH)
    play.answer(user("And?"))
    play.say("Ho\n" if template is LINE else "<im_say>Ho</im_say>")
    played = play.done()
    assert played.turns[1].turn.stitch.junction is Junction.CLOSE_ADDED
    proof = prove([played.episode], played.turns, renderer)
    assert proof.holds, [check for check in proof.checks if not check.holds]
    check_renderer(renderer, turns=16).raise_if_broken()


@pytest.fixture(scope="module")
def elements() -> Renderer:
    """As Kimi K3 writes: reasoning and content between tags with names, made of markers."""
    return family_renderer(next(family for family in FAMILIES if family.name == "elements"))


def test_a_message_of_elements_ends_as_the_template_ends_it(elements: Renderer) -> None:
    """Cut at every byte in or behind reasoning and content: a half tag is gone on with, what is open is closed."""
    opening, prompt = user("Hello."), elements.render_ids([user("Hello.")])
    whole = elements.render_assistant(Message(role="assistant", reasoning_content="Hm", content="Yes")).tolist()
    ends = set()
    for cut in range(len(whole)):
        said = elements.parse_response(whole[:cut], prompt_ids=prompt).to_message()
        found = elements.bridge_to_next_turn(
            prompt, whole[:cut], [user("And?")], history=[opening, said], finish_reason=FinishReason.LENGTH
        )
        assert isinstance(found, Bridge)
        completed = found.prompt_ids.tolist()[len(prompt) :]
        completed = completed[: completed.index(elements.stop_ids[0]) + 1]
        assert completed[:cut] == whole[:cut]
        ended = elements.parse_response(completed, prompt_ids=prompt).to_message()
        assert elements.render_assistant(ended).tolist() == completed
        ends.add((ended.reasoning_content, ended.content))
    assert ends == {*((said, None) for said in (None, "H", "Hm")), *(("Hm", "Yes"[:cut]) for cut in range(1, 4))}


def test_the_laws_know_how_a_cut_element_is_ended(elements: Renderer) -> None:
    whole = elements.render_assistant(Message(role="assistant", reasoning_content="Hm", content="Yes")).tolist()
    for cut in range(1, len(whole)):
        play = Play(elements, [user("Hi")], tools=())
        play.sample(whole[:cut], FinishReason.LENGTH)
        play.answer(user("And?"))
        play.sample(whole, FinishReason.STOP)
        played = play.done()
        assert played.turns[1].turn.stitch.junction is Junction.CLOSE_ADDED
        proof = prove([played.episode], played.turns, elements)
        assert proof.holds, (cut, [check for check in proof.checks if not check.holds])
