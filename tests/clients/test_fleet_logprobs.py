"""Clients that go by messages measure each endpoint of a fleet, and never say of one what another means."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np
import pytest

from clients.conftest import CHAT, GENERATE, TOKENIZE, TOKENS, SmallVllm, serving
from tokentrue import ClientConfig, EndpointConfig, Message, Session, make_client
from tokentrue.engines.embedded.sampler import Sampler, SamplerOptions
from tokentrue.generation import LogprobsMode
from tokentrue.turns import How

LOGITS = np.asarray([3.0, 2.0, 1.0, 0.5, 0.0], np.float32)
FIRST_ID = 300


@dataclass
class Meaning(SmallVllm):
    """Samples a few ids from one row of logits, and tells log-probabilities of one meaning."""

    mode: LogprobsMode = LogprobsMode.RAW
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))
    sampled: int = 0

    def _served(self, path: str, body: dict) -> object:
        self.asked = body["sampling_params"] if path == GENERATE else body
        return super()._served(path, body)

    def _completion(self, path: str, prompt: list[int], max_tokens: int | None) -> dict:
        answer = super()._completion(path, prompt, max_tokens)
        self.sampled += 1
        asked = self.asked
        top_k = max(asked.get("top_k") or 0, 0)
        options = SamplerOptions(asked.get("temperature", 1.0), asked.get("top_p") or 1.0, top_k)
        sampler = Sampler(options, int(self.rng.integers(2**60)), self.mode)
        draws = [sampler.draw(LOGITS) for _ in range(max_tokens)]
        ids = [FIRST_ID + draw.token_id for draw in draws]
        items = [{"token": f"token_id:{i}", "logprob": draw.logprob} for i, draw in zip(ids, draws, strict=True)]
        (choice,) = answer["choices"]
        choice |= {"token_ids": ids, "finish_reason": "length", "logprobs": {"content": items}}
        answer["usage"]["completion_tokens"] = len(ids)
        return answer


@pytest.mark.parametrize(
    ("client_type", "routes", "later"),
    [
        ("openai_chat_completions", {CHAT}, How.ENGINE_RENDERED),
        ("openai_chat_completions_token", {CHAT, TOKENS, TOKENIZE}, How.BRIDGED),
        ("openai_chat_completions_token", {CHAT, GENERATE, TOKENIZE}, How.BRIDGED),
    ],
)
def test_each_turn_says_what_the_endpoint_means_that_sampled_it(renderer, client_type, routes, later) -> None:
    modes = (LogprobsMode.RAW, LogprobsMode.SCALED, LogprobsMode.PROCESSED)

    async def talk(client, servers, session):
        messages, said = [Message("user", "Hello?")], []
        for _ in range(2):
            before = [server.sampled for server in servers]
            response = await client.get_response(
                messages, "m", {"temperature": 0.7, "top_k": 3, "max_tokens": 6}, session=session
            )
            (asked,) = (at for at, server in enumerate(servers) if server.sampled > before[at])
            said.append((response.turn.stitch.how, response.turn.logprobs_mode, modes[asked]))
            messages += [response.message, Message("user", "And then?")]
        return said

    async def run():
        servers = [Meaning(renderer, set(routes), mode=mode) for mode in modes]
        async with serving(servers[0]), serving(servers[1]), serving(servers[2]):
            config = ClientConfig(
                client_type=client_type,
                endpoint_configs=tuple(EndpointConfig(api_base_url=server.url) for server in servers),
                fleet=True,
                max_retries=0,
            )
            async with await make_client(config, renderer) as client:
                said = [await talk(client, servers, Session(id=f"s{number}")) for number in range(30)]
            return said, [server.sampled for server in servers]

    said, sampled = asyncio.run(run())
    for (first, *_), (second, *_) in said:
        assert (first, second) == (How.ENGINE_RENDERED, later)
    turns = [turn for talked in said for turn in talked]
    assert {meant for _, _, meant in turns} == set(modes)
    assert all(found is meant for _, found, meant in turns), turns
    assert sum(sampled) <= 60 + 3 * 24  # each endpoint was measured once, and not for every turn
