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

from tokentrue.clients.by_messages import within_room
from tokentrue.engines.embedded.engine import EmbeddedEngine
from tokentrue.engines.policy import Bracket, BracketedEngine, GivenVersion
from tokentrue.engines.resuming import ResumingEngine
from tokentrue.errors import (
    AbortedError,
    ConfigError,
    ConnectionLostError,
    EmptyCompletionError,
    EngineBusyError,
    EvidenceError,
    MaxTokensTooLargeError,
    OverlongPromptError,
)
from tokentrue.generation import (
    FinishReason,
    GenerateRequest,
    Generation,
    LogprobsMode,
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


SAMPLED = {"temperature": 0.7, "max_tokens": 20, "stop_token_ids": (2,), "ignore_eos": None}
"""Shapes the distribution, so that the meanings of a log-probability differ."""


@dataclass
class Scripted:
    """An engine that answers what it is told to, one after the other: ids, with a meaning, or an error."""

    answers: list[object]
    asked: list[GenerateRequest] = field(default_factory=list)

    async def generate(self, asked: GenerateRequest) -> Generation:
        await asyncio.sleep(0)
        self.asked.append(asked)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        ids, mode, gives_up = answer
        tokens = make_tokens(asked.prompt_ids, ids, [-0.5] * len(ids))
        if gives_up:
            raise AbortedError("gave up", status=200, partial=PartialGeneration(tokens, logprobs_mode=mode))
        return Generation(tokens, FinishReason.STOP, ids[-1], logprobs_mode=mode)


def part(*ids, mode=LogprobsMode.RAW):
    return list(ids), mode, True


def last(*ids, mode=LogprobsMode.RAW):
    return list(ids), mode, False


def played(*answers, limit=3, clip=False, **sampling):
    inside = Scripted(list(answers))
    engine = ResumingEngine(inside, limit, clip)
    return asyncio.run(engine.generate(request(**{**SAMPLED, **sampling}))), inside.asked


RAW, PROCESSED, ALIKE = LogprobsMode.RAW, LogprobsMode.PROCESSED, LogprobsMode.ALIKE


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([part(5, 6), last(7, 2)], RAW),
        ([part(5, 6), last(7, 2, mode=PROCESSED)], LogprobsMode.UNKNOWN),
        ([part(5, 6), part(7, mode=PROCESSED), last(8, 2)], LogprobsMode.UNKNOWN),
        ([part(5, 6, mode=LogprobsMode.UNKNOWN), last(7, 2)], LogprobsMode.UNKNOWN),
        ([part(5, 6), last(7, 2, mode=ALIKE)], RAW),  # numbers that are alike in every meaning
        ([part(mode=PROCESSED), last(7, 2)], RAW),  # no id, nothing that could mean anything else
        ([part(5, 2, mode=PROCESSED)], PROCESSED),  # given up behind its last id
        ([part(5, mode=ALIKE), last(7, 2, mode=ALIKE)], ALIKE),
    ],
)
def test_a_turn_of_two_meanings_says_that_it_has_none(answers, expected) -> None:
    found, _ = played(*answers)
    assert found.logprobs_mode is expected


def test_a_turn_that_shapes_nothing_is_alike_although_nobody_measured() -> None:
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    found, _ = played(part(5, 6, mode=LogprobsMode.UNKNOWN), last(7, 2, mode=ALIKE), **plain)
    assert found.logprobs_mode is ALIKE


@pytest.mark.parametrize(
    "error",
    [
        EngineBusyError("later", status=503),
        ConnectionLostError("reset by peer"),
        EvidenceError("the engines are labelled with different versions"),
        EmptyCompletionError("no id"),
        EmptyCompletionError("no id", stop_id=9),  # nobody asked for 9 as an end
        MaxTokensTooLargeError("too much", limit=90, prompt_len=73),
        OverlongPromptError(73, 73),
        AbortedError("finish_reason is None", status=200),
    ],
)
@pytest.mark.parametrize("parts", [1, 2])
def test_whatever_the_rest_fails_of_has_all_ids_so_far(error, parts) -> None:
    error.partial = None  # as it comes from below, whoever raised it before
    with pytest.raises(type(error)) as raised:
        played(*[part(5, 6, 7)] * parts, error)
    assert raised.value.partial.tokens.completion_ids == [5, 6, 7] * parts
    assert raised.value.partial.tokens.prompt_ids == PROMPT
    assert raised.value.partial.resumed_at == (3,) * (parts - 1)


def test_ids_that_came_with_the_failure_are_behind_those_from_before() -> None:
    error = ConnectionLostError("the stream broke off")
    error.partial = PartialGeneration(make_tokens(TokenIds([*PROMPT, 5, 6]), [7], [-1.0]), logprobs_mode=RAW)
    with pytest.raises(ConnectionLostError) as raised:
        played(part(5, 6), error)
    partial = raised.value.partial
    assert partial.tokens.completion_ids == [5, 6, 7]
    assert (partial.resumed_at, partial.logprobs_mode) == ((2,), RAW)


def test_a_first_request_that_fails_is_raised_as_it_was() -> None:
    error = EngineBusyError("later", status=503)
    with pytest.raises(EngineBusyError) as raised:
        played(error)
    assert raised.value is error
    assert raised.value.partial is None


def test_a_rest_that_was_only_the_stop_id_taken_off_by_the_engine_is_a_stop() -> None:
    found, asked = played(part(5, 6, 7), EmptyCompletionError("no id", stop_id=2))
    assert found.tokens.completion_ids == [5, 6, 7]
    assert (found.finish_reason, found.stop_reason) == (FinishReason.STOP, 2)
    assert found.logprobs_mode is RAW
    assert len(asked) == 2
    with pytest.raises(EmptyCompletionError):
        played(part(), EmptyCompletionError("no id", stop_id=2))


def test_a_rest_is_clipped_and_not_the_turn_begun_anew() -> None:
    too_large = MaxTokensTooLargeError("too much", limit=len(PROMPT) + 8, prompt_len=len(PROMPT) + 3)
    found, asked = played(part(5, 6, 7), too_large, last(9, 2), clip=True)
    assert found.tokens.completion_ids == [5, 6, 7, 9, 2]
    assert found.resumed_at == (3,)
    assert [each.sampling.max_tokens for each in asked] == [20, 17, 5]
    assert asked[2].prompt_ids == [*PROMPT, 5, 6, 7]


@pytest.mark.parametrize("clips", [True, False])
def test_a_client_does_not_throw_a_resumed_turn_away_to_clip_it(clips) -> None:
    inside = Scripted([part(5, 6), MaxTokensTooLargeError("too much", limit=90, prompt_len=None), last(9, 2)])
    engine = ResumingEngine(inside, 3)

    async def ask(sampling):
        return await engine.generate(replace(request(), sampling=sampling))

    with pytest.raises(MaxTokensTooLargeError) as raised:
        asyncio.run(within_room(ask, request(**SAMPLED).sampling, clips))
    assert raised.value.partial.tokens.completion_ids == [5, 6]
    assert len(inside.asked) == 2
