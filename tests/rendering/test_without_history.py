"""Without history a bridge is that of the whole conversation, or refused: calls that nobody showed are varied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rendering_folders import write_folder
from tokentrue import Message, Renderer, ToolCall, load_renderer
from tokentrue.rendering.bridge import Bridge
from tokentrue.rendering.certificate import FollowUpKind
from tokentrue.rendering.tail import BridgeRefused
from tokentrue.turns import Why

USER, NEXT = Message(role="user", content="Hi"), Message(role="user", content="And?")
TOOLS = tuple(
    {"type": "function", "function": {"name": name, "description": "d", "parameters": {"type": "object"}}}
    for name in ("look_up", "send")
)
LOOKUPS = {
    "by its id": (
        "{%- for c in said.c.tool_calls %}{%- if c.id == m.tool_call_id %}{{- c.function.name }}{%- endif %}"
        "{%- endfor %}"
    ),
    "the last message's first call": "{{- said.c.tool_calls[0].function.name }}",
    "its own": "{{- m.name or '' }}",
    "a name of its own": "{{- 'code' if said.c.tool_calls[0].function.name == 'python' else 'tool' }}",
}


def folder_of(tmp_path: Path, name: str) -> Renderer:
    """A template that writes this name beside a tool's result, or a word where this condition holds."""
    written = LOOKUPS.get(name, "{%- if " + name + " %}{{- 'so' }}{%- endif %}")
    role = "true" if name not in LOOKUPS else "m.role == 'tool'"
    template = (
        "{%- set said = namespace(c=none) %}{%- for m in messages %}{{- '<|im_start|>' + m.role }}"
        "{%- if " + role + " %}{{- ' ' }}" + written + "{%- endif %}{{- '\\n' + m.content }}"
        "{%- for c in m.tool_calls or [] %}{%- set said.c = m %}"
        "{{- '<tool_call>' + c.function.name + (c.function.arguments | tojson) + '</tool_call>' }}{%- endfor %}"
        "{{- '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    return load_renderer(write_folder(tmp_path, template))


def results(*names: str | None, first: int = 0) -> tuple[Message, ...]:
    return tuple(
        Message(role="tool", content=f"r{index}", tool_call_id=f"call_{index}", name=name)
        for index, name in enumerate(names, first)
    )


def both(
    renderer: Renderer, names: tuple[str, ...], new: tuple[Message, ...], content: str | None = None
) -> tuple[Bridge | BridgeRefused, Bridge | BridgeRefused]:
    """The bridge to `new` without history, and with it."""
    calls = tuple(ToolCall(name, json.dumps({"a": 1}), f"call_{i}") for i, name in enumerate(names))
    said = Message(role="assistant", content=content, tool_calls=calls)
    prompt = renderer.render_ids([USER], tools=TOOLS)
    ids = renderer.render_assistant(said, tools=TOOLS)
    shown = renderer.bridge_to_next_turn(prompt, ids, new, history=(USER, said), tools=TOOLS)
    return renderer.bridge_to_next_turn(prompt, ids, new, tools=TOOLS), shown


@pytest.mark.parametrize("name", [name for name in LOOKUPS if name != "its own"])
def test_a_result_without_a_name_gets_no_made_up_one(tmp_path: Path, name: str) -> None:
    renderer = folder_of(tmp_path, name)
    called = "python" if name == "a name of its own" else "look_up"
    without, shown = both(renderer, (called,), results(None))
    assert isinstance(shown, Bridge)
    assert isinstance(without, BridgeRefused)
    assert without.why is Why.HISTORY_NEEDED
    assert both(renderer, (called,), results(called)) == (shown, shown)


def test_results_in_another_order_than_their_calls_are_refused_where_that_matters(tmp_path: Path) -> None:
    first_of_all, by_id = "the last message's first call", "by its id"
    answers = results("look_up", "send")[::-1]
    without, shown = both(folder_of(tmp_path / "first", first_of_all), ("look_up", "send"), answers)
    assert isinstance(shown, Bridge)
    assert isinstance(without, BridgeRefused)
    without, shown = both(folder_of(tmp_path / "id", by_id), ("look_up", "send"), answers)
    assert isinstance(without, Bridge)
    assert without == shown


def test_a_result_that_tells_no_name_is_bridged_where_none_is_written(tmp_path: Path) -> None:
    without, shown = both(folder_of(tmp_path, "its own"), ("look_up", "send"), results(None, None))
    assert isinstance(without, Bridge)
    assert without == shown


@pytest.mark.parametrize(
    ("condition", "kind"),
    [
        ("m.role == 'tool' and said.c.content", FollowUpKind.TOOL),
        ("m.role == 'tool' and not said.c.content", FollowUpKind.TOOLS),
        ("m.role == 'tool' and said.c.tool_calls[0].function.arguments.mode == 'fast'", FollowUpKind.TOOL),
        ("m.role == 'user' and loop.index0 and messages[loop.index0 - 1].tool_calls", FollowUpKind.USER),
    ],
)
def test_the_sampled_message_is_varied_before_anything_is_certified(
    tmp_path: Path, condition: str, kind: FollowUpKind
) -> None:
    """Gemma writes a result in front of text that was said beside its call."""
    for index, each in enumerate(("false", condition)):
        found = folder_of(tmp_path / str(index), each).certificate.finding(kind, with_tools=True)
        assert found is not None
        assert found.history_free == (each == "false")
