"""One control plane for every engine: pause, resume, update the weights, reset the prefix cache, tell the version.

An update is pause, load, label, reset, resume, in this order, each step on all engines before the next begins. The
pause drops the keys and values of requests in flight, so that what they sample afterwards is the new model's
alone; the label is set before anything is sampled with the new weights; and the prefix cache is reset while
nothing is computed that could enter it.

When a step fails, the engines are left as they are and the error says how that is: before anything was loaded they
are resumed, with the old weights; from then on they stay paused, since an engine whose weights are half loaded, or
labelled with another version, must not sample. `update_weights` again, or `resume` if you know better, goes on
from there; so it is after a cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, Self, TypeAlias, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from tokentrue.engines.engine import Server
from tokentrue.engines.http import HttpEngine
from tokentrue.engines.http_settings import root_of
from tokentrue.engines.policy import check_version
from tokentrue.errors import (
    ConfigError,
    EngineError,
    EvidenceError,
    RouteMissingError,
    TokentrueError,
    TransportError,
    WeightUpdateError,
)
from tokentrue.transports.admin import AdminCall, AdminCodec, PauseMode
from tokentrue.transports.admin_dynamo import DynamoAdminCodec, RlWorker, workers_call
from tokentrue.transports.admin_sglang import SglangAdminCodec
from tokentrue.transports.admin_vllm import VllmAdminCodec
from tokentrue.transports.dynamo import DynamoTransport
from tokentrue.transports.vllm import VllmTransport
from tokentrue.weights import UNSET_LABEL

T = TypeVar("T")


class Admin(Protocol):
    """Controls the engines that serve one model. It is a `PolicyClock`."""

    async def pause(self, mode: PauseMode = PauseMode.KEEP) -> None:
        """Hold new requests, and deal with those in flight as `mode` says.

        Raises:
            UnsupportedParameterError: An engine has no such mode.
            RouteMissingError: The control routes are not switched on; says how they are.
            EngineError, TransportError: See `tokentrue.errors`.
        """
        ...

    async def resume(self) -> None:
        """Sample again.

        Raises:
            EngineError, TransportError: See `tokentrue.errors`.
        """
        ...

    async def update_weights(self, path: str, version: str, mode: PauseMode = PauseMode.KEEP) -> None:
        """Sample with the weights of a checkpoint folder from now on, under a new version.

        Args:
            path: A folder that the engines can read, under this name on their machines.
            version: A name that no other weights ever had.
            mode: What happens to the requests in flight.

        Raises:
            ConfigError: Path or version is empty, or the version is the label of engines that were never told one.
            WeightUpdateError: It stopped half way; says at which step, and whether the engines sample now.
        """
        ...

    async def reset_prefix_cache(self) -> None:
        """Forget all keys and values.

        Raises:
            EngineError, TransportError: See `tokentrue.errors`.
        """
        ...

    async def version(self) -> str | None:
        """The version that all engines are labelled with; None where a vLLM or an SGLang was never told one.

        What is sampled under that is of an unknown version.

        Raises:
            EvidenceError: One tells no label (a Dynamo worker that was never told one), or they differ.
            EngineError, TransportError: See `tokentrue.errors`.
        """
        ...

    async def close(self) -> None:
        """Release connections; idempotent."""
        ...


class Step(Enum):
    """The steps of an update, in their order."""

    PAUSE = "pause"
    LOAD = "load"
    SET_VERSION = "set_version"
    RESET = "reset_prefix_cache"
    RESUME = "resume"


@dataclass(frozen=True, slots=True)
class Target:
    """One engine to control; `name` is for errors, and stands for the engine where there is no `url`."""

    name: str
    server: Server
    url: str = ""


class _Fleet(Protocol):
    """Finds the engines that there are now."""

    async def targets(self) -> Sequence[Target]: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class FixedFleet:
    """Engines that are known from the start; closed with it."""

    servers: Sequence[Target]

    async def targets(self) -> Sequence[Target]:  # async: others have to ask
        """Those."""
        return self.servers

    async def close(self) -> None:
        """Close every server."""
        for target in self.servers:
            await target.server.close()


@dataclass(slots=True)
class DynamoFleet:
    """The workers that a Dynamo frontend tells; asked anew for every operation, since workers come and go.

    Args:
        frontend: The frontend's RL port.
        make_server: Opens the server of one worker, by its URL.
        model: Only the workers of this model; None when there is one model.
    """

    frontend: Server
    make_server: Callable[[str], Server]
    model: str | None = None
    _servers: dict[str, Server] = field(default_factory=dict, init=False, repr=False)

    async def targets(self) -> Sequence[Target]:
        """The workers there are now.

        Raises:
            RouteMissingError: The RL port is not switched on, or a worker has no control routes.
            ConfigError: There is more than one model, and none was named.
            EngineError: There is no worker.
        """
        call = workers_call()
        workers = await self.frontend.exchange(call.call, call.read)
        models = {worker.model for worker in workers}
        if self.model is None and len(models) > 1:
            raise ConfigError(f"there are workers of {', '.join(sorted(models))}: say which model is meant")
        chosen = [worker for worker in workers if self.model in (None, worker.model)]
        if not chosen:
            told = ", ".join(sorted(models)) or "none at all"
            meant = "" if self.model is None else f" of {self.model!r}"
            raise EngineError(f"there is no worker{meant} to control; the frontend tells of {told}")
        return [Target(f"worker {worker.instance}", self._server(worker), worker.system_url) for worker in chosen]

    def _server(self, worker: RlWorker) -> Server:
        if worker.system_url not in self._servers:
            self._servers[worker.system_url] = self.make_server(worker.system_url)
        return self._servers[worker.system_url]

    async def close(self) -> None:
        """Close the frontend's server, and those of all workers met so far."""
        for server in (self.frontend, *self._servers.values()):
            await server.close()


@dataclass(slots=True)
class _OneAtATime:
    """A lock of the running loop: one admin may be used by one loop after the other."""

    _held: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    def lock(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._held is None or self._held[0] is not loop:
            self._held = (loop, asyncio.Lock())
        return self._held[1]


_Locks: TypeAlias = WeakValueDictionary[str, asyncio.Lock]
_LOCKS: WeakKeyDictionary[asyncio.AbstractEventLoop, _Locks] = WeakKeyDictionary()


def _lock_of(place: str) -> asyncio.Lock:
    """The one lock of an engine in this event loop; it lives as long as somebody holds or awaits it."""
    locks = _LOCKS.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
    lock = locks.get(place)
    if lock is None:
        lock = locks[place] = asyncio.Lock()
    return lock


@dataclass(frozen=True, slots=True)
class HttpAdmin:
    """An `Admin` of engines behind HTTP; `make_admin` makes one. Use as `async with`, or `close` it.

    An update, a pause and a resumption wait for one another: two updates at once would label the weights of one
    with the version of the other. They wait for those of other admins of the same engines too, as long as all are
    used by one event loop; of two processes, only one may change anything at a time.
    """

    codec: AdminCodec
    fleet: _Fleet
    _turn: _OneAtATime = field(default_factory=_OneAtATime, init=False, repr=False, compare=False)

    async def pause(self, mode: PauseMode = PauseMode.KEEP) -> None:
        """See `Admin.pause`."""
        async with self._alone() as targets:
            await self._on_all(targets, self.codec.pause(mode))

    async def resume(self) -> None:
        """See `Admin.resume`."""
        async with self._alone() as targets:
            await self._on_all(targets, self.codec.resume())

    async def reset_prefix_cache(self) -> None:
        """See `Admin.reset_prefix_cache`."""
        await self._on_all(await self.fleet.targets(), self.codec.reset_prefix_cache())

    async def version(self) -> str | None:
        """See `Admin.version`."""
        targets = await self.fleet.targets()
        told = await self._on_all(targets, self.codec.version())
        if len(set(told)) != 1:
            pairs = ", ".join(
                f"{target.name} has {version!r}" for target, version in zip(targets, told, strict=True)
            )
            raise EvidenceError(f"the engines are labelled with different versions: {pairs}")
        return None if told[0] == UNSET_LABEL else told[0]

    async def update_weights(self, path: str, version: str, mode: PauseMode = PauseMode.KEEP) -> None:
        """See `Admin.update_weights`."""
        if not path or not version:
            raise ConfigError(f"an update needs a path and a version, not {path!r} and {version!r}")
        check_version(version)
        steps = {
            Step.PAUSE: self.codec.pause(mode),
            Step.LOAD: self.codec.load(path, version),
            Step.SET_VERSION: self.codec.set_version(version),
            Step.RESET: self.codec.reset_prefix_cache(),
            Step.RESUME: self.codec.resume(),
        }
        async with self._alone() as targets:
            for step, call in steps.items():
                try:
                    await self._on_all(targets, call)
                except TokentrueError as exc:
                    raise await self._stopped(step, targets, exc) from exc

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[Sequence[Target]]:
        """The engines there are now, while no other admin of this event loop changes one of them."""
        async with self._turn.lock(), contextlib.AsyncExitStack() as held:
            targets = await self.fleet.targets()
            # In one order for everybody, so that no two wait for each other.
            for place in sorted({target.url or target.name for target in targets}):
                await held.enter_async_context(_lock_of(place))
            yield targets

    async def _on_all(self, targets: Sequence[Target], call: AdminCall[T]) -> list[T]:
        """The same call to all at once; every one has answered, or failed, when this returns or raises."""
        done = await asyncio.gather(
            *(target.server.exchange(call.call, call.read) for target in targets), return_exceptions=True
        )
        answers: list[T] = []
        for each in done:
            if isinstance(each, BaseException):
                raise each
            answers.append(each)
        return answers

    async def _stopped(self, step: Step, targets: Sequence[Target], exc: TokentrueError) -> WeightUpdateError:
        """The error for an update that failed at `step`, with the engines in the state that it names."""
        state, weights = "paused", "unknown"
        if step is Step.PAUSE:
            # Some may be paused by now. Nothing is loaded, so sampling on with the old weights is right.
            weights = "old"
            state = "running" if await self._resumes(targets, exc) else "unknown"
        elif step in (Step.SET_VERSION, Step.RESET):
            weights = "new"
        elif step is Step.RESUME:
            weights = "new"
            state = "unknown" if isinstance(exc, TransportError) or len(targets) > 1 else "paused"
        return WeightUpdateError(
            f"the update of the weights stopped at {step.value!r}: the engines are {_STATE_WORDS[state]} and hold "
            f"{weights} weights ({exc})",
            step=step.value,
            state=state,
            weights=weights,
        )

    async def _resumes(self, targets: Sequence[Target], exc: TokentrueError) -> bool:
        if isinstance(exc, RouteMissingError) and len(targets) == 1:
            return True  # a server without control routes cannot have been paused by this one
        with contextlib.suppress(EngineError, TransportError):
            await self._on_all(targets, self.codec.resume())
            return True
        return False

    async def close(self) -> None:
        """See `Admin.close`."""
        await self.fleet.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


_STATE_WORDS = {"running": "running", "paused": "paused", "unknown": "paused or running, they do not say which,"}

_CODECS: dict[str, Callable[[], AdminCodec]] = {"vllm": VllmAdminCodec, "sglang": SglangAdminCodec}


def make_admin(
    transport: str,
    *urls: str,
    api_key: str | None = None,
    model: str | None = None,
    timeout_s: float = 3600.0,
) -> HttpAdmin:
    """The control plane of the engines at these URLs; nothing is asked of them yet. Close it.

    Args:
        transport: "vllm", "sglang" or "dynamo": whose control routes are spoken.
        urls: One server, or several replicas of it. For Dynamo, the one URL of the frontend's RL port.
        api_key: Sent as a bearer token; never shown, and never to a Dynamo worker.
        model: For Dynamo with workers of several models: which one is meant.
        timeout_s: For one operation; a pause that waits takes as long as the longest request in flight.

    Raises:
        ConfigError: The transport is unknown, or the URLs are not usable or not enough.
    """

    def server(url: str, key: str | None = None) -> HttpEngine:
        transport_of = DynamoTransport() if transport == "dynamo" else VllmTransport()
        return HttpEngine(root_of(url), transport_of, api_key=key, timeout_s=timeout_s)

    if transport not in (*_CODECS, "dynamo"):
        raise ConfigError(f"transport={transport!r} is wrong; allowed is one of 'vllm', 'sglang', 'dynamo'")
    if not urls or (transport == "dynamo" and len(urls) > 1):
        raise ConfigError(f"an admin of {transport!r} cannot be made of {len(urls)} URLs")
    if transport == "dynamo":
        return HttpAdmin(DynamoAdminCodec(), DynamoFleet(server(urls[0], api_key), server, model))
    return HttpAdmin(
        _CODECS[transport](), FixedFleet([Target(url, server(url, api_key), root_of(url)) for url in urls])
    )
