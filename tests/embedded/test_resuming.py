"""A turn that was given up at any position is continued from its exact ids: greedy, it is the uninterrupted turn.

Ids are compared bit for bit. So are the log-probabilities of the partial ids with those of the uninterrupted turn,
and those of the rest with what the engine says when it is asked for the rest alone. Between the rest and the
uninterrupted turn there are single-precision sums of another order: the partial ids are computed as a prompt.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokentrue.engines.embedded.engine import EmbeddedEngine
from tokentrue.engines.policy import Bracket, BracketedEngine, GivenVersion
from tokentrue.engines.resuming import ResumingEngine
from tokentrue.errors import AbortedError, ConfigError
from tokentrue.generation import (
    FinishReason,
    GenerateRequest,
    Generation,
    PartialGeneration,
    Usage,
    VersionSource,
    WeightSpan,
    make_tokens,
)
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds

PROMPT = TokenIds([(17 * i) % 300 for i in range(70)])
LENGTH = 24


@dataclass
class Aborting:
    """An engine that gives up its first calls after so many ids each, as vLLM does when it is paused."""

    engine: EmbeddedEngine
    after: list[int]
    asked: list[GenerateRequest] = field(default_factory=list)

    async def generate(self, request: GenerateRequest) -> Generation:
        self.asked.append(request)
        whole = await self.engine.generate(request)
        if not self.after:
            return whole
        count = min(self.after.pop(0), len(whole.tokens.completion_ids))
        ids, logprobs = whole.tokens.completion_ids[:count], whole.tokens.completion_logprobs[:count]
        partial = PartialGeneration(
            make_tokens(request.prompt_ids, ids, logprobs),
            f"aborted-{len(self.asked)}",
            Usage(len(request.prompt_ids), count, 0),
        )
        raise AbortedError("finish_reason is 'abort'", status=200, partial=partial)

    async def describe(self, model=None):
        return await self.engine.describe(model)

    async def close(self) -> None:
        await self.engine.close()


def request(**sampling) -> GenerateRequest:
    asked = SamplingParams.from_args({"temperature": 0, "max_tokens": LENGTH, "ignore_eos": True, **sampling})
    return GenerateRequest("tokentrue-embedded", PROMPT, asked)


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def embedded(loop):
    engine = EmbeddedEngine()
    yield engine
    loop.run(engine.close())


@pytest.fixture(scope="module")
def whole(loop, embedded):
    """What the engine samples when nobody gives it up."""
    return lambda asked: loop.run(embedded.generate(asked))


@pytest.fixture(scope="module")
def resumed(loop, embedded):
    """The resumed turn, and every request that the engine inside was sent."""

    def resume(after, asked, limit=8):
        aborting = Aborting(embedded, list(after))
        return loop.run(ResumingEngine(aborting, limit).generate(asked)), aborting.asked

    return resume


def assert_same(found: Generation, plain: Generation, position: int) -> None:
    assert found.tokens.prompt_ids == plain.tokens.prompt_ids
    assert found.tokens.completion_ids == plain.tokens.completion_ids
    mine, theirs = found.tokens.completion_logprobs, plain.tokens.completion_logprobs
    assert mine[:position] == theirs[:position]
    assert np.abs(mine.array() - theirs.array()).max() < 1e-5


@pytest.fixture(scope="module")
def uninterrupted(whole) -> Generation:
    return whole(request())


@pytest.mark.parametrize("position", range(LENGTH + 1))
def test_greedy_and_aborted_at_every_position(whole, resumed, uninterrupted, position) -> None:
    found, asked = resumed([position], request())
    assert_same(found, uninterrupted, position)
    assert found.finish_reason is uninterrupted.finish_reason
    assert found.stop_reason == uninterrupted.stop_reason
    assert found.usage.completion_tokens == LENGTH
    assert found.usage.prompt_tokens == len(PROMPT)
    if position == LENGTH:
        assert len(asked) == 1  # everything was there: nothing is asked for, and nothing was resumed
        assert found.resumed_at == ()
        return
    assert found.resumed_at == (position,)
    assert asked[1].prompt_ids.tolist() == [*PROMPT.tolist(), *uninterrupted.tokens.completion_ids[:position]]
    assert asked[1].sampling.max_tokens == LENGTH - position
    alone = whole(asked[1]).tokens
    assert found.tokens.completion_ids[position:] == alone.completion_ids.tolist()
    assert found.tokens.completion_logprobs[position:] == alone.completion_logprobs.tolist()


@settings(max_examples=12, deadline=None)
@given(after=st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_greedy_and_aborted_several_times(resumed, uninterrupted, after) -> None:
    found, asked = resumed(after, request())
    assert_same(found, uninterrupted, after[0])
    positions = np.cumsum(after)
    expected = [int(each) for each in positions if each < LENGTH]
    assert list(found.resumed_at) == expected
    assert len(asked) == len(expected) + 1
    for earlier, later in itertools.pairwise(asked):
        assert later.prompt_ids.starts_with(earlier.prompt_ids)  # law 1 inside of a turn


def test_a_stop_id_ends_a_resumed_turn_where_it_would_have_ended(whole, resumed, uninterrupted) -> None:
    ids = uninterrupted.tokens.completion_ids.tolist()
    stop_id = ids[-1]
    asked = request(stop_token_ids=(stop_id,))
    plain = whole(asked)
    assert plain.finish_reason is FinishReason.STOP
    for position in range(len(plain.tokens.completion_ids) + 1):
        found, _ = resumed([position], asked)
        assert_same(found, plain, position)
        assert (found.finish_reason, found.stop_reason) == (plain.finish_reason, plain.stop_reason)


def test_min_tokens_are_lowered_by_what_was_sampled(whole, resumed, uninterrupted) -> None:
    stop_id = uninterrupted.tokens.completion_ids[2]
    asked = request(stop_token_ids=(stop_id,), min_tokens=9)
    plain = whole(asked)
    for position in (0, 3, 8, 9, 10):
        found, calls = resumed([position], asked)
        assert_same(found, plain, position)
        if len(calls) > 1 and position:
            assert calls[1].sampling.min_tokens == max(9 - position, 0)


def test_a_sampled_turn_is_reproducible_and_does_not_repeat_its_random_numbers(whole, resumed) -> None:
    asked = request(temperature=1.0, seed=5)
    first, calls = resumed([6], asked)
    again, _ = resumed([6], asked)
    assert first.tokens == again.tokens
    assert first.tokens.completion_ids[:6] == whole(asked).tokens.completion_ids[:6]
    assert calls[1].sampling.seed not in (None, 5)


def test_weight_spans_tell_which_part_is_of_which_version(loop, embedded) -> None:
    clock = UpdatedBehindThePartial(GivenVersion("step-1"))
    bare = StrippedSpans(Aborting(embedded, [7]))
    engine = ResumingEngine(BracketedEngine(bare, Bracket(clock)), 2)
    found = loop.run(engine.generate(request()))
    assert found.weight_spans == (
        WeightSpan("step-1", 0, 7, VersionSource.BRACKETED),
        WeightSpan("step-2", 7, LENGTH, VersionSource.BRACKETED),
    )


@dataclass
class StrippedSpans:
    """An engine that says nothing of versions, as Dynamo."""

    engine: object

    async def generate(self, asked):
        return replace(await self.engine.generate(asked), weight_spans=())


@dataclass
class UpdatedBehindThePartial:
    """A clock that goes on after the partial was attributed, as when the update follows the abort."""

    clock: GivenVersion
    read: int = 0

    async def version(self) -> str:
        self.read += 1
        if self.read == 3:
            self.clock.value = "step-2"
        return await self.clock.version()


def test_more_aborts_than_the_limit_are_an_error_with_every_id(resumed, uninterrupted) -> None:
    with pytest.raises(AbortedError, match="resumed 2 times already, and the limit is 2") as raised:
        resumed([3, 4, 5], request(), limit=2)
    partial = raised.value.partial
    assert partial.tokens.completion_ids == uninterrupted.tokens.completion_ids[:12]
    assert partial.tokens.completion_logprobs[:3] == uninterrupted.tokens.completion_logprobs[:3]
    assert len(partial.tokens.completion_logprobs) == 12
    assert partial.resumed_at == (3, 7)


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        ({"stop": ["x"]}, "stop string"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
    ],
)
def test_what_cannot_mean_the_same_for_a_rest_is_not_resumed(sampling, named) -> None:
    class GivesUp:
        async def generate(self, asked):
            partial = PartialGeneration(make_tokens(asked.prompt_ids, [5], [-1.0]))
            raise AbortedError("finish_reason is 'abort'", status=200, partial=partial)

    with pytest.raises(AbortedError, match=named) as raised:
        asyncio.run(ResumingEngine(GivesUp(), 3).generate(request(**sampling)))
    assert raised.value.partial.tokens.completion_ids == [5]


def test_an_abort_without_ids_is_raised_as_it_was() -> None:
    class GivesUp:
        async def generate(self, asked):
            raise AbortedError("finish_reason is None", status=200)

    with pytest.raises(AbortedError, match="finish_reason is None") as raised:
        asyncio.run(ResumingEngine(GivesUp(), 3).generate(request()))
    assert raised.value.partial is None


def test_the_limit_is_at_least_one() -> None:
    with pytest.raises(ConfigError, match="not 0"):
        ResumingEngine(None, 0)
