"""What a session does where the template would now write its history otherwise: verdicts and policies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conversations import TOOLS
from played import Play, draw_conversation, user
from real_tokenizers import unpack_real
from rendering.conftest import LLAMA_LIKE, QWEN_LIKE
from rendering_folders import write_folder
from tokentrue import Message, Renderer, Session, load_renderer
from tokentrue.errors import BridgeRefusedError, UnsupportedParameterError
from tokentrue.generation import FinishReason, Generation, make_tokens
from tokentrue.rendering.verdict import OnRewrite, Verdict, VerdictKind
from tokentrue.rollouts.laws import Law
from tokentrue.rollouts.proof import prove
from tokentrue.sessions.samples import training_samples
from tokentrue.sessions.stitch import engine_rendered
from tokentrue.sessions.trajectories import session_samples
from tokentrue.turns import How, Turn, Why

NAMES = ("qwen_like", "llama_like", "qwen3", "llama-3.1")
LIKE = {"qwen_like": QWEN_LIKE, "llama_like": LLAMA_LIKE}
relaxed = settings(
    max_examples=15,
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
            loaded[name] = load_renderer(made)
        return loaded[name]

    return load


@pytest.fixture(params=NAMES)
def renderer(request: pytest.FixtureRequest, renderers: Callable[[str], Renderer]) -> Renderer:
    return renderers(request.param)


def reasoning_blocks(renderer: Renderer, ids: Any) -> int:
    """How often reasoning is opened: counted by id, without any of the code that judges."""
    opener = renderer.tokenizer.added_token("<think>")
    return list(ids).count(opener.id) if opener is not None else 0


def is_cut_at_its_opener(renderer: Renderer, records: Any) -> bool:
    """Whether one was cut before it said a word of reasoning: some templates never wrote that opener, some did."""
    return any(
        reasoning_blocks(renderer, record.turn.tokens.completion_ids) and not record.message.reasoning_content
        for record in records
    )


@relaxed
@given(data=st.data())
def test_rerender_keeps_the_laws_and_rerenders_exactly_where_reasoning_is_cut(
    renderer: Renderer, data: st.DataObject
) -> None:
    played = draw_conversation(data, renderer, OnRewrite.RERENDER)
    turns = [record.turn for record in played.turns]
    for at, record in enumerate(played.turns):
        turn, asked = record.turn, played.episode.messages[: sum(_added(each) for each in played.turns[:at])]
        asked = (*asked, *record.new_messages)
        full = renderer.render_ids(asked, tools=TOOLS)
        if turn.stitch.how is How.RENDERED:
            assert turn.tokens.prompt_ids == full
            assert at == 0 or turn.stitch.why is Why.HISTORY_REWRITE, turn.stitch
        else:
            assert turn.stitch.why is Why.KNOWN_PREFIX
            assert turn.stitch.anchor_turn == at - 1
            assert turn.tokens.prompt_ids.starts_with(turns[at - 1].tokens.all_ids())
        if at and not is_cut_at_its_opener(renderer, played.turns[:at]):
            kept = reasoning_blocks(renderer, turns[at - 1].tokens.all_ids())
            opened = reasoning_blocks(renderer, full)
            assert (turn.stitch.how is How.RENDERED) == (kept > opened), (turn.stitch, kept, opened)
    proof = prove([played.episode], played.turns, renderer)
    assert proof.holds, [check for check in proof.checks if not check.holds]
    assert [check.law for check in proof.checks] == list(Law)
    assert_every_sampled_id_once(turns)


def _added(record: Any) -> int:
    return len(record.new_messages) + 1


def assert_every_sampled_id_once(turns: list[Turn]) -> None:
    """Law 7: each turn's ids stand, trained, behind its own prompt in the first sample that has it."""
    samples = training_samples(turns)
    sampled = sum(len(turn.tokens.completion_ids) for turn in turns)
    assert sum(int(sample.loss_mask.sum()) for sample in samples) == sampled
    for turn in turns:
        first = next(sample for sample in samples if turn.index in sample.turns)
        place = slice(len(turn.tokens.prompt_ids), len(turn.tokens.all_ids()))
        assert first.token_ids[place].tolist() == turn.tokens.completion_ids
        assert first.loss_mask[place].all()
        assert first.token_ids[: place.start].tolist() == turn.tokens.prompt_ids
    counts = session_samples(turns).counts
    assert (counts.sampled, counts.trained) == (sampled, sampled)


@relaxed
@given(data=st.data())
def test_refuse_raises_exactly_where_rerender_would_render(renderer: Renderer, data: st.DataObject) -> None:
    played = draw_conversation(data, renderer, OnRewrite.RERENDER)
    session = Session()
    asked: tuple[Message, ...] = ()
    for record in played.turns:
        asked = (*asked, *record.new_messages)
        refused = None
        try:
            stitched = session.stitch(renderer, asked, TOOLS, OnRewrite.REFUSE)
        except BridgeRefusedError as error:
            refused = error
            stitched = session.stitch(renderer, asked, TOOLS, OnRewrite.RERENDER)
        assert stitched.stitch == record.turn.stitch
        assert stitched.prompt_ids == record.turn.tokens.prompt_ids
        assert (refused is not None) == (stitched.stitch.why is Why.HISTORY_REWRITE)
        if refused is not None:
            assert (refused.reason, refused.detail) == ("history_rewrite", stitched.stitch.detail)
        turn = record.turn
        generation = Generation(turn.tokens, turn.finish_reason)
        session.commit(stitched, generation, record.message, turn.finish_reason)
        asked = (*asked, record.message)


@relaxed
@given(data=st.data())
def test_the_verdict_on_extended_prompts_is_exact_only_where_the_texts_are_equal(
    renderer: Renderer, data: st.DataObject
) -> None:
    """Under `extend` a session keeps every reasoning, and later turns, too, are told to be rewrites."""
    played = draw_conversation(data, renderer)
    session, asked = Session(), ()
    for at, record in enumerate(played.turns):
        asked = (*asked, *record.new_messages)
        stitched = session.stitch(renderer, asked, TOOLS)
        assert stitched.prompt_ids == record.turn.tokens.prompt_ids
        verdict = session.judge(renderer, asked, TOOLS)
        assert (verdict is None) == (stitched.stitch.how is not How.BRIDGED)
        if verdict is not None:
            full = renderer.render_ids(asked, tools=TOOLS)
            same = renderer.tokenizer.decode(full) == renderer.tokenizer.decode(stitched.prompt_ids)
            assert (verdict.kind is VerdictKind.EXACT) == same
            cut = reasoning_blocks(renderer, stitched.prompt_ids) > reasoning_blocks(renderer, full)
            if not is_cut_at_its_opener(renderer, played.turns[:at]):
                assert (verdict.kind is VerdictKind.HISTORY_REWRITE) == cut, verdict
        generation = Generation(record.turn.tokens, record.turn.finish_reason)
        session.commit(stitched, generation, record.message, record.turn.finish_reason)
        asked = (*asked, record.message)


def talk(renderer: Renderer, policy: OnRewrite) -> Play:
    """A tool loop that keeps its reasoning until the next question."""
    play = Play(renderer, [user("look it up")], on_rewrite=policy)
    play.say('<think>\nhm\n</think>\n\n<tool_call>\n{"name":"look_up","arguments":{"word":"sky"}}\n</tool_call>')
    play.answer(Message(role="tool", content="blue", tool_call_id="call_0_0", name="look_up"))
    play.say("<think>\nso\n</think>\n\nIt is blue.")
    play.answer(user("sure?"))
    play.say("<think>\nyes\n</think>\n\nYes.")
    play.answer(user("really?"))
    play.say("Yes.")
    return play


def test_reasoning_is_kept_in_a_tool_loop_and_a_question_opens_a_branch(
    renderers: Callable[[str], Renderer],
) -> None:
    qwen3 = renderers("qwen3")
    turns = [record.turn for record in talk(qwen3, OnRewrite.RERENDER).done().turns]
    assert [turn.stitch.how.value for turn in turns] == ["rendered", "bridged", "rendered", "rendered"]
    assert [turn.stitch.why.value for turn in turns] == [
        "first_turn",
        "known_prefix",
        "history_rewrite",
        "history_rewrite",
    ]
    # The call was sampled in JSON of its own, which is no rewrite; the reasoning in front of it is cut.
    assert turns[2].stitch.detail.startswith("message 1: the prompt has '<think>\\nhm\\n</think>\\n\\n<tool_call>")
    assert 'where the template now writes \'<tool_call>\\n{"name": "look_up"' in turns[2].stitch.detail
    assert turns[3].stitch.detail.startswith("message 5: the prompt has '<think>\\nyes\\n</think>\\n\\nYes.'")
    assert [sample.turns for sample in training_samples(turns)] == [(0, 1), (2,), (3,)]


def test_extend_gives_the_ids_that_it_gave_before_there_were_policies(
    renderers: Callable[[str], Renderer],
) -> None:
    """Digests of the same conversation, made by the commit before."""
    digests = {}
    for name in ("qwen3", "llama-3.1"):
        renderer = load_renderer(renderers(name).folder, now=datetime(2026, 1, 2))
        turns = [record.turn for record in talk(renderer, OnRewrite.EXTEND).done().turns]
        told = repr(
            [(t.tokens.prompt_ids.tolist(), t.stitch.known_len, t.stitch.junction, t.prompt_spans) for t in turns]
        )
        digests[name] = hashlib.sha256(told.encode()).hexdigest()[:16]
    assert digests == {"qwen3": "1389df353d68c62a", "llama-3.1": "83446326e1f18a26"}


@dataclass(frozen=True)
class _Counting:
    """The real renderer, with a note of every call that renders a conversation in full."""

    real: Renderer
    asked: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        if name in ("render", "render_ids"):
            self.asked.append(name)
        return getattr(self.real, name)

    def text_of(self, ids: Sequence[int]) -> str:
        """Its own: from Python 3.12 on a protocol sees no method that only `__getattr__` gives."""
        return self.real.text_of(ids)


def test_extend_renders_nothing_and_the_others_do(renderers: Callable[[str], Renderer]) -> None:
    counted = {}
    for policy in OnRewrite:
        session, renderer = Session(), _Counting(renderers("qwen_like"))
        asked: tuple[Message, ...] = (user("Hi"),)
        for _ in range(3):
            stitched = session.stitch(renderer, asked, (), policy)
            ids = [*renderer.tokenizer.encode("Ho."), renderer.stop_ids[0]]
            tokens = make_tokens(stitched.prompt_ids, ids, [-0.5] * len(ids))
            said = Message(role="assistant", content="Ho.")
            session.commit(stitched, Generation(tokens, FinishReason.STOP), said, FinishReason.STOP)
            asked = (*asked, said, user("?"))
        counted[policy] = renderer.asked
    assert counted[OnRewrite.EXTEND] == ["render"]  # the first turn
    assert counted[OnRewrite.RERENDER].count("render_ids") >= 2


def test_a_chain_that_was_judged_is_not_judged_again(renderers: Callable[[str], Renderer]) -> None:
    """A later verdict looks at the last sampled message, however long the chain; sampled text diverges in each."""
    session, renderer = Session(), _Counting(renderers("llama_like"))
    asked: tuple[Message, ...] = (user("Hi"),)
    costs = []
    for _ in range(6):
        renderer.asked.clear()
        stitched = session.stitch(renderer, asked, (), OnRewrite.RERENDER)
        costs.append(renderer.asked.count("render_ids"))
        ids = [*renderer.tokenizer.encode("  Ho. "), renderer.stop_ids[0]]
        tokens = make_tokens(stitched.prompt_ids, ids, [-0.5] * len(ids))
        said = Message(role="assistant", content="  Ho. ")
        session.commit(stitched, Generation(tokens, FinishReason.STOP), said, FinishReason.STOP)
        asked = (*asked, said, user("?"))
    assert [turn.stitch.how for turn in session.turns] == [How.RENDERED, *[How.BRIDGED] * 5]
    assert costs[2] < 8
    assert costs[2:] == [costs[2]] * 4


def test_a_date_that_the_engine_told_otherwise_is_a_rewrite(renderers: Callable[[str], Renderer]) -> None:
    renderer = renderers("llama_like").at(datetime(2030, 5, 6))
    engines = load_renderer(renderer.folder, now=datetime(2029, 1, 2))
    session, asked = Session(), (user("Hi"),)
    prompt = engines.render_ids(asked)
    stitched = engine_rendered(session.hashes_of(renderer.identity, asked), prompt, Why.FIRST_TURN, "")
    ids = [*renderer.tokenizer.encode("Ho."), renderer.stop_ids[0]]
    said = Message(role="assistant", content="Ho.")
    generation = Generation(make_tokens(prompt, ids, [-0.5] * len(ids)), FinishReason.STOP)
    session.commit(stitched, generation, said, FinishReason.STOP)
    more = (*asked, said, user("?"))
    assert session.stitch(renderer, more).stitch.how is How.BRIDGED
    verdict = session.judge(renderer, more)
    assert isinstance(verdict, Verdict)
    assert (verdict.kind, verdict.message) == (VerdictKind.HISTORY_REWRITE, None)
    assert verdict.ours.startswith("2 Jan 2029")
    assert verdict.template.startswith("6 May 2030")
    assert session.stitch(renderer, more, (), OnRewrite.RERENDER).stitch.why is Why.HISTORY_REWRITE


def test_a_renderer_that_tells_no_text_cannot_be_judged(renderers: Callable[[str], Renderer]) -> None:
    class NoText:
        """The contract and nothing else."""

        def __init__(self, real: Renderer) -> None:
            for name in ("identity", "render", "render_ids", "bridge_to_next_turn", "get_stop_token_ids"):
                setattr(self, name, getattr(real, name))

    renderer = renderers("qwen_like")
    play = Play(renderer, [user("Hi")])
    play.say("Ho.")
    session, asked = play._session, (*play.messages, user("?"))
    assert session.stitch(NoText(renderer), asked, TOOLS).stitch.how is How.BRIDGED
    with pytest.raises(UnsupportedParameterError, match=r"NoText cannot take .*on_rewrite.*text_of"):
        session.stitch(NoText(renderer), asked, TOOLS, OnRewrite.RERENDER)
