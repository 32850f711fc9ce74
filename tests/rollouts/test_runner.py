"""Many episodes: bounded, seeded, and one failing episode stops no other."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokentrue.errors import (
    ConfigError,
    ConnectionFailedError,
    EngineFailureError,
    RecordError,
    RouteMissingError,
    UnknownModelError,
)
from tokentrue.messages import Message
from tokentrue.rollouts.environment import EpisodeState, MultiTurnEnv, StopReason
from tokentrue.rollouts.runner import RolloutPlan, run_rollouts
from tokentrue.rollouts.seeds import derive_seed
from tokentrue.sampling import SamplingParams
from tokentrue.testing.scripted_client import ScriptedClient


class Continues(MultiTurnEnv[int, EpisodeState[int]]):
    """Always continues, with a task and answers drawn from the seed."""

    max_turns = 3

    def __init__(self):
        self.cleaned = 0

    def make_task(self, index, seed):
        return seed % 1000

    def setup(self, task, seed):
        return EpisodeState(task, seed, [Message(role="user", content=f"task {task}")])

    def env_response(self, messages, state):
        return [Message(role="user", content=f"{state.seed} hears {messages[-1].content}")]

    def reward(self, messages, state):
        return float(len(messages[-2].content or "") % 2)

    def cleanup(self, state):
        self.cleaned += 1


def draw(messages, rng):
    """A policy that depends on nothing but the seed of its turn."""
    return Message(role="assistant", content="x" * rng.randrange(20))


def run(plan, policy=draw, environment=None, **more):
    client = ScriptedClient(policy)
    return asyncio.run(run_rollouts(environment or Continues(), client, "m", plan, **more)), client


def without_clock(result):
    """Everything that a seed decides: all but the times."""
    return (
        [replace(e, started_at=0.0, began_at=None, duration_s=0.0) for e in result.records],
        [replace(t, duration_s=0.0) for t in result.turns],
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(-(2**70), 2**70), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12))
def test_results_depend_on_the_seed_and_not_on_the_concurrency(seed, episodes, few, many):
    """run(seed, few workers) == run(seed, many workers), whatever order the episodes end in."""
    plan = RolloutPlan(episodes, concurrency=few, seed=seed)
    one, _ = run(plan)
    other, _ = run(replace(plan, concurrency=many))
    assert without_clock(one) == without_clock(other)
    assert [e.index for e in one.records] == list(range(episodes))


def test_another_seed_is_another_run():
    """Tasks and samples both change."""
    one, _ = run(RolloutPlan(4, seed=1))
    other, _ = run(RolloutPlan(4, seed=2))
    assert [e.task for e in one.records] != [e.task for e in other.records]
    assert [t.message for t in one.turns] != [t.message for t in other.turns]


def test_seeds_of_all_turns_differ():
    """No two draws of a run share their random numbers."""
    places = [("turn", e, t) for e in range(50) for t in range(20)] + [("episode", e) for e in range(50)]
    seeds = {derive_seed(3, *place) for place in places}
    assert len(seeds) == len(places)
    assert all(0 <= seed < 2**53 for seed in seeds)


def test_no_more_than_concurrency_episodes_are_under_way():
    """A fixed number of workers, and all of them are used."""
    _, client = run(RolloutPlan(30, concurrency=4))
    assert client.most_in_flight == 4


def test_the_plans_sampling_reaches_every_turn_with_its_own_seed():
    """Parameters as given, the seed derived."""
    seen = []

    class Spy(ScriptedClient):
        async def get_response(self, prompt, model, sampling_args=None, tools=None, *, session=None, headers=None):
            seen.append((model, sampling_args, headers))
            return await super().get_response(prompt, model, sampling_args, tools, session=session)

    plan = RolloutPlan(2, 1, 5, SamplingParams(temperature=0.5, extra={"x": 1}), headers={"X-Run": "r"})
    asyncio.run(run_rollouts(Continues(), Spy(draw), "m", plan))
    assert {(model, headers["X-Run"]) for model, _, headers in seen} == {("m", "r")}
    assert all(replace(s, seed=None) == plan.sampling for _, s, _ in seen)
    assert [s.seed for _, s, _ in seen] == [derive_seed(5, "turn", e, t) for e in range(2) for t in range(3)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"episodes": 0},
        {"episodes": True},
        {"episodes": 3, "concurrency": 0},
        {"episodes": 3, "seed": "1"},
        {"episodes": 3, "sampling": SamplingParams(seed=1)},
        {"episodes": 3, "sampling": SamplingParams(n=2)},
    ],
)
def test_a_plan_that_cannot_be_run_cannot_be_made(wrong):
    """The message has the value."""
    with pytest.raises(ConfigError, match=r"not (0|True|'1')|seed=1|n=2"):
        RolloutPlan(**wrong)


def test_a_failing_episode_is_recorded_and_stops_no_other():
    """One engine failure among twelve episodes."""
    failed_seed = derive_seed(0, "episode", 5) % 1000

    def policy(messages, rng):
        if len(messages) == 3 and messages[0].content == f"task {failed_seed}":
            raise EngineFailureError("out of memory", status=500)
        return draw(messages, rng)

    environment = Continues()
    result, _ = run(RolloutPlan(12, concurrency=3), policy, environment)
    reasons = [e.stop_reason for e in result.records]
    assert reasons == [StopReason.ERROR if i == 5 else StopReason.MAX_TURNS for i in range(12)]
    assert result.records[5].error.type_name == "tokentrue.errors.EngineFailureError"
    assert result.records[5].turns == 1
    assert environment.cleaned == 12


@pytest.mark.parametrize(
    "failure",
    [
        UnknownModelError("no model 'm' here", status=404),
        RouteMissingError("no token route"),
        ConfigError("wrong"),
        ConnectionFailedError("connection refused"),
    ],
)
def test_what_every_episode_would_meet_stops_the_run_with_that_one_error(failure):
    """The error itself comes out, not a group of errors, and every episode under way is cleaned up."""
    calls = []

    def policy(messages, rng):
        calls.append(1)
        raise failure

    environment = Continues()
    with pytest.raises(type(failure)) as caught:
        run(RolloutPlan(1000, concurrency=4), policy, environment)
    assert caught.value is failure
    assert len(calls) <= 8
    assert environment.cleaned <= 8


def test_a_server_that_dies_on_the_way_stops_the_run_before_it_burns_the_rest():
    """A few lost connections are episodes' errors; nothing but lost connections is a dead server."""
    answered = []

    def policy(messages, rng):
        answered.append(1)
        if len(answered) > 30:
            raise ConnectionFailedError("connection refused")
        return draw(messages, rng)

    with pytest.raises(ConnectionFailedError):
        run(RolloutPlan(1000, concurrency=3), policy)
    assert len(answered) < 50


def test_a_blip_is_survived():
    """As many lost connections as there are workers, then it goes on."""
    answered = []

    def policy(messages, rng):
        answered.append(1)
        if 10 < len(answered) <= 13:
            raise ConnectionFailedError("connection refused")
        return draw(messages, rng)

    result, _ = run(RolloutPlan(20, concurrency=3), policy)
    assert len(result.records) == 20
    assert 1 <= sum(e.stop_reason is StopReason.ERROR for e in result.records) <= 3


class Told:
    """A sink and a progress in one."""

    def __init__(self, full_after=10**9):
        self.events, self.turns, self.ended = [], 0, []
        self.full_after = full_after

    def started(self, episodes):
        self.events.append(("started", episodes))

    def finished(self):
        self.events.append(("finished",))

    def episode_started(self, episode):
        self.events.append(("episode", episode.index))

    def turn_done(self, turn):
        self.turns += 1
        if self.turns > self.full_after:
            raise RecordError("disk full")

    def episode_done(self, episode):
        self.ended.append(episode)


def test_sink_and_progress_are_told_everything():
    """Begin and end, every turn, every episode."""
    sink, progress = Told(), Told()
    run(RolloutPlan(5, concurrency=2), record=sink, progress=progress)
    assert sorted(sink.events) == [("episode", i) for i in range(5)]
    assert progress.events == [("started", 5), ("finished",)]
    assert (sink.turns, progress.turns, len(sink.ended), len(progress.ended)) == (15, 15, 5, 5)


def test_a_record_that_cannot_be_written_stops_the_run():
    """Nobody wants episodes that are not kept."""
    environment, sink = Continues(), Told(full_after=4)
    with pytest.raises(RecordError, match="disk full"):
        run(RolloutPlan(100, concurrency=3), environment=environment, record=sink, progress=sink)
    assert sink.events[-1] == ("finished",)
    assert environment.cleaned == sum(event[0] == "episode" for event in sink.events)


def test_cancelling_a_run_cleans_up_records_and_stays_cancelled():
    """What Ctrl-C does: every episode under way ends as cancelled."""
    environment, sink, progress = Continues(), Told(), Told()

    async def main():
        under_way = asyncio.Event()

        def policy(messages, rng):
            if sink.turns >= 7:
                under_way.set()
            return draw(messages, rng)

        client = ScriptedClient(policy)
        task = asyncio.ensure_future(
            run_rollouts(environment, client, "m", RolloutPlan(10**6, 4), record=sink, progress=progress)
        )
        await under_way.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    begun = sum(event[0] == "episode" for event in sink.events)
    assert environment.cleaned == begun == len(sink.ended)
    assert {e.stop_reason for e in sink.ended} <= {StopReason.CANCELLED, StopReason.MAX_TURNS}
    assert 1 <= sum(e.stop_reason is StopReason.CANCELLED for e in sink.ended) <= 4
    assert progress.events[-1] == ("finished",)
