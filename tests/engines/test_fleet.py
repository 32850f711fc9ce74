"""A fleet of real HTTP servers that behave and misbehave: sticky, healthy, safe to repeat, never piled up."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, nullcontext
from dataclasses import replace

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from tokentrue.engines.fleet import Endpoint, Fleet, FleetPolicy, Health
from tokentrue.engines.gate import GateLimits
from tokentrue.engines.http import HttpEngine
from tokentrue.errors import (
    ConfigError,
    ConnectionLostError,
    EngineBusyError,
    EngineFailureError,
    EngineRequestError,
    EngineTimeoutError,
)
from tokentrue.generation import GenerateRequest, LogprobsMode
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.vllm import VllmTransport

SAMPLING = SamplingParams(max_tokens=4)


def request(session: str = "") -> GenerateRequest:
    headers = {"X-Session-ID": session} if session else {}
    return GenerateRequest("m", TokenIds([1, 2, 3]), SAMPLING, headers=headers)


def engine(url: str, **settings) -> HttpEngine:
    return HttpEngine(url, VllmTransport(), **{"max_retries": 0, "timeout_s": 5.0, **settings})


def played(http, scenario, *answers, policy=None, **settings):
    """Run `scenario(fleet, servers)`; server i always gives the i-th of `answers`."""

    async def main():
        async with AsyncExitStack() as stack:
            servers = [http.Server([each]) for each in answers]
            for server in servers:
                await stack.enter_async_context(http.running(server))
            endpoints = [
                Endpoint(f"e{index}", engine(server.url, **settings)) for index, server in enumerate(servers)
            ]
            fleet = await stack.enter_async_context(Fleet(endpoints, policy))
            return await scenario(fleet, servers)

    return asyncio.run(main())


def session_at(fleet: Fleet, name: str) -> str:
    """A session that belongs to this endpoint."""
    return next(f"s{number}" for number in range(1000) if fleet.endpoint_of(f"s{number}") == name)


def test_a_session_stays_where_its_prefix_is_and_sessions_are_spread(http) -> None:
    async def scenario(fleet, servers):
        for number in range(60):
            for _ in range(3):
                await fleet.generate(request(f"session {number}"))
        return [Counter(call.headers["X-Session-ID"] for call in server.generate_calls) for server in servers]

    seen = played(http, scenario, http.sampled, http.sampled, http.sampled)
    for here in seen:
        assert set(here.values()) == {3}, "a session was at two endpoints"
        assert 8 <= len(here) <= 32


@given(st.sets(st.integers(0, 10**9), min_size=50, max_size=80), st.integers(2, 6))
def test_an_endpoint_that_leaves_moves_its_own_sessions_only(sessions, count) -> None:
    async def main() -> None:
        def fleet(names):
            return Fleet([Endpoint(name, engine("http://127.0.0.1:9")) for name in names])

        names = [f"http://host-{index}:8000" for index in range(count)]
        whole, smaller, reordered = fleet(names), fleet(names[1:] or names), fleet(names[::-1])
        for number in sessions:
            before = whole.endpoint_of(str(number))
            assert reordered.endpoint_of(str(number)) == before
            if before != names[0]:
                assert smaller.endpoint_of(str(number)) == before

    asyncio.run(main())


def test_without_a_session_the_least_loaded_endpoint_is_asked(http) -> None:
    async def scenario(fleet, servers):
        hanging = asyncio.create_task(fleet.generate(request(session_at(fleet, "e0"))))
        await servers[0].arrived.wait()
        for _ in range(5):
            await fleet.generate(request())
        hanging.cancel()
        return len(servers[1].generate_calls)

    assert played(http, scenario, http.hangs, http.sampled) == 5


def test_where_nobody_listens_the_request_goes_elsewhere_and_the_endpoint_is_ejected(http) -> None:
    async def scenario(fleet, servers):
        gone = Endpoint("gone", engine("http://127.0.0.1:9"))
        async with Fleet([gone, Endpoint("there", engine(servers[0].url))]) as mixed:
            session = session_at(mixed, "gone")
            for _ in range(4):
                await mixed.generate(request(session))
            return mixed.status, len(servers[0].generate_calls)

    (gone, there), calls = played(http, scenario, http.sampled)
    assert (gone.health, gone.sent, gone.failed) == (Health.EJECTED, 1, 1)
    assert "ConnectionFailed" in gone.last_error or "127.0.0.1:9" in gone.last_error
    assert (there.health, calls) == (Health.HEALTHY, 4)


def test_a_busy_endpoint_is_left_alone_its_limit_is_cut_and_another_one_answers(http) -> None:
    async def scenario(fleet, servers):
        session = session_at(fleet, "e0")
        await fleet.generate(request(session))
        return fleet.status, [len(server.generate_calls) for server in servers]

    status, calls = played(http, scenario, http.replies({"error": "later"}, 503), http.sampled)
    assert calls == [1, 1]
    assert status[0].limit < GateLimits().start
    assert status[0].health is Health.HEALTHY


def test_when_everybody_is_busy_the_last_refusal_is_raised(http) -> None:
    async def scenario(fleet, servers):
        with pytest.raises(EngineBusyError):
            await fleet.generate(request("s"))
        return [len(server.generate_calls) for server in servers]

    busy = http.replies({"error": "later"}, 429, **{"retry-after": "0"})
    assert sum(played(http, scenario, busy, busy, policy=FleetPolicy(attempts=5))) == 5


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("resets", ConnectionLostError),
        ("breaks_off", ConnectionLostError),
        ("hangs", EngineTimeoutError),
        ("fails", EngineFailureError),
    ],
)
def test_what_may_have_been_sampled_is_raised_and_not_sampled_again(http, answer, error) -> None:
    async def scenario(fleet, servers):
        session = session_at(fleet, "e0")
        with pytest.raises(error):
            await fleet.generate(request(session))
        return [len(server.generate_calls) for server in servers]

    bad = http.replies({"error": {"message": "dead"}}, 500) if answer == "fails" else getattr(http, answer)
    # A kept connection that is reset at once, without a byte, is tried once more at the same endpoint.
    asked = 2 if answer == "resets" else 1
    assert played(http, scenario, bad, http.sampled, timeout_s=0.5) == [asked, 0]


def test_failures_in_a_row_eject_and_an_answer_in_between_does_not(http) -> None:
    failing = http.replies({"error": {"message": "dead"}}, 500)

    async def scenario(fleet, servers):
        session = session_at(fleet, "e0")
        moods = [failing, failing, http.sampled, failing, failing, failing]
        health = []
        for mood in moods:
            servers[0].answers[:] = [mood]
            with pytest.raises(EngineFailureError) if mood is failing else nullcontext():
                await fleet.generate(request(session))
            health.append(fleet.status[0].health)
        return health

    health = played(http, scenario, http.sampled, http.sampled, policy=FleetPolicy(failures=3))
    assert health == [Health.HEALTHY] * 5 + [Health.EJECTED]


def test_a_bad_request_says_nothing_of_the_endpoint(http) -> None:
    async def scenario(fleet, servers):
        for _ in range(5):
            with pytest.raises(EngineRequestError):
                await fleet.generate(request("s"))
        return fleet.status

    wrong = http.replies({"error": {"message": "top_p must be in (0, 1]", "type": "BadRequestError"}}, 400)
    assert {each.health for each in played(http, scenario, wrong, wrong)} == {Health.HEALTHY}


def test_an_ejected_endpoint_that_answers_again_gets_its_sessions_back(http) -> None:
    async def scenario(fleet, servers):
        session = session_at(fleet, "e0")
        with pytest.raises(EngineFailureError):
            await fleet.generate(request(session))
        servers[0].answers[:] = [http.sampled]
        await fleet.generate(request(session))
        assert len(servers[1].generate_calls) == 1
        for _ in range(100):
            await asyncio.sleep(0.02)
            await fleet.generate(request(session))
            if fleet.status[0].health is Health.HEALTHY:
                break
        await fleet.generate(request(session))
        return len(servers[0].generate_calls), servers[0].models_calls

    failing = http.replies({"error": {"message": "dead"}}, 500)
    policy = FleetPolicy(failures=1, ejected_s=0.1)
    calls, asked = played(http, scenario, failing, http.sampled, policy=policy)
    assert calls >= 2
    assert asked >= 1


def test_an_outage_of_all_is_waited_for_and_then_told(http) -> None:
    async def scenario(fleet, servers):
        with pytest.raises(EngineFailureError):
            await fleet.generate(request("s"))
        servers[0].answers[:] = [http.sampled]
        return await fleet.generate(request("s"))

    failing = http.replies({"error": {"message": "dead"}}, 500)
    policy = FleetPolicy(failures=1, ejected_s=0.1)
    assert played(http, scenario, failing, policy=policy).tokens.completion_ids == [7, 8]

    async def main():
        endpoint = Endpoint("gone", engine("http://127.0.0.1:9"))
        async with Fleet([endpoint], FleetPolicy(ejected_s=0.05, outage_s=0.3)) as fleet:
            with pytest.raises(EngineBusyError, match="gone is ejected"):
                await fleet.generate(request("s"))

    asyncio.run(main())


def test_an_outage_counts_from_when_it_began_and_not_from_when_the_request_came(http) -> None:
    """Requests that waited long for a place are not failed by a blip of the only endpoint."""
    calls = 0

    async def moody(call: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.1)
        if calls == 5:
            return web.json_response({"error": {"message": "dead"}}, status=500)
        return await http.sampled(call)

    async def scenario(fleet, servers):
        asked = [fleet.generate(request(f"s{number}")) for number in range(10)]
        return await asyncio.gather(*asked, return_exceptions=True)

    policy = FleetPolicy(GateLimits(start=1, most=1), failures=1, ejected_s=0.02, outage_s=0.3)
    failed = [each for each in played(http, scenario, moody, policy=policy) if isinstance(each, BaseException)]
    assert [type(each) for each in failed] == [EngineFailureError]


def test_a_kept_connection_that_the_server_closed_is_no_failure(http) -> None:
    async def closes(call: web.Request) -> web.StreamResponse:
        response = await http.sampled(call)
        asyncio.get_running_loop().call_later(0.02, call.transport.close)
        return response

    async def scenario(fleet, servers):
        for _ in range(4):
            await fleet.generate(request("s"))
            await asyncio.sleep(0.0195)
        return fleet.status[0]

    status = played(http, scenario, closes)
    assert (status.failed, status.health) == (0, Health.HEALTHY)


def test_no_endpoint_gets_more_at_once_than_its_limit_and_everybody_is_served(http) -> None:
    """Sixty sessions of four turns at three servers, of which each takes two requests at a time."""
    most: Counter[str] = Counter()
    now: Counter[str] = Counter()

    async def slow(call: web.Request) -> web.StreamResponse:
        now[call.host] += 1
        most[call.host] = max(most[call.host], now[call.host])
        try:
            await asyncio.sleep(0.002)
            return await http.sampled(call)
        finally:
            now[call.host] -= 1

    async def scenario(fleet, servers):
        async def converse(number):
            for _ in range(4):
                await fleet.generate(request(f"session {number}"))

        await asyncio.gather(*(converse(number) for number in range(60)))
        return sum(len(server.generate_calls) for server in servers)

    policy = FleetPolicy(limits=GateLimits(start=2, most=2))
    assert played(http, scenario, slow, slow, slow, policy=policy) == 240
    assert set(most.values()) == {2}


def test_a_full_fleet_refuses_at_once_and_a_place_that_does_not_come_is_told(http) -> None:
    async def scenario(fleet, servers):
        first = asyncio.create_task(fleet.generate(request("a")))
        await servers[0].arrived.wait()
        second = asyncio.create_task(fleet.generate(request("b")))
        await asyncio.sleep(0.01)
        with pytest.raises(EngineBusyError, match="every endpoint is full: e0 works on 1"):
            await fleet.generate(request("c"))
        with pytest.raises(EngineBusyError, match="within wait_s"):
            await second
        first.cancel()

    limits = GateLimits(start=1, most=1, waiting=1)
    played(http, scenario, http.hangs, policy=FleetPolicy(limits=limits, wait_s=0.2))


def test_draining_waits_for_what_is_under_way_and_moves_the_sessions(http) -> None:
    release = asyncio.Event()

    async def slow(call: web.Request) -> web.StreamResponse:
        await release.wait()
        return await http.sampled(call)

    async def scenario(fleet, servers):
        session = session_at(fleet, "e0")
        under_way = asyncio.create_task(fleet.generate(request(session)))
        await servers[0].arrived.wait()
        draining = asyncio.create_task(fleet.drain("e0"))
        await asyncio.sleep(0)
        await fleet.generate(request(session))
        assert not draining.done()
        assert fleet.status[0].health is Health.DRAINING
        release.set()
        await asyncio.wait_for(draining, 5)
        await under_way
        with pytest.raises(ConfigError, match="last endpoint"):
            await fleet.drain("e1")
        fleet.undrain("e0")
        await fleet.generate(request(session))
        return [len(server.generate_calls) for server in servers]

    assert played(http, scenario, slow, http.sampled) == [2, 1]


def test_a_cancelled_turn_gives_its_place_back(http) -> None:
    async def scenario(fleet, servers):
        task = asyncio.create_task(fleet.generate(request("s")))
        await servers[0].arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(servers[0].cancelled.wait(), 5)
        return fleet.status[0].in_flight

    assert played(http, scenario, http.hangs) == 0


def test_ranks_of_one_server_are_endpoints_and_name_themselves(http) -> None:
    async def scenario(_, servers):
        url = servers[0].url
        ranks = [Endpoint(f"{url} rank {rank}", engine(url), data_parallel_rank=rank) for rank in range(4)]
        async with Fleet(ranks) as fleet:
            for number in range(40):
                for _ in range(2):
                    await fleet.generate(request(f"session {number}"))
        return [
            (call.headers["X-Session-ID"], call.headers["X-data-parallel-rank"])
            for call in servers[0].generate_calls
        ]

    seen = played(http, scenario, http.sampled)
    assert len(set(seen)) == 40, "a session was at two ranks"
    assert {rank for _, rank in seen} == {"0", "1", "2", "3"}


def test_a_fleet_is_what_its_endpoints_have_in_common(http) -> None:
    async def scenario(fleet, servers):
        card = {"id": "m", "object": "model", "owned_by": "vllm", "max_model_len": 32}
        servers[1].models = http.replies({"object": "list", "data": [card]})
        return await fleet.describe("m")

    info = played(http, scenario, http.sampled, http.sampled)
    assert (info.models, info.context_limit, info.name) == (("m",), 32, "vllm")


def test_endpoints_whose_logprobs_mean_different_things_are_no_fleet(http) -> None:
    class Told(HttpEngine):
        """An engine that knows what its log-probabilities mean."""

        mode = LogprobsMode.RAW

        async def describe(self, model=None):
            return replace(await super().describe(model), logprobs_mode=self.mode)

    class Other(Told):
        mode = LogprobsMode.PROCESSED

    async def scenario(fleet, servers):
        raw, other = (kind(servers[0].url, VllmTransport(), max_retries=0) for kind in (Told, Other))
        async with Fleet([Endpoint("raw", raw), Endpoint("processed", other)]) as mixed:
            with pytest.raises(ConfigError, match="mean different things"):
                await mixed.describe("m")
        again = Told(servers[0].url, VllmTransport(), max_retries=0)
        async with Fleet([Endpoint("raw", again), Endpoint("untold", engine(servers[0].url))]) as half:
            assert (await half.describe("m")).logprobs_mode is LogprobsMode.UNKNOWN

    played(http, scenario, http.sampled)


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_a_fleet_needs_endpoints_with_names_of_their_own(names) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="different names"):
            Fleet([Endpoint(name, engine("http://127.0.0.1:9")) for name in names])

    asyncio.run(main())
