"""The embedded model as a Dynamo worker: a real model samples behind a real frontend, without a GPU.

The product's own engine does the work (continuous batching, prefix cache, seeds), so that a rollout through Dynamo
can be compared id by id with the same rollout in-process.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from dynamo.llm.exceptions import InvalidArgument
from tokenizers import Tokenizer

from servers.dynamo.request_log import RequestLogWriter
from servers.dynamo.weight_control import WeightControl
from servers.dynamo.worker_wire import Completion, WorkOrder, write_chunks
from servers.teacher_forcing import TeacherForcing
from tokentrue.engines.embedded.engine import MODEL_FOLDER, EmbeddedEngine
from tokentrue.errors import CallerError
from tokentrue.generation import GenerateRequest, Generation
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds


class EmbeddedWorker:
    """Answers requests with the product's engine; a request whose client goes away is given up."""

    def __init__(self, folder: Path, model_name: str, log: RequestLogWriter, tokens_per_chunk: int) -> None:
        self._folder = folder
        self._engine = EmbeddedEngine(folder, model_name=model_name)
        self._teacher = TeacherForcing(folder)
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._model_name = model_name
        self._log = log
        self._tokens_per_chunk = tokens_per_chunk
        self.control = WeightControl(self._load, self._flush)

    async def _load(self, folder: Path) -> None:
        """Sample with other weights from now on; the tokenizer and the model's name stay."""
        loaded = EmbeddedEngine(folder, model_name=self._model_name)
        teacher = TeacherForcing(folder)
        await self._engine.close()
        self._engine, self._teacher, self._folder = loaded, teacher, folder

    async def _flush(self) -> None:
        await self._load(self._folder)

    async def generate(self, request: dict[str, Any], context: Any) -> AsyncIterator[dict[str, Any]]:
        """The handler that Dynamo calls for each request."""
        number = self._log.received(request)
        how, sent = "cancelled", list[int]()
        # Dynamo drops a handler whose client has gone without closing it: what stands behind a `yield` is then run
        # by the garbage collector, some time. So the end of the work is noted by whoever sees it first.
        ended = False

        def note_end() -> None:
            nonlocal ended
            if not ended:
                ended = True
                self._log.ended(number, how, sent)

        gone = asyncio.ensure_future(context.async_killed_or_stopped())
        gone.add_done_callback(lambda task: None if task.cancelled() else note_end())
        try:
            order = WorkOrder.read(request, ())  # the engine knows its own end-of-text ids
            generation = await self._sample(order, context)
            if generation is None:
                yield {"token_ids": [], "index": 0, "finish_reason": "cancelled"}
                return
            completion = self._completion(order, generation)
            for chunk in write_chunks(order, completion, self._tokenizer.id_to_token, self._tokens_per_chunk):
                sent.extend(chunk["token_ids"])
                how = chunk.get("finish_reason", how)
                yield chunk
        except CallerError as exc:
            how = type(exc).__name__
            raise InvalidArgument(str(exc)) from exc
        finally:
            note_end()
            gone.cancel()

    async def _sample(self, order: WorkOrder, context: Any) -> Generation | None:
        """The completion, or None when the client went away first, or a pause gave the request up."""
        sampling = SamplingParams(
            max_tokens=order.max_tokens, stop_token_ids=order.stop_token_ids, **order.sampling
        )
        request = GenerateRequest(self._model_name, TokenIds(order.prompt_ids), sampling)
        await self.control.admitted()
        sampled = asyncio.ensure_future(self._engine.generate(request))
        self.control.started(sampled)
        gone = asyncio.ensure_future(context.async_killed_or_stopped())
        try:
            await asyncio.wait((sampled, gone), return_when=asyncio.FIRST_COMPLETED)
            return sampled.result() if sampled.done() and not sampled.cancelled() else None
        finally:
            sampled.cancel()
            gone.cancel()

    def _completion(self, order: WorkOrder, generation: Generation) -> Completion:
        tokens = generation.tokens
        ids, logprobs = tokens.completion_ids.tolist(), tokens.completion_logprobs.tolist()
        alternatives: tuple[tuple[tuple[int, float], ...], ...] = ()
        # The frontend asks for 1 when a client wants log-probabilities and no alternatives.
        if order.top_logprobs is not None and order.top_logprobs > 1:
            every = self._teacher.logprobs(order.prompt_ids, ids)
            best = np.argsort(-every, axis=1, kind="stable")[:, : order.top_logprobs]
            alternatives = tuple(
                tuple((int(each), float(row[each])) for each in chosen)
                for row, chosen in zip(every, best, strict=True)
            )
        ended_by = ids[-1] if generation.stop_reason is not None else None
        return Completion(
            tuple(ids),
            tuple(logprobs),
            generation.finish_reason.value,
            ended_by,
            alternatives,
            cached_tokens=generation.usage.cached_tokens,
        )


async def main() -> None:
    """Load the model and serve it."""
    from servers.dynamo.serving import ServedModel, serve

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-folder", type=Path, default=MODEL_FOLDER)
    parser.add_argument("--model-name", required=True)
    parser.add_argument("--request-log", type=Path, required=True)
    parser.add_argument("--tokens-per-chunk", type=int, default=1)
    parser.add_argument("--tool-call-parser", help="the frontend reads calls in this format, such as hermes")
    parser.add_argument("--reasoning-parser", help="the frontend reads reasoning in this format, such as qwen3")
    parser.add_argument("--rl", action="store_true", help="serve control routes; needs DYN_SYSTEM_PORT")
    arguments = parser.parse_args()
    folder: Path = arguments.model_folder
    context_limit = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    log = RequestLogWriter(arguments.request_log)
    worker = EmbeddedWorker(folder, arguments.model_name, log, arguments.tokens_per_chunk)
    model = ServedModel(
        folder, arguments.model_name, context_limit, arguments.tool_call_parser, arguments.reasoning_parser
    )
    await serve(model, worker.generate, worker.control.routes() if arguments.rl else None)


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
