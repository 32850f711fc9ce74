"""A close that a template leaves out behind the last message is a close, whichever stop was sampled."""

from __future__ import annotations

from pathlib import Path

import pytest

from played import Play, tool_result, user
from real_tokenizers import SHARED
from rendering_folders import write_folder
from templates.at_hand import SCENARIOS, completion, renderer_for, templates_at_hand
from templates.spoken import TYPED_TOOLS
from tokentrue import Message, Renderer, ToolCall, load_renderer
from tokentrue.generation import FinishReason
from tokentrue.rendering.bridge import Bridge
from tokentrue.rendering.renderer import make_renderer
from tokentrue.rollouts.proof import prove
from tokentrue.turns import Junction

_ASKS = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
CHATML = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{%- if not loop.last or add_generation_prompt %}{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}" + _ASKS
)
"""As vLLM's template_chatml: no last message is closed, of whatever role, until something follows."""

SAID_ONLY = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{%- if m.role == 'assistant' and not loop.last %}{{- '\\n<|im_end|>\\n' }}{%- endif %}{%- endfor %}" + _ASKS
)
"""As Apriel's and Hy3's: only what the model said is closed, and not behind the last message."""

ONE_OPENER = (
    "{%- for m in messages %}{{- '<|im_end|>' + m.role + '\\n' + m.content }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_end|>assistant\\n' }}{%- endif %}"
)
"""All roles begin with one token, and that ends a message: it stands in front of the first one too."""

USER, RESULT = user("And?"), tool_result("a drink", "call_0")
SAID = Message(role="assistant", content="Ho")
CALLED = Message(role="assistant", content="Ho", tool_calls=(ToolCall("look_up", '{"word": "tea"}', "call_0"),))
BEHIND = [(SAID, (USER,)), (CALLED, (RESULT,)), (CALLED, (RESULT, USER))]


def added(
    renderer: Renderer, said: Message, new: tuple[Message, ...], stop: str, reason: FinishReason
) -> tuple[Junction, str]:
    """How the bridge is joined, and its text; laws 1 and 2 are checked on the way."""
    history = [user("Hi"), said]
    prompt, sampled = renderer.render_ids(history[:1]), renderer.tokenizer.encode("Ho" + stop)
    found = renderer.bridge_to_next_turn(prompt, sampled, new, history=history, finish_reason=reason)
    assert isinstance(found, Bridge), found
    assert found.prompt_ids == [*prompt, *sampled, *found.added_ids]
    return found.junction, renderer.tokenizer.decode(found.added_ids)


@pytest.mark.parametrize(("template", "gap"), [(CHATML, ""), (SAID_ONLY, "\n")], ids=["all", "said only"])
@pytest.mark.parametrize(("said", "new"), BEHIND, ids=["user", "tool", "tool, user"])
@pytest.mark.parametrize(
    ("stop", "reason", "junction"),
    [
        ("<|im_end|>", FinishReason.STOP, Junction.EXACT),
        ("<|endoftext|>", FinishReason.STOP, Junction.STOP_REWRITTEN),
        ("", FinishReason.STOP, Junction.CLOSE_RESTORED),
        ("", FinishReason.LENGTH, Junction.CLOSE_ADDED),
    ],
)
def test_any_stop_of_the_message_is_its_end(
    tmp_path: Path,
    template: str,
    gap: str,
    said: Message,
    new: tuple[Message, ...],
    stop: str,
    reason: FinishReason,
    junction: Junction,
) -> None:
    """No second close behind another stop, and a text that was cut gets all that the template ends one with."""
    renderer = load_renderer(write_folder(tmp_path, template))
    full = renderer.render_text([user("Hi"), said, *new])
    behind = full[full.find("Ho") + len("Ho") :].removeprefix(gap + "<|im_end|>")
    end = {Junction.CLOSE_RESTORED: "<|im_end|>", Junction.CLOSE_ADDED: gap + "<|im_end|>"}.get(junction, "")
    assert added(renderer, said, new, stop, reason) == (junction, end + behind)


@pytest.mark.parametrize(
    ("stop", "junction", "opener"),
    [
        ("<|im_end|>", Junction.OPENER_SHARED, ""),
        ("<|endoftext|>", Junction.STOP_REWRITTEN, "<|im_end|>"),
    ],
)
def test_a_token_that_begins_the_conversation_too_stays_an_opener(
    tmp_path: Path, stop: str, junction: Junction, opener: str
) -> None:
    """Without it the next message would have no role."""
    renderer = load_renderer(write_folder(tmp_path, ONE_OPENER))
    found = added(renderer, SAID, (USER,), stop, FinishReason.STOP)
    assert found == (junction, opener + "user\nAnd?<|im_end|>assistant\n")


@pytest.mark.parametrize("template", [CHATML, SAID_ONLY], ids=["all", "said only"])
def test_a_recorded_rollout_behind_every_stop_holds_its_laws(tmp_path: Path, template: str) -> None:
    renderer = load_renderer(write_folder(tmp_path, template))
    play = Play(renderer, [user("Hi")], tools=())
    encode = renderer.tokenizer.encode
    for sampled, reason in [
        ("Ho<|endoftext|>", FinishReason.STOP),
        ("Ho<|im_end|>", FinishReason.STOP),
        ("Ho", FinishReason.LENGTH),
        ("Ho", FinishReason.STOP),
    ]:
        play.sample(encode(sampled), reason)
        play.answer(USER)
    play.sample(encode("Ho<|im_end|>"))
    played = play.done()
    assert [record.turn.stitch.junction for record in played.turns[1:]] == [
        Junction.STOP_REWRITTEN,
        Junction.EXACT,
        Junction.CLOSE_ADDED,
        Junction.CLOSE_RESTORED,
    ]
    proof = prove([played.episode], played.turns, renderer)
    assert proof.holds, [check for check in proof.checks if not check.holds]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent: no real templates at hand")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_vllm_s_chatml_is_continued_as_it_writes_itself_behind_every_stop(scenario) -> None:
    own = renderer_for(next(each for each in templates_at_hand() if each.name == "vllm/template_chatml"))
    tokenizer = own.tokenizer
    end_of_text = tokenizer.added_token("<|endoftext|>")
    assert end_of_text is not None
    renderer = make_renderer(tokenizer, own.template, (*own.stop_ids, end_of_text.id), "chatml")
    history = (user("Hi"), scenario.assistant)
    prompt, said = completion(renderer, scenario.assistant, history[:1])
    full = renderer.render_text((*history, *scenario.new), tools=TYPED_TOOLS)
    tail = full[full.find("<|im_end|>", full.find("<|im_start|>assistant")) + len("<|im_end|>") :]
    close = renderer.stop_ids[0]
    for stop, junction, end in [
        (close, Junction.EXACT, ""),
        (end_of_text.id, Junction.STOP_REWRITTEN, ""),
        (None, Junction.CLOSE_RESTORED, "<|im_end|>"),
    ]:
        body = [each for each in said if each not in renderer.stop_ids]
        sampled = body if stop is None else [*body, stop]
        found = renderer.bridge_to_next_turn(
            prompt, sampled, scenario.new, history=history, finish_reason=FinishReason.STOP, tools=TYPED_TOOLS
        )
        assert isinstance(found, Bridge), found
        assert found.prompt_ids == [*prompt, *sampled, *found.added_ids]
        assert (found.junction, tokenizer.decode(found.added_ids)) == (junction, end + tail)
