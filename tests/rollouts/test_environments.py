"""One episode: which hook runs when, why it ends, and that cleanup always runs."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field

import pytest

from tokentrue.errors import EngineFailureError, OverlongPromptError
from tokentrue.messages import Message, ToolCall
from tokentrue.rollouts.environment import EpisodeState, MultiTurnEnv, SingleTurnEnv, StopReason, Truncation
from tokentrue.rollouts.player import EpisodeOrder, EpisodePlayer
from tokentrue.rollouts.tool_env import ToolEnv
from tokentrue.rollouts.tools import ToolSet
from tokentrue.rollouts.trajectory import Phase
from tokentrue.testing.scripted_client import ScriptedClient


@dataclass(slots=True)
class State(EpisodeState[int]):
    cleanups: list[str] = field(default_factory=list)


class Echo(MultiTurnEnv[int, State]):
    """Always continues; remembers what happened to it."""

    max_turns = 3

    def __init__(self):
        self.log = []

    def make_task(self, index, seed):
        return index

    def setup(self, task, seed):
        self.log.append("setup")
        return State(task, seed, [{"role": "user", "content": f"start {task}"}])

    def env_response(self, messages, state):
        return [{"role": "user", "content": f"more after {messages[-1].content}"}]

    def reward(self, messages, state):
        return len(messages) / 10

    def cleanup(self, state):
        self.log.append("cleanup")


class Sink:
    def __init__(self):
        self.started, self.turns, self.ended = [], [], []

    def episode_started(self, episode):
        self.started.append(episode)

    def turn_done(self, turn):
        self.turns.append(turn)

    def episode_done(self, episode):
        self.ended.append(episode)


def say(text="yes", **extra):
    return lambda messages, rng: Message(role="assistant", content=text, extra=extra)


def fail(exc):
    def policy(messages, rng):
        raise exc

    return policy


async def play_async(environment, policy, sink=None):
    player = EpisodePlayer(environment, ScriptedClient(policy), EpisodeOrder(0, 7, "m"), sink or Sink())
    return await player.play()


def play(environment, policy, sink=None):
    return asyncio.run(play_async(environment, policy, sink))


def test_an_environment_that_always_continues_ends_at_max_turns():
    """Turns are counted in completions, and the environment's last answer is part of the conversation."""
    sink = Sink()
    played = play(Echo(), say(), sink)
    record = played.record
    assert (record.stop_reason, record.turns, record.reward) == (StopReason.MAX_TURNS, 3, 0.7)
    assert [m.role for m in record.messages] == ["user", "assistant"] * 3 + ["user"]
    assert [t.messages_kept for t in sink.turns] == [0, 2, 4]
    assert sink.started[0].stop_reason is StopReason.INTERRUPTED
    assert sink.ended == [record]


def test_turns_rebuild_the_conversation():
    """conversation = before[:messages_kept] + new_messages + (message,)."""
    played = play(Echo(), say())
    conversation = ()
    for turn in played.turns:
        conversation = turn.conversation(conversation)
    assert conversation == played.record.messages[:-1]


def test_a_single_turn_environment_is_completed_by_one_completion():
    """No environment answer is asked for."""

    class One(SingleTurnEnv[int, State]):
        def make_task(self, index, seed):
            return index

        def setup(self, task, seed):
            return State(task, seed, [Message(role="user", content="hi")])

        def reward(self, messages, state):
            return 1.0

    record = play(One(), say()).record
    assert (record.stop_reason, record.turns, record.reward, record.task) == (StopReason.COMPLETED, 1, 1.0, "0")


def test_is_completed_is_asked_after_the_model_and_after_the_environment():
    """The second question lets an environment end with its own words."""

    class Ends(Echo):
        def is_completed(self, messages, state):
            return messages[-1].role == "user" and len(messages) > 1

    assert play(Ends(), say()).record.stop_reason is StopReason.COMPLETED


def test_an_empty_answer_in_the_last_turn_completes():
    """A conversation that ends by itself in its last turn was not cut off."""

    class Silent(Echo):
        max_turns = 1

        def env_response(self, messages, state):
            return ()

    assert play(Silent(), say()).record.stop_reason is StopReason.COMPLETED


@pytest.mark.parametrize(
    ("on_truncation", "expected"),
    [(Truncation.STOP, (StopReason.TRUNCATED, 1)), (Truncation.CONTINUE, (StopReason.MAX_TURNS, 3))],
)
def test_a_truncated_completion_stops_or_continues_as_the_environment_says(on_truncation, expected):
    """The default is to stop."""
    environment = Echo()
    type(environment).on_truncation = on_truncation
    try:
        record = play(environment, say(truncated=True)).record
    finally:
        del type(environment).on_truncation
    assert (record.stop_reason, record.turns) == expected


def test_an_overlong_prompt_ends_the_episode_and_is_scored():
    """It is an outcome of the conversation, not a failure."""
    environment = Echo()
    record = play(environment, fail(OverlongPromptError(10, 5))).record
    assert (record.stop_reason, record.error, record.reward) == (StopReason.OVERLONG, None, 0.1)
    assert environment.log == ["setup", "cleanup"]


def test_an_engine_failure_is_kept_with_its_type_and_its_place():
    """The reward of an episode that failed is no reward."""
    environment = Echo()
    played = play(environment, fail(EngineFailureError("it broke", status=500)))
    error = played.record.error
    assert (played.record.stop_reason, played.record.reward) == (StopReason.ERROR, None)
    assert (error.type_name, error.message, error.phase) == (
        "tokentrue.errors.EngineFailureError",
        "it broke",
        Phase.TURN,
    )
    assert isinstance(played.failure, EngineFailureError)
    assert environment.log == ["setup", "cleanup"]


@pytest.mark.parametrize(
    ("hook", "phase", "cleaned"),
    [
        ("make_task", Phase.SETUP, False),
        ("setup", Phase.SETUP, False),
        ("is_completed", Phase.ENV_RESPONSE, True),
        ("env_response", Phase.ENV_RESPONSE, True),
        ("reward", Phase.REWARD, True),
    ],
)
def test_a_hook_that_raises_ends_its_episode_and_says_where(hook, phase, cleaned):
    """The author of the environment finds the line in the trace."""
    environment = Echo()

    def broken(*args):
        raise ZeroDivisionError("by zero")

    setattr(environment, hook, broken)
    error = play(environment, say()).record.error
    assert (error.type_name, error.phase) == ("ZeroDivisionError", phase)
    assert "in broken" in error.trace
    assert ("cleanup" in environment.log) is cleaned


def test_a_cleanup_that_raises_is_told_and_takes_nothing_away():
    """The episode itself was fine."""

    class Dirty(Echo):
        def cleanup(self, state):
            raise OSError("cannot delete")

    record = play(Dirty(), say()).record
    assert (record.stop_reason, record.reward) == (StopReason.MAX_TURNS, 0.7)
    assert (record.error.type_name, record.error.phase) == ("OSError", Phase.CLEANUP)


def test_a_cleanup_that_raises_after_an_error_is_added_to_it():
    """The first error is the one that ended the episode."""

    class Dirty(Echo):
        def cleanup(self, state):
            raise OSError("cannot delete")

    error = play(Dirty(), fail(EngineFailureError("it broke"))).record.error
    told, place = error.message.split(" (")
    assert told == "it broke; then cleanup raised OSError: cannot delete"
    assert re.fullmatch(rf"{re.escape(__file__)}:\d+ in cleanup\)", place)
    assert error.phase is Phase.TURN


def test_a_cleanup_that_hangs_is_given_up():
    """Its limit is the environment's own."""

    class Hanging(Echo):
        cleanup_timeout_s = 0.01

        async def cleanup(self, state):
            await asyncio.Event().wait()

    error = play(Hanging(), say()).record.error
    assert (error.message, error.phase) == ("cleanup took longer than 0.01 s", Phase.CLEANUP)


def test_an_episode_that_takes_too_long_times_out_and_is_cleaned_up():
    """The limit holds wherever the episode waits."""

    class Slow(Echo):
        timeout_s = 0.01

        async def env_response(self, messages, state):
            await asyncio.Event().wait()

    environment = Slow()
    record = play(environment, say()).record
    assert (record.stop_reason, record.error, record.reward, record.turns) == (StopReason.TIMEOUT, None, None, 1)
    assert environment.log == ["setup", "cleanup"]


def test_a_timeout_of_the_environments_own_is_its_error():
    """Only the episode's limit is a timeout of the episode."""

    class Own(Echo):
        timeout_s = 60.0

        async def env_response(self, messages, state):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()

    assert play(Own(), say()).record.error.type_name == "TimeoutError"


def test_a_cancelled_episode_is_cleaned_up_recorded_and_still_cancelled():
    """Cancellation is never swallowed."""
    waiting = asyncio.Event()

    class Waits(Echo):
        async def env_response(self, messages, state):
            waiting.set()
            await asyncio.Event().wait()

        async def cleanup(self, state):
            await asyncio.sleep(0)
            self.log.append("cleanup")

    environment, sink = Waits(), Sink()

    async def main():
        task = asyncio.ensure_future(play_async(environment, say(), sink))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert environment.log == ["setup", "cleanup"]
    assert [e.stop_reason for e in sink.ended] == [StopReason.CANCELLED]
    assert len(sink.ended[0].messages) == 2


def test_a_cancellation_during_cleanup_waits_for_it():
    """Whatever `setup` opened is closed, however often the episode is cancelled."""
    cleaning, let_go = asyncio.Event(), asyncio.Event()

    class Careful(Echo):
        async def cleanup(self, state):
            cleaning.set()
            await let_go.wait()
            self.log.append("cleanup")

    environment, sink = Careful(), Sink()

    async def main():
        task = asyncio.ensure_future(play_async(environment, say(), sink))
        await cleaning.wait()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert environment.log == ["setup", "cleanup"]
    assert sink.ended[0].stop_reason is StopReason.MAX_TURNS


def test_a_cancellation_that_leaks_from_a_hook_is_an_error_of_that_episode():
    """Nobody asked for the run to stop."""

    class Leaky(Echo):
        async def env_response(self, messages, state):
            raise asyncio.CancelledError

    record = play(Leaky(), say()).record
    assert (record.stop_reason, record.error.type_name) == (StopReason.ERROR, "RuntimeError")


def test_hooks_may_wait_or_not():
    """The same environment with `async` hooks plays the same episode."""

    class Waiting(Echo):
        async def setup(self, task, seed):
            await asyncio.sleep(0)
            return Echo.setup(self, task, seed)

        async def reward(self, messages, state):
            await asyncio.sleep(0)
            return Echo.reward(self, messages, state)

    plain, waiting = play(Echo(), say()).record, play(Waiting(), say()).record
    assert (plain.messages, plain.reward) == (waiting.messages, waiting.reward)


class Tools(ToolEnv[int, State]):
    """Two tools with a common memory."""

    max_turns = 4

    def __init__(self):
        self.calls = []

    def make_task(self, index, seed):
        return index

    def setup(self, task, seed):
        def note(text: str) -> str:
            """Note a text."""
            self.calls.append(text)
            return f"noted {text}"

        async def broken() -> str:
            """Never works."""
            await asyncio.sleep(0)
            raise ValueError("no way")

        return State(task, seed, [Message(role="user", content="go")], ToolSet([note, broken]))


def test_calls_are_answered_in_order_one_message_each_and_nothing_ends():
    """Good, unknown, wrong, raising and malformed calls in one turn."""

    def policy(messages, rng):
        if len(messages) > 1:
            return Message(role="assistant", content="done")
        return Message(
            role="assistant",
            tool_calls=(
                ToolCall("note", '{"text": "one"}', "c1"),
                ToolCall("notes", "{}", "c2"),
                ToolCall("note", '{"txt": "two"}', "c3"),
                ToolCall("broken", "{}", "c4"),
                ToolCall("note", '{"text": "three"}', "c5"),
            ),
            extra={"malformed_tool_calls": [{"raw": '{"name": "note", ', "status": "invalid_json"}]},
        )

    environment = Tools()
    record = play(environment, policy).record
    answers = [m for m in record.messages if m.role == "tool"]
    assert [m.tool_call_id for m in answers] == ["c1", "c2", "c3", "c4", "c5", None]
    assert [m.content for m in answers] == [
        "noted one",
        "error: there is no tool 'notes'; the tools are: note, broken",
        "error: wrong arguments for note: Object contains unknown field `txt`; it takes: text",
        "error: ValueError: no way",
        "noted three",
        'error: this tool call could not be read, its arguments are not valid JSON: {"name": "note", ',
    ]
    assert environment.calls == ["one", "three"]
    assert (record.stop_reason, record.turns) == (StopReason.COMPLETED, 2)
    assert [t["function"]["name"] for t in record.tools] == ["note", "broken"]


def test_only_malformed_calls_are_answered_too():
    """A model that spelt its only call wrongly gets another try."""

    def policy(messages, rng):
        if len(messages) > 1:
            return Message(role="assistant", content="done")
        return Message(
            role="assistant",
            content="x",
            extra={"malformed_tool_calls": [{"raw": "r" * 500, "status": "unclosed"}]},
        )

    record = play(Tools(), policy).record
    assert (
        record.messages[2].content
        == "error: this tool call could not be read, it was not closed: " + "r" * 200 + "…"
    )
    assert record.turns == 2
