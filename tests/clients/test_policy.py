"""The policy version of each turn, as a client reads it before and after the call, and its cache salt."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from tokentrue.clients.renderer import RendererClient
from tokentrue.engines.embedded.engine import MODEL_NAME, EmbeddedEngine
from tokentrue.engines.embedded.transformer import BLOCK_TOKENS
from tokentrue.engines.policy import Bracket, BracketedEngine, GivenVersion
from tokentrue.errors import AbortedError, ConfigError, ConnectionLostError, EvidenceError
from tokentrue.generation import (
    FinishReason,
    GenerateRequest,
    Generation,
    PartialGeneration,
    VersionSource,
    WeightSpan,
    make_tokens,
)
from tokentrue.messages import Message
from tokentrue.sessions.session import Session
from tokentrue.sessions.trajectories import session_samples
from tokentrue.tokens import TokenIds

CHAT, GENERATE, DERENDER = "/v1/chat/completions", "/inference/v1/generate", "/v1/chat/completions/derender"
CLIENTS = ["renderer", "openai_chat_completions_token", "openai_chat_completions"]
ROUTES = {"routes": {CHAT, GENERATE, DERENDER, "/tokenize"}}


@dataclass
class Ticking:
    """A clock whose readings are given one after the other; the last one stays."""

    readings: list[str]

    async def version(self) -> str:
        await asyncio.sleep(0)
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]


def talk(salts, **sampling):
    """Two turns; gives the session, and notes the cache salt of every request that samples."""

    async def about(client, server):
        session, messages = Session(), []
        for text in ("Hello there.", "And now?"):
            messages.append(Message("user", text))
            response = await client.get_response(messages, "m", {"max_tokens": 20, **sampling}, session=session)
            messages.append(response.message)
        salts.extend(body.get("cache_salt") for path, body, _ in server.calls if path in (CHAT, GENERATE) and body)
        return session

    return about


@pytest.mark.parametrize("client_type", CLIENTS)
def test_one_version_before_and_after_is_the_turns(world, client_type) -> None:
    clock = Ticking(["v1", "v1", "v2"])
    session = world.run(talk([]), server=ROUTES, client_type=client_type, clock=clock)
    for turn, version in zip(session.turns, ("v1", "v2"), strict=True):
        length = len(turn.tokens.completion_ids)
        assert turn.weight_spans == (WeightSpan(version, 0, length, VersionSource.BRACKETED),)
        assert turn.version_source is VersionSource.BRACKETED


@pytest.mark.parametrize("client_type", CLIENTS)
def test_a_version_that_changes_during_a_turn_makes_it_mixed(world, client_type) -> None:
    clock = Ticking(["v1", "v2", "v2", "v2"])
    session = world.run(talk([]), server=ROUTES, client_type=client_type, clock=clock)
    first, second = session.turns
    assert first.version_source is VersionSource.MIXED
    assert [span.between for span in first.weight_spans] == [("v1", "v2")]
    assert second.version_source is VersionSource.BRACKETED


def test_training_samples_say_the_version_of_every_id_and_nothing_of_a_mixed_one(world) -> None:
    clock = Ticking(["v1", "v1", "v1", "v2"])
    session = world.run(talk([]), server=ROUTES, client_type="renderer", clock=clock)
    (sample,) = session_samples(session.turns).samples
    first, second = session.turns
    expected: list[str | None] = [None] * len(sample.token_ids)
    start = len(first.tokens.prompt_ids)
    expected[start : start + len(first.tokens.completion_ids)] = ["v1"] * len(first.tokens.completion_ids)
    assert list(sample.policy_versions) == expected
    assert sample.version_source is VersionSource.MIXED
    assert sample.weight_spans[-1].start == len(second.tokens.prompt_ids)
    cut = session_samples(session.turns, max_seq_len=start + 1).samples[0]
    assert cut.policy_versions == tuple(expected[: start + 1])


@pytest.mark.parametrize("client_type", CLIENTS)
def test_the_salt_is_of_the_turns_version_and_of_the_callers_own(world, client_type) -> None:
    salts: list[str] = []
    settings = {"server": ROUTES, "client_type": client_type, "cache_salt_by_version": True}
    world.run(talk(salts), clock=Ticking(["v1", "v1", "v2"]), **settings)
    world.run(talk(salts, cache_salt="mine"), clock=Ticking(["v1", "v1", "v2"]), **settings)
    assert salts == ["2:v1:", "2:v2:", "2:v1:mine", "2:v2:mine"]


def test_without_the_setting_the_salt_is_the_callers_alone(world) -> None:
    salts: list[str] = []
    world.run(talk(salts, cache_salt="mine"), server=ROUTES, client_type="renderer", clock=GivenVersion("v1"))
    assert salts == ["mine", "mine"]


def test_within_a_version_the_cache_is_used_and_behind_an_update_it_is_not(renderer) -> None:
    """The embedded engine counts what it found in its cache, in whole blocks."""
    clock = GivenVersion("v1")

    async def run():
        engine = BracketedEngine(EmbeddedEngine(), Bracket(clock, salts=True))
        session, messages = Session(), []
        async with RendererClient(engine, renderer) as client:
            for number in range(6):
                clock.value = "v1" if number < 3 else "v2"
                messages.append(Message("user", f"What is {number} plus 30, and why is that so, in many words?"))
                args = {"max_tokens": 40, "temperature": 0, "ignore_eos": True}
                response = await client.get_response(messages, MODEL_NAME, args, session=session)
                messages.append(response.message)
        return [(len(turn.tokens.prompt_ids), turn.usage.cached_tokens) for turn in session.turns]

    turns = asyncio.run(run())
    assert [cached for _, cached in turns[:1]] == [0]
    assert turns[3][1] == 0  # the first turn of the new version
    for number in (2, 4, 5):
        assert turns[number][1] >= turns[number - 1][0] // BLOCK_TOKENS * BLOCK_TOKENS > 0


def test_a_salt_needs_a_version(world) -> None:
    with pytest.raises(ConfigError, match="needs to know the version"):
        world.run(talk([]), client_type="renderer", cache_salt_by_version=True)


@pytest.mark.parametrize("client_type", CLIENTS[1:])
def test_only_who_reads_the_ids_can_resume_them(world, client_type) -> None:
    with pytest.raises(ConfigError, match="would see only the rest"):
        world.run(talk([]), client_type=client_type, resume_aborted=3)


def test_a_renderer_client_resumes_an_aborted_turn(world, renderer) -> None:
    whole = [*renderer.tokenizer.encode("All right."), renderer.stop_ids[0]]
    item = {"token": f"token_id:{whole[0]}", "logprob": -0.5}

    def aborted(prompt_len: int) -> dict:
        choice = {"index": 0, "finish_reason": "abort", "token_ids": whole[:1], "logprobs": {"content": [item]}}
        usage = {"prompt_tokens": prompt_len, "completion_tokens": 1}
        return {"request_id": "r", "model": "m", "usage": usage, "choices": [choice]}

    prompt_len = len(renderer.render_ids([{"role": "user", "content": "Hi"}], add_generation_prompt=True))

    async def about(client, server):
        server.answers[GENERATE] = [(200, aborted(prompt_len))]
        server.says = [renderer.tokenizer.decode(whole[1:-1])]
        session = Session()
        await client.get_response([Message("user", "Hi")], "m", {"max_tokens": 20}, session=session)
        return session.turns[0], [body for path, body, _ in server.calls if path == GENERATE]

    turn, bodies = world.run(about, server=ROUTES, client_type="renderer", resume_aborted=2)
    assert turn.resumed_at == (1,)
    assert turn.tokens.completion_ids[0] == whole[0]
    first, second = bodies
    assert second["token_ids"] == [*first["token_ids"], whole[0]]
    assert second["sampling_params"]["max_tokens"] == 19


UNKNOWN_SPANS = (WeightSpan(None, 0, 2, VersionSource.UNKNOWN),)
DIFFER = EvidenceError("the engines are labelled with different versions")


@dataclass
class Failing:
    """A clock that reads "v1" once, and fails from then on."""

    error: Exception
    is_read: bool = False

    async def version(self) -> str:
        if self.is_read:
            raise self.error
        self.is_read = True
        return "v1"


@dataclass
class TwoIds:
    """Samples two ids, or is given up behind them; says of the versions what it is told to."""

    spans: tuple[WeightSpan, ...] = ()
    gives_up: bool = False

    async def generate(self, request):
        tokens = make_tokens(request.prompt_ids, [7, 2], [-0.5, -0.25])
        if self.gives_up:
            partial = PartialGeneration(tokens, weight_spans=self.spans)
            raise AbortedError("finish_reason is 'abort'", status=200, partial=partial)
        return Generation(tokens, FinishReason.STOP, weight_spans=self.spans)


@pytest.mark.parametrize(
    "error", [DIFFER, ConnectionLostError("reset by peer"), ValueError("a clock of somebody's")]
)
@pytest.mark.parametrize(
    ("spans", "expected"), [((), UNKNOWN_SPANS), ((WeightSpan("v1", 0, 2),), (WeightSpan("v1", 0, 2),))]
)
@pytest.mark.parametrize("gives_up", [False, True])
def test_a_clock_that_fails_behind_a_sample_takes_no_id_away(caplog, error, spans, expected, gives_up) -> None:
    engine = BracketedEngine(TwoIds(spans, gives_up), Bracket(Failing(error)))
    asked = GenerateRequest("m", TokenIds([10, 11]))
    if gives_up:
        with pytest.raises(AbortedError) as raised:
            asyncio.run(engine.generate(asked))
        found = raised.value.partial
    else:
        found = asyncio.run(engine.generate(asked))
    assert found.tokens.completion_ids == [7, 2]
    assert found.weight_spans == expected
    assert str(error) in caplog.text


@pytest.mark.parametrize("client_type", CLIENTS)
def test_a_clock_that_fails_behind_a_turn_fails_no_client(world, client_type) -> None:
    class EverySecond(Ticking):
        async def version(self):
            version = await super().version()
            if version == "fails":
                raise DIFFER
            return version

    clock = EverySecond(["v1", "fails", "v2", "v2"])
    session = world.run(talk([]), server=ROUTES, client_type=client_type, clock=clock)
    sources = [turn.version_source for turn in session.turns]
    assert sources == [VersionSource.UNKNOWN, VersionSource.BRACKETED]


def test_a_clock_that_fails_before_a_turn_is_an_error() -> None:
    engine = BracketedEngine(TwoIds(), Bracket(Failing(DIFFER, is_read=True)))
    with pytest.raises(EvidenceError, match="different versions"):
        asyncio.run(engine.generate(GenerateRequest("m", TokenIds([10]))))


def test_an_engine_and_a_clock_that_contradict_each_other_are_told_once_per_pair(caplog) -> None:
    clock, inside = GivenVersion("step-9"), TwoIds((WeightSpan("step-1", 0, 2),))
    engine = BracketedEngine(inside, Bracket(clock))
    asked = GenerateRequest("m", TokenIds([10]))
    for version, warnings in (("step-9", 1), ("step-9", 1), ("step-1", 1), ("step-10", 2), ("step-9", 2)):
        clock.value = version
        assert asyncio.run(engine.generate(asked)).weight_spans == inside.spans
        assert len(caplog.records) == warnings
    assert "'step-1'" in caplog.text
    assert "'step-9'" in caplog.text
