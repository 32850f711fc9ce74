"""A worker that is killed while it works: a typed error at once, and service again after a restart."""

from __future__ import annotations

import asyncio

import pytest

from tokentrue.errors import EngineError, EngineTimeoutError, TransportError
from tokentrue.generation import GenerateRequest
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds

pytestmark = pytest.mark.dynamo


def test_kill_and_recover(dynamo, ask, eventually) -> None:
    mortal = dynamo.mortal
    slow = GenerateRequest(mortal.kind.model_name, TokenIds([1, 2, 3]), SamplingParams(max_tokens=5, seed=9024))

    async def killed_in_the_middle() -> BaseException:
        engine = ask.engine(timeout_s=20.0)
        before = len(mortal.requests())
        try:
            asked = asyncio.create_task(engine.generate(slow))
            await asyncio.to_thread(
                eventually, lambda: len(mortal.requests()) > before, "the worker has the request"
            )
            mortal.process.kill()
            with pytest.raises((EngineError, TransportError)) as raised:
                await asked
            return raised.value
        finally:
            await engine.close()

    noticed = asyncio.run(killed_in_the_middle())
    assert not isinstance(noticed, EngineTimeoutError), "the death is noticed, not waited out"

    with pytest.raises((EngineError, TransportError)):
        ask.generate(mortal, [1, 2, 3], max_tokens=5)
    assert ask.generate(dynamo.faults, [1, 2, 3], max_tokens=5), "other workers are not concerned"

    dynamo.server.restart_worker(mortal)

    def answers() -> bool:
        try:
            return bool(ask.generate(mortal, [4, 5, 6], max_tokens=5).tokens.completion_ids)
        except (EngineError, TransportError):
            return False

    eventually(answers, "the new worker is used", timeout_s=30.0)
    assert mortal.requests()[-1].prompt_ids == (4, 5, 6)
