"""The close, where a template has none of its own or more than one; over a tokenizer that is trained here."""

from __future__ import annotations

from pathlib import Path

import pytest

from rendering_folders import write_folder
from tokentrue import Renderer, load_renderer
from tokentrue.generation import FinishReason
from tokentrue.rendering.bridge import Bridge
from tokentrue.turns import Junction

OPENERS = """{%- for m in messages %}
    {{- {'user': '<|im_start|>', 'tool': '<|im_mid|>', 'assistant': '<|bos|>'}[m.role] + '\\n' + m.content }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|bos|>' }}{%- endif %}"""
"""As GLM: nothing closes a message; the next role's token does, and is the stop of the model."""

TWO_STOPS = """{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}
    {%- if m.role == 'assistant' %}{{- '<|endoftext|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

USER = {"role": "user", "content": "Hi"}
HISTORY = [USER, {"role": "assistant", "content": "Ho"}]
NEW = [{"role": "user", "content": "And?"}]


def bridged(renderer: Renderer, said: str, finish: FinishReason = FinishReason.STOP) -> tuple[Junction, str]:
    prompt, sampled = renderer.render_ids([USER]), renderer.tokenizer.encode(said)
    outcome = renderer.bridge_to_next_turn(prompt, sampled, NEW, history=HISTORY, finish_reason=finish)
    assert isinstance(outcome, Bridge), outcome
    kept = sampled[:-1] if outcome.junction is Junction.OPENER_DROPPED else sampled
    assert outcome.prompt_ids == [*prompt, *kept, *outcome.added_ids]
    return outcome.junction, renderer.tokenizer.decode(outcome.added_ids)


@pytest.fixture(scope="module")
def openers(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder = write_folder(tmp_path_factory.mktemp("openers"), OPENERS)
    (folder / "generation_config.json").unlink()
    named = load_renderer(folder).tokenizer
    stops = [
        info.id for text in ("<|im_start|>", "<|im_mid|>", "<|endoftext|>") if (info := named.added_token(text))
    ]
    return load_renderer(folder, stop_token_ids=stops)


@pytest.mark.parametrize(
    ("said", "junction", "added"),
    [
        ("\nHo<|im_start|>", Junction.OPENER_SHARED, "\nAnd?<|bos|>"),
        ("\nHo<|im_mid|>", Junction.OPENER_DROPPED, "<|im_start|>\nAnd?<|bos|>"),
        ("\nHo<|endoftext|>", Junction.STOP_REWRITTEN, "<|im_start|>\nAnd?<|bos|>"),
        ("\nHo", Junction.CLOSE_RESTORED, "<|im_start|>\nAnd?<|bos|>"),
    ],
)
def test_the_next_roles_token_closes_a_message(
    openers: Renderer, said: str, junction: Junction, added: str
) -> None:
    assert bridged(openers, said) == (junction, added)


@pytest.mark.parametrize(
    ("said", "finish", "junction", "added"),
    [
        ("Ho<|im_end|>", FinishReason.STOP, Junction.EXACT, "<|endoftext|>\n"),
        ("Ho<|endoftext|>", FinishReason.STOP, Junction.STOP_REWRITTEN, "<|endoftext|>\n"),
        ("Ho", FinishReason.STOP, Junction.CLOSE_RESTORED, "<|im_end|><|endoftext|>\n"),
        ("H", FinishReason.LENGTH, Junction.CLOSE_ADDED, "<|im_end|><|endoftext|>\n"),
    ],
)
def test_of_two_stops_the_first_is_the_close(
    tmp_path: Path, said: str, finish: FinishReason, junction: Junction, added: str
) -> None:
    renderer = load_renderer(write_folder(tmp_path, TWO_STOPS))
    rest = "<|im_start|>user\nAnd?<|im_end|><|im_start|>assistant\n"
    assert bridged(renderer, said, finish) == (junction, added + rest)
