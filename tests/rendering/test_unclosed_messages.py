"""Bridges behind messages that history leaves out, does not close, or closes with a token that is no stop.

Every template here is a small one of the kind that real families have; the tokenizer is trained on the spot.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from conversations import TOOLS, assistant_messages, follow_ups, openings, takes
from played import Play, tool_result, user
from real_tokenizers import SHARED
from rendering_folders import write_folder
from templates.at_hand import own_renderer, renderer_for, templates_at_hand
from tokentrue import Message, Renderer, ToolCall, load_renderer
from tokentrue.generation import FinishReason
from tokentrue.rendering.bridge import Bridge
from tokentrue.rendering.certificate import FollowUpKind, Verdict
from tokentrue.rendering.seams import SeamKind
from tokentrue.rendering.tail import BridgeRefused, FollowUp, Tail
from tokentrue.rendering.verdict import SampledStep, VerdictKind, judge
from tokentrue.rollouts.laws import Law
from tokentrue.rollouts.proof import prove
from tokentrue.tokens import TokenIds
from tokentrue.turns import How, Junction, Why

_ASKS = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
PLAIN = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    + _ASKS
)
"""As vLLM's template_chatml and TRL's llama3: a message that only calls tools is written without a word of it."""

SILENT = (
    "{%- for m in messages %}{%- if m.content %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}" + _ASKS
)
"""It writes nothing at all for a message without text."""

WITHOUT_TOOLS = (
    "{%- for m in messages %}{%- if m.role != 'tool' %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}" + _ASKS
)
"""As phi-3: it drops what a tool answered."""

LOOKS_BACK = (
    "{%- for m in messages %}{%- if m.content %}"
    "{%- set before = messages[loop.index0 - 1].content if loop.index0 else '' %}"
    "{{- '<|im_start|>' + m.role + ' (' + before | length | string + ')' }}"
    "{{- '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}" + _ASKS
)
"""What it writes behind a message with text is not what it writes behind one without."""

_CALLS = (
    '{%- for call in m.tool_calls or [] %}{{- \'<tool_call>\\n{"name": "\' + call.function.name }}'
    "{{- '\", \"arguments\": ' + (call.function.arguments | tojson) + '}\\n</tool_call>' }}"
)
FORGETFUL = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{%- if loop.last %}" + _CALLS + "{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}" + _ASKS
)
"""It writes calls only in the last message: they are read, and no history has them."""


def left_out(behind_two: str, results: str = "{{- '<|im_start|>tool\\n' + m.content + '<|im_end|>\\n' }}") -> str:
    """As DeepSeek-V3: a message with one call ends with the call, and with more `behind_two` stands behind it."""
    return (
        "{%- for m in messages %}{%- if m.role == 'tool' %}" + results + "{%- elif m.tool_calls %}"
        "{{- '<|im_start|>assistant\\n' }}" + _CALLS
        + "{%- if not loop.first %}{{- '" + behind_two + "' }}{%- endif %}{%- endfor %}"
        "{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{%- endif %}"
        "{%- endfor %}" + _ASKS
    )  # fmt: skip


LEFT_OUT = left_out("<|im_end|>")
INNER = left_out("")
"""As Apertus: however many calls there are, what ends them is no stop that anybody named."""
COUNTS = left_out(
    "<|im_end|>",
    "{{- '<|im_start|>tool ' + messages[loop.index0 - 1].tool_calls | length | string + '\\n' + m.content }}",
)
"""With one call more, what it writes behind the message is something else."""


def openers(roles: str, closing: str = "") -> str:
    """As GLM: the next role's token ends a message. `closing` is written behind an assistant's message."""
    return (
        "{%- for m in messages %}{{- {" + roles + "}[m.role] + '\\n' + m.content }}"
        "{%- if m.role == 'assistant' %}" + closing + "{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|bos|>' }}{%- endif %}"
    )


_ROLES = "'user': '<|im_start|>', 'tool': '<|im_mid|>', 'assistant': '<|bos|>', 'system': "
OPENERS = openers(_ROLES + "'<tool_response>'")
DEMANDS_SYSTEM = (
    "{%- set roles = messages | map(attribute='role') | list %}"
    "{%- if 'assistant' in roles and 'system' not in roles %}{{- raise_exception('no system') }}{%- endif %}"
    + OPENERS
)
"""Without a system message it renders no answer, so that its probes tell of no opener of a user's."""

WRITES_STOP_AT_END = openers(
    _ROLES + "('<tool_response>' if loop.first or messages[loop.index0 - 1].role != 'assistant' else '')",
    "{%- if loop.last %}{{- '<|im_start|>' }}{%- elif messages[loop.index0 + 1].role == 'system' %}"
    "{{- '<tool_response>' }}{%- endif %}",
)
"""As TRL's training template for GLM: the opener is the end of the assistant's message, the last one too."""


def calls_end_with_the_opener(result: str) -> str:
    """The same with calls: what ends them is a result's role, which the template writes nowhere else."""
    return (
        "{%- for m in messages %}{%- if m.role == 'tool' %}{{- '" + result + "' + m.content }}"
        "{%- elif m.role == 'assistant' %}{{- '<|bos|>\\n' + m.content }}" + _CALLS + "{%- endfor %}"
        "{{- '<|im_mid|>' if m.tool_calls else '<|im_start|>' }}{%- else %}"
        "{%- if loop.first or messages[loop.index0 - 1].role != 'assistant' %}{{- '<|im_start|>' }}{%- endif %}"
        "{{- '\\n' + m.content }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|bos|>' }}{%- endif %}"
    )


OTHER_BEHIND_A_USER = openers(
    _ROLES + "('<tool_response>' if loop.first or messages[loop.index0 - 1].role == 'assistant' else '<think>')"
)
NO_OPENER_IS_A_STOP = openers(
    "'user': '<think>', 'tool': '<|im_mid|>', 'assistant': '<|bos|>', 'system': '<tool_response>'"
)

USER, SYSTEM = user("Hi"), Message(role="system", content="Be brief.")
SAID = Message(role="assistant", content="Ho")
CALLED = Message(role="assistant", tool_calls=(ToolCall("look_up", '{"word": "tea"}', "call_0"),))
RESULT = tool_result("a drink", "call_0")
relaxed = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def made(folder: Path, template: str, *stops: str) -> Renderer:
    """A renderer of `template`; `stops` in the place of the folder's own."""
    write_folder(folder, template)
    if not stops:
        return load_renderer(folder)
    listed = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    added = {token["content"]: token["id"] for token in listed}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [added[stop] for stop in stops]}))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": stops[0]}))
    return load_renderer(folder)


GLM_STOPS = ("<|endoftext|>", "<|im_start|>", "<|im_mid|>")


def bridged(
    renderer: Renderer,
    sampled: str,
    history: Sequence[Message],
    new: Sequence[Message],
    finish: FinishReason = FinishReason.STOP,
) -> tuple[Junction, str]:
    """How a completion was joined, and the text that was added; laws 1 and 2 are checked on the way."""
    prompt, ids = renderer.render_ids(history[:-1], tools=TOOLS), renderer.tokenizer.encode(sampled)
    outcome = renderer.bridge_to_next_turn(prompt, ids, new, history=history, finish_reason=finish, tools=TOOLS)
    assert isinstance(outcome, Bridge), outcome
    kept = ids[:-1] if outcome.junction is Junction.OPENER_DROPPED else ids
    assert outcome.prompt_ids == [*prompt, *kept, *outcome.added_ids]
    return outcome.junction, renderer.tokenizer.decode(outcome.added_ids)


def refused(renderer: Renderer, history: Sequence[Message], new: Sequence[Message]) -> BridgeRefused:
    outcome = renderer.bridge_to_next_turn([5], [6], new, history=history, tools=TOOLS)
    assert isinstance(outcome, BridgeRefused), outcome
    return outcome


_TOOL = "<|im_start|>tool\na drink<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("template", [PLAIN, SILENT, FORGETFUL], ids=["plain", "silent", "forgetful"])
@pytest.mark.parametrize(
    ("sampled", "finish", "junction", "inserted"),
    [
        ("<tool_call>{}</tool_call><|im_end|>", FinishReason.STOP, Junction.EXACT, ""),
        ("<tool_call>{}</tool_call><|endoftext|>", FinishReason.STOP, Junction.STOP_REWRITTEN, ""),
        ("<tool_call>{}</tool_call>", FinishReason.STOP, Junction.CLOSE_RESTORED, "<|im_end|>"),
        ("<tool_call>{}</tool", FinishReason.LENGTH, Junction.CLOSE_ADDED, "<|im_end|>"),
    ],
)
def test_a_message_that_history_leaves_out_is_bridged(
    tmp_path: Path, template: str, sampled: str, finish: FinishReason, junction: Junction, inserted: str
) -> None:
    """The calls stay, as they were sampled; what follows is what the template writes in their place."""
    renderer = made(tmp_path, template)
    found = bridged(renderer, sampled, (USER, CALLED), (RESULT,), finish)
    assert found == (junction, f"{inserted}\n{_TOOL}")
    full = renderer.render_text((USER, CALLED, RESULT), tools=TOOLS)
    assert full.endswith(f"<|im_end|>\n{_TOOL}")


@pytest.mark.parametrize("template", [PLAIN, SILENT], ids=["plain", "silent"])
def test_the_certificate_says_that_the_calls_are_kept_by_the_bridge_only(tmp_path: Path, template: str) -> None:
    certificate = made(tmp_path, template).certificate
    for kind in (FollowUpKind.TOOL, FollowUpKind.TOOLS, FollowUpKind.TOOL_THEN_USER):
        found = certificate.finding(kind, with_tools=True)
        assert found is not None
        assert (found.verdict, found.junction) == (Verdict.TEMPLATE_REWRITES_HISTORY, Junction.EXACT)
        assert "leaves sampled calls out" in found.detail
        assert found.expected.startswith("qzName7 {")
        assert "qzName7" not in found.template


def test_what_a_tool_answered_is_never_left_out_silently(tmp_path: Path) -> None:
    outcome = refused(made(tmp_path, WITHOUT_TOOLS), (USER, CALLED), (RESULT, user("And?")))
    assert outcome.why is Why.NEW_MESSAGE_DROPPED
    assert outcome.expected == "a drink"
    assert outcome.template == "<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    assert outcome.expected in outcome.detail
    assert "message 2 (tool)" in outcome.detail


def test_a_tail_that_depends_on_the_text_left_out_is_refused(tmp_path: Path) -> None:
    outcome = refused(made(tmp_path, LOOKS_BACK), (USER, CALLED), (RESULT,))
    assert outcome.why is Why.ASSISTANT_DROPPED
    assert outcome.expected == 'look_up {"word": "tea"}'
    assert outcome.template.startswith("<|im_start|>tool (0)\na drink")


_BLOCK = '<tool_call>\n{"name": "look_up", "arguments": {"word": "tea"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("behind", "finish", "junction", "inserted"),
    [
        ("<|im_end|>", FinishReason.STOP, Junction.STOP_REWRITTEN, ""),
        ("<|endoftext|>", FinishReason.STOP, Junction.STOP_REWRITTEN, ""),
        ("", FinishReason.STOP, Junction.CLOSE_RESTORED, "<|im_end|>"),
        ("", FinishReason.LENGTH, Junction.CLOSE_ADDED, "<|im_end|>"),
        ("", None, Junction.CLOSE_ADDED, "<|im_end|>"),
    ],
)
def test_a_stop_that_history_leaves_out_is_kept_or_put_back(
    tmp_path: Path, behind: str, finish: FinishReason, junction: Junction, inserted: str
) -> None:
    """The message's own last token is the border, and never taken for the stop."""
    renderer = made(tmp_path, LEFT_OUT)
    assert bridged(renderer, _BLOCK + behind, (USER, CALLED), (RESULT,), finish) == (junction, inserted + _TOOL)
    tail = renderer.bridges.tails.derive(FollowUp((USER, CALLED), (RESULT,), TOOLS))
    assert isinstance(tail, Tail)
    assert (tail.seam.close.text, tail.seam.kind, tail.seam.sampled.text) == (
        "</tool_call>", SeamKind.NO_STOP, "<|im_end|>"
    )  # fmt: skip


def test_the_certificate_says_that_history_leaves_the_stop_out(tmp_path: Path) -> None:
    renderer = made(tmp_path, LEFT_OUT)
    found = renderer.certificate.finding(FollowUpKind.TOOL, with_tools=True)
    assert found is not None
    assert (found.verdict, found.junction) == (Verdict.EXACT_BEHIND_JUNCTION, Junction.STOP_REWRITTEN)
    assert found.detail == "the sampled '<|im_end|>' is kept, which history leaves out"


@pytest.mark.parametrize("template", [INNER, COUNTS], ids=["inner", "counts"])
def test_an_inner_token_is_no_border(tmp_path: Path, template: str) -> None:
    outcome = refused(made(tmp_path, template), (USER, CALLED), (RESULT,))
    assert outcome.why is Why.NO_ATOMIC_CLOSE
    assert "</tool_call><|im_start|>tool" in outcome.template
    assert "<|im_end|>" in outcome.expected


@pytest.mark.parametrize("template", [OPENERS, WRITES_STOP_AT_END], ids=["openers", "writes the stop"])
@pytest.mark.parametrize(
    ("sampled", "finish", "junction", "added"),
    [
        ("\nHo<|im_start|>", FinishReason.STOP, Junction.OPENER_DROPPED, "<tool_response>"),
        ("\nHo<|endoftext|>", FinishReason.STOP, Junction.STOP_REWRITTEN, "<tool_response>"),
        ("\nHo", FinishReason.STOP, Junction.CLOSE_RESTORED, "<tool_response>"),
        ("\nH", FinishReason.LENGTH, Junction.CLOSE_ADDED, "<tool_response>"),
    ],
)
def test_an_opener_that_is_no_stop_takes_the_place_of_one(
    tmp_path: Path, template: str, sampled: str, finish: FinishReason, junction: Junction, added: str
) -> None:
    renderer = made(tmp_path, template, *GLM_STOPS)
    assert bridged(renderer, sampled, (USER, SAID), (SYSTEM,), finish) == (junction, f"{added}\nBe brief.<|bos|>")
    found = renderer.certificate.finding(FollowUpKind.SYSTEM, with_tools=False)
    assert found is not None
    assert (found.verdict, found.junction) == (Verdict.EXACT, Junction.OPENER_DROPPED)


@pytest.mark.parametrize("template", [OPENERS, WRITES_STOP_AT_END], ids=["openers", "writes the stop"])
@pytest.mark.parametrize(
    ("sampled", "finish", "junctions", "added"),
    [
        ("\nHo<|im_start|>", FinishReason.STOP, (Junction.OPENER_SHARED, Junction.EXACT), ""),
        ("\nHo<|im_mid|>", FinishReason.STOP, (Junction.OPENER_DROPPED,), "<|im_start|>"),
        ("\nHo<|endoftext|>", FinishReason.STOP, (Junction.STOP_REWRITTEN,), "<|im_start|>"),
        ("\nHo", FinishReason.STOP, (Junction.CLOSE_RESTORED,), "<|im_start|>"),
        ("\nH", FinishReason.LENGTH, (Junction.CLOSE_ADDED,), "<|im_start|>"),
    ],
)
def test_an_opener_is_never_lost_even_where_the_last_message_ends_with_it(
    tmp_path: Path,
    template: str,
    sampled: str,
    finish: FinishReason,
    junctions: tuple[Junction, ...],
    added: str,
) -> None:
    """Without it the new message would have no role."""
    renderer = made(tmp_path, template, *GLM_STOPS)
    junction, text = bridged(renderer, sampled, (USER, SAID), (user("And?"),), finish)
    assert junction in junctions
    assert text == f"{added}\nAnd?<|bos|>"


def test_the_opener_that_a_user_would_have_is_known_from_the_conversation_itself(tmp_path: Path) -> None:
    """The sampled `<|im_start|>` would begin a user's message, and is not the system message's role."""
    renderer = made(tmp_path, DEMANDS_SYSTEM, *GLM_STOPS)
    found = bridged(renderer, "\nHo<|im_start|>", (SYSTEM, USER, SAID), (SYSTEM,))
    assert found == (Junction.OPENER_DROPPED, "<tool_response>\nBe brief.<|bos|>")


@pytest.mark.parametrize("template", [OTHER_BEHIND_A_USER, NO_OPENER_IS_A_STOP], ids=["other", "no stop"])
def test_an_opener_that_is_not_certain_is_refused(tmp_path: Path, template: str) -> None:
    outcome = refused(made(tmp_path, template, *GLM_STOPS), (USER, SAID), (SYSTEM,))
    assert outcome.why is Why.NO_ATOMIC_CLOSE
    assert outcome.template.startswith("<tool_response>\n")


KINDS = {
    "plain": (PLAIN,),
    "silent": (SILENT,),
    "forgetful": (FORGETFUL,),
    "left out": (LEFT_OUT,),
    "openers": (OPENERS, *GLM_STOPS),
}


@pytest.fixture(scope="module", params=KINDS, ids=list(KINDS))
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    template, *stops = KINDS[request.param]
    return made(tmp_path_factory.mktemp("kind"), template, *stops)


@relaxed
@given(data=st.data())
def test_the_fast_path_is_the_slow_path(kind: Renderer, data: st.DataObject) -> None:
    """And both end the real rendering, close in front: law 2 over conversations of several turns."""
    tails = kind.bridges.tails
    assert tails.short_is_enough
    history = data.draw(openings)
    for _ in range(data.draw(st.integers(1, 4))):
        assistant = data.draw(assistant_messages(2, reasoning=False))
        new = (*data.draw(follow_ups(assistant)), *data.draw(st.sampled_from([(), (SYSTEM,)])))
        history = (*history, assistant)
        assume(takes(kind, (*history, *new)))
        asked = FollowUp(history, new, TOOLS)
        found = tails.tail(asked)
        assert found == tails.full_tail(asked) == tails.derive(asked)
        short = asked.shortened()
        quick = tails.derive(short) if short is not None else found
        if isinstance(quick, Tail):  # where the short one is refused, the whole conversation is asked
            assert isinstance(found, Tail)
            assert (quick.seam, quick.text) == (found.seam, found.text)
        if isinstance(found, Tail):
            full = kind.render_text((*history, *new), tools=TOOLS)
            assert full.endswith(found.seam.close.text + found.text)
        history = (*history, *new)
    assert tails.memory.disproofs == []


@pytest.mark.parametrize(
    ("template", "kind"), [(PLAIN, VerdictKind.SAMPLED_DIVERGES), (FORGETFUL, VerdictKind.HISTORY_REWRITE)]
)
def test_the_verdict_tells_that_history_loses_the_calls(tmp_path: Path, template: str, kind: VerdictKind) -> None:
    """Where calls are never written, what was sampled diverges; where they are forgotten, history is rewritten."""
    renderer = made(tmp_path, template)
    prompt, ids = renderer.render_ids((USER,), tools=TOOLS), renderer.tokenizer.encode(_BLOCK + "<|im_end|>")
    messages = (USER, CALLED, RESULT)
    outcome = renderer.bridge_to_next_turn(prompt, ids, (RESULT,), history=messages[:2], tools=TOOLS)
    assert isinstance(outcome, Bridge)
    step = SampledStep(1, TokenIds(ids), prompt)
    verdict = judge(renderer, messages, TOOLS, outcome.prompt_ids, [step])
    assert verdict.kind is kind
    assert verdict.ours.startswith("<tool_call>")
    assert verdict.template.startswith("<|im_end|>")


@pytest.mark.parametrize(
    ("sampled", "finish", "junction", "added"),
    [
        ("<|im_mid|>", FinishReason.STOP, Junction.EXACT, ""),
        ("<|im_start|>", FinishReason.STOP, Junction.OPENER_DROPPED, "<|im_mid|>"),
        ("<|endoftext|>", FinishReason.STOP, Junction.STOP_REWRITTEN, "<|im_mid|>"),
        ("", FinishReason.STOP, Junction.CLOSE_RESTORED, "<|im_mid|>"),
        ("", FinishReason.LENGTH, Junction.CLOSE_ADDED, "<|im_mid|>"),
    ],
)
def test_a_tool_s_result_keeps_its_role_whatever_the_calls_ended_with(
    tmp_path: Path, sampled: str, finish: FinishReason, junction: Junction, added: str
) -> None:
    renderer = made(tmp_path, calls_end_with_the_opener("\\n<tool_response>\\n"), *GLM_STOPS)
    found = bridged(renderer, "\n" + _BLOCK + sampled, (USER, CALLED), (RESULT,), finish)
    assert found == (junction, f"{added}\n<tool_response>\na drink<|bos|>")


def test_a_result_with_a_marker_of_its_own_needs_no_other(tmp_path: Path) -> None:
    """Then what ends calls is their close, and a stop that was sampled in its place stays alone."""
    renderer = made(tmp_path, calls_end_with_the_opener("<|im_end|>\\n"), *GLM_STOPS)
    for stop in ("<|im_start|>", "<|endoftext|>"):
        found = bridged(renderer, "\n" + _BLOCK + stop, (USER, CALLED), (RESULT,))
        assert found == (Junction.STOP_REWRITTEN, "<|im_end|>\na drink<|bos|>")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent: no real templates at hand")
@pytest.mark.parametrize("stop", ["<|observation|>", "<|user|>", "<|endoftext|>"])
def test_trl_s_glm_is_continued_alike_with_and_without_its_training_marks(stop: str) -> None:
    """Its two templates write the same prompts; only one of them writes the opener as an end of the message."""
    prompts = []
    for template in templates_at_hand():
        if template.name in ("trl/glm4moe", "trl/glm4moe_training"):
            renderer = renderer_for(template)
            prompt = renderer.render_ids((USER,), tools=TOOLS)
            ids = [
                *renderer.tokenizer.encode("\n<think></think>\n<tool_call>look_up\n</tool_call>"),
                _stop(renderer, stop),
            ]
            outcome = renderer.bridge_to_next_turn(prompt, ids, (RESULT,), history=(USER, CALLED), tools=TOOLS)
            assert isinstance(outcome, Bridge), outcome
            prompts.append(renderer.tokenizer.decode(outcome.prompt_ids))
    assert len(prompts) == 2
    assert prompts[0] == prompts[1]
    assert prompts[0].endswith("<|observation|>\n<tool_response>\na drink\n</tool_response><|assistant|>")


def _proved(play: Play, renderer: Renderer, *junctions: Junction) -> None:
    """The recorded rollout holds its laws, and was bridged in these ways."""
    played = play.done()
    later = [record.turn.stitch for record in played.turns[1:]]
    assert [(stitch.how, stitch.junction) for stitch in later] == [(How.BRIDGED, each) for each in junctions]
    proof = prove([played.episode], played.turns, renderer)
    assert proof.holds, [check.violations for check in proof.checks]
    (faithful,) = [check for check in proof.checks if check.law is Law.FAITHFUL]
    assert faithful.checked == len(junctions)


def _stop(renderer: Renderer, text: str) -> int:
    found = renderer.tokenizer.added_token(text)
    assert found is not None
    return found.id


@pytest.mark.parametrize(
    ("template", "joined"), [(FORGETFUL, Junction.EXACT), (LEFT_OUT, Junction.STOP_REWRITTEN)]
)
def test_a_recorded_rollout_with_calls_that_history_leaves_out_or_does_not_close(
    tmp_path: Path, template: str, joined: Junction
) -> None:
    renderer = made(tmp_path, template)
    play = Play(renderer, [USER])
    call = renderer.tokenizer.encode(_BLOCK)
    for index, (ids, reason) in enumerate(
        [
            ([*call, _stop(renderer, "<|im_end|>")], FinishReason.STOP),
            (call, FinishReason.STOP),
            ([*call, _stop(renderer, "<|im_end|>")], FinishReason.STOP),
        ]
    ):
        message = play.sample(ids, reason)
        assert [each.name for each in message.tool_calls] == ["look_up"]
        play.answer(tool_result("a drink", f"call_{index}_0"))
    play.say("It is a drink.")
    _proved(play, renderer, joined, Junction.CLOSE_RESTORED, joined)


def test_a_recorded_rollout_with_system_messages_in_the_middle(tmp_path: Path) -> None:
    renderer = made(tmp_path, OPENERS, *GLM_STOPS)
    play = Play(renderer, [USER], tools=())
    for stop in ("<|im_start|>", "<|endoftext|>", "<|im_mid|>"):
        play.sample([*renderer.tokenizer.encode("\nHo"), _stop(renderer, stop)])
        play.answer(SYSTEM, user("And?"))
    play.sample([*renderer.tokenizer.encode("\nHo"), _stop(renderer, "<|im_start|>")])
    dropped = Junction.OPENER_DROPPED
    _proved(play, renderer, dropped, Junction.STOP_REWRITTEN, dropped)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent: no real tokenizers at hand")
def test_a_recorded_rollout_of_deepseek_v3_with_one_call_a_turn() -> None:
    """Its own way to end a call stays in the prompt, although its template leaves that out of the first one."""
    renderer = own_renderer("deepseek-v3")
    said = (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>look_up\n```json\n"
        '{"word": "tea"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    )
    play = Play(renderer, [USER])
    for index in range(2):
        message = play.sample([*renderer.tokenizer.encode(said), renderer.stop_ids[0]])
        assert [call.name for call in message.tool_calls] == ["look_up"]
        play.answer(tool_result("a drink", f"call_{index}_0"))
    play.say("It is a drink.")
    _proved(play, renderer, Junction.STOP_REWRITTEN, Junction.EXACT)
