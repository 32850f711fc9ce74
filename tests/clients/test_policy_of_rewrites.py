"""`on_rewrite` of a configuration, through both clients that keep ids, over a real HTTP server."""

from __future__ import annotations

import pytest

from tokentrue import ClientConfig, Message, Session
from tokentrue.errors import BridgeRefusedError, ConfigError
from tokentrue.sessions.samples import training_samples
from tokentrue.turns import How, Why

KINDS = ("openai_chat_completions_token", "renderer")
SERVER = {
    "routes": {"/v1/chat/completions", "/v1/chat/completions/tokens", "/inference/v1/generate"},
    "says": ["<think>\nhm\n</think>\n\nFine.", "Yes.", "No."],
}


def three_turns(session: Session):
    """Asks three questions."""

    async def about(client, server):
        messages, found = [], []
        for text in ("Hello.", "Really?", "Why?"):
            messages.append(Message("user", text))
            found.append(await client.get_response(messages, "m", {"max_tokens": 50}, session=session))
            messages.append(found[-1].message)
        return found

    return about


@pytest.mark.parametrize("kind", KINDS)
def test_extend_keeps_reasoning_and_rerender_opens_a_branch(world, kind) -> None:
    kept, cut = Session(), Session()
    world.run(three_turns(kept), server={**SERVER, "says": [*SERVER["says"]]}, client_type=kind)
    world.run(
        three_turns(cut), server={**SERVER, "says": [*SERVER["says"]]}, client_type=kind, on_rewrite="rerender"
    )
    assert [turn.stitch.how for turn in kept.turns][1:] == [How.BRIDGED] * 2
    anew = How.RENDERED if kind == "renderer" else How.ENGINE_RENDERED
    assert [turn.stitch.how for turn in cut.turns][1:] == [anew, How.BRIDGED]
    assert [turn.stitch.why for turn in cut.turns][1:] == [Why.HISTORY_REWRITE, Why.KNOWN_PREFIX]
    assert "message 1: the prompt has '<think>\\nhm" in cut.turns[1].stitch.detail
    texts = [world.renderer.tokenizer.decode(session.turns[1].tokens.prompt_ids) for session in (kept, cut)]
    assert ["hm" in text for text in texts] == [True, False]
    assert [sample.turns for sample in training_samples(cut.turns)] == [(0,), (1, 2)]


@pytest.mark.parametrize("kind", KINDS)
def test_splice_sends_ids_without_the_reasoning_and_nothing_else_is_changed(world, kind) -> None:
    """The token client, too, goes on by ids: its first prompt is the engine's, and who wrote it is not known."""
    session = Session()
    found = world.run(
        three_turns(session), server={**SERVER, "says": [*SERVER["says"]]}, client_type=kind, on_rewrite="splice"
    )
    turns = session.turns
    assert [turn.stitch.how for turn in turns][1:] == [How.SPLICED, How.BRIDGED]
    assert (turns[1].stitch.why, turns[1].stitch.anchor_turn) == (Why.HISTORY_REWRITE, 0)
    known = turns[0].tokens.all_ids()
    (span,) = turns[1].stitch.removed
    assert world.renderer.text_of(known[span.start : span.end]) == "<think>\nhm\n</think>\n\n"
    assert turns[1].tokens.prompt_ids[: turns[1].stitch.known_len] == known[: span.start] + known[span.end :]
    asked = [Message("user", "Hello."), found[0].message, Message("user", "Really?")]
    assert world.renderer.text_of(turns[1].tokens.prompt_ids) == world.renderer.render_text(asked)
    assert [sample.turns for sample in training_samples(turns)] == [(0,), (1, 2)]


@pytest.mark.parametrize("kind", KINDS)
def test_refuse_sends_nothing_and_commits_nothing(world, kind) -> None:
    session = Session()
    with pytest.raises(BridgeRefusedError, match=r"history_rewrite.*message 1.*'Fine\..*on_rewrite='extend'"):
        world.run(
            three_turns(session),
            server={**SERVER, "says": [*SERVER["says"]]},
            client_type=kind,
            on_rewrite="refuse",
        )
    assert len(session.turns) == 1


def test_a_policy_needs_bridges_that_are_made_here(world) -> None:
    with pytest.raises(ConfigError, match="must be made by a renderer here"):
        world.run(three_turns(Session()), bridging_here=False, on_rewrite="rerender")
    with pytest.raises(ConfigError, match="must be made by a renderer here"):
        world.run(three_turns(Session()), bridge_tokenizer="engine", on_rewrite="refuse")
    with pytest.raises(ConfigError, match="is not for client_type='openai_chat_completions'"):
        ClientConfig(client_type="openai_chat_completions", on_rewrite="rerender")
