"""Many endpoints as one engine: sticky by session, and only as much load as each of them takes.

**Sticky.** A session's turns go to one endpoint, where its prefix is cached. Which one is rendezvous hashing over
the session's id: every process agrees without talking, and an endpoint that leaves moves its own sessions only.

**Health.** An endpoint that fails several times in a row is ejected, at once when nobody listens there. After a
pause that doubles it is asked what it serves; when it answers, it is back. When none is left, requests wait.

**What is sent again.** What another endpoint may be asked instead: a request that could not be sent, or that the
endpoint refused with "later". A request that was lost under way may have been sampled, and is raised.

**Backpressure.** Each endpoint has a `Gate`: requests above its limit wait here. When all may hold no more, a
request is an `EngineBusyError` at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from tokentrue.engines.common_info import common_info
from tokentrue.engines.engine import EngineServer, Server, stream_of
from tokentrue.engines.fleet_policy import EndpointStatus, FleetPolicy, Health
from tokentrue.engines.gate import Gate
from tokentrue.errors import (
    ConfigError,
    ConnectionFailedError,
    ConnectionLostError,
    EngineBusyError,
    EngineError,
    EngineFailureError,
    EngineTimeoutError,
    TokentrueError,
    TransportError,
)
from tokentrue.generation import Delta, EngineInfo, GenerateRequest, Generation
from tokentrue.transports.transport import HttpCall, HttpReply

T = TypeVar("T")

SESSION_HEADER = "x-session-id"
RANK_HEADER = "X-data-parallel-rank"

BUSY_PAUSE_S = 0.5
"""The wait when every endpoint said "later" and the last one did not say how much later."""

QUESTION_S = 10.0
"""The longest that an ejected endpoint may take to say what it serves."""

_SICK = (ConnectionFailedError, ConnectionLostError, EngineTimeoutError, EngineFailureError)
"""Errors that say something of the endpoint, and not of the request."""


@dataclass(slots=True)
class _Endpoint:
    name: str
    engine: EngineServer
    headers: Mapping[str, str]
    gate: Gate
    draining: bool = False
    row: int = 0
    ejections: int = 0
    ejected_until: float = 0.0
    asking: asyncio.Task[None] | None = None
    sent: int = 0
    failed: int = 0
    last_error: str = ""
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def exchange(
        self, call: HttpCall, read: Callable[[HttpReply], T], headers: Mapping[str, str] | None = None
    ) -> Awaitable[T]:
        def named(reply: HttpReply) -> T:
            return read(replace(reply, answered_by=self.name))

        return self.engine.exchange(call, named, {**(headers or {}), **self.headers})

    def with_rank(self, request: GenerateRequest) -> GenerateRequest:
        return replace(request, headers={**request.headers, **self.headers}) if self.headers else request

    @property
    def health(self) -> Health:
        if self.draining:
            return Health.DRAINING
        return Health.EJECTED if self.ejected_until else Health.HEALTHY


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint of a fleet.

    Args:
        name: Unique; what the hash is taken over, so it must be the same in every process.
        engine: Made with `max_retries=0`: the fleet repeats what may be repeated. Closed by the fleet.
        data_parallel_rank: Sent as `X-data-parallel-rank`; ranks of one server are endpoints of their own.
    """

    name: str
    engine: EngineServer
    data_parallel_rank: int | None = None


@dataclass(frozen=True, slots=True)
class _Alone:
    """One endpoint as a server of its own, past its gate."""

    endpoint: _Endpoint

    async def exchange(
        self, call: HttpCall, read: Callable[[HttpReply], T], headers: Mapping[str, str] | None = None
    ) -> T:
        return await self.endpoint.exchange(call, read, headers)

    async def close(self) -> None:  # async: as `Server` asks
        """It is the fleet's to close."""


class Fleet:
    """Several endpoints as one `Engine` and `Server`; see the module's docstring.

    Args:
        endpoints: At least one.
        clock: Seconds that only go up.

    Raises:
        ConfigError: There is none, or two have the same name.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        policy: FleetPolicy | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        names = [each.name for each in endpoints]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"a fleet needs endpoints with different names, not {names}")
        self._policy = policy if policy is not None else FleetPolicy()
        self._clock = clock
        self._endpoints = [
            _Endpoint(each.name, each.engine, _rank_header(each), Gate(self._policy.limits, clock))
            for each in endpoints
        ]

    def __repr__(self) -> str:
        return f"Fleet({[each.name for each in self._endpoints]})"

    async def __aenter__(self) -> Fleet:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @property
    def status(self) -> tuple[EndpointStatus, ...]:
        """Every endpoint, in the order in which they were given."""
        return tuple(
            EndpointStatus(
                each.name,
                each.health,
                each.gate.in_flight,
                each.gate.waiting,
                each.gate.limit,
                each.sent,
                each.failed,
                each.last_error,
            )
            for each in self._endpoints
        )

    async def generate(self, request: GenerateRequest) -> Generation:
        """Sample one completion at the endpoint of the request's session.

        Raises:
            EngineBusyError: No endpoint can take it, now or within `wait_s`.
            CallerError, EngineError, TransportError: As `Engine.generate`.
        """

        return await self._offered(
            _session_of(request.headers), lambda endpoint: endpoint.engine.generate(endpoint.with_rank(request))
        )

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Delta | Generation, None]:
        """Sample one completion as a stream, which stays at its endpoint once something came; see `generate`.

        Raises:
            UnsupportedParameterError: The endpoint's engine has no stream.
            TokentrueError: As `generate`.
        """
        session, started = _session_of(request.headers), self._clock()
        refused: set[str] = set()
        for left in range(self._policy.attempts - 1, -1, -1):
            endpoint = await self._entered(session, refused, started)
            has_begun = False
            try:
                with self._used(endpoint):
                    asked = endpoint.with_rank(request)
                    async with contextlib.aclosing(stream_of(endpoint.engine, asked)) as parts:
                        async for part in parts:
                            has_begun = True
                            yield part
                return
            except (ConnectionFailedError, EngineBusyError) as exc:
                if has_begun or not left:
                    raise
                refused = await self._turned_away(endpoint, refused, exc)

    async def exchange(
        self, call: HttpCall, read: Callable[[HttpReply], T], headers: Mapping[str, str] | None = None
    ) -> T:
        """Make one call at the endpoint of the session that `headers` name; raises as `generate`."""

        def ask(endpoint: _Endpoint) -> Awaitable[T]:
            return endpoint.exchange(call, read, headers)

        return await self._offered(_session_of(headers or {}), ask)

    async def describe(self, model: str | None = None) -> EngineInfo:
        """What the endpoints that answer have in common: the names all of them serve, the smallest context limit.

        Raises:
            ConfigError: Two of them mean different things by a log-probability, so they cannot be one engine.
            UnknownModelError, EngineError, TransportError: No endpoint answers; the first one's reason.
        """
        told = await asyncio.gather(
            *(each.engine.describe(model) for each in self._endpoints), return_exceptions=True
        )
        infos: dict[str, EngineInfo] = {}
        for endpoint, answer in zip(self._endpoints, told, strict=True):
            if isinstance(answer, EngineInfo):
                infos[endpoint.name] = answer
            elif not isinstance(answer, (EngineError, TransportError)):
                raise answer
            elif isinstance(answer, TransportError):
                self._failed(endpoint, answer)
        if not infos:
            raise next(each for each in told if isinstance(each, BaseException))
        return common_info(infos)

    async def drain(self, name: str) -> None:
        """Give an endpoint nothing new, and return when it works on nothing any more. Its sessions move.

        Raises:
            ConfigError: There is no endpoint of that name, or it is the last one that is not draining.
        """
        endpoint = self._named(name)
        if all(each.draining for each in self._endpoints if each is not endpoint):
            raise ConfigError(f"{name!r} is the last endpoint that is not draining; close the fleet instead")
        endpoint.draining = True
        endpoint.gate.turn_away()
        while endpoint.gate.in_flight:
            endpoint.idle.clear()
            await endpoint.idle.wait()

    def undrain(self, name: str) -> None:
        """Take an endpoint into use again.

        Raises:
            ConfigError: There is no endpoint of that name.
        """
        self._named(name).draining = False

    async def close(self) -> None:
        """Close every endpoint's engine; idempotent."""
        for each in self._endpoints:
            if each.asking is not None:
                each.asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await each.asking
        closed = await asyncio.gather(*(each.engine.close() for each in self._endpoints), return_exceptions=True)
        for error in closed:
            if isinstance(error, BaseException):
                raise error

    def at(self, name: str) -> Server:
        """One endpoint, past its gate: for a few short questions about itself. See `ManyServers.at`."""
        return _Alone(self._named(name))

    def endpoint_of(self, session_id: str) -> str:
        """The name of the endpoint that a session belongs to while all are healthy."""
        return _ranked(self._endpoints, session_id)[0].name

    def _named(self, name: str) -> _Endpoint:
        found = next((each for each in self._endpoints if each.name == name), None)
        if found is None:
            raise ConfigError(f"{self!r} has no endpoint {name!r}")
        return found

    async def _offered(self, session: str, ask: Callable[[_Endpoint], Awaitable[T]]) -> T:
        """What `ask` gives at the first endpoint that takes the request."""
        started = self._clock()
        refused: set[str] = set()
        for left in range(self._policy.attempts - 1, -1, -1):
            endpoint = await self._entered(session, refused, started)
            try:
                with self._used(endpoint):
                    return await ask(endpoint)
            except (ConnectionFailedError, EngineBusyError) as exc:
                if not left:
                    raise
                refused = await self._turned_away(endpoint, refused, exc)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _turned_away(self, endpoint: _Endpoint, refused: set[str], exc: TokentrueError) -> set[str]:
        """Who is not asked next; everybody may be again, after a pause, once all have said no."""
        refused = refused | {endpoint.name}
        if not refused >= {each.name for each in self._usable()}:
            return refused
        # The one who said so last may have said when to come back.
        await asyncio.sleep(self._pause_s(exc))
        return set()

    @contextlib.contextmanager
    def _used(self, endpoint: _Endpoint) -> Iterator[None]:
        """One request at an endpoint whose place is held; gives the place back."""
        endpoint.sent += 1
        try:
            yield
        except TokentrueError as exc:
            if isinstance(exc, (EngineBusyError, EngineTimeoutError)):
                endpoint.gate.overloaded()
            if isinstance(exc, _SICK):
                self._failed(endpoint, exc)
            elif not isinstance(exc, EngineBusyError):
                endpoint.row = 0  # it answered; what it says is about the request
            raise
        else:
            endpoint.row = endpoint.ejections = 0
            endpoint.gate.good()
        finally:
            endpoint.gate.leave()
            if not endpoint.gate.in_flight:
                endpoint.idle.set()

    def _pause_s(self, exc: TokentrueError) -> float:
        asked = exc.retry_after_s if isinstance(exc, EngineBusyError) else None
        return min(asked if asked is not None else BUSY_PAUSE_S, self._policy.wait_s)

    async def _entered(self, session: str, refused: set[str], started: float) -> _Endpoint:
        """An endpoint with a place held for the caller, the session's own if it may be.

        Raises:
            EngineBusyError: There is none, within the policy's time.
        """
        while True:
            candidates = await self._candidates_in_time(session)
            fresh = [each for each in candidates if each.name not in refused] or candidates
            endpoint = next((each for each in fresh if not each.gate.is_full), None)
            if endpoint is None:
                raise EngineBusyError(f"every endpoint is full: {self._loads()}")
            try:
                async with asyncio.timeout(max(started + self._policy.wait_s - self._clock(), 0)):
                    if await endpoint.gate.enter():
                        return endpoint
            except TimeoutError:
                raise EngineBusyError(
                    f"no endpoint had a place within wait_s={self._policy.wait_s:g}: {self._loads()}"
                ) from None

    async def _candidates_in_time(self, session: str) -> list[_Endpoint]:
        """The endpoints that may be asked, the session's own first; without a session the least loaded first.

        Raises:
            EngineBusyError: There was none for `outage_s`.
        """
        started = self._clock()
        while True:
            asking = self._ask_the_ejected()
            usable = self._usable()
            if usable:
                return _ranked(usable, session)
            pauses = [each.ejected_until - self._clock() for each in self._endpoints if each.ejected_until]
            left = started + self._policy.outage_s - self._clock()
            if left <= 0:
                raise EngineBusyError(
                    f"no endpoint was healthy for {self._policy.outage_s:g} s: {self._troubles()}"
                )
            if asking:
                await asyncio.wait(asking, timeout=left)
            else:
                await asyncio.sleep(min(max(min(pauses), 0), left))

    def _usable(self) -> list[_Endpoint]:
        return [each for each in self._endpoints if each.health is Health.HEALTHY]

    def _failed(self, endpoint: _Endpoint, exc: TokentrueError) -> None:
        endpoint.failed += 1
        endpoint.row += 1
        endpoint.last_error = str(exc)
        # Where nobody listens there is nothing to try again; the rest may be one bad request.
        if isinstance(exc, ConnectionFailedError) or endpoint.row >= self._policy.failures:
            self._eject(endpoint)

    def _eject(self, endpoint: _Endpoint) -> None:
        if not endpoint.ejected_until:
            endpoint.ejections += 1
            pause_s = self._policy.ejected_s * 2 ** (endpoint.ejections - 1)
            endpoint.ejected_until = self._clock() + min(pause_s, self._policy.longest_ejected_s)
            endpoint.gate.turn_away()

    def _ask_the_ejected(self) -> list[asyncio.Task[None]]:
        """Questions to ejected endpoints whose pause is over, those under way included."""
        now = self._clock()
        for each in self._endpoints:
            if each.asking is None and each.ejected_until and each.ejected_until <= now:
                each.asking = asyncio.create_task(self._ask_again(each))
        return [each.asking for each in self._endpoints if each.asking is not None]

    async def _ask_again(self, endpoint: _Endpoint) -> None:
        try:
            async with asyncio.timeout(QUESTION_S):
                await endpoint.engine.describe()
        except (EngineError, TransportError, TimeoutError) as exc:
            endpoint.failed += 1
            endpoint.last_error = str(exc) or f"no answer within {QUESTION_S:g} s"
            endpoint.ejected_until = 0.0
            self._eject(endpoint)
        else:
            endpoint.ejected_until = 0.0
            endpoint.row = 0
        finally:
            endpoint.asking = None

    def _troubles(self) -> str:
        return "; ".join(
            f"{each.name} is {each.health.value}" + (f" ({each.last_error})" if each.last_error else "")
            for each in self._endpoints
        )

    def _loads(self) -> str:
        return "; ".join(
            f"{each.name} works on {each.gate.in_flight} (limit {each.gate.limit}) and {each.gate.waiting} wait"
            for each in self._endpoints
        )


def _session_of(headers: Mapping[str, str]) -> str:
    return next((value for name, value in headers.items() if name.lower() == SESSION_HEADER), "")


def _rank_header(endpoint: Endpoint) -> dict[str, str]:
    rank = endpoint.data_parallel_rank
    return {} if rank is None else {RANK_HEADER: str(rank)}


def _ranked(usable: list[_Endpoint], session: str) -> list[_Endpoint]:
    if not session:
        return sorted(usable, key=lambda each: (each.gate.in_flight + each.gate.waiting) / each.gate.limit)
    return sorted(usable, key=lambda each: _weight(each.name, session), reverse=True)


def _weight(name: str, session: str) -> bytes:
    """Rendezvous hashing: the endpoint whose name, hashed with the session's, weighs most has the session."""
    return hashlib.blake2b(session.encode(), key=hashlib.blake2b(name.encode(), digest_size=16).digest()).digest()
