"""A deterministic Dynamo worker that fails on demand.

The completion is a function of the prompt ids (`reply_text`), so that a client can recompute every answer; the
log-probability of an id is a function of the id, exact in single precision. A sampling seed from `FAULTS` or
`BROKEN_STREAMS` makes the request go wrong in the way that is named there.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from servers.dynamo.request_log import RequestLogWriter
from servers.dynamo.tiny_model import CONTEXT_LIMIT, write_tiny_model
from servers.dynamo.worker_wire import Completion, WorkOrder, write_chunks

SLOW_S = 5.0
"""How long a request of seed 9024 waits before its first token."""

BROKEN_STREAMS = {
    9020: "in-band error",
    9021: "raises after two ids",
    9022: "ends without a finish reason",
    9023: "one log-probability too few",
    9024: "waits before the first id",
    9025: "aborted after two ids",
}


def reply_text(prompt_ids: Sequence[int]) -> str:
    """The whole answer to a prompt, before the end token: it changes when any one id changes."""
    checksum = 0
    for token_id in prompt_ids:
        checksum = (checksum * 31 + token_id + 1) % 9973
    return f"sent {len(prompt_ids)} ids, sum {checksum}"


def logprob_of(token_id: int) -> float:
    """The "log-probability" of an id; a multiple of 1/1024, so that it survives every float format."""
    return -(1 + token_id % 1024) / 1024


def completion_of(order: WorkOrder, reply_ids: Sequence[int], vocab_size: int) -> Completion:
    """The reply cut where the order says: at the first stop id, or at `max_tokens`.

    A client that takes the end out of the stop ids gets the reply again and again until `max_tokens`.
    """
    limit = order.max_tokens if order.max_tokens is not None else CONTEXT_LIMIT - len(order.prompt_ids)
    taken: list[int] = []
    finish_reason = "length"
    while len(taken) < limit and finish_reason == "length":
        taken.append(reply_ids[len(taken) % len(reply_ids)])
        if taken[-1] in order.stop_token_ids:
            finish_reason = "stop"
    alternatives: tuple[tuple[tuple[int, float], ...], ...] = ()
    if order.top_logprobs:
        alternatives = tuple(
            tuple(
                ((each + step) % vocab_size, logprob_of(each) - step) for step in range(1, order.top_logprobs + 1)
            )
            for each in taken
        )
    ended_by_client = finish_reason == "stop" and taken[-1] != reply_ids[-1]
    return Completion(
        token_ids=tuple(taken),
        logprobs=tuple(logprob_of(each) for each in taken),
        finish_reason=finish_reason,
        stop_reason=taken[-1] if ended_by_client else None,
        alternatives=alternatives,
        prompt_logprobs=tuple(logprob_of(each) for each in order.prompt_ids[1:]),
    )


def faults() -> dict[int, Callable[[], Exception]]:
    """What is raised before the first token, by sampling seed."""
    from dynamo.llm import exceptions as llm

    return {
        9001: lambda: ValueError("boom value"),
        9002: lambda: llm.InvalidArgument("bad argument detail"),
        9003: lambda: llm.HttpError(422, "unprocessable detail"),
        9004: lambda: RuntimeError("boom runtime"),
        9005: lambda: llm.Unknown("unknown detail"),
        9006: lambda: llm.EngineShutdown("engine shut down"),
        9007: lambda: llm.HttpError(503, "overloaded detail"),
        9008: lambda: llm.HttpError(429, "slow down"),
        9009: lambda: llm.WorkerUnavailable("gone"),
        9010: lambda: TimeoutError("timed out"),
        9011: lambda: llm.Cancelled("cancelled"),
        9012: lambda: llm.HttpError(400, "context too long detail"),
    }


class FaultWorker:
    """Answers requests from the tiny model's folder, and fails where a seed says so."""

    def __init__(self, folder: Path, log: RequestLogWriter, tokens_per_chunk: int) -> None:
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "config.json").read_text())
        self._vocab_size, self._end_id = config["vocab_size"], config["eos_token_id"]
        self._log = log
        self._tokens_per_chunk = tokens_per_chunk
        self._faults = faults()

    async def generate(self, request: dict[str, Any], context: Any) -> AsyncIterator[dict[str, Any]]:
        """The handler that Dynamo calls for each request."""
        number = self._log.received(request)
        how, sent = "unfinished", list[int]()
        try:
            async for chunk in self._chunks(request, context):
                if context.is_stopped():
                    how = "cancelled"
                    return
                sent.extend(chunk["token_ids"])
                how = chunk.get("finish_reason", how)
                yield chunk
        except Exception as exc:
            how = type(exc).__name__
            raise
        finally:
            self._log.ended(number, how, sent)

    async def _chunks(self, request: dict[str, Any], context: Any) -> AsyncIterator[dict[str, Any]]:
        order = WorkOrder.read(request, (self._end_id,))
        outside = [each for each in order.prompt_ids if each >= self._vocab_size]
        if outside:
            raise ValueError(f"Token id {max(outside)} is out of vocabulary")
        reply = self._tokenizer.encode(reply_text(order.prompt_ids), add_special_tokens=False).ids
        completion = completion_of(order, [*reply, self._end_id], self._vocab_size)
        seed = order.sampling.get("seed")
        if seed in self._faults:
            raise self._faults[seed]()
        if seed == 9024:
            gone = asyncio.ensure_future(context.async_killed_or_stopped())
            await asyncio.wait((gone,), timeout=SLOW_S)
            gone.cancel()
        elif seed in BROKEN_STREAMS:
            async for chunk in _broken_stream(seed, list(completion.token_ids)):
                yield chunk
            return
        for chunk in write_chunks(order, completion, self._tokenizer.id_to_token, self._tokens_per_chunk):
            yield chunk
            await asyncio.sleep(0)


async def _broken_stream(seed: int, ids: list[int]) -> AsyncIterator[dict[str, Any]]:
    await asyncio.sleep(0)
    match seed:
        case 9020:  # how dynamo.vllm tells of an engine that gave no output
            yield {"token_ids": [], "index": 0, "finish_reason": "error: No outputs from the engine"}
        case 9021:
            yield {"token_ids": ids[:2], "index": 0}
            raise RuntimeError("broken in the middle")
        case 9022:
            yield {"token_ids": ids[:2], "index": 0}
        case 9023:
            yield {"token_ids": ids[:3], "index": 0, "log_probs": [-0.5, -0.25], "finish_reason": "length"}
        case 9025:
            yield {"token_ids": ids[:2], "index": 0, "finish_reason": "abort"}


async def main() -> None:
    """Write the tiny model's folder and serve it."""
    from servers.dynamo.serving import ServedModel, serve

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-folder", type=Path, required=True)
    parser.add_argument("--model-name", required=True)
    parser.add_argument("--request-log", type=Path, required=True)
    parser.add_argument("--tokens-per-chunk", type=int, default=1)
    parser.add_argument("--no-token-route", action="store_true", help="not found by /inference/v1/generate")
    arguments = parser.parse_args()
    write_tiny_model(arguments.model_folder)
    worker = FaultWorker(
        arguments.model_folder, RequestLogWriter(arguments.request_log), arguments.tokens_per_chunk
    )
    model = ServedModel(
        arguments.model_folder, arguments.model_name, CONTEXT_LIMIT, takes_ids=not arguments.no_token_route
    )
    await serve(model, worker.generate)


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
