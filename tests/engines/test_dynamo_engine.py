"""A Dynamo frontend is asked once which token route it serves; its answers are recorded ones, byte for byte."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from tokentrue.engines.dynamo import DynamoEngine
from tokentrue.engines.http import HttpEngine
from tokentrue.errors import ConnectionFailedError, EngineRequestError, UnknownModelError
from tokentrue.generation import GenerateRequest
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.dynamo import DynamoTransport

CAPTURES = Path(__file__).resolve().parents[3] / "shared" / "captures"
GENERATE, CHAT = "/inference/v1/generate", "/v1/chat/completions"
BY_IDS, BY_CHAT = "dynamo/gen_logprobs1", "dynamo/wk_chat_tito_logprobs"


def recorded(name: str) -> dict:
    if not CAPTURES.is_dir():
        pytest.skip(f"no recorded replies at {CAPTURES}")
    return json.loads((CAPTURES / f"{name}.json").read_text())


def given(name: str) -> web.Response:
    response = recorded(name)["response"]
    return web.json_response(response["body"], status=response["status"])


@dataclass
class RecordedFrontend:
    """Serves the chat route, and the token route while `serves_ids`; only to what was recorded.

    Args:
        probe_answers: Given to the empty question instead, used up in order.
        takes_no_ids: The token route does not know the model.
    """

    serves_ids: bool = True
    takes_no_ids: bool = False
    probe_answers: list[web.Response] = field(default_factory=list)
    probes: int = 0
    paths: list[str] = field(default_factory=list)
    url: str = ""

    async def generate(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        if not body:
            self.probes += 1
            await asyncio.sleep(0.05)  # long enough for every other first turn to come to the question
            if self.probe_answers:
                return self.probe_answers.pop(0)
        if not self.serves_ids:
            return given("dynamo/wkb_route_inference_v1_generate")
        if not body:
            return given("dynamo/gen_no_sampling")
        self.paths.append(GENERATE)
        if self.takes_no_ids:
            return given("dynamo/gen_bad_model")
        if body["token_ids"] != recorded(BY_IDS)["request"]["body"]["token_ids"]:
            return web.json_response({"error": {"message": "that was not recorded"}}, status=400)
        return given(BY_IDS)

    async def chat(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        self.paths.append(CHAT)
        if body["nvext"]["token_data"] != recorded(BY_CHAT)["request"]["body"]["nvext"]["token_data"]:
            return web.json_response({"message": "that was not recorded", "code": 400}, status=400)
        return given(BY_CHAT)

    async def models(self, _: web.Request) -> web.Response:
        return given("dynamo/mk_models")


def asked(frontend: RecordedFrontend, about):
    """What `about` gives, with an engine at `frontend`."""

    async def main():
        app = web.Application()
        app.router.add_post(GENERATE, frontend.generate)
        app.router.add_post(CHAT, frontend.chat)
        app.router.add_get("/v1/models", frontend.models)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        frontend.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            async with DynamoEngine(HttpEngine(frontend.url, DynamoTransport(), max_retries=0)) as engine:
                return await about(engine)
        finally:
            await runner.cleanup()

    return asyncio.run(main())


def turn(name: str = BY_IDS, **sampling) -> GenerateRequest:
    """A request that was recorded on one of the routes."""
    sent = recorded(name)["request"]["body"]
    ids = sent["token_ids"] if "token_ids" in sent else sent["nvext"]["token_data"]
    return GenerateRequest("tiny", TokenIds(ids), SamplingParams.from_args({"max_tokens": 20, **sampling}))


def test_many_first_turns_ask_once() -> None:
    frontend = RecordedFrontend()

    async def about(engine):
        return await asyncio.gather(*(engine.generate(turn()) for _ in range(12)))

    found = asked(frontend, about)
    assert frontend.probes == 1
    assert frontend.paths == [GENERATE] * 12
    expected = recorded(BY_IDS)["response"]["body"]["choices"][0]["token_ids"]
    assert all(each.tokens.completion_ids == expected for each in found)


def test_a_frontend_without_the_route_is_asked_once_too() -> None:
    frontend = RecordedFrontend(serves_ids=False)

    async def about(engine):
        return [await engine.generate(turn(BY_CHAT)) for _ in range(3)]

    found = asked(frontend, about)
    assert (frontend.probes, frontend.paths) == (1, [CHAT] * 3)
    assert all(each.prompt_ids_echoed for each in found)


def test_an_answer_that_tells_neither_is_not_remembered() -> None:
    proxy = [web.Response(status=403, text="no"), web.json_response({"choices": []}), web.Response(status=500)]
    frontend = RecordedFrontend(serves_ids=False, probe_answers=proxy)

    async def about(engine):
        for _ in range(5):
            await engine.generate(turn(BY_CHAT))

    asked(frontend, about)
    assert frontend.paths == [CHAT] * 5
    assert frontend.probes == 4


def test_a_frontend_that_was_restarted_without_the_route_loses_no_turn() -> None:
    frontend = RecordedFrontend()

    async def about(engine):
        await engine.generate(turn())
        frontend.serves_ids = False
        await engine.generate(turn(BY_CHAT))
        await engine.generate(turn(BY_CHAT))

    asked(frontend, about)
    assert frontend.paths == [GENERATE, CHAT, CHAT]
    assert frontend.probes == 2


def test_a_model_that_the_token_route_does_not_know_goes_by_chat_from_then_on() -> None:
    frontend = RecordedFrontend(takes_no_ids=True)

    async def about(engine):
        for _ in range(3):
            await engine.generate(turn(BY_CHAT))

    asked(frontend, about)
    assert frontend.paths == [GENERATE, CHAT, CHAT, CHAT]


def test_a_model_that_no_route_knows_is_asked_for_again() -> None:
    frontend = RecordedFrontend(takes_no_ids=True)
    frontend.chat = frontend.generate

    async def about(engine):
        for _ in range(2):
            with pytest.raises(UnknownModelError):
                await engine.generate(turn(BY_CHAT))

    asked(frontend, about)
    assert frontend.paths == [GENERATE] * 4


def test_a_refusal_of_the_token_route_is_told_and_not_tried_elsewhere() -> None:
    frontend = RecordedFrontend()

    async def about(engine):
        with pytest.raises(EngineRequestError):
            await engine.generate(GenerateRequest("tiny", TokenIds([1]), SamplingParams(max_tokens=5)))

    asked(frontend, about)
    assert frontend.paths == [GENERATE]


def test_nobody_there_is_told_as_such() -> None:
    async def main():
        async with DynamoEngine(HttpEngine("http://127.0.0.1:9", DynamoTransport(), max_retries=0)) as engine:
            await engine.generate(GenerateRequest("tiny", TokenIds([1]), SamplingParams(max_tokens=5)))

    with pytest.raises(ConnectionFailedError):
        asyncio.run(main())
