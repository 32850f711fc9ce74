"""`on_rewrite = "splice"`: the prompt is what the template writes now, of the ids that were sampled."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from difflib import SequenceMatcher
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from conversations import TOOLS, assistant_messages, follow_ups, openings, takes
from played import Play, Played, draw_conversation, user
from real_tokenizers import unpack_real
from rendering.conftest import LLAMA_LIKE, QWEN_LIKE
from rendering_folders import write_folder
from templates.at_hand import completion_behind, renderer_for, templates_at_hand
from tokentrue import Message, Renderer, Session, ToolCall, load_renderer
from tokentrue.errors import AlignmentError, TemplateRenderError
from tokentrue.generation import FinishReason, Generation, make_tokens
from tokentrue.rendering.verdict import OnRewrite
from tokentrue.rollouts.comparison import shared_len
from tokentrue.rollouts.laws import Law, check_laws
from tokentrue.rollouts.proof import prove
from tokentrue.sessions.samples import training_samples
from tokentrue.sessions.stitch import engine_rendered
from tokentrue.sessions.trajectories import session_samples
from tokentrue.sessions.writers import prompt_writers
from tokentrue.tokens import TokenIds
from tokentrue.turns import CutSpan, How, TokenKind, Turn, Why, without

# The same with reasoning that the generation prompt opens, as DeepSeek R1 and Qwen3-Thinking do.
OPENED = (
    QWEN_LIKE.replace("m.reasoning_content and loop.index0 > ns.last", "loop.index0 > ns.last")
    .replace("m.reasoning_content.strip", "(m.reasoning_content or '').strip")
    .replace(
        "{{- '<|im_start|>assistant\\n' }}{%- endif %}", "{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
    )
)
LIKE = {"qwen_like": QWEN_LIKE, "llama_like": LLAMA_LIKE, "opened": OPENED}
NAMES = ("qwen_like", "llama_like", "opened", "qwen3", "glm-4.5")
relaxed = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def renderers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Renderer]:
    """Each renderer by its name, loaded once."""
    loaded: dict[str, Renderer] = {}

    def load(name: str) -> Renderer:
        if name not in loaded:
            folder = tmp_path_factory.mktemp(name)
            made = write_folder(folder, LIKE[name]) if name in LIKE else unpack_real(name, folder)
            loaded[name] = load_renderer(made, now=datetime(2026, 1, 2))
        return loaded[name]

    return load


@pytest.fixture(params=NAMES)
def renderer(request: pytest.FixtureRequest, renderers: Callable[[str], Renderer]) -> Renderer:
    return renderers(request.param)


def oracle_text(renderer: Renderer, messages: Sequence[Message]) -> str:
    """What transformers' own renderer writes, as the tokenizer spells it (some normalise characters)."""
    (text,), _ = render_jinja_template(
        conversations=[renderer.form.to_templates(tuple(messages))],
        tools=list(TOOLS),
        chat_template=renderer.template.tool_use or renderer.template.default,
        add_generation_prompt=True,
        **renderer.template.special_tokens,
    )
    return renderer.tokenizer.decode(renderer.tokenizer.encode(text))


def as_written(renderer: Renderer, asked: tuple[Message, ...], said: Message) -> list[int]:
    """The ids of a model that writes as its template does; GLM closes a message by the next role's opener."""
    ids = completion_behind(renderer, asked, said, (user("?"),), TOOLS)
    stop = renderer.tokenizer.added_token("<|observation|>" if said.tool_calls else "<|user|>")
    return [*ids[:-1], stop.id] if stop is not None and stop.id in renderer.stop_ids else ids


def conversations_of(played: Played) -> list[tuple[Message, ...]]:
    """What each turn was asked."""
    found, conversation = [], ()
    for record in played.turns:
        conversation = record.conversation(conversation)
        found.append(conversation[:-1])
    return found


def sampled_ids(played: Played, turn: Turn) -> list[int]:
    """The ids of a prompt that were sampled, told by the turns' records alone."""
    turns = [record.turn for record in played.turns]
    writers = prompt_writers(turn.stitch, turn.prompt_spans, lambda at: turns[at], lambda at: at)
    sampled = [span for span in writers if span.kind is TokenKind.SAMPLED]
    return [token_id for span in sampled for token_id in turn.tokens.prompt_ids[span.start : span.end]]


def is_within(part: Sequence[int], whole: Sequence[int]) -> bool:
    """Whether `part` is `whole` with some of it left out."""
    left = iter(whole)
    return all(token_id in left for token_id in part)


def assert_spliced_well(renderer: Renderer, played: Played) -> None:
    """What holds of every record with splices in it, whatever was sampled."""
    turns = [record.turn for record in played.turns]
    for turn in turns:
        if turn.stitch.how is not How.SPLICED:
            continue
        anchor = turns[turn.stitch.anchor_turn or 0]
        known = anchor.tokens.all_ids()[: turn.stitch.anchor_len]
        kept = without(TokenIds(known), turn.stitch.removed).tolist()
        assert len(kept) == turn.stitch.known_len < len(known)
        assert turn.tokens.prompt_ids[: len(kept)] == kept
        earlier = [token_id for one in turns[: turn.index] for token_id in one.tokens.completion_ids]
        assert is_within(sampled_ids(played, turn), earlier)
        assert turn.stitch.why is Why.HISTORY_REWRITE
        assert turn.stitch.detail
    proof = prove([played.episode], played.turns, renderer)
    assert proof.holds, [check for check in proof.checks if not check.holds]
    samples = training_samples(turns)
    sampled = sum(len(turn.tokens.completion_ids) for turn in turns)
    assert sum(int(sample.loss_mask.sum()) for sample in samples) == sampled
    first = {sample.turns[0] for sample in samples}
    assert first >= {turn.index for turn in turns if turn.stitch.how in (How.SPLICED, How.RENDERED)}
    counts = session_samples(turns).counts
    assert (counts.sampled, counts.trained) == (sampled, sampled)


@relaxed
@given(data=st.data())
def test_splice_keeps_the_laws_whatever_is_sampled(renderer: Renderer, data: st.DataObject) -> None:
    """In splits of its own, stopped, stripped of the stop, or cut anywhere."""
    played = draw_conversation(data, renderer, OnRewrite.SPLICE)
    assert_spliced_well(renderer, played)
    opener = renderer.reader.reasoning.opener.id if renderer.reader.reasoning is not None else -1
    for record, asked in zip(played.turns, conversations_of(played), strict=True):
        if record.turn.stitch.how is How.SPLICED:
            full = renderer.render_ids(asked, tools=TOOLS).tolist()
            assert record.turn.tokens.prompt_ids.tolist().count(opener) == full.count(opener)


@relaxed
@given(data=st.data())
def test_what_is_sampled_as_the_template_writes_it_is_spliced_to_the_template_s_text(
    renderer: Renderer, data: st.DataObject
) -> None:
    """The oracle is transformers' renderer; every rewrite of these templates is one that can be spliced."""
    calls = 1 if renderer.tool_format is not None and renderer.tool_format.name.startswith("bare") else 3
    messages = assistant_messages(calls, reasoning=renderer.reader.reasoning is not None)
    play = Play(renderer, list(data.draw(openings)), on_rewrite=OnRewrite.SPLICE)
    wanted = data.draw(st.lists(messages, min_size=2, max_size=4))
    answers = [data.draw(follow_ups(message)) for message in wanted]
    for said, answer in zip(wanted, answers, strict=True):
        try:
            ids = as_written(renderer, tuple(play.messages), said)
        except TemplateRenderError:
            break
        message_calls = iter(play.sample(ids).tool_calls)
        play.answer(
            *(replace(one, tool_call_id=next(message_calls).id) if one.role == "tool" else one for one in answer)
        )
        if not takes(renderer, tuple(play.messages)):
            break
    played = play.done()
    assert_spliced_well(renderer, played)
    for record, asked in zip(played.turns, conversations_of(played), strict=True):
        stitch = record.turn.stitch
        assert stitch.why is not Why.NOT_SPLICED, stitch.detail
        if stitch.how is How.SPLICED:
            assert renderer.text_of(record.turn.tokens.prompt_ids) == oracle_text(renderer, asked)


@relaxed
@given(data=st.data())
def test_a_turn_is_spliced_or_says_why_not_exactly_where_rerender_renders(
    renderer: Renderer, data: st.DataObject
) -> None:
    played = draw_conversation(data, renderer, OnRewrite.SPLICE)
    session, asked = Session(), ()
    for record in played.turns:
        asked, turn = (*asked, *record.new_messages), record.turn
        other = session.stitch(renderer, asked, TOOLS, OnRewrite.RERENDER)
        stitched = session.stitch(renderer, asked, TOOLS, OnRewrite.SPLICE)
        assert (stitched.stitch, stitched.prompt_ids) == (turn.stitch, turn.tokens.prompt_ids)
        is_rewrite = other.stitch.why is Why.HISTORY_REWRITE
        assert is_rewrite == (stitched.stitch.why in (Why.HISTORY_REWRITE, Why.NOT_SPLICED))
        if stitched.stitch.why is Why.NOT_SPLICED:
            assert stitched.prompt_ids == other.prompt_ids
            assert stitched.stitch.detail.startswith(f"{other.stitch.detail}; ")
        session.commit(stitched, Generation(turn.tokens, turn.finish_reason), record.message, turn.finish_reason)
        asked = (*asked, record.message)


def talk(renderer: Renderer, policy: OnRewrite, split: bool = False) -> Play:
    """A tool loop with reasoning, two questions with reasoning, and one answer without."""
    play = Play(renderer, [user("look it up")], on_rewrite=policy)
    play.say('<think>\nhm\n</think>\n\n<tool_call>\n{"name":"look_up","arguments":{"word":"sky"}}\n</tool_call>')
    play.answer(Message(role="tool", content="blue", tool_call_id="call_0_0", name="look_up"))
    for said, question in (
        ("so it is\n</think>\n\nIt is bluebottle blue.", "sure?"),
        ("yes\n</think>\n\nYes.", "why?"),
    ):
        # One character for an id: a model may, and no tokenizer would.
        pieces = re.findall(r"</?think>|\n+|.", f"<think>\n{said}") if split else [f"<think>\n{said}"]
        play.sample([i for piece in pieces for i in renderer.tokenizer.encode(piece)] + [renderer.stop_ids[0]])
        play.answer(user(question))
    play.say("Yes.")
    return play


def test_a_tool_loop_on_qwen3_keeps_every_sampled_id_but_its_reasoning(
    renderers: Callable[[str], Renderer],
) -> None:
    """Two spans at once behind a tool loop, one behind a question; what a rerender loses is counted."""
    qwen3 = renderers("qwen3")
    spliced, rerendered = (
        talk(qwen3, policy, split=True).done() for policy in (OnRewrite.SPLICE, OnRewrite.RERENDER)
    )
    turns = [record.turn for record in spliced.turns]
    assert [turn.stitch.how.value for turn in turns] == ["rendered", "bridged", "spliced", "spliced"]
    assert [len(turn.stitch.removed) for turn in turns] == [0, 0, 2, 1]
    text = qwen3.text_of(turns[2].tokens.prompt_ids)
    assert '<tool_call>\n{"name":"look_up","arguments":{"word":"sky"}}\n</tool_call><|im_end|>' in text
    assert "think" not in text
    for turn, cut in ((turns[2], "<think>\nhm\n</think>\n\n"), (turns[3], "<think>\nyes\n</think>\n\n")):
        known = turns[turn.stitch.anchor_turn or 0].tokens.all_ids()
        removed = [qwen3.text_of(known[span.start : span.end]) for span in turn.stitch.removed]
        assert removed[0] == cut
    assert_spliced_well(qwen3, spliced)
    assert [sample.turns for sample in training_samples(turns)] == [(0, 1), (2,), (3,)]
    # Rendering anew encodes the text of both answers and of the call again: other ids, and respaced JSON.
    anew = rerendered.turns[2].turn.tokens.prompt_ids
    was_sampled = sampled_ids(spliced, turns[2])
    assert is_within(was_sampled, turns[2].tokens.prompt_ids.tolist())
    same = SequenceMatcher(None, anew.tolist(), was_sampled, autojunk=False).get_matching_blocks()
    assert (len(was_sampled), sum(block.size for block in same)) == (39, 15)
    # The numbers of docs/how-a-turn-travels.md.
    seen = turns[1].tokens.all_ids().array()
    shared = [shared_len(ids.array(), seen) for ids in (turns[2].tokens.prompt_ids, anew)]
    assert (len(turns[2].tokens.prompt_ids), len(anew), len(seen), shared) == (205, 194, 213, [141, 141])


def test_what_follows_a_splice_extends_it(renderers: Callable[[str], Renderer]) -> None:
    qwen3 = renderers("qwen3")
    play = talk(qwen3, OnRewrite.SPLICE)
    play.answer(user("and?"))
    play.say('<think>\nagain\n</think>\n\n<tool_call>\n{"name":"look_up","arguments":{}}\n</tool_call>')
    play.answer(Message(role="tool", content="", tool_call_id="call_4_0", name="look_up"))
    play.say("<think>\nso\n</think>\n\nDone.")
    play.answer(user("thanks"))
    play.say("Welcome.")
    turns = [record.turn for record in play.done().turns]
    hows = ["spliced", "spliced", "bridged", "bridged", "spliced"]
    assert [turn.stitch.how.value for turn in turns[2:]] == hows
    assert turns[5].tokens.prompt_ids.starts_with(turns[4].tokens.all_ids())
    assert len(turns[6].stitch.removed) == 2
    assert [sample.turns for sample in training_samples(turns)] == [(0, 1), (2,), (3, 4, 5), (6,)]
    assert_spliced_well(qwen3, play.done())


def test_a_prompt_that_was_asked_before_is_repeated_with_its_splice(renderers: Callable[[str], Renderer]) -> None:
    qwen3 = renderers("qwen3")
    played = talk(qwen3, OnRewrite.SPLICE)
    session, asked = played._session, tuple(played.messages[:5])
    again = session.stitch(qwen3, asked, TOOLS, OnRewrite.SPLICE)
    before = session.turns[2]
    assert again.stitch == replace(before.stitch, why=Why.RETRY_SAME_PROMPT, detail="same prompt as turn 2")
    assert again.prompt_ids == before.tokens.prompt_ids
    ids = [*qwen3.tokenizer.encode("<think>\nno\n</think>\n\nNo."), qwen3.stop_ids[0]]
    tokens = make_tokens(again.prompt_ids, ids, [-0.5] * len(ids))
    said = Message(role="assistant", content="No.", reasoning_content="no")
    session.commit(again, Generation(tokens, FinishReason.STOP), said, FinishReason.STOP)
    further = session.stitch(qwen3, (*asked, said, user("?")), TOOLS, OnRewrite.SPLICE)
    assert (further.stitch.how, further.stitch.anchor_turn) == (How.SPLICED, 4)


@pytest.mark.parametrize(
    ("said", "behind", "why"),
    [
        ("<think>\nhm\n</think>", " So", None),
        ("<think>hm</think>", "So", None),
        ("<think>\nhm</think>", "\n\n\n\nSo", "no ids spell just the text that is removed"),
    ],
)
def test_white_space_of_the_sample_goes_with_its_reasoning_unless_it_shares_an_id(
    renderers: Callable[[str], Renderer], said: str, behind: str, why: str | None
) -> None:
    qwen3 = renderers("qwen3")
    play = Play(qwen3, [user("?")], on_rewrite=OnRewrite.SPLICE)
    play.sample([*qwen3.tokenizer.encode(said), *qwen3.tokenizer.encode(behind), qwen3.stop_ids[0]])
    play.answer(user("And?"))
    play.say("Yes.")
    played = play.done()
    turn = played.turns[1].turn
    if why is None:
        assert turn.stitch.how is How.SPLICED
        assert qwen3.text_of(turn.tokens.prompt_ids) == oracle_text(qwen3, conversations_of(played)[1])
    else:
        assert (turn.stitch.how, turn.stitch.why) == (How.RENDERED, Why.NOT_SPLICED)
        assert why in turn.stitch.detail
    assert_spliced_well(qwen3, played)


def test_what_is_not_only_removed_is_rendered_with_its_reason(renderers: Callable[[str], Renderer]) -> None:
    """gpt-oss writes another channel in place of analysis."""
    harmony = renderers("gpt-oss")
    play = Play(harmony, [user("Hi")], on_rewrite=OnRewrite.SPLICE)
    ids = harmony.render_assistant(Message(role="assistant", content="Ho.", reasoning_content="hm"), tools=TOOLS)
    play.sample(ids)
    play.answer(user("?"))
    play.sample(ids)
    turn = play.done().turns[1].turn
    assert (turn.stitch.how, turn.stitch.why) == (How.RENDERED, Why.NOT_SPLICED)
    assert "text is not only removed: " in turn.stitch.detail
    assert check_laws(play.done().turns)[0].holds


def test_another_date_is_rendered_with_its_reason(renderers: Callable[[str], Renderer]) -> None:
    folder = renderers("llama_like").folder
    renderer, engines = (load_renderer(folder, now=datetime(year, 5, 6)) for year in (2030, 2029))
    session, asked = Session(), (user("Hi"),)
    prompt = engines.render_ids(asked)
    stitched = engine_rendered(session.hashes_of(renderer.identity, asked), prompt, Why.FIRST_TURN, "")
    ids = [*renderer.tokenizer.encode("Ho."), renderer.stop_ids[0]]
    said = Message(role="assistant", content="Ho.")
    generation = Generation(make_tokens(prompt, ids, [-0.5] * len(ids)), FinishReason.STOP)
    session.commit(stitched, generation, said, FinishReason.STOP)
    found = session.stitch(renderer, (*asked, said, user("?")), (), OnRewrite.SPLICE)
    assert (found.stitch.how, found.stitch.why) == (How.RENDERED, Why.NOT_SPLICED)
    assert "'29'" in found.stitch.detail or "29" in found.stitch.detail
    assert found.prompt_ids == renderer.render_ids((*asked, said, user("?")))


def test_an_engine_s_own_first_prompt_is_spliced_behind(renderers: Callable[[str], Renderer]) -> None:
    """Who wrote its ids is not known; what was sampled behind it is."""
    qwen3 = renderers("qwen3")
    session, asked = Session(), (user("Hi"),)
    prompt = qwen3.render_ids(asked)
    stitched = engine_rendered(session.hashes_of(qwen3.identity, asked), prompt, Why.FIRST_TURN, "")
    ids = [*qwen3.tokenizer.encode("<think>\nhm\n</think>\n\nHo."), qwen3.stop_ids[0]]
    said = Message(role="assistant", content="Ho.", reasoning_content="hm")
    generation = Generation(make_tokens(prompt, ids, [-0.5] * len(ids)), FinishReason.STOP)
    session.commit(stitched, generation, said, FinishReason.STOP)
    found = session.stitch(qwen3, (*asked, said, user("?")), (), OnRewrite.SPLICE)
    assert found.stitch.removed == (CutSpan(len(prompt), len(prompt) + 6),)
    assert found.prompt_ids == qwen3.render_ids((*asked, said, user("?")))


def test_reasoning_that_an_engine_told_otherwise_is_not_cut_by_guess(renderers: Callable[[str], Renderer]) -> None:
    """Its parser may tell another text than the ids spell; where the ids of that text end is not known then."""
    qwen3 = renderers("qwen3")
    session, asked = Session(), (user("Hi"),)
    stitched = session.stitch(qwen3, asked, (), OnRewrite.SPLICE)
    ids = [*qwen3.tokenizer.encode("<think>\nhm\n</think>\n\nSo, hum."), qwen3.stop_ids[0]]
    said = Message(role="assistant", content="So, hum.", reasoning_content="so on")
    generation = Generation(make_tokens(stitched.prompt_ids, ids, [-0.5] * len(ids)), FinishReason.STOP)
    session.commit(stitched, generation, said, FinishReason.STOP)
    found = session.stitch(qwen3, (*asked, said, user("?")), (), OnRewrite.SPLICE)
    assert (found.stitch.how, found.stitch.why) == (How.RENDERED, Why.NOT_SPLICED)
    assert "no ids spell just the text that is removed" in found.stitch.detail


def test_turns_that_were_extended_before_are_not_spliced(renderers: Callable[[str], Renderer]) -> None:
    """What the template cut between is not known any more, so nothing is guessed."""
    qwen3 = renderers("qwen3")
    played = talk(qwen3, OnRewrite.EXTEND)
    asked = (*played.messages, user("?"))
    found = played._session.stitch(qwen3, asked, TOOLS, OnRewrite.SPLICE)
    assert (found.stitch.how, found.stitch.why) == (How.RENDERED, Why.NOT_SPLICED)
    assert "were extended without a verdict" in found.stitch.detail


@pytest.mark.parametrize(
    ("change", "law", "told"),
    [
        (
            lambda s: {"removed": (CutSpan(s.removed[0].start + 1, s.removed[0].end + 1),)},
            1,
            "does not begin with",
        ),
        (lambda s: {"removed": (CutSpan(s.removed[0].start, s.removed[0].end - 1),)}, 1, "is a splice of"),
        (lambda s: {"removed": ()}, 1, "is a splice of"),
        (lambda s: {"removed": (CutSpan(10**6, 10**6 + 5),), "known_len": 3}, 1, "is a splice of"),
        (lambda s: {"why": Why.KNOWN_PREFIX}, 5, "does not explain it"),
        (lambda s: {"anchor_turn": 9}, 1, "which is not there"),
    ],
)
def test_a_splice_that_is_not_what_it_says_breaks_a_law(
    renderers: Callable[[str], Renderer], change: Callable[[Any], dict[str, Any]], law: int, told: str
) -> None:
    played = talk(renderers("qwen_like"), OnRewrite.SPLICE).done()
    assert all(check.holds for check in check_laws(played.turns))
    at = next(i for i, record in enumerate(played.turns) if len(record.turn.stitch.removed) == 1)
    turn = played.turns[at].turn
    wrong = replace(turn, stitch=replace(turn.stitch, **change(turn.stitch)))
    records = [*played.turns[:at], replace(played.turns[at], turn=wrong), *played.turns[at + 1 :]]
    broken = [check for check in check_laws(records) if not check.holds]
    assert [check.law for check in broken] == [Law(law)]
    assert told in broken[0].violations[0]


def test_a_splice_of_other_text_breaks_law_2(renderers: Callable[[str], Renderer]) -> None:
    """Spans and ids agree with each other, and not with the template: it takes the renderer to see it."""
    qwen3 = renderers("qwen3")
    played = talk(qwen3, OnRewrite.SPLICE).done()
    turn = played.turns[3].turn
    span = turn.stitch.removed[0]
    known = played.turns[2].turn.tokens.all_ids()
    later = CutSpan(span.start - 3, span.end)  # the role's header, too
    kept = without(known, (later,))
    prompt = TokenIds(kept).extended(turn.tokens.prompt_ids[turn.stitch.known_len :])
    moved = tuple(replace(s, start=s.start - 3, end=s.end - 3) for s in turn.prompt_spans)
    stitch = replace(turn.stitch, removed=(later,), known_len=len(kept))
    wrong = replace(turn, tokens=replace(turn.tokens, prompt_ids=prompt), stitch=stitch, prompt_spans=moved)
    records = [*played.turns[:3], replace(played.turns[3], turn=wrong)]
    assert all(check.holds for check in check_laws(records))
    broken = [check for check in prove([played.episode], records, qwen3).checks if not check.holds]
    assert Law.FAITHFUL in [check.law for check in broken]


def test_spans_that_cannot_be_left_out_are_an_error() -> None:
    ids = TokenIds(range(9))
    assert without(ids, (CutSpan(0, 2), CutSpan(2, 3), CutSpan(8, 9))).tolist() == [3, 4, 5, 6, 7]
    for wrong in ((CutSpan(3, 5), CutSpan(4, 6)), (CutSpan(5, 6), CutSpan(1, 2)), (CutSpan(8, 10),)):
        with pytest.raises(AlignmentError, match="cannot be left out of 9 ids"):
            without(ids, wrong)
    with pytest.raises(AlignmentError, match="are no ids that can be left out"):
        CutSpan(3, 3)


SHOWN = {
    "glm-4.5": 3,
    "llama.cpp/GLM-4.7-Flash": 4,
    "llama.cpp/Qwen-QwQ-32B": 5,
    "llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": 4,
    "gemma-4": 3,
}
"""Templates that cut reasoning each in its own way, and how many turns of one conversation they are spliced in."""


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.filterwarnings("ignore::tokentrue.errors.SpelledMarkerWarning")
def test_real_templates_that_cut_reasoning_are_spliced(name: str) -> None:
    template = next((one for one in templates_at_hand() if one.name == name), None)
    if template is None:
        pytest.skip(f"the template {name} is not at hand (../shared/tokenizers is absent)")
    renderer = renderer_for(template)
    call = ToolCall("look_up", '{"word": "sky"}', "call00000")
    result = Message("tool", content="blue", tool_call_id="call00000", name="look_up")
    script = [
        (Message("assistant", reasoning_content="hm so", tool_calls=(call,)), result),
        (Message("assistant", content="It is blue.", reasoning_content="well so"), user("sure?")),
        (Message("assistant", content="Yes.", reasoning_content="yes"), user("really?")),
        (Message("assistant", content="Oh."), user("fine?")),
        (Message("assistant", content="Bye.", reasoning_content="done"), user("what?")),
        (Message("assistant", content="No."), user("eh?")),
    ]
    play = Play(renderer, [user("look it up")], on_rewrite=OnRewrite.SPLICE)
    for said, answer in script:
        play.sample(as_written(renderer, tuple(play.messages), said))
        play.answer(answer)
    turns = [record.turn for record in play.done().turns]
    assert [turn.stitch.why for turn in turns].count(Why.NOT_SPLICED) == 0
    assert [turn.stitch.how for turn in turns].count(How.SPLICED) == SHOWN[name]
    for turn, asked in zip(turns, conversations_of(play.done()), strict=True):
        if turn.stitch.how is How.SPLICED:
            assert renderer.text_of(turn.tokens.prompt_ids) == renderer.text_of(
                renderer.render_ids(asked, tools=TOOLS)
            )
