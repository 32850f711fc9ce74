"""A real vLLM behind a real Dynamo, by both of the frontend's token routes: same ids, own logprobs, warm cache."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from servers.sockets import LOOPBACK, listening_addresses
from servers.teacher_forcing import TeacherForcing
from servers.vllm.server import BLOCK_TOKENS

from tokentrue.clients.renderer import RendererClient
from tokentrue.engines.dynamo import DynamoEngine
from tokentrue.engines.embedded.engine import MODEL_FOLDER
from tokentrue.engines.http import HttpEngine
from tokentrue.errors import InvalidTokenIdError, OverlongPromptError
from tokentrue.generation import FinishReason, GenerateRequest, Generation
from tokentrue.rendering.renderer import load_renderer
from tokentrue.rollouts.runner import RolloutPlan, RolloutResult, run_rollouts
from tokentrue.rollouts.shipped.environments import CalculatorEnv
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.dynamo import DynamoTransport
from tokentrue.transports.vllm import VllmTransport
from tokentrue.turns import FALLBACKS, How

pytestmark = pytest.mark.dynamo_vllm

PROMPT = [(17 * i) % 300 for i in range(90)]
ROUTES = {"token_data": DynamoTransport, "inference/v1/generate": VllmTransport}
EPISODES = 16
VOCAB_SIZE = load_renderer(MODEL_FOLDER).vocab_size


@pytest.fixture(params=ROUTES)
def transport(request):
    """The codec of one of the two routes."""
    return ROUTES[request.param]()


def generate(running, transport, prompt_ids, **sampling) -> Generation:
    """One completion of `prompt_ids`."""

    async def ask() -> Generation:
        engine = HttpEngine(running.frontend.url, transport, max_retries=0, timeout_s=60.0)
        async with engine:
            asked = SamplingParams.from_args({"max_tokens": 40, **sampling})
            return await engine.generate(
                GenerateRequest(running.worker.kind.model_name, TokenIds(prompt_ids), asked, vocab_size=VOCAB_SIZE)
            )

    return asyncio.run(ask())


def rollout(running, transport) -> RolloutResult:
    """The shipped calculator, some episodes of it."""

    async def play() -> RolloutResult:
        engine = HttpEngine(running.frontend.url, transport, max_retries=0, timeout_s=60.0)
        async with RendererClient(engine, load_renderer(MODEL_FOLDER)) as client:
            sampling = SamplingParams(temperature=1.0, max_tokens=256)
            plan = RolloutPlan(EPISODES, concurrency=8, seed=3, sampling=sampling)
            return await run_rollouts(CalculatorEnv(), client, running.worker.kind.model_name, plan)

    return asyncio.run(play())


def test_everything_listens_on_loopback_only(dynamo_vllm) -> None:
    for process in (dynamo_vllm.frontend.process, dynamo_vllm.worker.process):
        assert listening_addresses(process.pid) <= {LOOPBACK}


def test_every_turn_is_bridged_and_its_logprobs_are_our_own_models(dynamo_vllm, transport) -> None:
    played = rollout(dynamo_vllm, transport)
    assert [record.error for record in played.records] == [None] * EPISODES
    assert not [record for record in played.turns if record.turn.stitch.why in FALLBACKS]
    later = [record.turn for record in played.turns if record.turn.index]
    assert later
    assert all(turn.stitch.how is How.BRIDGED for turn in later)
    assert sum(record.reward == 1.0 for record in played.records) >= EPISODES * 0.5
    teacher, found, expected = TeacherForcing(MODEL_FOLDER), [], []
    for record in played.turns:
        tokens = record.turn.tokens
        found += tokens.completion_logprobs.tolist()
        expected += teacher.sampled(tokens.prompt_ids.tolist(), tokens.completion_ids.tolist()).tolist()
    differences = np.abs(np.array(found) - np.array(expected))
    assert np.quantile(differences, 0.9) < 1e-4
    assert differences.max() < 1e-3


def test_both_routes_sample_the_same_ids_at_the_same_logprobs(dynamo_vllm) -> None:
    """One route writes a single-precision number in as many digits as that takes, the other in double's."""
    one, other = (
        generate(dynamo_vllm, each(), PROMPT, temperature=0, ignore_eos=True) for each in ROUTES.values()
    )
    assert len(one.tokens.completion_ids) == 40
    assert one.tokens.completion_ids == other.tokens.completion_ids
    ours, theirs = (np.array(each.tokens.completion_logprobs.tolist(), dtype=np.float32) for each in (one, other))
    assert np.array_equal(ours, theirs)


def test_the_prefix_cache_grows_by_whole_blocks_turn_by_turn(dynamo_vllm) -> None:
    """Told by the token_data route only; the other one has no usage."""
    prompt_ids, known_len = [5, *PROMPT], 0
    for turn in range(5):
        generation = generate(
            dynamo_vllm, DynamoTransport(), prompt_ids, max_tokens=20, seed=turn, ignore_eos=True
        )
        cached = generation.usage.cached_tokens
        assert (cached or 0) == known_len // BLOCK_TOKENS * BLOCK_TOKENS, turn
        prompt_ids += generation.tokens.completion_ids.tolist()
        known_len = len(prompt_ids) - 1  # the last sampled id was never computed
        prompt_ids += [5, 6, 7]


def test_what_cannot_be_sampled_is_refused_before_or_by_the_server(dynamo_vllm, transport) -> None:
    with pytest.raises(InvalidTokenIdError):
        generate(dynamo_vllm, transport, [5, VOCAB_SIZE - 1, VOCAB_SIZE])
    with pytest.raises(OverlongPromptError):
        generate(dynamo_vllm, transport, [7] * 2100)
    assert len(generate(dynamo_vllm, transport, PROMPT, max_tokens=3).tokens.completion_ids) <= 3


@pytest.mark.parametrize("frontend", ["frontend", "plain"])
def test_what_is_asked_happens_on_whichever_route_it_takes(dynamo_vllm, frontend) -> None:
    """Stop strings go by chat, which tells the one that ended it; grammars by ids, which takes them."""
    url = getattr(dynamo_vllm, frontend).url

    async def ask(**sampling) -> Generation:
        asked = SamplingParams.from_args({"max_tokens": 40, "temperature": 0, **sampling})
        model = dynamo_vllm.worker.kind.model_name
        async with DynamoEngine(HttpEngine(url, DynamoTransport(), max_retries=0, timeout_s=60.0)) as engine:
            return await engine.generate(GenerateRequest(model, prompt_ids, asked, vocab_size=VOCAB_SIZE))

    renderer = load_renderer(MODEL_FOLDER)
    prompt_ids = renderer.render_ids([{"role": "user", "content": "What is 12 plus 30?"}])
    plain = asyncio.run(ask())
    text = renderer.tokenizer.decode(plain.tokens.completion_ids.tolist())
    assert plain.prompt_ids_echoed == (frontend == "plain")
    assert '"name"' in text
    stopped = asyncio.run(ask(stop=["name"]))
    assert (stopped.stop_reason, stopped.finish_reason) == ("name", FinishReason.STOP)
    assert stopped.tokens.completion_ids == plain.tokens.completion_ids[: len(stopped.tokens.completion_ids)]
    if frontend == "frontend":
        forced = asyncio.run(ask(structured_outputs={"regex": "ab+c"}))
        assert renderer.tokenizer.decode(forced.tokens.completion_ids.tolist()[:-1]) == "abc"
        ignoring = asyncio.run(ask(stop=["name"], ignore_eos=True))
        assert ignoring.tokens.completion_ids == stopped.tokens.completion_ids
