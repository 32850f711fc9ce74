"""`check_engine` passes an engine that keeps its promises, and names the promise that a faulty one breaks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import lru_cache

import pytest
from servers.teacher_forcing import TeacherForcing
from threadpoolctl import threadpool_limits

from tokentrue.engines.embedded.engine import MODEL_FOLDER, MODEL_NAME, EmbeddedEngine
from tokentrue.engines.embedded.transformer import BLOCK_TOKENS
from tokentrue.errors import OverlongPromptError
from tokentrue.generation import Delta, EngineInfo, GenerateRequest, Generation, LogprobsMode, make_tokens
from tokentrue.testing import CHECKS, BrokenPromiseError, EngineReport, Outcome, ServerFacts, check_engine
from tokentrue.tokens import TokenIds

VOCABULARY, LIMIT = 696, 2048
FORWARD_PASS = "logprobs = forward pass"


def checked(make=EmbeddedEngine, **settings) -> EngineReport:
    """A report on an engine of the embedded model."""

    async def run() -> EngineReport:
        engine = make()
        try:
            known = {"vocab_size": VOCABULARY, "context_limit": LIMIT, "server": ServerFacts(BLOCK_TOKENS)}
            return await check_engine(engine, **{"model": MODEL_NAME, **known, **settings})
        finally:
            await engine.close()

    return asyncio.run(run())


@lru_cache
def teacher() -> TeacherForcing:
    return TeacherForcing(MODEL_FOLDER)


def forward_pass(prompt_ids, completion_ids) -> list[float]:
    """Our own; `make test-engines` compares with transformers'."""
    with threadpool_limits(1, user_api="blas"):  # two threads for matrices this small wait for each other
        return teacher().sampled(prompt_ids, completion_ids).tolist()


def test_the_embedded_engine_keeps_every_promise() -> None:
    report = checked(oracle=forward_pass)
    report.raise_if_broken()
    assert [row.name for row in report.rows] == [check.name for check in CHECKS]
    assert {row.outcome for row in report.rows} == {Outcome.HOLDS}, str(report)
    assert report.row(FORWARD_PASS).numbers["ids"] > 400
    assert report.row("prefix reuse").numbers["last_turn_cached"] >= 160
    assert report.row("limits").numbers["clips"]
    assert report.info is not None
    assert report.info.name == "embedded"


class Faulty:
    """The embedded engine, with one fault that a reply does not show."""

    def __init__(self) -> None:
        self.inner = EmbeddedEngine()

    async def generate(self, request: GenerateRequest) -> Generation:
        return self.spoil(request, await self.inner.generate(self.asked(request)))

    def asked(self, request: GenerateRequest) -> GenerateRequest:
        return request

    def spoil(self, request: GenerateRequest, generation: Generation) -> Generation:
        """The reply, made to look as if `request` had been what was asked."""
        tokens = generation.tokens
        logprobs = tokens.completion_logprobs.tolist()
        return self.told(request, generation, tokens.completion_ids.tolist(), logprobs)

    def told(self, request, generation, completion_ids, logprobs) -> Generation:
        usage = replace(
            generation.usage, prompt_tokens=len(request.prompt_ids), completion_tokens=len(completion_ids)
        )
        tokens = make_tokens(request.prompt_ids, completion_ids, logprobs)
        return replace(generation, tokens=tokens, usage=usage, weight_spans=())

    async def describe(self, model: str | None = None) -> EngineInfo:
        return await self.inner.describe(model)

    async def close(self) -> None:
        await self.inner.close()


class IgnoresIds(Faulty):
    """Answers a placeholder of the same length."""

    def asked(self, request):
        return replace(request, prompt_ids=TokenIds([7] * len(request.prompt_ids)))


class TruncatesThePrompt(Faulty):
    """Keeps the last 600 ids of a prompt."""

    def asked(self, request):
        return replace(request, prompt_ids=TokenIds(request.prompt_ids.tolist()[-600:]))


class ShiftsLogprobs(Faulty):
    """Each id has the log-probability of the id before it."""

    def spoil(self, request, generation):
        logprobs = generation.tokens.completion_logprobs.tolist()
        ids = generation.tokens.completion_ids.tolist()
        return self.told(request, generation, ids, [logprobs[-1], *logprobs[:-1]])


class ScalesByTemperature(Faulty):
    """Log-probabilities as sampled, said to be raw."""

    def __init__(self) -> None:
        self.inner = EmbeddedEngine(logprobs_mode=LogprobsMode.PROCESSED)

    async def describe(self, model=None):
        return replace(await self.inner.describe(model), logprobs_mode=LogprobsMode.RAW)


class DropsTheStopIdSometimes(Faulty):
    """Of completions with an even count of ids."""

    def spoil(self, request, generation):
        ids = generation.tokens.completion_ids.tolist()
        logprobs = generation.tokens.completion_logprobs.tolist()
        is_dropped = generation.stop_reason is not None and len(ids) % 2 == 0
        kept = len(ids) - is_dropped
        return self.told(request, generation, ids[:kept], logprobs[:kept])


class IgnoresStopIds(Faulty):
    def asked(self, request):
        return replace(request, sampling=replace(request.sampling, stop_token_ids=(), extra={}))


class IgnoresStopIdsWithIgnoreEos(Faulty):
    """As Dynamo's frontend does."""

    def asked(self, request):
        if not request.sampling.ignore_eos:
            return request
        return replace(request, sampling=replace(request.sampling, stop_token_ids=(), extra={}))


class IgnoresTheSeed(Faulty):
    def asked(self, request):
        return replace(request, sampling=replace(request.sampling, seed=None, extra={}))


class KnowsOneSeed(Faulty):
    def asked(self, request):
        return replace(request, sampling=replace(request.sampling, seed=7, extra={}))


class GivesOneTooMany(Faulty):
    def asked(self, request):
        more = (request.sampling.max_tokens or LIMIT) + 1
        return replace(request, sampling=replace(request.sampling, max_tokens=more, extra={}))


class TakesAnyN(Faulty):
    def asked(self, request):
        return replace(request, sampling=replace(request.sampling, n=1, extra={}))


class ForgetsPrefixes(Faulty):
    """Has a prefix cache and never finds anything in it."""

    def __init__(self) -> None:
        self.inner = EmbeddedEngine(cache_bytes=0)


class InventsCacheHits(Faulty):
    def spoil(self, request, generation):
        usage = replace(generation.usage, cached_tokens=len(request.prompt_ids) // BLOCK_TOKENS * BLOCK_TOKENS)
        return replace(generation, usage=usage)


class MixesAnswersUp(Faulty):
    """What comes in company gets the answer of the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.in_flight: list[GenerateRequest] = []

    async def generate(self, request):
        self.in_flight.append(request)
        try:
            other = self.in_flight[-2] if len(self.in_flight) > 1 else request
            return self.spoil(request, await self.inner.generate(other))
        finally:
            self.in_flight.remove(request)


class RefusesTheLastPlace(Faulty):
    def asked(self, request):
        if len(request.prompt_ids) >= LIMIT - 1:
            raise OverlongPromptError(len(request.prompt_ids), LIMIT)
        return request


class TakesIdsModuloTheVocabulary(Faulty):
    def asked(self, request):
        return replace(request, prompt_ids=TokenIds([each % VOCABULARY for each in request.prompt_ids]))


class ServesAnyModel(Faulty):
    def asked(self, request):
        return replace(request, model=MODEL_NAME)

    async def describe(self, model=None):
        return await self.inner.describe()


class RaisesWhatNobodyKnows(Faulty):
    """A bad parameter is a KeyError."""

    def asked(self, request):
        if request.sampling.extra:
            raise KeyError("no_such_parameter")
        return request


class SwallowsCancelling(Faulty):
    """Goes on, and answers all the same."""

    async def generate(self, request):
        task = asyncio.ensure_future(self.inner.generate(request))
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                continue
        return task.result()


class SamplesOnBehindACancelledTask(Faulty):
    """The caller sees a cancelled task; the sampling goes on for nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.orphans: set[asyncio.Future[Generation]] = set()

    async def generate(self, request):
        task = asyncio.ensure_future(self.inner.generate(request))
        self.orphans.add(task)
        return await asyncio.shield(task)

    async def close(self) -> None:
        for task in self.orphans:
            task.cancel()
        await asyncio.gather(*self.orphans, return_exceptions=True)
        await self.inner.close()


class Streams(Faulty):
    """A good stream, for the faults below."""

    async def stream(self, request):
        async with contextlib.aclosing(self.inner.stream(self.asked(request))) as parts:
            async for part in parts:
                yield part


class LosesADelta(Streams):
    async def stream(self, request):
        number = 0
        async with contextlib.aclosing(super().stream(request)) as parts:
            async for part in parts:
                number += 1
                if number != 3:
                    yield part


class StreamsWithoutTheSeed(Streams):
    async def generate(self, request):
        return await self.inner.generate(request)

    def asked(self, request):
        return replace(request, sampling=replace(request.sampling, seed=None, extra={}))


class StreamsInOnePiece(Streams):
    async def stream(self, request):
        end = await self.inner.generate(request)
        tokens = end.tokens
        yield Delta(tuple(tokens.completion_ids.tolist()), tuple(tokens.completion_logprobs.tolist()))
        yield end


class EndsWithoutItsGeneration(Streams):
    async def stream(self, request):
        async with contextlib.aclosing(super().stream(request)) as parts:
            async for part in parts:
                if isinstance(part, Delta):
                    yield part


@pytest.mark.parametrize(
    ("fault", "checks"),
    [
        (IgnoresIds, {"ids in = ids seen", FORWARD_PASS}),
        (TruncatesThePrompt, {"ids in = ids seen", FORWARD_PASS}),
        (ShiftsLogprobs, {"logprobs belong to ids", FORWARD_PASS}),
        (ScalesByTemperature, {"logprobs mode"}),
        (DropsTheStopIdSometimes, {"stop ids"}),
        (IgnoresStopIds, {"stop ids"}),
        (IgnoresStopIdsWithIgnoreEos, {"stop ids"}),
        (IgnoresTheSeed, {"seed"}),
        (KnowsOneSeed, {"seed", "n"}),
        (GivesOneTooMany, {"ids in = ids seen", "limits"}),
        (TakesAnyN, {"n"}),
        (ForgetsPrefixes, {"prefix reuse", "n"}),
        (InventsCacheHits, {"prefix reuse"}),
        (MixesAnswersUp, {"many at once"}),
        (RefusesTheLastPlace, {"limits"}),
        (TakesIdsModuloTheVocabulary, {"bad input"}),
        (ServesAnyModel, {"describe", "bad input"}),
        (RaisesWhatNobodyKnows, {"bad input"}),
        (LosesADelta, {"streaming"}),
        (StreamsWithoutTheSeed, {"streaming"}),
        (StreamsInOnePiece, {"streaming"}),
        (EndsWithoutItsGeneration, {"streaming"}),
        (SwallowsCancelling, {"cancelling"}),
        (SamplesOnBehindACancelledTask, {"cancelling"}),
    ],
)
def test_a_fault_is_found_by_the_check_that_is_about_it(fault, checks) -> None:
    report = checked(fault, only=checks, oracle=forward_pass)
    assert {row.name for row in report.broken()} == checks, str(report)
    with pytest.raises(BrokenPromiseError, match=f"{len(checks)} of {len(checks)} promises are broken"):
        report.raise_if_broken()


class LeavesTheStopIdOut(Faulty):
    """Always: that is a way to keep the promise."""

    def spoil(self, request, generation):
        ids = generation.tokens.completion_ids.tolist()
        kept = len(ids) - (generation.stop_reason is not None)
        if not kept:
            from tokentrue.errors import EmptyCompletionError

            raise EmptyCompletionError("nothing but the stop id was sampled")
        return self.told(request, generation, ids[:kept], generation.tokens.completion_logprobs.tolist()[:kept])


class TellsNothing(Faulty):
    """Neither an echo, nor counts, nor a mode, nor a limit: a server that only samples."""

    def spoil(self, request, generation):
        usage = replace(generation.usage, prompt_tokens=None, completion_tokens=None, cached_tokens=None)
        return replace(generation, usage=usage, prompt_ids_echoed=False, stop_reason=None)

    async def describe(self, model=None):
        info = await self.inner.describe(model)
        return replace(info, version="", context_limit=None, logprobs_mode=LogprobsMode.UNKNOWN)


@pytest.mark.parametrize("mode", [LogprobsMode.RAW, LogprobsMode.SCALED, LogprobsMode.PROCESSED])
def test_what_log_probabilities_mean_is_measured(mode) -> None:
    report = checked(
        lambda: EmbeddedEngine(logprobs_mode=mode), only=["logprobs mode", FORWARD_PASS], oracle=forward_pass
    )
    report.raise_if_broken()
    assert report.row("logprobs mode").evidence.startswith(f"{mode.value} by measurement")


def test_a_stop_id_may_always_be_left_out() -> None:
    row = checked(LeavesTheStopIdOut, only=["stop ids"]).row("stop ids")
    assert row.outcome is Outcome.HOLDS
    assert "left out" in row.evidence


def test_what_an_engine_does_not_tell_is_not_offered_and_the_rest_is_checked_all_the_same() -> None:
    unneeded = {"cancelling", "limits", "stop ids", "many at once"}
    report = checked(TellsNothing, only={check.name for check in CHECKS} - unneeded, server=None)
    rows = {row.name: row.outcome for row in report.rows}
    assert {name for name, outcome in rows.items() if outcome is Outcome.NOT_OFFERED} == {
        FORWARD_PASS,
        "prefix reuse",
        "streaming",
    }, str(report)
    assert not report.broken(), str(report)


def test_the_servers_own_count_is_the_evidence_of_cancelling_where_it_is_given() -> None:
    """A count that never falls breaks the promise, whatever the answers look like."""

    def counting(value: float) -> Callable[[], Awaitable[float]]:
        async def in_work() -> float:
            await asyncio.sleep(0)
            return value

        return in_work

    row = checked(only=["cancelling"], server=ServerFacts(in_work=counting(24.0))).row("cancelling")
    assert row.outcome is Outcome.BREAKS
    assert "still works on 24 requests" in row.evidence


def test_an_id_that_would_end_a_server_is_not_sent() -> None:
    row = checked(TakesIdsModuloTheVocabulary, only=["bad input"], server=ServerFacts(checks_ids=False)).row(
        "bad input"
    )
    assert "never sent" in row.evidence or row.outcome is Outcome.BREAKS


@pytest.mark.parametrize(
    "wrong", [{"vocab_size": 3}, {"context_limit": 100}, {"only": ["no such check"]}], ids=str
)
def test_what_cannot_be_checked_with_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)) if "only" not in wrong else "no such check"):
        checked(**wrong)


def test_a_report_is_json() -> None:
    import json

    report = checked(only=["describe", "n"])
    told = json.loads(json.dumps(report.to_dict()))
    assert told["engine"]["name"] == "embedded"
    assert [row["outcome"] for row in told["checks"]] == ["holds", "holds"]
    assert "holds" in str(report)
