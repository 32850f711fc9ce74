"""An engine behind HTTP: one connection pool, one transport, and the only door to aiohttp.

What may be sent twice. A request is repeated when nothing was sent (connection refused), when the server
says "later" (429, 503), and when a *pooled* connection turns out to be dead before a byte of the reply
came, provided the transport calls the request idempotent: servers close kept-alive connections after an
unhandled 5xx, and the next request finds that out. Everything else may have been sampled and is raised.

Decoding stays on the event loop: msgspec holds the interpreter lock while it decodes, so a thread would
stall the loop just as long and add a switch.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TypeVar

import aiohttp

from tokentrue.config import AUTHORIZATION_HEADERS
from tokentrue.engines.http_settings import checked_headers, root_of, secrets_in
from tokentrue.errors import (
    ConfigError,
    ConnectionFailedError,
    ConnectionLostError,
    EngineBusyError,
    EngineError,
    EngineTimeoutError,
    MalformedReplyError,
    OverlongPromptError,
    TokentrueError,
    TransportError,
    UnknownModelError,
)
from tokentrue.generation import Delta, EngineInfo, GenerateRequest, Generation, LogprobsMode, with_logprobs_mode
from tokentrue.transports.identity import Identity, identity_calls, read_identity
from tokentrue.transports.streams import StreamReader, no_stream, stream_call
from tokentrue.transports.transport import HttpCall, HttpReply, ModelCard, Transport

T = TypeVar("T")

BACKOFF_S = 0.5
"""Wait before the first repetition when the server names none; doubled each time."""

LONGEST_WAIT_S = 60.0
"""A server that asks for a longer wait is not waited for."""

STALE_WITHIN_S = 1.0
"""A reused connection that is lost later than this was not stale: its request is not sent again."""

LIMIT_QUESTION_S = 30.0
"""How long the question for the context limit may take, and the pause before it is asked again."""


def error_from(exc: BaseException, where: str, timeouts: aiohttp.ClientTimeout | None = None) -> TokentrueError:
    """The one translation of aiohttp's exceptions (and of what the sockets below raise).

    Order matters: aiohttp's timeouts are also connection errors, its connector errors also OSErrors.

    Args:
        where: Method and URL, for the message.
        timeouts: The limits under which the request was sent, for the message.
    """
    # No repr(): that of a response error holds the request's headers, and with them the API key.
    words = f"{where}: {type(exc).__name__}: {_plain(exc)}"
    if isinstance(exc, (aiohttp.ServerTimeoutError, TimeoutError)):
        return EngineTimeoutError(f"{where}: {_too_late(exc, timeouts)}" if timeouts is not None else words)
    if isinstance(exc, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, aiohttp.RedirectClientError)):
        return ConfigError(words)
    if isinstance(exc, (aiohttp.ClientConnectorError, aiohttp.ServerFingerprintMismatch, ssl.SSLError)):
        return ConnectionFailedError(words)
    if isinstance(exc, aiohttp.ClientResponseError):
        return MalformedReplyError(words)
    return ConnectionLostError(words)


def _too_late(exc: BaseException, timeouts: aiohttp.ClientTimeout) -> str:
    """Which limit passed, and what to do."""
    if isinstance(exc, aiohttp.ConnectionTimeoutError):
        return f"no connection within {timeouts.sock_connect} s (connect_timeout_s)"
    return f"no whole answer within {timeouts.total} s (timeout_s)"


def _plain(exc: BaseException) -> str:
    if isinstance(exc, aiohttp.ClientResponseError):
        return f"{getattr(exc, 'status', 0)} {getattr(exc, 'message', '')}".strip()
    try:
        return str(exc)
    except (AttributeError, TypeError):
        # Some of aiohttp's classes format attributes that only its own constructors set.
        return ""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A reply, and how many repetitions its call has used up."""

    reply: HttpReply
    spent: int


@dataclass(slots=True)
class _Progress:
    """How far one request came: what decides whether it may be sent again."""

    reused: bool = False
    answered: bool = False
    started_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class _Pool:
    """The connections of one event loop; `limit_question` lets one task at a time ask for context limits."""

    session: aiohttp.ClientSession
    loop: asyncio.AbstractEventLoop
    limit_question: asyncio.Lock = field(default_factory=asyncio.Lock)


class HttpEngine:
    """Samples completions from a server. Implements `Engine`; owns its connections, `close` gives them back.

    Args:
        base_url: The server's root, with or without `/v1`.
        transport: The codec of the server's API.
        api_key: Sent as a bearer token; never shown.
        timeout_s: For one whole request, waiting for a free connection included, and for any silence in it.
        connect_timeout_s: For one TCP and TLS handshake.
        max_connections: Open at once; further requests wait.
        max_retries: Repetitions of one request, because nothing was sent or the server said "later".
        extra_headers: Sent with every request; a request's own headers win.
        allow_auth_headers: Let headers replace the authentication by `api_key`, which is refused otherwise.

    Raises:
        ConfigError: The URL, a number or a header is not usable.
    """

    def __init__(  # noqa: PLR0913  one keyword for each setting of the pool
        self,
        base_url: str,
        transport: Transport,
        *,
        api_key: str | None = None,
        timeout_s: float = 3600.0,
        connect_timeout_s: float = 5.0,
        max_connections: int = 8192,
        max_retries: int = 4,
        extra_headers: Mapping[str, str] | None = None,
        allow_auth_headers: bool = False,
    ) -> None:
        if not timeout_s > 0 or not connect_timeout_s > 0:
            raise ConfigError(f"timeouts must be above 0, not {timeout_s!r} and {connect_timeout_s!r}")
        if max_connections < 1 or max_retries < 0:
            raise ConfigError(f"max_connections={max_connections!r} must be >= 1 and {max_retries=} >= 0")
        self._root = root_of(base_url)
        self._transport = transport
        self._headers = checked_headers(extra_headers or {}, "extra_headers")
        self._keeps_key = bool(api_key) and not allow_auth_headers
        self._check_auth(self._headers)
        self._secrets = [*([api_key.encode()] if api_key else []), *secrets_in(self._headers)]
        if api_key and not any(name.lower() == "authorization" for name in self._headers):
            own = checked_headers({"Authorization": f"Bearer {api_key}"}, "api_key")
            self._headers = {**own, **self._headers}
        self._timeouts = aiohttp.ClientTimeout(
            total=timeout_s, sock_connect=connect_timeout_s, sock_read=timeout_s
        )
        self._max_connections = max_connections
        self._max_retries = max_retries
        self._pool: _Pool | None = None
        self._is_closed = False
        self._limits: dict[str, int] = {}
        self._limit_asked_at: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"HttpEngine({self._root!r}, {self._transport.name!r})"

    async def __aenter__(self) -> HttpEngine:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def generate(self, request: GenerateRequest) -> Generation:
        """Sample one completion; cancelling the task closes the connection, which stops the sampling.

        Raises:
            OverlongPromptError: The prompt leaves no room; nothing was sent when the limit is known.
            CallerError: A parameter or id cannot be sent.
            EngineError, TransportError: See `tokentrue.errors`.
        """
        return await self.generate_by(self._transport, request)

    async def generate_by(self, transport: Transport, request: GenerateRequest) -> Generation:
        """`generate`, by another of the server's routes than that of the engine's own codec."""
        request = replace(request, context_limit=await self._context_limit(request.model))
        call = transport.write_generate(request)
        _check_length(request)
        generation = await self.exchange(
            call, lambda reply: transport.read_generate(request, reply), request.headers
        )
        return with_logprobs_mode(generation, request.sampling, LogprobsMode.UNKNOWN)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Delta | Generation, None]:
        """Sample one completion as a stream; see `StreamingEngine.stream`.

        It is begun again for the reasons in the module's docstring, and never once a delta was given.

        Raises:
            UnsupportedParameterError: This transport has no stream of ids.
            TokentrueError: As `generate`; `partial` holds what came before.
        """
        request = replace(request, context_limit=await self._context_limit(request.model))
        call = stream_call(self._transport, request)
        _check_length(request)
        own = checked_headers(request.headers, "headers")
        self._check_auth(own)
        spent = 0
        while True:
            reader = StreamReader(self._transport, request, lambda text: self._hidden(text, own))
            progress = _Progress()
            try:
                async with self._answered(call, own, self._timeouts, progress) as response:
                    if response.status != 200 or response.content_type != "text/event-stream":
                        reply = _reply(response, await response.read())
                        self._read_secretly(lambda whole: no_stream(self._transport, request, whole), reply, own)
                    async for chunk in response.content.iter_any():
                        for delta in reader.feed(chunk):
                            yield delta
                yield with_logprobs_mode(reader.generation(), request.sampling, LogprobsMode.UNKNOWN)
                return
            except TokentrueError as exc:
                if reader.has_begun:
                    exc.partial = exc.partial or reader.partial()
                    raise
                spent = await self._may_begin_again(exc, call, progress, spent)

    async def exchange(
        self, call: HttpCall, read: Callable[[HttpReply], T], headers: Mapping[str, str] | None = None
    ) -> T:
        """Make one call and read its reply, again when the server says "later"; see the module's docstring.

        Args:
            read: A codec's reader: gives the value, or raises what the reply is.
            headers: Of this call; they win over `extra_headers`.

        Raises:
            ConfigError: A header cannot be sent.
            EngineError, TransportError: See `tokentrue.errors`.
        """
        attempt = await self._sent(call, headers or {}, self._timeouts, 0)
        while True:
            try:
                return self._read_secretly(read, attempt.reply, headers or {})
            except EngineBusyError as exc:
                spent = await self._waited(exc, attempt.spent)
            attempt = await self._sent(call, headers or {}, self._timeouts, spent)

    def _read_secretly(self, read: Callable[[HttpReply], T], reply: HttpReply, headers: Mapping[str, str]) -> T:
        """`read(reply)`; what it raises is raised from a reply without secrets instead.

        Some servers repeat a key in what they say, and what they say ends up in errors. A good reply is read as
        it came: a short key may be part of any word in it.
        """
        try:
            return read(reply)
        except TokentrueError:
            clean = self._hidden(reply.body, headers)
            if clean == reply.body:
                raise
        # Outside of the handler, so that the first error is not chained to this one.
        return read(replace(reply, body=clean))

    def _hidden(self, text: bytes, headers: Mapping[str, str]) -> bytes:
        for secret in (*self._secrets, *secrets_in(headers)):
            text = text.replace(secret, b"***")
        return text

    async def describe(self, model: str | None = None) -> EngineInfo:
        """What the server tells of its models and its version; a model's context limit is remembered once told.

        Raises:
            UnknownModelError: The server does not serve `model`, or serves none.
            EngineError, TransportError: See `tokentrue.errors`; a failure is never remembered.
        """
        cards = await self._cards(self._timeouts, 0)
        card = next((card for card in cards if model is None or card.id == model), None)
        if card is None:
            names = ", ".join(repr(card.id) for card in cards) or "no model"
            raise UnknownModelError(f"{self._root} does not serve {model!r}; it serves {names}", status=200)
        identity = await self._identity()
        return EngineInfo(
            name=self._transport.name if identity is None else identity.engine,
            version="" if identity is None else identity.version,
            models=tuple(card.id for card in cards),
            context_limit=card.context_limit,
        )

    async def close(self) -> None:
        """Close every connection; idempotent, and final."""
        self._is_closed = True
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.session.close()

    async def _cards(self, timeouts: aiohttp.ClientTimeout, spent: int) -> tuple[ModelCard, ...]:
        attempt = await self._sent(self._transport.write_models(), {}, timeouts, spent)
        cards = self._read_secretly(self._transport.read_models, attempt.reply, {})
        self._limits.update({card.id: card.context_limit for card in cards if card.context_limit is not None})
        return cards

    async def _identity(self) -> Identity | None:
        """Who answers; None when it does not tell."""
        for call in identity_calls(self._transport.name):
            attempt = await self._sent(call, {}, self._timeouts, self._max_retries)
            found = read_identity(call, attempt.reply)
            if found is not None:
                return found
        return None

    async def _context_limit(self, model: str) -> int | None:
        """The limit if it is known or can be asked now; None is no answer, and the server decides.

        Not knowing is not remembered: the question is asked again, at most once in `LIMIT_QUESTION_S`.
        """
        if model in self._limits:
            return self._limits[model]
        pool = await self._opened()
        async with pool.limit_question:
            asked_at = self._limit_asked_at.get(model)
            if model in self._limits or (asked_at is not None and time.monotonic() - asked_at < LIMIT_QUESTION_S):
                return self._limits.get(model)
            short_s = min(self._timeouts.total or LIMIT_QUESTION_S, LIMIT_QUESTION_S)
            connect_s = self._timeouts.sock_connect
            timeouts = aiohttp.ClientTimeout(total=short_s, sock_connect=connect_s, sock_read=short_s)
            # The generate call that follows meets the same server and reports what is wrong with it.
            with contextlib.suppress(EngineError, TransportError):
                await self._cards(timeouts, self._max_retries)
            self._limit_asked_at[model] = time.monotonic()
            return self._limits.get(model)

    def _check_auth(self, headers: Mapping[str, str]) -> None:
        """Refuse a header that would replace the authentication by the key, by its name and never its value."""
        for name in headers if self._keeps_key else ():
            if name.lower() in AUTHORIZATION_HEADERS:
                raise ConfigError(
                    f"the header {name!r} would replace the authentication by api_key; leave it out, or set "
                    f"allow_auth_headers"
                )

    async def _opened(self) -> _Pool:
        """The connection pool of the running loop."""
        if self._is_closed:
            raise ConfigError(f"{self!r} is closed")
        loop = asyncio.get_running_loop()
        stale = self._pool
        if stale is not None and stale.loop is loop:
            return stale
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._max_connections, limit_per_host=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            trace_configs=[_reuse_trace()],
            headers=self._headers,
        )
        self._pool = pool = _Pool(session, loop)
        if stale is not None:
            await stale.session.close()
        return pool

    async def _sent(
        self, call: HttpCall, headers: Mapping[str, str], timeouts: aiohttp.ClientTimeout, spent: int
    ) -> _Attempt:
        """One whole reply, whatever its status, after `spent` repetitions of the same call."""
        own = checked_headers(headers, "headers")
        self._check_auth(own)
        lost = 0
        while True:
            progress = _Progress()
            try:
                return _Attempt(await self._once(call, own, timeouts, progress), spent)
            except TransportError as exc:
                # One kept connection that the server had closed meanwhile is no failure, so it counts as none.
                stale = isinstance(exc, ConnectionLostError)
                lost += stale
                if (spent >= self._max_retries and not stale) or lost > 1 or not _may_repeat(exc, call, progress):
                    raise
                spent += not stale
                if not progress.reused:
                    await asyncio.sleep(_backoff_s(spent))

    async def _once(
        self, call: HttpCall, headers: Mapping[str, str], timeouts: aiohttp.ClientTimeout, progress: _Progress
    ) -> HttpReply:
        async with self._answered(call, headers, timeouts, progress) as response:
            return _reply(response, await response.read())

    @contextlib.asynccontextmanager
    async def _answered(
        self, call: HttpCall, headers: Mapping[str, str], timeouts: aiohttp.ClientTimeout, progress: _Progress
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response to one request, its head read; what aiohttp raises becomes ours, while it is read too."""
        pool = await self._opened()
        url = self._root + call.path
        where = f"{call.method} {url}"
        try:
            async with pool.session.request(
                call.method,
                url,
                data=call.body or None,
                headers={**call.headers, **headers},
                timeout=timeouts,
                allow_redirects=False,
                trace_request_ctx=progress,
            ) as response:
                progress.answered = True
                yield response
        except aiohttp.ClientResponseError as exc:
            # `from None`: this one's repr() shows the request's headers to whoever logs the chain.
            raise error_from(exc, where) from None
        except (aiohttp.ClientError, OSError) as exc:
            raise error_from(exc, where, timeouts) from exc

    async def _may_begin_again(self, exc: TokentrueError, call: HttpCall, progress: _Progress, spent: int) -> int:
        """Wait before a stream is begun again, and count it; raise `exc` when it may not be."""
        if isinstance(exc, EngineBusyError):
            return await self._waited(exc, spent)
        if not isinstance(exc, TransportError) or spent >= self._max_retries:
            raise exc
        if not _may_repeat(exc, call, progress):
            raise exc
        await asyncio.sleep(_backoff_s(spent + 1))
        return spent + 1

    async def _waited(self, busy: EngineBusyError, spent: int) -> int:
        """Wait as the busy server asks, and count it; raise `busy` when it asks too much or too often."""
        wait_s = busy.retry_after_s if busy.retry_after_s is not None else _backoff_s(spent + 1)
        if spent >= self._max_retries or wait_s > LONGEST_WAIT_S:
            raise busy
        await asyncio.sleep(wait_s)
        return spent + 1


def _check_length(request: GenerateRequest) -> None:
    limit = request.context_limit
    if limit is not None and len(request.prompt_ids) >= limit:
        raise OverlongPromptError(len(request.prompt_ids), limit)


def _reply(response: aiohttp.ClientResponse, body: bytes) -> HttpReply:
    return HttpReply(response.status, {k.lower(): v for k, v in response.headers.items()}, body)


def _backoff_s(repetition: int) -> float:
    return min(float(BACKOFF_S * 2 ** (repetition - 1)), LONGEST_WAIT_S)


def _may_repeat(exc: TransportError, call: HttpCall, progress: _Progress) -> bool:
    if isinstance(exc, ConnectionFailedError):
        return True
    # A kept connection that the server had closed meanwhile tells so at once; one that is lost later may have
    # been sampling, and sampling twice is what must not happen.
    at_once = time.monotonic() - progress.started_at < STALE_WITHIN_S
    died_unused = isinstance(exc, ConnectionLostError) and progress.reused and not progress.answered
    return died_unused and at_once and call.idempotent


def _reuse_trace() -> aiohttp.TraceConfig:
    """Tells each request's own `_Progress` whether it travels on a connection that was used before."""

    async def on_reuse(_: object, context: SimpleNamespace, __: object) -> None:  # async: awaited by aiohttp
        if isinstance(context.trace_request_ctx, _Progress):
            context.trace_request_ctx.reused = True

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(on_reuse)
    return trace
