"""What the log-probabilities mean behind a real Dynamo frontend is measured, by both of its token routes."""

from __future__ import annotations

import asyncio

import pytest

from tokentrue.clients.making import make_client
from tokentrue.config import ClientConfig
from tokentrue.engines.embedded.engine import MODEL_FOLDER
from tokentrue.engines.http import HttpEngine
from tokentrue.engines.logprobs import measure_logprobs_mode
from tokentrue.generation import LogprobsMode
from tokentrue.rendering.renderer import load_renderer
from tokentrue.transports.dynamo import DynamoTransport
from tokentrue.transports.vllm import VllmTransport

pytestmark = pytest.mark.dynamo

MESSAGES_ONLY = "openai_chat_completions"


@pytest.mark.parametrize("transport", [DynamoTransport(), VllmTransport()])
def test_the_embedded_worker_is_measured_and_named(dynamo, transport):
    """Raw, as the embedded engine is; and the frontend tells its version."""

    async def run():
        async with HttpEngine(dynamo.frontend.url, transport, max_retries=0) as engine:
            model = dynamo.embedded.kind.model_name
            return await engine.describe(model), await measure_logprobs_mode(engine, model, range(30, 70))

    info, found = asyncio.run(run())
    assert (info.name, info.version) == ("dynamo", "1.6.1")
    assert found.mode is LogprobsMode.RAW


@pytest.mark.parametrize("client_type", ["renderer", "openai_chat_completions_token", MESSAGES_ONLY])
def test_a_shaped_turn_of_every_client_says_it(dynamo, client_type):
    renderer = load_renderer(MODEL_FOLDER)
    config = ClientConfig(
        client_type=client_type, api_base_url=dynamo.frontend.url, renderer_transport="dynamo", max_retries=0
    )

    async def run():
        async with await make_client(config, None if client_type == MESSAGES_ONLY else renderer) as client:
            asked = {"temperature": 0.6, "max_tokens": 8, "seed": 1}
            return await client.get_response("Hi", dynamo.embedded.kind.model_name, asked)

    response = asyncio.run(run())
    assert response.turn is not None, response.tokens_missing
    assert response.turn.logprobs_mode is LogprobsMode.RAW
