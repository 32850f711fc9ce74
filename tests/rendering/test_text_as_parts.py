"""A template that writes text only from a list of parts gets its text so, and only such a template does.

The templates here are written for these tests, in the shapes of Idefics3, LLaVA and models that take both; the
real ones are in `test_templates_of_index`. transformers, given parts that are spelled out here, is the oracle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from cli.conftest import run_command
from rendering_folders import write_folder
from templates.at_hand import SCENARIOS, BridgeOutcome, judge_bridge, judge_inverse, templates_at_hand
from templates.corpus import conversation
from tokentrue import Message, Renderer, load_renderer
from tokentrue.errors import SpelledMarkerWarning, TemplateRenderError
from tokentrue.messages import messages_from
from tokentrue.rendering.bridge import Bridge
from tokentrue.rendering.chat_template import ChatTemplate
from tokentrue.rendering.template_messages import MessageForm, probe_message_form
from tokentrue.testing import check_renderer

_CLOSE = (
    "{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_OPEN = "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
EACH_PART = (
    _OPEN
    + "{%- for part in m.content %}{%- if part.type == 'text' %}{{- part.text }}"
    + "{%- elif part.type == 'image' %}{{- '<image>' }}{%- endif %}{%- endfor %}"
    + _CLOSE
)
"""As Idefics3: of text it writes nothing, and says nothing."""
FIRST_PART = (
    _OPEN
    + "{%- if m.role == 'user' %}"
    + "{{- m.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join }}"
    + "{%- else %}{{- m.content[0]['text'] + '' }}{%- endif %}"
    + _CLOSE
)
"""As LLaVA: of a user's text it writes nothing, and any other raises."""
MIXED = (
    _OPEN
    + "{%- if m.role in ('system', 'tool') %}{{- m.content }}"
    + "{%- else %}{%- for part in m.content %}{{- part.text }}{%- endfor %}{%- endif %}"
    + _CLOSE
)
"""Text for some roles; a list would be printed as Python prints it."""
WITH_TOOLS_ONLY = "{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}" + EACH_PART
BOTH = (
    _OPEN
    + "{%- if m.content is string %}{{- m.content }}"
    + "{%- else %}{%- for part in m.content %}{{- part.text + ' ' }}{%- endfor %}{%- endif %}"
    + _CLOSE
)
"""As Qwen2-VL: vLLM, which reads the source, gives it parts; here it keeps getting text."""
TEXT = _OPEN + "{{- m.content }}" + _CLOSE

ALL_ROLES = ("user", "assistant", "system", "developer", "tool")
TAKERS = {
    "each part": (EACH_PART, ALL_ROLES),
    "first part": (FIRST_PART, ALL_ROLES),
    "mixed": (MIXED, ("user", "assistant", "developer")),
    "with tools only": (WITH_TOOLS_ONLY, ALL_ROLES),
    "both": (BOTH, ()),
    "text": (TEXT, ()),
}


@pytest.fixture(scope="module", params=TAKERS)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("parts"), TAKERS[name][0])


@pytest.fixture(scope="module")
def renderer(folder: Path) -> Renderer:
    return load_renderer(folder)


def spelled_out(messages: Sequence[Message], roles: Sequence[str]) -> list[dict[str, object]]:
    """The messages as dicts, with the text of some roles as one part."""
    found = []
    for message in messages:
        data = message.to_openai()
        text = data.setdefault("content", "")
        if message.role in roles:
            data["content"] = [{"type": "text", "text": text}]
        for call in data.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        found.append(data)
    return found


def test_parts_are_for_the_roles_whose_text_is_lost_as_text(renderer: Renderer, name: str) -> None:
    assert renderer.form.parts_for == TAKERS[name][1]
    assert renderer.certificate.text_as_parts == TAKERS[name][1]


def test_a_rendering_is_what_transformers_writes_for_parts(renderer: Renderer, name: str) -> None:
    source, roles = TAKERS[name]
    written = 0
    for seed in range(40):
        asked = conversation(seed)
        messages = messages_from(asked.messages)
        try:
            ours = renderer.render_text(
                messages, tools=asked.tools, add_generation_prompt=asked.add_generation_prompt
            )
        except TemplateRenderError:
            assert name == "with tools only"
            continue
        theirs, _ = render_jinja_template(
            [spelled_out(messages, roles)],
            tools=list(asked.tools) or None,
            chat_template=source,
            add_generation_prompt=asked.add_generation_prompt,
        )
        assert ours == theirs[0], f"conversation({seed})"
        assert all((message.content or "") in ours for message in messages)
        written += 1
    assert written >= 15


def test_bridges_and_reading_are_exact(renderer: Renderer) -> None:
    outcomes = [judge_bridge(renderer, scenario) for scenario in SCENARIOS]
    assert [outcome for outcome, _ in outcomes] == [BridgeOutcome.RIGHT] * len(SCENARIOS), outcomes
    assert judge_inverse(renderer, seed=7, count=20).right == 20
    assert check_renderer(renderer, turns=8).failed == ()


def test_text_given_as_parts_is_the_same_message(renderer: Renderer) -> None:
    tool = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    as_text = [{"role": "user", "content": "Hello there."}]
    as_parts = [
        {"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there."}]}
    ]
    assert renderer.render_ids(as_parts, tools=tool) == renderer.render_ids(as_text, tools=tool)


def test_a_spelled_marker_in_a_part_is_kept_text(folder: Path) -> None:
    renderer = load_renderer(folder, spelled_markers="escape")
    tool = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    with pytest.warns(SpelledMarkerWarning, match=r"spells the special token '<\|im_end\|>' in its content"):
        ids = renderer.render_ids([{"role": "user", "content": "Say <|im_end|> now."}], tools=tool).tolist()
    assert ids.count(renderer.tokenizer.added_token("<|im_end|>").id) == 1
    asked = [{"role": "user", "content": "Hi."}]
    prompt = renderer.render_ids(asked, tools=tool)
    said = {"role": "assistant", "content": "Yes."}
    with pytest.warns(SpelledMarkerWarning):
        bridge = renderer.bridge_to_next_turn(
            prompt,
            renderer.tokenizer.encode("Yes.<|im_end|>"),
            [{"role": "user", "content": "And <|im_start|>?"}],
            history=[*asked, said],
            tools=tool,
        )
    assert isinstance(bridge, Bridge), bridge
    assert renderer.tokenizer.decode(bridge.added_ids) == (
        "\n<|im_start|>user\nAnd <|im_start|>?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert bridge.added_ids.count(renderer.tokenizer.added_token("<|im_start|>").id) == 2


def test_images_are_still_refused_by_name(renderer: Renderer) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(TemplateRenderError, match="parts that are not text"):
        renderer.render_ids([{"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]}])


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (MIXED, "content    a list of text parts: user, assistant, developer; as text the template loses it"),
        (BOTH, "content    text"),
    ],
    ids=["mixed", "both"],
)
def test_certify_tells_how_text_is_handed_over(source: str, line: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, source)
    assert line in run_command("certify", folder).stdout.splitlines()
    told = json.loads(run_command("certify", folder, "--json").stdout)["text_as_parts"]
    assert told == (["user", "assistant", "developer"] if source is MIXED else [])


@pytest.mark.skipif(not templates_at_hand(), reason="../shared/tokenizers is absent: no real templates at hand")
def test_every_template_at_hand_keeps_getting_text() -> None:
    forms = [
        probe_message_form(ChatTemplate(each.source, now=datetime(2026, 1, 2))) for each in templates_at_hand()
    ]
    assert {form.parts_for for form in forms} == {()}
    assert MessageForm() in forms
