"""A template may look at what was sampled, or at the last message that it wrote: then no tail is invented.

The oracle is the template's own full text of the real conversation, in which nothing is masked or left out.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from played import tool_result, user
from rendering_folders import write_folder
from tokentrue import Message, Renderer, ToolCall, load_renderer
from tokentrue.generation import FinishReason
from tokentrue.rendering.bridge import Bridge
from tokentrue.rendering.certificate import FollowUpKind
from tokentrue.rendering.tail import BridgeRefused
from tokentrue.turns import Why

_ASKS = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
_CALLS = (
    "{%- for c in m.tool_calls or [] %}"
    "{{- '<tool_call>' + c.function.name + (c.function.arguments | tojson) + '</tool_call>' }}{%- endfor %}"
)


def behind(condition: str) -> str:
    """A template that writes ` so` into the next header where the message before, `p`, fulfils a condition."""
    return (
        "{%- for m in messages %}{%- set p = messages[loop.index0 - 1] if loop.index0 else {'role': ''} %}"
        "{{- '<|im_start|>' + m.role + (' so' if p.role == 'assistant' and " + condition + " else '') }}"
        "{{- '\\n' + m.content }}" + _CALLS + "{{- '<|im_end|>\\n' }}{%- endfor %}" + _ASKS
    )


MERGES = (
    "{%- set ns = namespace(last='') %}{%- for m in messages %}{%- if m.content.strip() or m.tool_calls %}"
    "{%- if ns.last == m.role %}{{- '\\n' }}{%- else %}{%- if ns.last %}{{- '<|im_end|>\\n' }}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\\n' }}{%- endif %}{{- m.content }}" + _CALLS + "{%- set ns.last = m.role %}"
    "{%- endif %}{%- endfor %}{{- '<|im_end|>\\n' }}" + _ASKS
)
"""It leaves a message without a word out, and writes what is then side by side as one message."""
OTHER_CLOSE = behind("false").replace(
    "'<|im_end|>\\n'", "'<|endoftext|>' if m.content == 'Ho?' else '<|im_end|>\\n'"
)

GROUPED = (
    "{%- set ns = namespace(last='') %}{%- for m in messages %}{%- if m.role == 'tool' %}"
    "{%- if ns.last != 'tool' %}{{- '<|im_start|>user\\n' }}{%- endif %}"
    "{{- '<tool_response>' + m.content + '</tool_response>' }}{%- set ns.last = 'tool' %}"
    "{%- elif m.content %}{%- if ns.last == 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- set ns.last = m.role %}{%- endif %}"
    "{%- endfor %}{%- if ns.last == 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}" + _ASKS
)
"""It leaves calls out, and writes the results of one question side by side: the second has no header."""

ONLY_ONCE = (
    "{%- set ns = namespace(called=0) %}{%- for m in messages %}{%- if m.content or not ns.called %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content }}" + _CALLS + "{{- '<|im_end|>' }}"
    "{%- if m.role == 'user' %}{{- '\\n' }}{%- endif %}{%- endif %}"
    "{%- if m.tool_calls %}{%- set ns.called = 1 %}{%- endif %}{%- endfor %}" + _ASKS
)
"""It writes only the first calls of a conversation; a question ends otherwise than an answer."""

USER, NEXT = user("Hi"), user("And?")


def said(content: str | None, thought: str | None = None) -> Message:
    return Message(role="assistant", content=content, reasoning_content=thought)


def called(index: int, arguments: str = '{"word": "tea"}') -> Message:
    return Message(role="assistant", tool_calls=(ToolCall("look_up", arguments, f"call_{index}"),))


def outcome(renderer: Renderer, *messages: Message) -> Bridge | BridgeRefused:
    """What becomes of the last message behind the one before it; a bridge is held against the full text."""
    *history, new = messages
    prompt = renderer.render_ids(history[:-1])
    sampled = [*renderer.tokenizer.encode("Ho"), renderer.stop_ids[0]]
    found = renderer.bridge_to_next_turn(prompt, sampled, [new], history=history, finish_reason=FinishReason.STOP)
    if isinstance(found, Bridge):
        ids, full = list(found.added_ids), renderer.render_ids(messages).tolist()
        assert full[-len(ids) - 1 :] == [sampled[-1], *ids]
    return found


@pytest.mark.parametrize(
    ("template", "usual", "telling"),
    [
        (behind("'DONE' in p.content"), said("Ho"), said("DONE")),
        (behind("p.content | length < 9"), said("Ho, ho and ho"), said("Ho")),
        (behind("p.reasoning_content"), said("Ho"), said("Ho", "Why?")),
        (MERGES, said("Ho"), said(None)),
        (MERGES, said("Ho"), said(" ")),
        (MERGES, said("Ho"), said(None, "Why?")),
        (OTHER_CLOSE, said("Ho"), said("Ho?")),
    ],
)
def test_what_is_said_is_asked_of_the_template(
    tmp_path: Path, template: str, usual: Message, telling: Message
) -> None:
    renderer = load_renderer(write_folder(tmp_path, template))
    for opening in ([USER], [USER, said("Good day to you"), USER]):
        assert isinstance(outcome(renderer, *opening, usual, NEXT), Bridge)
        refused = outcome(renderer, *opening, telling, NEXT)
        assert isinstance(refused, BridgeRefused)
        assert refused.why is Why.REORDERED
        assert refused.expected != refused.template
        assert refused.detail.startswith(
            "what the sampled message says changes what the template writes behind it"
        )


@pytest.mark.parametrize(
    "condition",
    ["not p.tool_calls[0].function.arguments", "p.tool_calls[0].function.arguments.word == 'now'"],
    ids=["none", "a value"],
)
def test_what_a_call_says_is_asked_of_the_template(tmp_path: Path, condition: str) -> None:
    renderer = load_renderer(write_folder(tmp_path, behind(f"p.tool_calls and {condition}")))
    result = tool_result("a drink", "call_0")
    assert isinstance(outcome(renderer, USER, called(0), result), Bridge)
    telling = called(0, "{}" if condition.startswith("not") else '{"word": "now"}')
    refused = outcome(renderer, USER, telling, result)
    assert isinstance(refused, BridgeRefused)
    assert refused.why is Why.REORDERED
    assert refused.template.endswith("<|im_start|>tool so"), refused.template


@pytest.mark.parametrize("condition", ["'DONE' in p.content", "p.reasoning_content", "not p.content"])
def test_without_history_nothing_is_bridged_that_what_was_said_can_change(tmp_path: Path, condition: str) -> None:
    renderer = load_renderer(write_folder(tmp_path, behind(condition)))
    found = renderer.certificate.finding(FollowUpKind.USER, with_tools=False)
    assert found is not None
    assert not found.history_free
    refused = renderer.bridge_to_next_turn([5], [6, renderer.stop_ids[0]], [NEXT])
    assert isinstance(refused, BridgeRefused)
    assert refused.why is Why.HISTORY_NEEDED


@pytest.mark.parametrize(
    ("template", "between"), [(GROUPED, ()), (ONLY_ONCE, (USER,))], ids=["grouped", "only once"]
)
def test_a_short_history_is_not_enough_where_the_whole_one_is_refused(
    tmp_path: Path, template: str, between: tuple[Message, ...]
) -> None:
    """The same kind of follow-up was right before, so that it is not compared again."""
    renderer = load_renderer(write_folder(tmp_path, template))
    first, second = tool_result("a drink", "call_1"), tool_result("more", "call_2")
    assert isinstance(outcome(renderer, USER, said("Ho"), USER, called(1), first), Bridge)
    refused = outcome(renderer, USER, called(1), first, *between, called(2), second)
    assert isinstance(refused, BridgeRefused)
    assert refused.why is Why.ASSISTANT_DROPPED
    assert not renderer.bridges.tails.short_is_enough
