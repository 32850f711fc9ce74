"""Recorded replies, sent by a real server and read through the whole engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from aiohttp import web

from tokentrue.engines.http import HttpEngine
from tokentrue.errors import AbortedError, EngineFailureError, EvidenceError, OverlongPromptError
from tokentrue.generation import GenerateRequest
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.dynamo import DynamoTransport
from tokentrue.transports.vllm import VllmTransport

CAPTURES = Path(__file__).resolve().parents[3] / "shared" / "captures"


def replayed(transport, name, **sampling):
    """The capture's reply, read by an engine; and the capture."""
    if not CAPTURES.is_dir():
        pytest.skip(f"no recorded replies at {CAPTURES}")
    recorded = json.loads((CAPTURES / f"{name}.json").read_text())
    sent, response = recorded["request"]["body"], recorded["response"]
    ids = sent["nvext"]["token_data"] if "nvext" in sent else sent["token_ids"]

    async def answer(request: web.Request) -> web.Response:
        assert request.path == recorded["request"]["path"]
        return web.json_response(response["body"], status=response["status"])

    async def main():
        app = web.Application()
        app.router.add_post("/{tail:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            async with HttpEngine(url, transport, max_retries=0) as engine:
                return await engine.generate(GenerateRequest("tiny", TokenIds(ids), SamplingParams(**sampling)))
        finally:
            await runner.cleanup()

    return asyncio.run(main()), response["body"]


@pytest.mark.parametrize("name", ["generate_logprobs", "v031_generate", "S_generate_regex_reasoning_ended_seed1"])
def test_vllm(name) -> None:
    generation, body = replayed(VllmTransport(), f"vllm/{name}")
    assert generation.tokens.completion_ids == body["choices"][0]["token_ids"]


@pytest.mark.parametrize("name", ["chunk4_think_tool", "toolparser_with_tools_logprobs", "sample_tito_logprobs"])
def test_dynamo(name) -> None:
    generation, body = replayed(DynamoTransport(), f"dynamo/{name}")
    assert generation.tokens.completion_ids == body["nvext"]["completion_token_ids"]
    assert generation.prompt_ids_echoed


@pytest.mark.parametrize(
    ("transport", "name", "expected"),
    [
        (VllmTransport(), "vllm/bad_generate_overlong", OverlongPromptError),
        (VllmTransport(), "vllm/B_gen_after", EngineFailureError),
        (DynamoTransport(), "dynamo/wkb_overlong_token_data", OverlongPromptError),
        (DynamoTransport(), "dynamo/env_dyn_disable_frontend_nvext_tito", EvidenceError),
        (DynamoTransport(), "dynamo/wkb_fault_9022", AbortedError),
    ],
)
def test_no_sample(transport, name, expected) -> None:
    with pytest.raises(expected):
        replayed(transport, name)
