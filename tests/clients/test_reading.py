"""A renderer from elsewhere that raises where it reads a completion loses no sample."""

from __future__ import annotations

import inspect

import pytest

from tokentrue import EpisodeState, Message, MultiTurnEnv, RolloutPlan, Session, run_rollouts, session_samples
from tokentrue.errors import UnreadCompletionError
from tokentrue.generation import EngineInfo
from tokentrue.rollouts.environment import StopReason
from tokentrue.rollouts.record import RecordWriter, open_record
from tokentrue.rollouts.trajectory import Phase, RunInfo

CHAT, TOKENIZE, GENERATE = "/v1/chat/completions", "/tokenize", "/inference/v1/generate"
ROUTES = {"routes": {CHAT, TOKENIZE, GENERATE}}


class FromElsewhere:
    """Somebody's renderer: ours behind it, so that the engine's ids fit, and a reader with a mistake."""

    def __init__(self, renderer):
        self.renderer = renderer

    def __getattr__(self, name):
        if name in ("text_of", "at"):  # not of the contract
            raise AttributeError(name)
        return getattr(self.renderer, name)

    def parse_response(self, ids, prompt_ids=(), tools=None):
        return {}["tool_calls"]  # the mistake


class TellingText(FromElsewhere):
    """It says what ids spell."""

    def text_of(self, ids):
        return self.renderer.text_of(ids)


class TextRaises(FromElsewhere):
    def text_of(self, ids):
        raise ValueError("no text either")


class GivesADict(FromElsewhere):
    def parse_response(self, ids, prompt_ids=(), tools=None):
        return {"content": "hello"}


def mistake() -> str:
    """Where the mistake is, as a person looks for it."""
    lines, first = inspect.getsourcelines(FromElsewhere.parse_response)
    return f"{__file__}:{first + len(lines) - 1} in parse_response"


async def two_turns(client, _):
    session, messages, answers = Session(), [Message("user", "Hello?")], []
    for _ in range(2):
        response = await client.get_response(messages, "m", {"max_tokens": 20}, session=session)
        answers.append(response)
        messages += [response.message, Message("user", "And then?")]
    return session, answers


@pytest.mark.parametrize("client_type", ["renderer", "openai_chat_completions_token"])
def test_the_text_is_the_answer_and_the_turn_says_what_was_raised_and_where(
    world, renderer, client_type, caplog
) -> None:
    world.clients_renderer = TellingText(renderer)
    session, (first, second) = world.run(two_turns, server=ROUTES, client_type=client_type)
    ids = second.turn.tokens.completion_ids
    assert second.message.content == renderer.text_of(ids[:-1])
    assert "KeyError: 'tool_calls'" in second.turn.unread
    assert mistake() in second.turn.unread
    assert second.turn.unread in caplog.text
    assert list(second.turn.tokens.prompt_ids)[: len(first.tokens.all_ids())] == list(first.tokens.all_ids())
    counts = session_samples(session.turns).counts
    assert counts.trained == sum(len(turn.tokens.completion_ids) for turn in session.turns)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (FromElsewhere, "KeyError: 'tool_calls'"),
        (TextRaises, "ValueError: no text either"),
        (GivesADict, "it gave a dict and not a ParsedResponse"),
    ],
)
def test_without_text_it_is_an_error_that_has_the_turn(world, renderer, kind, told) -> None:
    world.clients_renderer = kind(renderer)
    session = Session()

    async def once(client, _):
        with pytest.raises(UnreadCompletionError, match=told) as caught:
            await client.get_response("Hello?", "m", {"max_tokens": 20}, session=session)
        return caught.value

    error = world.run(once, server=ROUTES, client_type="renderer")
    assert session.turns == (error.response.turn,)
    assert len(error.response.turn.tokens.completion_ids)
    assert error.response.turn.unread == str(error)


class Talk(MultiTurnEnv[str, EpisodeState[str]]):
    """Two questions."""

    max_turns = 2

    def make_task(self, index, seed):
        return f"question {index}"

    def setup(self, task, seed):
        return EpisodeState(task, seed, [Message("user", task)])

    def env_response(self, messages, state):
        return [Message("user", "and then?")]


@pytest.mark.parametrize(
    ("kind", "turns", "stop"),
    [(TellingText, 2, StopReason.MAX_TURNS), (FromElsewhere, 1, StopReason.ERROR)],
)
def test_a_record_has_the_turn_whatever_the_reader_did(world, renderer, tmp_path, kind, turns, stop) -> None:
    world.clients_renderer = kind(renderer)

    async def about(client, _):
        with RecordWriter(
            tmp_path / "run", RunInfo("talk", "m", EngineInfo("small", "1", ("m",), None))
        ) as record:
            return await run_rollouts(Talk(), client, "m", RolloutPlan(episodes=1), record=record)

    played = world.run(about, server=ROUTES, client_type="renderer")
    assert [turn.turn for turn in played.turns] == [turn.turn for turn in open_record(tmp_path / "run").turns()]
    assert len(played.turns) == turns
    assert all(mistake() in turn.turn.unread for turn in played.turns)
    (episode,) = open_record(tmp_path / "run").episodes()
    assert (episode.stop_reason, episode.turns) == (stop, turns)
    if stop is StopReason.ERROR:
        assert episode.error.type_name == "tokentrue.errors.UnreadCompletionError"
        assert episode.error.phase is Phase.TURN
        assert mistake() in episode.error.message
