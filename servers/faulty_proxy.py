"""A proxy in front of a real server which spoils the next replies, as networks and gateways do.

It lives in the client's own event loop, forwards one request per connection, and counts what it forwarded: that is
how often the server behind it was really asked to sample.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import urlsplit

_TLS_ALERT = bytes.fromhex("15030300020228")
"""A TLS record that says "handshake failure"."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole HTTP reply of the server behind the proxy."""

    head: bytes
    body: bytes

    @property
    def whole(self) -> bytes:
        """All of it."""
        return self.head + self.body

    def with_body(self, body: bytes, *more: str) -> bytes:
        """Valid HTTP with another body, and more headers."""
        status = self.head.split(b"\r\n", 1)[0].decode()
        lines = [status, "content-type: application/json", f"content-length: {len(body)}", *more, "", ""]
        return "\r\n".join(lines).encode() + body


Spoil = Callable[[Reply, asyncio.StreamWriter], Awaitable[None]]
"""Sends something in place of the reply; what it leaves open is closed behind it."""


@dataclass(slots=True)
class FaultyProxy:
    """Forwards to `upstream`; a context manager that listens on a free port of the loopback.

    Args:
        upstream: Root URL of the real server.
        spoil: What is done with the replies to come; None passes them on.
        before_forwarding: What is done with a request instead of forwarding it; None forwards it.
        spoils: How many replies (or requests) are spoiled before things are right again.
    """

    upstream: str
    spoil: Spoil | None = None
    before_forwarding: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None
    spoils: int = 0
    forwarded: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> FaultyProxy:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening, and end what is still open."""
        await self.stop()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def listen_again(self, url: str) -> None:
        """Listen where it listened before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", urlsplit(url).port)

    async def stop(self) -> None:
        """Stop listening; idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None

    @property
    def url(self) -> str:
        """Where it listens."""
        if self._server is None:
            raise RuntimeError("the proxy does not listen")
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def heal(self) -> None:
        """Pass everything on from now on."""
        self.spoil, self.before_forwarding, self.spoils, self.forwarded = None, None, 0, 0
        self.asked.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            # Cancelled only by `__aexit__`, which waits for it.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._one(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(_content_length(head))
        is_sampling = head.startswith(b"POST")
        spoiled = is_sampling and self.spoils > 0
        if spoiled:
            self.spoils -= 1
        if spoiled and self.before_forwarding is not None:
            await self.before_forwarding(writer)
            return
        if is_sampling:
            self.forwarded += 1
            self.asked.set()
        reply = await self._exchange(head, body)
        if spoiled and self.spoil is not None:
            await self.spoil(reply, writer)
        else:
            writer.write(reply.whole)
        with contextlib.suppress(ConnectionError):
            await writer.drain()

    async def _exchange(self, head: bytes, body: bytes) -> Reply:
        parts = urlsplit(self.upstream)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        first, *rest = head.split(b"\r\n")
        kept = [
            line for line in rest if line and not line.lower().startswith((b"connection:", b"accept-encoding:"))
        ]
        writer.write(b"\r\n".join([first, *kept, b"connection: close", b"", b""]) + body)
        await writer.drain()
        try:
            whole = await reader.read(-1)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        if not whole:
            raise ConnectionResetError("the server closed the connection without a byte")
        found_head, _, found_body = whole.partition(b"\r\n\r\n")
        return Reply(found_head + b"\r\n\r\n", found_body)


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


async def half(reply: Reply, writer: asyncio.StreamWriter) -> None:
    """Half of the reply, then the end."""
    writer.write(reply.whole[: (len(reply.head) + len(reply.body)) // 2])


async def half_then_reset(reply: Reply, writer: asyncio.StreamWriter) -> None:
    """Half of the reply, then a reset."""
    writer.write(reply.whole[: len(reply.whole) // 2])
    await writer.drain()
    await reset(writer)


async def nothing(reply: Reply, writer: asyncio.StreamWriter) -> None:
    """The end without a byte, though the server has answered."""
    del reply
    writer.close()


async def silence(reply: Reply, writer: asyncio.StreamWriter) -> None:
    """No byte for a long time."""
    del reply, writer
    await asyncio.sleep(30)


async def late(reply: Reply, writer: asyncio.StreamWriter) -> None:
    """All of the reply, slowly, in pieces that split it anywhere."""
    for start in range(0, len(reply.whole), 97):
        writer.write(reply.whole[start : start + 97])
        await writer.drain()
        await asyncio.sleep(0.01)


async def garbage(reply: Reply, writer: asyncio.StreamWriter) -> None:
    """Valid HTTP around random bytes."""
    writer.write(reply.with_body(random.Random(1).randbytes(len(reply.body))))


async def no_http(reply: Reply, writer: asyncio.StreamWriter) -> None:
    """Random bytes."""
    writer.write(random.Random(2).randbytes(len(reply.whole)))


async def cut_json(reply: Reply, writer: asyncio.StreamWriter) -> None:
    """Valid HTTP around JSON that ends too early."""
    writer.write(reply.with_body(_plain(reply)[:-20]))


async def not_gzip(reply: Reply, writer: asyncio.StreamWriter) -> None:
    """A header that says gzip, and a body that is none."""
    writer.write(reply.with_body(_plain(reply), "content-encoding: gzip"))


async def html(reply: Reply, writer: asyncio.StreamWriter) -> None:
    """A login page with status 200."""
    del reply
    page = b"<html><body>Please log in</body></html>"
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n" % len(page) + page)


async def bad_gateway(reply: Reply, writer: asyncio.StreamWriter) -> None:
    """What a gateway says when the server behind it is gone."""
    del reply
    page = b"<html><h1>502 Bad Gateway</h1></html>"
    writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: %d\r\n\r\n" % len(page) + page)


async def elsewhere(reply: Reply, writer: asyncio.StreamWriter) -> None:
    """A redirect."""
    del reply
    writer.write(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n")


async def later(writer: asyncio.StreamWriter) -> None:
    """503 with a short wait, before anything was sampled."""
    writer.write(b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n")


async def too_many(writer: asyncio.StreamWriter) -> None:
    """429 without a wait, before anything was sampled."""
    writer.write(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n")


async def reset(writer: asyncio.StreamWriter) -> None:
    """A reset, before anything was sampled."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def tls_alert(writer: asyncio.StreamWriter) -> None:
    """A TLS alert, as a server that speaks TLS only answers a plain request."""
    writer.write(_TLS_ALERT)


def _plain(reply: Reply) -> bytes:
    """The JSON in a body, whether it came in chunks or not."""
    return reply.body[reply.body.index(b"{") : reply.body.rindex(b"}") + 1]
