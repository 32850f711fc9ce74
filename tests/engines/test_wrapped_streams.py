"""What is wrapped around an engine streams as the engine does: fleet, bracket, measurement, resumption."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass, field

import pytest

from engines.test_fleet import Endpoint, Fleet, played, request, session_at
from engines.test_streaming import GOOD, aborts, collected, hangs, streams, whole
from tokentrue.engines.embedded.engine import MODEL_NAME, EmbeddedEngine
from tokentrue.engines.embedded.transformer import BLOCK_TOKENS
from tokentrue.engines.engine import StreamingEngine
from tokentrue.engines.logprobs import MeasuredEngine
from tokentrue.engines.policy import Bracket, BracketedEngine, GivenVersion
from tokentrue.engines.resuming import ResumingEngine
from tokentrue.errors import AbortedError, ConnectionLostError, EngineBusyError, UnsupportedParameterError
from tokentrue.generation import (
    Delta,
    GenerateRequest,
    Generation,
    LogprobsMode,
    PartialGeneration,
    VersionSource,
    make_tokens,
)
from tokentrue.sampling import SamplingParams
from tokentrue.testing import Outcome, ServerFacts, check_engine
from tokentrue.tokens import TokenIds

PROMPT = TokenIds([(17 * i) % 300 for i in range(70)])
LENGTH = 24


def asked(**sampling) -> GenerateRequest:
    given = {"temperature": 0, "max_tokens": LENGTH, "ignore_eos": True, **sampling}
    return GenerateRequest(MODEL_NAME, PROMPT, SamplingParams.from_args(given))


class WithCalls(EmbeddedEngine):
    """A member of a fleet; nothing here makes other calls."""

    async def exchange(self, call, read, headers=None):  # pragma: no cover
        raise AssertionError("no other call is made")


WRAPPED = {
    "fleet": lambda inside: Fleet([Endpoint("a", inside)]),
    "bracketed": lambda inside: BracketedEngine(inside, Bracket(GivenVersion("step-1"))),
    "salted": lambda inside: BracketedEngine(inside, Bracket(GivenVersion("step-1"), salts=True)),
    "measured": MeasuredEngine,
    "resuming": lambda inside: ResumingEngine(inside, 2),
    "all": lambda inside: ResumingEngine(
        MeasuredEngine(BracketedEngine(Fleet([Endpoint("a", inside)]), Bracket(GivenVersion("step-1")))), 2
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_engine_streams_the_same_as_it_gives_whole(name) -> None:
    async def run():
        wrapped = WRAPPED[name](WithCalls())
        try:
            known = {"vocab_size": 696, "context_limit": 2048, "server": ServerFacts(BLOCK_TOKENS)}
            return await check_engine(wrapped, model=MODEL_NAME, only={"streaming"}, seed=0, **known)
        finally:
            await wrapped.close()

    report = asyncio.run(run())
    assert {row.outcome for row in report.rows} == {Outcome.HOLDS}, str(report)


class Whole:
    """An engine without a stream."""

    def __init__(self):
        self.engine = WithCalls()
        self.close, self.describe = self.engine.close, self.engine.describe
        self.generate, self.exchange = self.engine.generate, self.engine.exchange


@pytest.mark.parametrize("name", WRAPPED)
def test_an_engine_inside_that_has_no_stream_is_told_by_its_name(name) -> None:
    async def run():
        wrapped = WRAPPED[name](Whole())
        try:
            with pytest.raises(UnsupportedParameterError, match="Whole cannot take the parameter 'stream'"):
                await whole(wrapped, request=asked())
            assert len((await wrapped.generate(asked())).tokens.completion_ids) == LENGTH
            known = {"vocab_size": 696, "context_limit": 2048}
            return await check_engine(wrapped, model=MODEL_NAME, only={"streaming"}, **known)
        finally:
            await wrapped.close()

    (row,) = asyncio.run(run()).rows
    assert (row.outcome, row.evidence) == (Outcome.NOT_OFFERED, "Whole has no stream")


@dataclass
class Aborting:
    """Gives up its first streams after so many ids each; the last ids of each come with the abort alone."""

    engine: EmbeddedEngine
    after: list[int]
    held_back: int = 0
    asked: list[GenerateRequest] = field(default_factory=list)

    async def stream(self, request):
        self.asked.append(request)
        *deltas, end = await whole(self.engine, request=request)
        if not self.after:
            for part in (*deltas, end):
                yield part
            return
        count = self.after.pop(0)
        ids, logprobs = list(end.tokens.completion_ids)[:count], list(end.tokens.completion_logprobs)[:count]
        for at in range(max(count - self.held_back, 0)):
            yield Delta((ids[at],), (logprobs[at],))
        raise AbortedError("abort", partial=PartialGeneration(make_tokens(request.prompt_ids, ids, logprobs)))

    async def generate(self, request):
        raise AssertionError("a stream was asked for")
        await asyncio.sleep(0)

    async def describe(self, model=None):
        return await self.engine.describe(model)

    async def close(self):
        await self.engine.close()


@pytest.mark.parametrize("held_back", [0, 1, 99])
@pytest.mark.parametrize("after", [[1], [5], [0], [7, 3], [LENGTH], [4, LENGTH - 4]])
def test_a_stream_that_is_given_up_goes_on_from_exactly_its_ids(after, held_back) -> None:
    async def run():
        async with EmbeddedEngine() as inside:
            aborting = Aborting(inside, list(after), held_back)
            parts = await whole(ResumingEngine(aborting, 4), request=asked())
            return parts, await inside.generate(asked()), aborting.asked

    (*deltas, end), uninterrupted, requests = asyncio.run(run())
    assert all(isinstance(delta, Delta) for delta in deltas)
    assert isinstance(end, Generation)
    assert [each for delta in deltas for each in delta.token_ids] == uninterrupted.tokens.completion_ids
    assert [each for delta in deltas for each in delta.logprobs] == end.tokens.completion_logprobs
    assert end.tokens.completion_ids == uninterrupted.tokens.completion_ids
    assert end.tokens.prompt_ids == PROMPT
    for earlier, later in itertools.pairwise(requests):
        assert later.prompt_ids[: len(earlier.prompt_ids)] == earlier.prompt_ids.tolist()


def test_a_stream_that_is_given_up_too_often_ends_with_all_ids_as_its_partial() -> None:
    async def run():
        async with EmbeddedEngine() as inside:
            came = []
            with pytest.raises(AbortedError, match="resumed 1 times already, and the limit is 1") as raised:
                await collected(ResumingEngine(Aborting(inside, [3, 4]), 1), asked(), came)
            return came, raised.value.partial

    came, partial = asyncio.run(run())
    assert [each for delta in came for each in delta.token_ids] == partial.tokens.completion_ids
    assert len(partial.tokens.completion_ids) == 7


def test_weights_that_change_during_a_stream_make_it_a_mixed_turn_also_when_it_breaks_off() -> None:
    async def run(after):
        clock = GivenVersion("step-1")
        async with EmbeddedEngine() as inside:

            class Unlabelled(Aborting):
                async def stream(self, request):
                    async with contextlib.aclosing(super().stream(request)) as parts:
                        async for part in parts:
                            clock.value = "step-2"
                            if isinstance(part, Generation):
                                part = Generation(part.tokens, part.finish_reason)  # noqa: PLW2901
                            yield part

            return await whole(BracketedEngine(Unlabelled(inside, after), Bracket(clock)), request=asked())

    *_, end = asyncio.run(run([]))
    assert {(span.source, span.between) for span in end.weight_spans} == {
        (VersionSource.MIXED, ("step-1", "step-2"))
    }
    with pytest.raises(AbortedError) as raised:
        asyncio.run(run([5]))
    assert {span.source for span in raised.value.partial.weight_spans} == {VersionSource.MIXED}


def test_a_measured_stream_says_in_the_end_what_its_numbers_mean() -> None:
    async def run():
        async with EmbeddedEngine(logprobs_mode=LogprobsMode.SCALED) as inside:

            class Silent(Whole):
                def __init__(self):
                    self.close, self.describe = inside.close, inside.describe

                async def stream(self, request):
                    async for part in inside.stream(request):
                        is_end = isinstance(part, Generation)
                        yield Generation(part.tokens, part.finish_reason) if is_end else part

                async def generate(self, request):
                    told = await inside.generate(request)
                    return Generation(told.tokens, told.finish_reason)

            return await whole(MeasuredEngine(Silent()), request=asked(temperature=0.7, seed=1))

    *_, end = asyncio.run(run())
    assert end.logprobs_mode is LogprobsMode.SCALED


def test_a_fleets_stream_is_asked_elsewhere_until_something_came(http) -> None:
    async def scenario(fleet, servers):
        parts = await whole(fleet, request=request(session_at(fleet, "e0")))
        return parts, fleet.status, [len(server.generate_calls) for server in servers]

    assert issubclass(Fleet, StreamingEngine)
    busy = http.replies({"error": "later"}, 503)
    parts, status, calls = played(http, scenario, busy, streams(*GOOD))
    assert calls == [1, 1]
    assert [part.token_ids for part in parts[:-1]] == [(7,), (8, 9)]
    assert parts[-1].tokens.completion_ids == [7, 8, 9]
    assert [each.in_flight for each in status] == [0, 0]


def test_a_fleets_stream_that_breaks_off_is_raised_with_what_came_and_counts_against_its_endpoint(http) -> None:
    async def scenario(fleet, servers):
        with pytest.raises(ConnectionLostError) as raised:
            await whole(fleet, request=request(session_at(fleet, "e0")))
        return raised.value, fleet.status, [len(server.generate_calls) for server in servers]

    error, status, calls = played(http, scenario, streams(*GOOD[:2], then=aborts), streams(*GOOD))
    assert calls == [1, 0]
    assert error.partial.tokens.completion_ids == [7, 8, 9]
    assert (status[0].failed, status[0].in_flight) == (1, 0)


def test_a_fleets_stream_that_is_left_gives_its_place_back(http) -> None:
    async def scenario(fleet, servers):
        async with contextlib.aclosing(fleet.stream(request(session_at(fleet, "e0")))) as parts:
            await anext(parts)
            held = [each.in_flight for each in fleet.status]
        await servers[0].cancelled.wait()
        return held, [each.in_flight for each in fleet.status]

    assert played(http, scenario, streams(*GOOD[:1], then=hangs), streams(*GOOD)) == ([1, 0], [0, 0])


def test_a_fleets_stream_that_nobody_takes_is_refused(http) -> None:
    async def scenario(fleet, _):
        with pytest.raises(EngineBusyError):
            await whole(fleet, request=request("s"))

    busy = http.replies({"error": "later"}, 429, **{"retry-after": "0"})
    played(http, scenario, busy, busy)
