"""Where a message ends when history does not show the stop that was sampled, or no file names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from conversations import TOOLS, assistant_messages, draw_completion, follow_ups, openings, takes
from real_tokenizers import unpack_real
from rendering_folders import write_folder
from tokentrue import Message, Renderer, load_renderer
from tokentrue.generation import FinishReason
from tokentrue.rendering.bridge import Bridge
from tokentrue.rendering.certificate import FollowUpKind, Verdict
from tokentrue.rendering.tail import BridgeRefused
from tokentrue.turns import Junction, Why

REWRITES = """{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '<|im_mid|>' + m.content }}
    {{- '<|endoftext|>' if m.role == 'assistant' and loop.last and not add_generation_prompt else '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant<|im_mid|>' }}{%- endif %}"""
"""As harmony: the last answer ends with the stop, and history spells that otherwise."""

STOPS_ONLY_AT_THE_END = """{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '<|im_mid|>' + m.content }}
{%- endfor %}
{{- '<|im_start|>assistant<|im_mid|>' if add_generation_prompt else '<|endoftext|>' }}"""
"""History closes nothing: what stands where the stop stood opens the next message."""

ONE_TOKEN_OPENS_AND_CLOSES = """{%- for m in messages %}
    {%- if m.role == 'assistant' %}{{- m.content }}
        {%- if loop.last and not add_generation_prompt %}{{- '<|endoftext|>' }}{%- endif %}
    {%- else %}{{- '<|im_end|>' + m.content + '<|im_end|>' }}{%- endif %}
{%- endfor %}"""


def stopping_only_with_endoftext(folder: Path, template: str) -> Renderer:
    write_folder(folder, template)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": _id_of(folder, "<|endoftext|>")}))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<|endoftext|>"}))
    return load_renderer(folder)


def _id_of(folder: Path, text: str) -> int:
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return next(int(token["id"]) for token in added if token["content"] == text)


@pytest.fixture(scope="module", params=["rewrites", "gpt-oss"])
def rewriting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder = tmp_path_factory.mktemp("rewriting")
    if request.param == "rewrites":
        return stopping_only_with_endoftext(folder, REWRITES)
    return load_renderer(unpack_real("gpt-oss", folder))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_sampled_stop_is_kept_and_nothing_else_differs(rewriting: Renderer, data: st.DataObject) -> None:
    """Law 1, and law 2 behind the stop: with the stop respelled, the bridged prompt is the full rendering."""
    opening = data.draw(openings)
    calls = 1 if rewriting.tool_format is not None else 0
    assistant = data.draw(assistant_messages(calls, reasoning=False))
    new = data.draw(follow_ups(assistant))
    assume(takes(rewriting, (*opening, assistant, *new)))
    prompt = rewriting.render_ids(opening, tools=TOOLS).tolist()
    said = rewriting.render_assistant(assistant, tools=TOOLS).tolist()
    sampled = draw_completion(data, rewriting, assistant)
    outcome = rewriting.bridge_to_next_turn(
        prompt, sampled.ids, new, history=(*opening, assistant), finish_reason=sampled.finish_reason, tools=TOOLS
    )
    assert isinstance(outcome, Bridge), outcome
    assert outcome.prompt_ids.tolist() == [*prompt, *sampled.ids, *outcome.added_ids]
    full = rewriting.render_ids((*opening, assistant, *new), tools=TOOLS).tolist()
    stop = {Junction.CLOSE_RESTORED: 1, Junction.CLOSE_ADDED: 1}.get(outcome.junction, 0)
    tail = list(outcome.added_ids[stop:])
    assert full[len(full) - len(tail) :] == tail
    if sampled.ids == said and not assistant.tool_calls:
        assert outcome.junction is Junction.STOP_REWRITTEN
        differing = [
            at for at, pair in enumerate(zip(outcome.prompt_ids, full, strict=True)) if pair[0] != pair[1]
        ]
        assert differing == [len(prompt) + len(said) - 1]
    if outcome.junction is Junction.CLOSE_RESTORED:
        assert outcome.added_ids[0] == said[-1]


def test_the_certificate_says_that_the_stop_is_spelled_otherwise(rewriting: Renderer) -> None:
    found = rewriting.certificate.finding(FollowUpKind.USER, with_tools=False)
    assert found is not None
    assert (found.verdict, found.junction) == (Verdict.EXACT_BEHIND_JUNCTION, Junction.STOP_REWRITTEN)
    assert "which history spells" in found.detail


@pytest.mark.parametrize("template", [STOPS_ONLY_AT_THE_END, ONE_TOKEN_OPENS_AND_CLOSES])
def test_an_opener_is_not_taken_for_a_rewritten_stop(tmp_path: Path, template: str) -> None:
    renderer = stopping_only_with_endoftext(tmp_path, template)
    history = (Message(role="user", content="Hi"), Message(role="assistant", content="Ho"))
    outcome = renderer.bridge_to_next_turn([5], [6], [Message(role="user", content="And?")], history=history)
    assert isinstance(outcome, BridgeRefused)
    assert outcome.why is Why.NO_ATOMIC_CLOSE


def test_a_cut_answer_is_closed_as_history_closes_it(tmp_path: Path) -> None:
    renderer = stopping_only_with_endoftext(tmp_path, REWRITES)
    history = (Message(role="user", content="Hi"), Message(role="assistant", content="Ho"))
    outcome = renderer.bridge_to_next_turn(
        renderer.render_ids(history[:1]),
        renderer.tokenizer.encode("Ho"),
        [Message(role="user", content="And?")],
        history=history,
        finish_reason=FinishReason.LENGTH,
    )
    assert isinstance(outcome, Bridge)
    assert outcome.prompt_ids == renderer.render_ids((*history, Message(role="user", content="And?")))


CALLS = """{{%- for m in messages %}}
    {{%- if m.role == 'assistant' %}}{{{{- '<|im_start|>assistant<|im_mid|>' }}}}
        {{%- if m.tool_calls %}}
            {{%- for call in m.tool_calls %}}{call}{{%- endfor %}}{end_of_calls}
        {{%- else %}}{{{{- m.content }}}}{end_of_text}
        {{%- endif %}}
    {{%- elif m.role == 'tool' %}}{{{{- '<tool_response>' + m.content + '</tool_response>' }}}}
    {{%- else %}}{{{{- '<|im_start|>' + m.role + '<|im_mid|>' + m.content + '<|im_end|>' }}}}
    {{%- endif %}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}{{{{- '<|im_start|>assistant<|im_mid|>' }}}}{{%- endif %}}"""
_JSON = "{{- call.function.name + (call.function.arguments | tojson) }}"
_IN_TAGS = "{{- '<tool_call>' + call.function.name + (call.function.arguments | tojson) + '</tool_call>' }}"
_ONE_IN_TAGS = "{%- if loop.first %}" + _IN_TAGS + "{%- endif %}"


def derived(
    folder: Path, *, eos: str | None = None, call: str = _JSON, calls: str = "", text: str = "<|im_end|>"
) -> tuple[list[str], Renderer]:
    """The stops that are derived for a template whose messages end so."""
    template = CALLS.format(call=call, end_of_calls=calls, end_of_text=text)
    write_folder(folder, template)
    (folder / "generation_config.json").unlink()
    config = {"chat_template": template, **({"eos_token": eos} if eos else {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    renderer = load_renderer(folder)
    return [renderer.tokenizer.id_text(stop) for stop in renderer.stop_ids], renderer


def test_a_stop_of_its_own_behind_a_call_is_derived(tmp_path: Path) -> None:
    stops, renderer = derived(tmp_path, calls="<|endoftext|>")
    assert stops == ["<|im_end|>", "<|endoftext|>"]
    assert renderer.certificate.stop_doubts == ()


def test_a_token_between_two_calls_is_no_stop(tmp_path: Path) -> None:
    """Calls in tags: the closing tag stands between two of them; what stands behind the last one is the stop."""
    assert derived(tmp_path, call=_IN_TAGS, calls="<|endoftext|>")[0] == ["<|im_end|>", "<|endoftext|>"]


@pytest.mark.parametrize("call", [_IN_TAGS, _ONE_IN_TAGS])
def test_a_closing_tag_alone_is_not_taken_for_a_stop(tmp_path: Path, call: str) -> None:
    stops, renderer = derived(tmp_path, call=call)
    assert stops == ["<|im_end|>"]
    (doubt,) = renderer.certificate.stop_doubts
    assert doubt.startswith("no stop is known to end a tool call; if the model stops at ")
    assert f"</tool_call> ({_id_of(tmp_path, '</tool_call>')})" in doubt
    assert "--stop-id" in doubt


def test_the_end_of_a_list_of_calls_is_not_taken_for_a_stop(tmp_path: Path) -> None:
    opened = "{%- if loop.first %}{{- '<|bos|>' }}{%- endif %}" + _JSON
    stops, renderer = derived(tmp_path, call=opened, calls="<|endoftext|>")
    assert stops == ["<|im_end|>"]
    assert len(renderer.certificate.stop_doubts) == 1


def test_an_inner_token_in_front_of_the_eos_is_no_stop(tmp_path: Path) -> None:
    """As Cohere: the text is ended by one token, the turn by the next."""
    ends = {"text": "<|endoftext|><|im_end|>", "calls": "<|endoftext|><|im_end|>"}
    stops, renderer = derived(tmp_path, eos="<|im_end|>", **ends)
    assert (stops, renderer.certificate.stop_doubts) == (["<|im_end|>"], ())


def test_a_stop_that_only_the_last_message_lacks_is_the_stop_of_calls_too(tmp_path: Path) -> None:
    """As Apriel 1.6: what closes the list of calls stands in front of it, and was taken for the next opener."""
    stop = "{%- if not loop.last %}{{- '<|im_end|>' }}{%- endif %}"
    calls = "{%- if not loop.last %}{{- ', again' }}{%- endif %}</tool_call>" + stop
    called = "{%- if loop.first %}{{- '<tool_call>' }}{%- endif %}" + _JSON
    stops, renderer = derived(tmp_path, eos="<|im_end|>", call=called, calls=calls, text=stop)
    assert (stops, renderer.certificate.stop_doubts) == (["<|im_end|>"], ())


def test_two_tokens_that_could_both_be_the_stop_are_told_and_not_taken(tmp_path: Path) -> None:
    stops, renderer = derived(tmp_path, eos="<|bos|>", text="<|endoftext|><|im_end|>")
    assert stops == ["<|bos|>"]
    text, _ = renderer.certificate.stop_doubts
    assert "no stop is known to end a message of text" in text
    assert "<|endoftext|> (" in text
    assert "<|im_end|> (" in text


def test_a_caller_who_names_the_stop_ends_the_doubt(tmp_path: Path) -> None:
    derived(tmp_path, call=_IN_TAGS)
    named = load_renderer(tmp_path, stop_token_ids=[_id_of(tmp_path, "</tool_call>")])
    assert named.certificate.stop_doubts == ()


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("gpt-oss", {"<|return|>", "<|call|>"}),
        ("gemma-4", {"<eos>", "<turn|>", "<|tool_response>"}),
        ("glm-4.5", {"<|endoftext|>", "<|user|>", "<|observation|>"}),
        ("llama-3.1", {"<|eot_id|>"}),
        ("phi-3", {"<|endoftext|>", "<|end|>"}),
        ("deepseek-v3", {"<｜end▁of▁sentence｜>"}),
    ],
)
def test_real_folders_without_a_generation_config(tmp_path: Path, name: str, stops: set[str]) -> None:
    renderer = load_renderer(unpack_real(name, tmp_path))
    assert {renderer.tokenizer.id_text(stop) for stop in renderer.stop_ids} == stops
    assert renderer.stop_doubts == ()  # DeepSeek-V3 leaves the stop out behind one call, and shows it behind two
