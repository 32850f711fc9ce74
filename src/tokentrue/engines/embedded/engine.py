"""The embedded engine: a real model behind the same protocol as a remote one.

The scheduler is touched by one worker thread only, which runs while there is work. The event loop hands it what
arrived and what was given up, and waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from threadpoolctl import ThreadpoolController

from tokentrue.engines.embedded.sampler import Sampler, SamplerOptions
from tokentrue.engines.embedded.scheduler import Phase, Scheduler, Sequence
from tokentrue.engines.embedded.transformer import DECODE_ROWS, Transformer
from tokentrue.engines.embedded.weights import load_weights
from tokentrue.errors import (
    AbortedError,
    EngineFailureError,
    InvalidSamplingError,
    InvalidTokenIdError,
    OverlongPromptError,
    TokentrueError,
    UnknownModelError,
    UnsupportedParameterError,
)
from tokentrue.generation import (
    Delta,
    EngineInfo,
    FinishReason,
    GenerateRequest,
    Generation,
    LogprobsMode,
    PartialGeneration,
    Usage,
    WeightSpan,
    make_tokens,
)
from tokentrue.sampling import SamplingParams

MODEL_FOLDER = Path(__file__).parent / "model"
"""The shipped checkpoint: a Hugging Face folder with tokenizer and chat template."""

MODEL_NAME = "tokentrue-embedded"

_STEPS_PER_HANDOVER = 4
"""Steps between two looks at the event loop: one costs about as much as a hop between threads costs ten times."""


@dataclass(frozen=True, slots=True)
class _Progress:
    over: list[Sequence]
    has_work: bool


@dataclass(frozen=True, slots=True)
class _Submitted:
    """A sequence on its way; `future` is done when the scheduler is done with it."""

    sequence: Sequence
    future: asyncio.Future[None]
    request_id: str


class EmbeddedEngine:
    """Samples from a small Llama in this process, on the CPU, with numpy only.

    For one prompt, one set of parameters and one seed the ids and log-probabilities are always the same, bit for
    bit, on one machine: whatever is sampled at the same time, and whatever the prefix cache holds.

    Args:
        folder: A Hugging Face folder of a Llama with tied embeddings; the shipped model by default.
        model_name: The name it is served under.
        rows: Completions sampled at the same time; further ones wait.
        cache_bytes: Memory for the prefix cache.
        logprobs_mode: Which distribution the log-probabilities belong to.

    Raises:
        ConfigError: The folder holds no model that this engine computes.
    """

    def __init__(
        self,
        folder: Path = MODEL_FOLDER,
        *,
        model_name: str = MODEL_NAME,
        rows: int = DECODE_ROWS,
        cache_bytes: int = 64 * 2**20,
        logprobs_mode: LogprobsMode = LogprobsMode.RAW,
    ) -> None:
        weights = load_weights(folder)
        self._config = weights.config
        self._eos_token_ids = weights.eos_token_ids
        self._version = weights.version
        self._model_name = model_name
        self._mode = logprobs_mode
        self._scheduler = Scheduler(Transformer(weights), self._config, rows=rows, cache_bytes=cache_bytes)
        self._blas = ThreadpoolController()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedded-engine")
        self._pump: asyncio.Task[None] | None = None
        self._arrived: list[Sequence] = []
        self._given_up: list[Sequence] = []
        self._futures: dict[Sequence, asyncio.Future[None]] = {}
        self._request_count = 0
        self._is_closed = False
        self._next_steps: asyncio.Future[None] | None = None

    async def generate(self, request: GenerateRequest) -> Generation:
        """Sample one completion; see `Engine.generate`.

        `max_tokens` is cut to the room that the context leaves, and then the finish reason is `LENGTH`. The
        model's own end-of-text ids stop a completion unless `ignore_eos`; `stop_token_ids` always do.

        Raises:
            UnknownModelError: The request names another model.
            InvalidTokenIdError: The prompt is empty, or an id is outside the vocabulary.
            OverlongPromptError: The prompt fills the context.
            UnsupportedParameterError: A parameter is set that this engine does not have.
            InvalidSamplingError: `min_tokens` is asked for, and every id is a stop id.
            EngineFailureError: The computation failed.
            AbortedError: The engine was closed.
        """
        submitted = self._submit(request)
        try:
            await submitted.future
        except asyncio.CancelledError:
            self._give_up(submitted)
            raise
        return self._generation(request, submitted)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Delta | Generation, None]:
        """Sample one completion as a stream; see `StreamingEngine.stream`. A delta has one to a few ids.

        Raises:
            TokentrueError: As `generate`; `partial` holds what came before.
        """
        submitted = self._submit(request)
        sequence, told = submitted.sequence, 0
        try:
            while True:
                is_done = submitted.future.done()
                count = len(sequence.logprobs)  # the worker thread appends the id before its log-probability
                if count > told:
                    ids, logprobs = sequence.completion_ids[told:count], sequence.logprobs[told:count]
                    told = count
                    yield Delta(tuple(ids), tuple(logprobs))
                if is_done:
                    break
                await asyncio.wait((submitted.future, self._stepped()), return_when=asyncio.FIRST_COMPLETED)
            await submitted.future
            yield self._generation(request, submitted)
        except TokentrueError as exc:
            known = sequence.completion_ids[:told], sequence.logprobs[:told]
            exc.partial = PartialGeneration(make_tokens(request.prompt_ids, *known), logprobs_mode=self._mode)
            raise
        finally:
            if not submitted.future.done():
                self._give_up(submitted)

    def _submit(self, request: GenerateRequest) -> _Submitted:
        if self._is_closed:
            raise AbortedError("the embedded engine is closed")
        sequence = self._sequence(request)
        self._request_count += 1
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._futures[sequence] = future
        self._arrived.append(sequence)
        if self._pump is None or self._pump.done():
            self._pump = loop.create_task(self._run())
        return _Submitted(sequence, future, f"embedded-{self._request_count}")

    def _give_up(self, submitted: _Submitted) -> None:
        self._futures.pop(submitted.sequence, None)
        self._given_up.append(submitted.sequence)

    def _stepped(self) -> asyncio.Future[None]:
        """Done when the worker thread has taken its next steps."""
        loop = asyncio.get_running_loop()
        steps = self._next_steps
        if steps is None or steps.done() or steps.get_loop() is not loop:
            self._next_steps = steps = loop.create_future()
        return steps

    async def describe(self, model: str | None = None) -> EngineInfo:  # async: as `Engine` asks
        """What this engine is; `version` is the digest of its weights.

        Raises:
            UnknownModelError: It does not serve `model`.
        """
        self._check_model(model)
        limit = self._config.max_position_embeddings
        return EngineInfo("embedded", self._version, (self._model_name,), limit, self._mode)

    async def close(self) -> None:
        """End the worker thread; requests in work fail with `AbortedError`. Idempotent."""
        self._is_closed = True
        for sequence, future in self._futures.items():
            self._given_up.append(sequence)
            if not future.done():
                future.set_exception(AbortedError("the embedded engine was closed"))
        self._futures.clear()
        if self._pump is not None and not self._pump.done():
            await asyncio.wait([self._pump])
        self._executor.shutdown(wait=False)

    async def __aenter__(self) -> EmbeddedEngine:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _run(self) -> None:
        """Keep the worker thread busy until nothing is left to do."""
        loop = asyncio.get_running_loop()
        progress = _Progress([], has_work=True)
        while progress.has_work or self._arrived:
            arrived, self._arrived = self._arrived, []
            given_up, self._given_up = self._given_up, []
            try:
                progress = await loop.run_in_executor(self._executor, self._work, arrived, given_up)
            except Exception as error:  # noqa: BLE001  (whatever it was, everyone who waits is told)
                self._fail_all(error)
                return
            if self._next_steps is not None and not self._next_steps.done():
                self._next_steps.set_result(None)
            for sequence in progress.over:
                future = self._futures.pop(sequence, None)
                if future is not None and not future.done():
                    future.set_result(None)

    def _work(self, arrived: list[Sequence], given_up: list[Sequence]) -> _Progress:
        """Runs on the worker thread, the only one that touches the scheduler.

        BLAS gets one thread here: results are the same bit for bit only at one count, and for matrices this
        small further threads cost more than they bring (26 s against 5 s for a rollout on two busy cores).
        """
        with self._blas.limit(limits=1, user_api="blas"):
            return self._step(arrived, given_up)

    def _step(self, arrived: list[Sequence], given_up: list[Sequence]) -> _Progress:
        for sequence in arrived:
            self._scheduler.submit(sequence)
        for sequence in given_up:
            self._scheduler.cancel(sequence)
        over: list[Sequence] = []
        for _ in range(_STEPS_PER_HANDOVER):
            over += self._scheduler.step()
            if over:
                break
        return _Progress(over, self._scheduler.has_work())

    def _fail_all(self, error: Exception) -> None:
        for sequence, future in self._futures.items():
            self._given_up.append(sequence)
            if not future.done():
                failure = EngineFailureError("the embedded engine's computation failed", detail=repr(error))
                failure.__cause__ = error
                future.set_exception(failure)
        self._futures.clear()

    def _sequence(self, request: GenerateRequest) -> Sequence:
        sampling = request.sampling
        self._check_model(request.model)
        self._check_prompt(request)
        _check_supported(sampling)
        room = self._config.max_position_embeddings - len(request.prompt_ids)
        options = SamplerOptions(
            temperature=1.0 if sampling.temperature is None else sampling.temperature,
            top_p=1.0 if sampling.top_p is None else sampling.top_p,
            top_k=sampling.top_k or 0,
            min_p=sampling.min_p or 0.0,
        )
        eos = () if sampling.ignore_eos else self._eos_token_ids
        ends = (each for each in eos if each < self._config.vocab_size)
        stop_ids = frozenset((*sampling.stop_token_ids, *ends))
        if sampling.min_tokens and len(stop_ids) == self._config.vocab_size:
            raise InvalidSamplingError(
                f"min_tokens={sampling.min_tokens} cannot be sampled when every id is a stop id"
            )
        return Sequence(
            prompt_ids=request.prompt_ids.array(),
            sampler=Sampler(options, sampling.seed, self._mode),
            stop_ids=stop_ids,
            min_tokens=sampling.min_tokens or 0,
            max_tokens=room if sampling.max_tokens is None else min(room, sampling.max_tokens),
            priority=sampling.priority or 0,
            salt=sampling.cache_salt,
        )

    def _check_model(self, model: str | None) -> None:
        if model is not None and model != self._model_name:
            raise UnknownModelError(f"the embedded engine serves {self._model_name!r}, not {model!r}")

    def _check_prompt(self, request: GenerateRequest) -> None:
        prompt_ids = request.prompt_ids.array()
        if not prompt_ids.size:
            raise InvalidTokenIdError("the prompt holds no id; at least one is needed to continue from")
        limit = self._config.vocab_size
        if request.vocab_size is not None:
            limit = min(limit, request.vocab_size)
        highest = int(prompt_ids.argmax())
        if prompt_ids[highest] >= limit:
            raise InvalidTokenIdError(
                f"prompt id {int(prompt_ids[highest])} at position {highest} is outside 0..{limit - 1}, "
                f"the ids of this vocabulary"
            )
        for stop_id in request.sampling.stop_token_ids:
            if stop_id >= limit:
                raise InvalidTokenIdError(
                    f"stop token id {stop_id} is outside 0..{limit - 1}, the vocabulary's ids"
                )
        if len(prompt_ids) >= self._config.max_position_embeddings:
            raise OverlongPromptError(len(prompt_ids), self._config.max_position_embeddings)

    def _generation(self, request: GenerateRequest, submitted: _Submitted) -> Generation:
        sequence = submitted.sequence
        if sequence.failure is not None:
            raise sequence.failure
        is_stopped = sequence.phase is Phase.STOPPED
        count = len(sequence.completion_ids)
        return Generation(
            tokens=make_tokens(request.prompt_ids, sequence.completion_ids, sequence.logprobs),
            finish_reason=FinishReason.STOP if is_stopped else FinishReason.LENGTH,
            stop_reason=sequence.completion_ids[-1] if is_stopped else None,
            request_id=submitted.request_id,
            model=self._model_name,
            usage=Usage(len(request.prompt_ids), count, sequence.cached_tokens),
            prompt_ids_echoed=True,
            weight_spans=(WeightSpan(self._version, 0, count),),
            logprobs_mode=self._mode,
        )


def _check_supported(sampling: SamplingParams) -> None:
    """Refuse what would change the result and is not done here."""
    unsupported: dict[str, bool] = {
        "n": sampling.n != 1,
        "stop": bool(sampling.stop),
        "frequency_penalty": bool(sampling.frequency_penalty),
        "presence_penalty": bool(sampling.presence_penalty),
        "repetition_penalty": sampling.repetition_penalty not in (None, 1.0),
        "logit_bias": bool(sampling.logit_bias),
        **dict.fromkeys(sampling.extra, True),
    }
    for parameter, is_set in unsupported.items():
        if is_set:
            advice = "leave it out; stop_token_ids, temperature, top_p, top_k, min_p and seed are supported"
            raise UnsupportedParameterError(parameter, "the embedded engine", advice)
