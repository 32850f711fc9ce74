"""Measure the embedded engine on one core: load time, prefill and sampling speed, prefix cache.

python scripts/bench_embedded.py
"""

import os

# One core, set before numpy loads its BLAS: threads would measure the machine, not the engine.
os.environ.update({"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import asyncio
import time

from tokentrue.engines.embedded.engine import MODEL_NAME, EmbeddedEngine
from tokentrue.generation import GenerateRequest, Generation
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds

PROMPT_TOKENS = 256
SAMPLED_TOKENS = 256


async def generate(engine: EmbeddedEngine, batch: int, max_tokens: int, first_id: int) -> list[Generation]:
    """`batch` completions at once, none of which stops early; `first_id` makes the prompts new to the cache."""
    requests = [
        GenerateRequest(
            MODEL_NAME,
            TokenIds([(first_id + row) % 600, *(i * 37 % 600 for i in range(PROMPT_TOKENS - 1))]),
            SamplingParams(seed=row, max_tokens=max_tokens, ignore_eos=True),
        )
        for row in range(batch)
    ]
    return await asyncio.gather(*(engine.generate(request) for request in requests))


async def measure() -> None:
    """Print one line per quantity."""
    started = time.perf_counter()
    engine = EmbeddedEngine()
    print(f"load: {time.perf_counter() - started:.3f} s")
    async with engine:
        for batch in (1, 8, 32):
            started = time.perf_counter()
            await generate(engine, batch, 1, 100 * batch)
            prefill_s = time.perf_counter() - started
            started = time.perf_counter()
            generations = await generate(engine, batch, SAMPLED_TOKENS, 100 * batch)
            decode_s = time.perf_counter() - started
            cached = sum(generation.usage.cached_tokens or 0 for generation in generations)
            print(
                f"batch {batch}: prefill {batch * PROMPT_TOKENS / prefill_s:.0f} tokens/s, "
                f"sampling {batch * SAMPLED_TOKENS / decode_s:.0f} tokens/s "
                f"with {cached / (batch * PROMPT_TOKENS):.0%} of the prompts cached"
            )


if __name__ == "__main__":
    asyncio.run(measure())
