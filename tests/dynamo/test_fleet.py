"""Two real Dynamos as one engine: sessions stay where they are, and the death of one costs only its own turns."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from servers.dynamo.install import ensure_dynamo
from servers.dynamo.server import EMBEDDED, DynamoServer

from tokentrue import ClientConfig, RolloutPlan, SamplingParams, make_client, run_rollouts
from tokentrue.config import EndpointConfig
from tokentrue.engines.fleet import Health
from tokentrue.rollouts.shipped.environments import CalculatorEnv
from tokentrue.turns import FALLBACKS

pytestmark = pytest.mark.dynamo

CONCURRENCY = 12


@pytest.fixture
def two(tmp_path):
    """Two frontends that know nothing of each other, each with a worker of its own."""
    with ExitStack() as stack:
        servers = []
        for name in ("one", "other"):
            server = stack.enter_context(DynamoServer(ensure_dynamo(), tmp_path / name))
            server.start_frontend()
            server.start_worker(EMBEDDED)
            servers.append(server)
        for server in servers:
            server.wait_ready()
        yield servers


def play(servers, episodes, meanwhile=None):
    """Rollouts through a fleet of both; gives the result and the state of each endpoint at the end."""
    config = ClientConfig(
        client_type="renderer",
        renderer="embedded",
        renderer_transport="dynamo",
        max_retries=3,
        timeout=20.0,
        endpoint_configs=tuple(EndpointConfig(api_base_url=each.frontends[0].url) for each in servers),
        fleet=True,
    )

    async def run():
        async with await make_client(config) as client:
            sampling = SamplingParams(temperature=1.0, max_tokens=256)
            plan = RolloutPlan(episodes, concurrency=CONCURRENCY, seed=5, sampling=sampling)
            playing = asyncio.create_task(run_rollouts(CalculatorEnv(), client, EMBEDDED.model_name, plan))
            if meanwhile is not None:
                await meanwhile()
            return await playing, client.engine.status

    return asyncio.run(run())


def test_every_turn_of_a_session_reaches_one_worker(two) -> None:
    result, status = play(two, 24)
    assert [record.error for record in result.records] == [None] * 24
    assert all(each.health is Health.HEALTHY and each.sent for each in status)
    received = [[tuple(each.prompt_ids) for each in server.workers[0].requests()] for server in two]
    assert min(len(each) for each in received) > 4
    for played in result.episodes:
        prompts = [tuple(record.turn.tokens.prompt_ids.tolist()) for record in played.turns]
        at = [index for index, here in enumerate(received) if all(prompt in here for prompt in prompts)]
        assert at, "a session's turns were at two workers"


def test_the_death_of_one_costs_only_the_turns_that_it_was_working_on(two, eventually) -> None:
    worker = two[0].workers[0]

    async def kill_one() -> None:
        await asyncio.to_thread(eventually, lambda: len(worker.requests()) >= 40, "turns were played")
        for process in two[0].processes():
            process.kill()

    result, status = play(two, 60, kill_one)
    failed = [record for record in result.records if record.error is not None]
    assert len(failed) <= CONCURRENCY, "only what was under way may be lost"
    assert len(result.records) == 60
    assert status[0].health is Health.EJECTED
    assert status[1].health is Health.HEALTHY
    unexplained = [record for record in result.turns if record.turn.stitch.why in FALLBACKS]
    assert not unexplained, "a session that moves keeps its ids"
