"""What a probe found, and what it needs to look: the vocabulary of a checkup."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tokentrue.engines.engine import Engine
from tokentrue.engines.http import HttpEngine
from tokentrue.generation import EngineInfo, GenerateRequest, Generation
from tokentrue.rendering.renderer import Renderer
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.transport import Transport

VLLM, DYNAMO, SGLANG = "vllm", "dynamo", "sglang"

COMPLETION_LEN = 8
"""Ids that a probe samples: enough to see a continuation, and little for a busy server."""


ANY_ID = 2**31 - 1
"""As a vocabulary's size: no id is refused here, because every id that is sent came from the server."""


class Level(Enum):
    """How bad a finding is for who wants to train."""

    OK = "ok"
    NOTE = "note"
    """Something could not be looked at, or would be good to have."""
    WARN = "warn"
    """Training is possible, and something will go wrong or be slow."""
    FAIL = "fail"
    """What is sampled here cannot be trained on by its ids."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one probe saw.

    Args:
        level: How it is.
        evidence: What the server said or did, with numbers.
        advice: What to switch on or change; "" when there is nothing to do.
    """

    level: Level
    evidence: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the checklist: what was looked at, and what was seen; see `Look`."""

    name: str
    level: Level
    evidence: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Patient:
    """An endpoint that is being looked at.

    Args:
        server: Opened without retries; closed by who opened it.
        by_ids: Samples from ids, as the renderer client would: on Dynamo by the better of two routes.
        transport: The codec of its token route.
        engine: `VLLM`, `DYNAMO`, `SGLANG`, or "" when nothing tells.
        info: What the endpoint says of itself.
        model: The model that is asked.
        prompt_ids: A prompt of which every id is surely in the vocabulary: an unknown id kills SGLang. All that
            is sent is made of these, and of what the server sampled itself.
        prompt_source: Where they come from.
        renderer: The model's tokenizer and template, when they were given.
    """

    server: HttpEngine
    by_ids: Engine
    transport: Transport
    engine: str
    info: EngineInfo
    model: str
    prompt_ids: TokenIds
    prompt_source: str
    renderer: Renderer | None = None

    async def sampled(self, prompt_ids: TokenIds, **sampling: object) -> Generation:
        """One short greedy completion, unless `sampling` says otherwise."""
        asked = {"temperature": 0.0, "max_tokens": COMPLETION_LEN, "ignore_eos": True, **sampling}
        return await self.by_ids.generate(self.request(prompt_ids, **asked))

    def request(self, prompt_ids: TokenIds, **sampling: object) -> GenerateRequest:
        """A request to continue ids that are known to be in the vocabulary."""
        return GenerateRequest(self.model, prompt_ids, SamplingParams.from_args(sampling), vocab_size=ANY_ID)


ROUTE_ADVICE = {
    VLLM: "start `vllm serve` with --enable-scale-out: without it the token route answers 403",
    DYNAMO: (
        "use Dynamo 1.3 or later and no DYN_DISABLE_FRONTEND_NVEXT; for vLLM's wire start the frontend with "
        "DYN_VLLM_ENABLE_INFERENCE_V1_GENERATE=1"
    ),
    SGLANG: "start SGLang with a model that generates",
}
"""How the token route is switched on."""

CACHE_ADVICE = {
    VLLM: "start `vllm serve` with --enable-prompt-tokens-details (and not --no-enable-prefix-caching)",
    DYNAMO: "start the worker with prefix caching and let it report cached tokens",
    SGLANG: "start SGLang with --enable-cache-report (and not --disable-radix-cache)",
}
"""How cached tokens are counted."""

WEIGHTS_ADVICE = {
    VLLM: "start `vllm serve` with VLLM_SERVER_DEV_MODE=1, on a network that only the trainer reaches",
    DYNAMO: "start the frontend with DYN_ENABLE_RL=1 DYN_RL_PORT=<port>, and ask that port",
    SGLANG: "",
}
"""How weights are swapped and sampling is paused."""
