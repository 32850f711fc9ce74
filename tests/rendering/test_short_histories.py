"""Whatever a template can see in old messages is looked for before a bridge is made without them.

Each template writes another header once something stood anywhere in the conversation. The same kind of follow-up
is right before, so that it is not compared again; the oracle is the full rendering of the real conversation.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from played import user
from rendering_folders import write_folder
from tokentrue import Message, Renderer, ToolCall, load_renderer
from tokentrue.generation import FinishReason
from tokentrue.rendering.bridge import Bridge
from tokentrue.rendering.certificate import FollowUpKind

USER, NEXT = user("Hi"), user("And?")


def said(content: str, **more: object) -> Message:
    return Message(role="assistant", content=content, **more)


def called(name: str = "look_up", arguments: str = '{"word": "tea"}', **more: object) -> Message:
    return Message(role="assistant", tool_calls=(ToolCall(name, arguments, "call_0"),), **more)


def result(content: str = "a drink", **more: object) -> Message:
    return Message(role="tool", content=content, tool_call_id="call_0", **more)


TWO_CALLS = tuple(ToolCall("look_up", "{}", f"call_{index}") for index in range(2))
CASES: dict[str, tuple[str, tuple[Message, ...]]] = {
    "the name of a call": (
        "m.tool_calls and m.tool_calls[0].function.name == 'finish'",
        (called("finish"), result()),
    ),
    "a value of a call": (
        "m.tool_calls and m.tool_calls[0].function.arguments.mode == 'fast'",
        (called(arguments='{"mode": "fast"}'), result()),
    ),
    "what was thought": ("'DONE' in (m.reasoning_content or '')", (said("Ho", reasoning_content="DONE"),)),
    "who speaks": ("m.name == 'Bob'", (Message(role="user", content="x", name="Bob"), said("y"))),
    "that a speaker has a name": (
        "m.role == 'user' and m.name",
        (Message(role="user", content="x", name="Bob"), said("y")),
    ),
    "the name of a result": ("m.role == 'tool' and m.name == 'web'", (called("web"), result(name="web"))),
    "two calls at once": (
        "m.tool_calls and m.tool_calls | length > 1",
        (Message(role="assistant", tool_calls=TWO_CALLS), result(), result()),
    ),
    "a thought beside a call": (
        "m.tool_calls and m.reasoning_content",
        (called(reasoning_content="So"), result()),
    ),
    "text beside a call": ("m.tool_calls and m.content", (called(content="So"), result())),
    "two questions": ("loop.index0 and m.role == 'user' and loop.previtem.role == 'user'", (USER, said("y"))),
    "a system prompt in the middle": (
        "m.role == 'system' and loop.index0 > 1",
        (said("y"), Message(role="system", content="s")),
    ),
    "a developer": ("m.role == 'developer'", (said("y"), Message(role="developer", content="s"))),
    "a result without a word": ("m.role == 'tool' and not m.content", (called(), result(""))),
    "a question without a word": ("m.role == 'user' and not m.content", (said("x"), user(""))),
    "a line break": ("'\\n' in m.content", (said("x\ny"),)),
    "a key of its own": ("m.weight", (said("x", extra={"weight": True}),)),
    "one of several words": ("m.content in ['stop', 'halt']", (said("halt"),)),
    "a word put together": ("('DO' ~ 'NE') in m.content", (said("DONE"),)),
    "a long text": ("m.content | length > 40", (said("y" * 60),)),
    "the sixth message": ("loop.index > 11", (said("y"), USER) * 6),
    "the ninth message": ("loop.index % 9 == 0", (said("y"), USER) * 5),
}


def template_of(condition: str) -> str:
    """It writes ` so` into a user's header once a condition held of any message before."""
    return (
        "{%- set ns = namespace(seen=false) %}{%- for m in messages %}{{- '<|im_start|>' + m.role }}"
        "{{- (' so' if ns.seen and m.role == 'user' else '') + '\\n' + m.content }}"
        "{%- for c in m.tool_calls or [] %}"
        "{{- '<tool_call>' + c.function.name + (c.function.arguments | tojson) + '</tool_call>' }}{%- endfor %}"
        "{%- if " + condition + " %}{%- set ns.seen = true %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )


def header_of_the_next(renderer: Renderer, before: tuple[Message, ...]) -> str:
    """The bridge to the next question; it must be what the template writes."""
    messages = (*before, said("Ho"), NEXT)
    sampled = [*renderer.tokenizer.encode("Ho"), renderer.stop_ids[0]]
    found = renderer.bridge_to_next_turn(
        renderer.render_ids(before), sampled, [NEXT], history=messages[:-1], finish_reason=FinishReason.STOP
    )
    assert isinstance(found, Bridge), found
    ids, full = list(found.added_ids), renderer.render_ids(messages).tolist()
    assert full[-len(ids) - 1 :] == [sampled[-1], *ids]
    return renderer.tokenizer.decode(ids)


@pytest.mark.parametrize("name", CASES)
def test_what_an_old_message_has_is_not_forgotten(tmp_path: Path, name: str) -> None:
    condition, telling = CASES[name]
    renderer = load_renderer(write_folder(tmp_path, template_of(condition)))
    assert "so" not in header_of_the_next(renderer, (USER,))
    assert "so" not in header_of_the_next(renderer, (USER, said("Good day"), Message(role="user", content="Hm")))
    last = () if telling[-1].role == "user" else (USER,)
    assert "<|im_start|>user so" in header_of_the_next(renderer, (USER, *telling, *last, said("Ho"), USER))


@pytest.mark.parametrize("name", ["the name of a call", "two calls at once", "one of several words"])
def test_without_history_nothing_is_bridged_that_an_old_message_can_change(tmp_path: Path, name: str) -> None:
    renderer = load_renderer(write_folder(tmp_path, template_of(CASES[name][0])))
    found = renderer.certificate.finding(FollowUpKind.USER, with_tools=False)
    assert found is not None
    assert not found.history_free


def test_a_template_that_looks_at_none_of_it_needs_no_old_message(tmp_path: Path) -> None:
    renderer = load_renderer(write_folder(tmp_path, template_of("false")))
    assert renderer.certificate.short_history
    assert "so" not in header_of_the_next(renderer, (USER, said("Ho"), USER))
