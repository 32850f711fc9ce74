"""Rollouts through every client and transport codec: the laws hold, samples add up, no key is in a record."""

from __future__ import annotations

import pytest

from tokentrue import (
    EpisodeState,
    Message,
    MultiTurnEnv,
    RolloutPlan,
    SamplingParams,
    run_rollouts,
    session_samples,
)
from tokentrue.errors import ConfigError
from tokentrue.generation import EngineInfo
from tokentrue.rollouts.proof import prove
from tokentrue.rollouts.record import RecordWriter
from tokentrue.rollouts.trajectory import RunInfo
from tokentrue.turns import How

CHAT, TOKENS, TOKENIZE = "/v1/chat/completions", "/v1/chat/completions/tokens", "/tokenize"
GENERATE = "/inference/v1/generate"
SECRET = "sk-very-secret"
SAYS = [
    "<think>\nEasy.\n</think>\n\nOne.",
    '<tool_call>\n{"name":"add","arguments":{"a":1}}\n</tool_call>',
    "Three.",
]


class Questions(MultiTurnEnv[str, EpisodeState[str]]):
    """Three questions, whatever the answers."""

    def make_task(self, index: int, seed: int) -> str:
        return f"question {index}"

    def setup(self, task: str, seed: int) -> EpisodeState[str]:
        return EpisodeState(task, seed, [Message("user", task)])

    def env_response(self, messages, state) -> list[Message]:
        return [Message("user", "and then?")]

    def is_completed(self, messages, state) -> bool:
        return sum(message.role == "assistant" for message in messages) == 3


@pytest.mark.parametrize(
    ("client_type", "bridging_here", "later"),
    [
        ("openai_chat_completions", True, How.ENGINE_RENDERED),
        ("openai_chat_completions_token", True, How.BRIDGED),
        ("openai_chat_completions_token", False, How.BRIDGED),
        ("renderer", True, How.BRIDGED),
    ],
)
def test_laws_hold_and_every_sampled_id_is_accounted_for(
    world, renderer, client_type, bridging_here, later
) -> None:
    plan = RolloutPlan(episodes=2, concurrency=1, sampling=SamplingParams(max_tokens=60))

    async def about(client, _):
        return await run_rollouts(Questions(), client, "m", plan)

    result = world.run(
        about,
        server={"routes": {CHAT, TOKENS, TOKENIZE, GENERATE}, "says": SAYS * 2},
        client_type=client_type,
        bridging_here=bridging_here,
    )
    turns = [turn for episode in result.episodes for turn in episode.turns]
    assert [turn.turn.stitch.how for turn in turns if turn.turn.index] == [later] * 4
    proof = prove(list(result.records), turns, renderer)
    assert proof.holds, [check for check in proof.checks if not check.holds]
    for episode in result.episodes:
        found = session_samples([turn.turn for turn in episode.turns], max_seq_len=90)
        assert found.counts.trained + found.counts.cut == sum(
            len(turn.turn.tokens.completion_ids) for turn in episode.turns
        )


def test_a_key_is_in_no_file_of_a_record_also_where_the_server_repeats_it(world, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TOKENTRUE_TEST_KEY", SECRET)
    plan = RolloutPlan(episodes=2, concurrency=1, sampling=SamplingParams(max_tokens=60), headers={"X-Team": "t"})
    info = RunInfo("questions", "m", EngineInfo("vllm", "", ("m",), None), sampling=plan.sampling)
    echoed = (500, {"error": {"message": f"cannot serve {SECRET}"}})

    async def about(client, server):
        server.answers = {TOKENS: [(400, {}), echoed]}
        with RecordWriter(tmp_path / "run", info) as record:
            return await run_rollouts(Questions(), client, "m", plan, record=record)

    result = world.run(about, server={"routes": {CHAT, TOKENS}}, api_key_var="TOKENTRUE_TEST_KEY")
    assert "cannot serve ***" in result.records[0].error.message
    assert SECRET not in repr(result)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files
    assert all(SECRET.encode() not in path.read_bytes() for path in files)


def test_headers_of_the_state_travel_with_every_turn(world) -> None:
    plan = RolloutPlan(episodes=2, concurrency=1, headers_from_state={"X-Task": "task", "X-Seed": "seed"})

    async def about(client, server):
        await run_rollouts(Questions(), client, "m", plan)
        return server

    server = world.run(about, server={"routes": {CHAT, TOKENS}})
    tasks = [request.headers["X-Task"] for _, body, request in server.calls if body]
    assert tasks == ["question 0"] * 3 + ["question 1"] * 3
    sessions = [request.headers["X-Session-ID"] for _, body, request in server.calls if body]
    assert len(set(sessions)) == 2, "one per rollout"


def test_a_header_of_a_field_that_the_state_lacks_is_named(world) -> None:
    plan = RolloutPlan(episodes=1, headers_from_state={"X-Task": "tsk"})

    async def about(client, _):
        return await run_rollouts(Questions(), client, "m", plan)

    with pytest.raises(ConfigError, match="tsk"):
        world.run(about)
