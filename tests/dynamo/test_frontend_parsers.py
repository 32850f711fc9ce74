"""The frontend reads the answers with its own parsers, hermes and qwen3; the ids stay the worker's.

On 1.6.1 neither parser costs a reply its ids, its log-probabilities or `engine_data`, also when a worker's chunk
has a whole call in it. Where a frontend tells no ids, its calls still arrive, and the turn says what is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from servers.dynamo.server import PARSED, Worker

from tokentrue import Message, Session
from tokentrue.clients.making import make_client
from tokentrue.config import ClientConfig
from tokentrue.generation import FinishReason
from tokentrue.rendering.reader import MALFORMED_KEY
from tokentrue.rendering.renderer import Renderer, load_renderer
from tokentrue.rollouts.runner import RolloutPlan, RolloutResult, run_rollouts
from tokentrue.rollouts.shipped import arithmetic
from tokentrue.rollouts.shipped.environments import CalculatorEnv
from tokentrue.rollouts.tools import ToolSet
from tokentrue.sampling import SamplingParams
from tokentrue.turns import How, Response, Why

pytestmark = pytest.mark.dynamo

MESSAGES, TOKENS = "openai_chat_completions", "openai_chat_completions_token"
BOTH = pytest.mark.parametrize("client_type", [MESSAGES, TOKENS])
TOOLS = ToolSet(arithmetic.TOOLS).definitions
QUESTION = Message("user", "Compute 41 * 23 + 255.")
EPISODES = 8


@pytest.fixture(scope="module")
def workers(dynamo) -> dict[str, Worker]:
    """The embedded model, which announces parsers, with small and with large chunks."""
    large = replace(PARSED, model_name="tokentrue-parsed-large")
    started = {
        "small": dynamo.server.start_worker(PARSED),
        "large": dynamo.server.start_worker(large, "--tokens-per-chunk", "64"),
    }
    dynamo.server.wait_ready()
    return started


@pytest.fixture(scope="module")
def renderer(workers) -> Renderer:
    """Of the workers' folder; its own parser is the second opinion."""
    return load_renderer(workers["small"].model_folder)


def config_for(client_type: str, url: str) -> ClientConfig:
    """A client of one type for a frontend."""
    return ClientConfig(
        client_type=client_type,
        renderer_transport="dynamo",
        api_base_url=url,
        max_retries=0,
        measure_logprobs=False,
    )


def play(url: str, client_type: str, worker: Worker, renderer: Renderer) -> RolloutResult:
    """The calculator, with its tools, through one client."""

    async def run() -> RolloutResult:
        own = renderer if client_type == TOKENS else None
        async with await make_client(config_for(client_type, url), own) as client:
            sampling = SamplingParams(temperature=1.0, max_tokens=256)
            plan = RolloutPlan(EPISODES, concurrency=4, seed=3, sampling=sampling)
            return await run_rollouts(CalculatorEnv(), client, worker.kind.model_name, plan)

    return asyncio.run(run())


def talk(url: str, client_type: str, worker: Worker, renderer: Renderer, limits: Sequence[int]) -> list[Response]:
    """One question, then its product as the tool's result, each answer with its own `max_tokens`."""

    async def run() -> list[Response]:
        session, found, messages = Session(), [], [QUESTION]
        own = renderer if client_type == TOKENS else None
        async with await make_client(config_for(client_type, url), own) as client:
            for limit in limits:
                args = {"max_tokens": limit, "temperature": 0}
                model = worker.kind.model_name
                found.append(await client.get_response(messages, model, args, TOOLS, session=session))
                results = [Message("tool", "943", tool_call_id=call.id) for call in found[-1].message.tool_calls]
                messages += [found[-1].message, *(results or [Message("user", "Go on.")])]
        return found

    return asyncio.run(run())


@BOTH
@pytest.mark.parametrize("chunks", ["small", "large"])
def test_the_frontend_reads_calls_and_reasoning_and_the_ids_are_the_workers(
    dynamo, workers, renderer, client_type, chunks
) -> None:
    worker = workers[chunks]
    before = len(worker.requests())
    result = play(dynamo.frontend.url, client_type, worker, renderer)

    assert [record.error for record in result.records] == [None] * EPISODES
    assert sum(record.reward for record in result.records) >= EPISODES / 2, "tasks are solved with these calls"
    received = {request.prompt_ids: request for request in worker.requests()[before:]}
    called = 0
    for episode in result.episodes:
        answers = [message for message in episode.record.messages if message.role == "assistant"]
        for record, answer in zip(episode.turns, answers, strict=True):
            turn, tokens = record.turn, record.turn.tokens
            seen = received[tuple(tokens.prompt_ids)]
            assert seen.completion_ids == tuple(tokens.completion_ids)
            assert seen.token_in == (turn.stitch.how is How.BRIDGED)
            assert len(tokens.completion_logprobs) == len(tokens.completion_ids)
            own = renderer.parse_response(tokens.completion_ids, tokens.prompt_ids, TOOLS)
            # The frontend writes the ids of its calls as call-<uuid>, this package as call_<n>_<n>.
            assert all(call.id.startswith("call-") for call in answer.tool_calls)
            assert [(call.name, call.arguments) for call in answer.tool_calls] == [
                (call.name, call.arguments) for call in own.tool_calls
            ]
            assert (answer.reasoning_content or "").strip() == (own.reasoning_content or "").strip() != ""
            assert (answer.content or "").strip() == own.content.strip()
            assert (turn.finish_reason is FinishReason.TOOL_CALLS) == bool(answer.tool_calls)
            called += len(answer.tool_calls)
    assert called >= EPISODES
    hows = {record.turn.stitch.how for record in result.turns if record.turn.index}
    assert hows == {How.BRIDGED if client_type == TOKENS else How.ENGINE_RENDERED}


@BOTH
def test_without_parsers_the_same_answer_is_text(dynamo, workers, renderer, client_type) -> None:
    url = dynamo.frontend.url
    (parsed,) = talk(url, client_type, workers["small"], renderer, [120])
    (plain,) = talk(url, client_type, dynamo.embedded, renderer, [120])
    assert plain.tokens == parsed.tokens
    assert "<tool_call>" in plain.message.content
    assert (plain.message.tool_calls, plain.message.reasoning_content) == ((), None)
    assert len(parsed.message.tool_calls) == 1
    assert "<tool_call>" not in parsed.message.content


@BOTH
@pytest.mark.parametrize("chunks", ["small", "large"])
def test_an_answer_cut_off_anywhere_keeps_its_ids(dynamo, workers, renderer, client_type, chunks) -> None:
    """Within the reasoning, within the call, before the call is closed: a truncated turn, never a call.

    The frontend makes a call of half a call all the same, with arguments that the model did not write.
    """
    worker = workers[chunks]
    (whole,) = talk(dynamo.frontend.url, client_type, worker, renderer, [120])
    ids = whole.tokens.completion_ids.tolist()
    assert whole.finish_reason is FinishReason.TOOL_CALLS
    statuses = []
    for limit in (1, 5, len(ids) // 2, len(ids) - 8, len(ids) - 4):
        (cut,) = talk(dynamo.frontend.url, client_type, worker, renderer, [limit])
        assert cut.tokens.completion_ids.tolist() == ids[:limit] == list(worker.requests()[-1].completion_ids)
        assert cut.finish_reason is FinishReason.LENGTH
        assert cut.message.tool_calls == ()
        statuses.append([call["status"] for call in cut.message.extra.get(MALFORMED_KEY, ())])
    assert statuses == [[], [], ["unclosed"], [], ["unclosed"]]


@BOTH
def test_a_frontend_that_tells_no_ids_still_gives_its_calls(
    dynamo, workers, renderer, client_type, caplog
) -> None:
    url, worker = dynamo.forgetful.url, workers["small"]
    first, second = talk(url, client_type, worker, renderer, [120, 120])
    for response in (first, second):
        assert response.finish_reason is FinishReason.TOOL_CALLS
        assert [call.name for call in response.message.tool_calls] in (["multiply"], ["add"])
        assert (response.tokens, response.turn) == (None, None)
        assert "DYN_DISABLE_FRONTEND_NVEXT" in response.tokens_missing
    assert (Why.TOKENS_MISSING.value in caplog.text) == (client_type == TOKENS)
