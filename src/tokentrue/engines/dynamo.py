"""One Dynamo frontend by either of its two token routes: whether it serves the better one is asked once.

A frontend that was started with DYN_VLLM_ENABLE_INFERENCE_V1_GENERATE=1 serves `/inference/v1/generate` beside its
chat route. What each can show (law 4), measured on frontend 1.6.1 with its vLLM worker (0.31.0):

- The token route has no other input than the ids, so it cannot have answered anything else; an end that the
  worker did not vouch for is a 500, a cancelled turn a 499, and each log-probability names its id. It tells no
  counts, no echo and no stop reason. Parameters that are left out are vLLM's own defaults: temperature 1, no
  truncation.
- The chat route with `nvext.token_data` counts and echoes the ids, and tells cached tokens and the stop reason;
  but it needs placeholder messages, and a frontend that ignores `nvext` answers those: its evidence is there to
  tell that. Parameters that are left out are the model's generation configuration, unless the worker has
  --enable-rl.

So the token route is taken where it is served, and the chat route for what goes wrong on the other: stop
strings (which of them ended it is not told; but with `ignore_eos` the chat route drops them), streams (501),
parameters that it has no place for, such as a caller's `nvext`, and a model whose worker does not take ids (a
404 "Model not found", on that route alone). Neither takes `logit_bias`: the token route answers 400, and the chat
route takes it and does nothing, so its codec refuses it.

The question is an empty object: 400 where the route is served, 404 where not. Nothing can be sampled by it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Self, TypeVar

from tokentrue.engines.http import HttpEngine
from tokentrue.errors import EngineError, RouteMissingError, UnknownModelError, UnsupportedParameterError
from tokentrue.generation import Delta, EngineInfo, GenerateRequest, Generation
from tokentrue.transports.parameters import OnUnsupported
from tokentrue.transports.tokenize import read_probe, write_probe
from tokentrue.transports.transport import HttpCall, HttpReply
from tokentrue.transports.vllm import GENERATE_PATH, VllmTransport

T = TypeVar("T")


@dataclass(slots=True)
class DynamoEngine:
    """Samples by the token route where the frontend serves it, else by the chat route; an `EngineServer`.

    What the frontend answered is remembered; that it could not be asked is not. Many first turns at once ask once.

    Args:
        frontend: Its connections, with the codec of the chat route; closed by `close`.
        by_ids: The codec of the token route.
    """

    frontend: HttpEngine
    by_ids: VllmTransport = field(default_factory=lambda: VllmTransport(on_unsupported=OnUnsupported.RAISE))
    _serves_ids: bool | None = field(default=None, init=False)
    _takes_no_ids: set[str] = field(default_factory=set, init=False, repr=False)
    _asking: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = field(default=None, init=False, repr=False)

    async def generate(self, request: GenerateRequest) -> Generation:
        """Sample one completion; see `HttpEngine.generate`."""
        asked = request.sampling
        if asked.logit_bias:
            return await self.frontend.generate(request)  # whose codec says that no route takes it
        is_for_chat = bool(asked.stop and not asked.ignore_eos) or request.model in self._takes_no_ids
        if is_for_chat or not await self._asked():
            return await self.frontend.generate(request)
        try:
            return await self.frontend.generate_by(self.by_ids, request)
        except RouteMissingError:
            self._serves_ids = None  # it was restarted without the route, and sampled nothing
        except UnsupportedParameterError:
            pass  # nothing was sent; the chat route may have a place for it, and else names it again
        except UnknownModelError:
            generation = await self.frontend.generate(request)
            self._takes_no_ids.add(request.model)
            return generation
        return await self.frontend.generate(request)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Delta | Generation, None]:
        """Sample one completion as a stream, by the chat route: the token route answers 501 to that.

        Raises:
            UnsupportedParameterError: Stop strings with `ignore_eos`: they would be dropped. Else as `generate`.
            TokentrueError: As `HttpEngine.stream`.
        """
        if request.sampling.stop and request.sampling.ignore_eos:
            raise UnsupportedParameterError(
                "stop", "Dynamo's stream", "with ignore_eos it takes stop strings and drops them; use `generate`"
            )
        async with contextlib.aclosing(self.frontend.stream(request)) as parts:
            async for part in parts:
                yield part

    async def exchange(
        self, call: HttpCall, read: Callable[[HttpReply], T], headers: Mapping[str, str] | None = None
    ) -> T:
        """See `HttpEngine.exchange`."""
        return await self.frontend.exchange(call, read, headers)

    async def describe(self, model: str | None = None) -> EngineInfo:
        """See `HttpEngine.describe`."""
        return await self.frontend.describe(model)

    async def close(self) -> None:
        """Close the connections; idempotent, and final."""
        await self.frontend.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _asked(self) -> bool:
        """Whether the frontend serves the token route."""
        if self._serves_ids is None:
            async with self._lock():
                if self._serves_ids is None:
                    try:
                        self._serves_ids = await self.frontend.exchange(write_probe(GENERATE_PATH), read_probe)
                    except EngineError:
                        # Neither yes nor no (a proxy's 403, a missing key): the turn itself meets it, and tells.
                        return False
        return self._serves_ids

    def _lock(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._asking is None or self._asking[0] is not loop:
            self._asking = (loop, asyncio.Lock())
        return self._asking[1]
