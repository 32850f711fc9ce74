"""Rendering equals the reference implementation; folders that cannot be used are refused by name."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from conversations import TOOLS, assistant_messages, follow_ups, openings, takes
from real_tokenizers import unpack_real
from rendering_folders import write_folder
from tokentrue import Message, Renderer, load_renderer
from tokentrue.errors import (
    SpelledMarkerWarning,
    TemplateRenderError,
    TokenizerFolderError,
    UnsupportedParameterError,
)
from tokentrue.rendering.bridge import Bridge
from tokentrue.rendering.certificate import FollowUpKind, Verdict
from tokentrue.rendering.chat_template import ChatTemplate
from tokentrue.rendering.formats.reasoning import ReasoningState
from tokentrue.rendering.streaming import ContentDelta
from tokentrue.turns import Junction, TokenKind

relaxed = settings(max_examples=50, deadline=None)


@pytest.fixture(scope="session")
def reference(renderer: Renderer) -> transformers.PreTrainedTokenizerFast:
    """transformers on the same folder; `tokenizer.json` is loaded as it is."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(Path(renderer.folder) / "tokenizer.json"), **renderer.template.special_tokens
    )
    tokenizer.chat_template = renderer.template.default
    return tokenizer


@relaxed
@given(data=st.data())
def test_ids_and_text_equal_transformers(
    renderer: Renderer, reference: transformers.PreTrainedTokenizerFast, data: st.DataObject
) -> None:
    opening = data.draw(openings)
    assistant = data.draw(assistant_messages(1))
    messages = (*opening, assistant, *data.draw(follow_ups(assistant)))
    tools = data.draw(st.sampled_from([(), TOOLS]))
    if not takes(renderer, messages):
        return
    plain = renderer.form.to_templates(messages)
    text = reference.apply_chat_template(
        plain, tools=list(tools) or None, add_generation_prompt=True, tokenize=False
    )
    assert renderer.render_text(messages, tools=tools) == text
    expected = reference(text, add_special_tokens=False)["input_ids"]
    assert renderer.render_ids(messages, tools=tools) == expected


@relaxed
@given(data=st.data())
def test_render_names_the_writer_of_every_id(renderer: Renderer, data: st.DataObject) -> None:
    opening = data.draw(openings)
    assistant = data.draw(assistant_messages(1))
    messages = (*opening, assistant, *data.draw(follow_ups(assistant)))
    if not takes(renderer, messages):
        return
    rendered = renderer.render(messages, tools=TOOLS)
    assert rendered.token_ids == renderer.render_ids(messages, tools=TOOLS)
    assert rendered.stop_token_ids == renderer.stop_ids
    owners, kinds = rendered.owners(), rendered.kinds()
    assert set(kinds.tolist()) <= {TokenKind.SCAFFOLD.value, TokenKind.BODY.value}
    assert owners[-1] == -1
    for index, message in enumerate(messages):
        if message.tool_calls:
            continue  # Llama's template drops text beside a call
        body = rendered.token_ids.array()[(owners == index) & (kinds == TokenKind.BODY.value)]
        text = renderer.tokenizer.decode(body.tolist())
        wanted = (message.content or "").strip()
        if wanted and wanted.isascii() and wanted.isalnum():
            assert wanted in text


def test_the_whole_of_a_short_prompt_is_attributed(qwen_like: Renderer) -> None:
    rendered = qwen_like.render([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}])
    decoded = [
        (span.owner, span.kind.name, qwen_like.tokenizer.decode(rendered.token_ids[span.start : span.end]))
        for span in rendered.spans
    ]
    assert decoded == [
        (0, "SCAFFOLD", "<|im_start|>system\n"),
        (0, "BODY", "Be kind."),
        (0, "SCAFFOLD", "<|im_end|>"),
        (1, "SCAFFOLD", "\n<|im_start|>user\n"),
        (1, "BODY", "Hi"),
        (1, "SCAFFOLD", "<|im_end|>"),
        (-1, "SCAFFOLD", "\n<|im_start|>assistant\n"),
    ]


def test_the_certificate_of_a_qwen_like_template(qwen_like: Renderer) -> None:
    certificate = qwen_like.certificate
    assert certificate.close == "<|im_end|>"
    assert certificate.generation_prompt == "<|im_start|>assistant\n"
    assert certificate.reasoning_format == "<think>…</think>"
    assert certificate.tool_format == "json in <tool_call>…</tool_call>"
    assert certificate.bridges_everything
    verdicts = {(f.kind, f.with_tools): f.verdict for f in certificate.findings}
    assert verdicts[FollowUpKind.USER, False] is Verdict.EXACT
    assert verdicts[FollowUpKind.TOOLS, True] is Verdict.EXACT
    rewritten = certificate.finding(FollowUpKind.AFTER_REASONING, True)
    assert rewritten is not None
    assert rewritten.verdict is Verdict.TEMPLATE_REWRITES_HISTORY
    assert "Two and two" in rewritten.detail


def test_the_certificate_says_what_is_refused(without_close: Renderer, llama_like: Renderer) -> None:
    assert {f.verdict for f in without_close.certificate.findings} == {Verdict.REFUSED}
    assert not without_close.certificate.bridges_everything
    tools = llama_like.certificate.finding(FollowUpKind.TOOLS, True)
    assert tools is not None
    assert tools.verdict is Verdict.REFUSED
    assert "only one call at a time" in tools.detail


def test_real_families_are_certified(real_qwen3: Renderer, real_llama: Renderer) -> None:
    assert real_qwen3.certificate.bridges_everything
    refused = [f.kind for f in real_llama.certificate.findings if f.verdict is Verdict.REFUSED]
    assert refused == [FollowUpKind.TOOLS]
    exact = {f.verdict for f in real_llama.certificate.findings} - {Verdict.REFUSED}
    assert exact == {Verdict.EXACT, Verdict.EXACT_BEHIND_JUNCTION}


def test_template_kwargs_are_part_of_the_identity(qwen_like: Renderer) -> None:
    other = load_renderer(qwen_like.folder, template_kwargs={"enable_thinking": False})
    assert other.template.content_hash != qwen_like.template.content_hash


def test_documents_reach_the_template_as_template_kwargs() -> None:
    template = ChatTemplate("{{ documents | tojson }}", kwargs={"documents": [{"title": "T", "text": "é"}]})
    assert template.render_text([]) == '[{"title": "T", "text": "é"}]'
    assert ChatTemplate("{{ documents is none }}").render_text([]) == "True"


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_what_each_rendering_sets_is_refused_as_template_kwargs_by_name(qwen_like: Renderer, name: str) -> None:
    with pytest.raises(UnsupportedParameterError, match=f"'{name}'"):
        load_renderer(qwen_like.folder, template_kwargs={name: None})
    with pytest.raises(UnsupportedParameterError, match=f"'{name}'"):
        qwen_like.with_template_kwargs({name: None})


def test_the_clock_of_a_template_is_fixed_when_it_is_loaded(llama_like: Renderer) -> None:
    pinned = load_renderer(llama_like.folder, now=datetime(2031, 2, 3))
    assert "Today: 03 Feb 2031" in pinned.render_text([{"role": "user", "content": "Hi"}])


PROMPTED_BUT_BEHIND_RESULTS = """{%- for m in messages %}
{%- if m.role == 'assistant' %}{{- '<|im_start|>assistant\\n<think>' + (m.reasoning_content or '') }}
{{- '</think>' + (m.content or '') }}
{%- for c in m.tool_calls or [] %}{{- '<tool_call>{"name": "' + c.function.name }}
{{- '", "arguments": ' + (c.function.arguments | tojson) + '}</tool_call>' }}{%- endfor %}{{- '<|im_end|>' }}
{%- elif m.role == 'tool' %}{{- '<tool_response>' + m.content + '</tool_response>' }}
{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt and messages[-1].role != 'tool' %}
{{- '<|im_start|>assistant\\n<think>' }}{%- endif %}"""
"""DeepSeek-V3.1's mechanism: behind a tool's result a model goes on without a generation prompt."""


def test_a_tools_result_opens_no_reasoning_where_no_generation_prompt_follows_it(tmp_path: Path) -> None:
    renderer = load_renderer(write_folder(tmp_path, PROMPTED_BUT_BEHIND_RESULTS))
    asked = [{"role": "user", "content": "?"}]
    prompt = renderer.render_ids(asked)
    assert renderer.parse_response(renderer.tokenizer.encode("So</think>4<|im_end|>"), prompt).content == "4"
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    result = {"role": "tool", "content": "Write <think> first.", "tool_call_id": "a", "name": "f"}
    with pytest.warns(SpelledMarkerWarning, match="<think>"):
        prompt = renderer.render_ids([*asked, {"role": "assistant", "tool_calls": [call]}, result])
    said = renderer.tokenizer.encode("It is 4.<|im_end|>")
    parsed = renderer.parse_response(said, prompt)
    assert (parsed.content, parsed.reasoning) == ("It is 4.", ReasoningState.ABSENT)
    read = renderer.start_reading(prompt)
    assert read.feed(said) == (ContentDelta("It is 4."),)


def test_parts_that_are_not_text_are_refused_by_name(qwen_like: Renderer) -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:…"}}]}
    with pytest.raises(TemplateRenderError, match="image_url"):
        qwen_like.render_ids([image])


def test_what_the_template_raises_is_told(llama_like: Renderer) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    with pytest.raises(TemplateRenderError, match="only one call at a time"):
        llama_like.render_ids(
            [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [call, call]}]
        )


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace(_x=1) }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    template = ChatTemplate(source)
    try:
        text = template.render_text([{"role": "user", "content": "x"}])
    except TemplateRenderError:
        return
    assert text.strip() == ""


def test_templates_get_what_transformers_gives_them() -> None:
    source = (
        "{% generation %}{{ messages[0].content | tojson }}{% endgeneration %}"
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}"
        "{{ dict(a=1) | tojson(indent=1) }}{{ messages[0].name is defined }}"
    )
    text = ChatTemplate(source).render_text(
        [{"role": "user", "content": "<é>", "name": None}, {"role": "tool", "content": ""}]
    )
    assert text == '"<é>"tool{\n "a": 1\n}False'


def broken_folder(tmp_path: Path, good: str, **files: str) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_text((Path(good) / name).read_text())
    for name, text in files.items():
        (tmp_path / name.replace("__", ".")).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"tokenizer__json": "{"}, "tokenizer.json is no tokenizer"),
        ({"tokenizer_config__json": "[]"}, "tokenizer_config.json must hold a JSON object"),
        ({"tokenizer_config__json": "{}"}, "has no chat template"),
        ({"generation_config__json": "nope"}, "generation_config.json is not valid JSON"),
        ({"generation_config__json": '{"eos_token_id": "x"}'}, "'x' is not an integer"),
        ({"tokenizer_config__json": '{"chat_template": [{"name": "rag", "template": ""}]}'}, "have no default"),
    ],
)
def test_a_broken_folder_is_named(qwen_like: Renderer, tmp_path: Path, files: dict[str, str], says: str) -> None:
    with pytest.raises(TokenizerFolderError, match=says):
        load_renderer(broken_folder(tmp_path, qwen_like.folder, **files))


def test_a_template_that_is_no_jinja_is_named(qwen_like: Renderer, tmp_path: Path) -> None:
    with pytest.raises(TemplateRenderError, match="not valid Jinja"):
        load_renderer(broken_folder(tmp_path, qwen_like.folder, chat_template__jinja="{% if %}"))


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerFolderError, match="is not a folder"):
        load_renderer(tmp_path / "absent")
    with pytest.raises(TokenizerFolderError, match=r"tokenizer\.json is missing"):
        load_renderer(tmp_path)


def without_stops(renderer: Renderer, tmp_path: Path) -> Path:
    config = json.loads((Path(renderer.folder) / "tokenizer_config.json").read_text())
    del config["eos_token"]
    return broken_folder(
        tmp_path, renderer.folder, tokenizer_config__json=json.dumps(config), generation_config__json="{}"
    )


def test_a_folder_that_names_no_stop_gets_the_close_of_its_template(qwen_like: Renderer, tmp_path: Path) -> None:
    derived = load_renderer(without_stops(qwen_like, tmp_path))
    assert [derived.tokenizer.id_text(stop) for stop in derived.get_stop_token_ids()] == ["<|im_end|>"]
    assert derived.certificate.bridges_everything


def test_a_folder_without_any_stop_token_is_refused(without_close: Renderer, tmp_path: Path) -> None:
    folder = without_stops(without_close, tmp_path)
    with pytest.raises(TokenizerFolderError, match="names no stop token"):
        load_renderer(folder)
    assert load_renderer(folder, stop_token_ids=[5]).get_stop_token_ids() == (5,)


def test_openers_close_a_message_where_there_is_no_other_close(tmp_path: Path) -> None:
    glm = load_renderer(unpack_real("glm-4.5", tmp_path))
    stops = {glm.tokenizer.id_text(stop) for stop in glm.get_stop_token_ids()}
    assert stops == {"<|endoftext|>", "<|user|>", "<|observation|>"}
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    prompt = glm.render_ids(history[:1])
    ids = glm.tokenizer.encode("\n<think></think>\nHo")
    opener = {glm.tokenizer.id_text(stop): stop for stop in glm.get_stop_token_ids()}

    def junction(last: str) -> tuple[Junction, str]:
        outcome = glm.bridge_to_next_turn(
            prompt, [*ids, opener[last]], [{"role": "user", "content": "And?"}], history=history
        )
        assert isinstance(outcome, Bridge)
        return outcome.junction, glm.tokenizer.decode(outcome.added_ids)

    assert junction("<|user|>") == (Junction.OPENER_SHARED, "\nAnd?<|assistant|>")
    assert junction("<|observation|>") == (Junction.OPENER_DROPPED, "<|user|>\nAnd?<|assistant|>")
    assert junction("<|endoftext|>") == (Junction.STOP_REWRITTEN, "<|user|>\nAnd?<|assistant|>")


def test_a_named_template_set_serves_both_uses(qwen_like: Renderer, tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    folder = broken_folder(
        tmp_path,
        qwen_like.folder,
        tokenizer_config__json=json.dumps({"eos_token": "<|im_end|>", "chat_template": named}),
    )
    renderer = load_renderer(folder)
    user = [Message(role="user", content="?")]
    assert renderer.render_text(user) == "plain"
    assert renderer.render_text(user, tools=TOOLS) == "with tools"
