"""What becomes of a session when its engine, or the way to it, fails: one fault at a time, each with a recovery.

The same three turns every time: one that goes well, one that the fault hits, and the same one again when things
are right. Asked of every fault: a typed error (or no error at all), nothing committed that was not received
whole, no second sampling of what may have been sampled, and a session that goes on with its exact ids.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from servers import faulty_proxy as spoils
from servers.faulty_proxy import FaultyProxy, Spoil
from tokentrue import ClientConfig, Message, Session, make_client
from tokentrue.clients.client import Client
from tokentrue.errors import EngineBusyError, TokentrueError
from tokentrue.turns import How

T = TypeVar("T")

TIMEOUT_S = 3.0
RECOVERY_S = 40.0
"""How long an engine may need to take requests again."""

_RETRIES = 2


@dataclass(frozen=True, slots=True)
class Target:
    """A real server; `renderer` is the tokenizer folder of its model, `dynamo_route` the way in on a Dynamo."""

    name: str
    url: str
    transport: str
    model: str
    renderer: str = "embedded"
    dynamo_route: str = "token_data"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a fault became.

    Args:
        fault: Its name.
        error: Name of the error's class; "" when the turn went well all the same.
        message: Of the error.
        retryable: Whether the error says that trying again is safe.
        asked: How many requests reached the engine in that turn; above one only where it said "later" to each.
        committed: Turns that the session had more after the fault than before.
        recovered: Whether the next turn was bridged behind the turn before the fault, with all its ids.
    """

    fault: str
    error: str
    message: str
    retryable: bool
    asked: int
    committed: int
    recovered: bool

    @property
    def is_lawful(self) -> bool:
        """Nothing committed by an error, one turn by a success, never sampled twice, and the session goes on."""
        asked_once = self.asked <= 1 or self.error == EngineBusyError.__name__
        return self.committed == (not self.error) and asked_once and self.recovered


NETWORK: dict[str, Spoil] = {
    "half a reply": spoils.half,
    "half a reply, then a reset": spoils.half_then_reset,
    "no byte, though the engine answered": spoils.nothing,
    "silence": spoils.silence,
    "a slow reply, in time": spoils.late,
    "random bytes in HTTP": spoils.garbage,
    "random bytes, no HTTP": spoils.no_http,
    "JSON cut off": spoils.cut_json,
    "gzip that is none": spoils.not_gzip,
    "a login page with status 200": spoils.html,
    "502 from a gateway": spoils.bad_gateway,
    "a redirect": spoils.elsewhere,
}
"""Faults of the reply: the engine has sampled."""

BEFORE: dict[str, Callable[[asyncio.StreamWriter], Awaitable[None]]] = {
    "503 and Retry-After, once": spoils.later,
    "429, once": spoils.too_many,
    "a reset before the engine was asked": spoils.reset,
    "a TLS alert": spoils.tls_alert,
}
"""Faults of the request: the engine was never asked."""


class Conversation:
    """One session with one client, through one proxy."""

    def __init__(self, client: Client, model: str) -> None:
        self._client = client
        self._model = model
        self.session = Session()
        self.messages = [Message("user", "What is 2 plus 3?")]

    async def first(self) -> None:
        """The turn that goes well, however long the fault before it takes to pass."""
        response = await _in_time(
            lambda: self._client.get_response(
                self.messages, self._model, {"max_tokens": 30, "temperature": 0}, session=self.session
            )
        )
        self.messages += [response.message, Message("user", "And 40 plus 2?")]

    async def second(self, **sampling: object) -> None:
        """The turn that the fault hits, or its repetition."""
        asked = {"max_tokens": 30, "temperature": 0, **sampling}
        await self._client.get_response(self.messages, self._model, asked, session=self.session)

    async def outcome(
        self,
        fault: str,
        proxy: FaultyProxy,
        during: Awaitable[None],
        mend: Callable[[], Awaitable[None]] | None = None,
    ) -> Outcome:
        """Let the fault hit the second turn, mend it, and go on."""
        before = len(self.session.turns)
        error: TokentrueError | None = None
        try:
            await during
        except TokentrueError as exc:
            error = exc
        asked, committed = proxy.forwarded, len(self.session.turns) - before
        proxy.heal()
        if mend is not None:
            await mend()
        recovered = True
        if error is not None:
            await _in_time(self.second)
            turn, anchor = self.session.turns[-1], self.session.turns[0]
            recovered = turn.stitch.how is How.BRIDGED and turn.tokens.prompt_ids.starts_with(
                anchor.tokens.all_ids()
            )
        return Outcome(
            fault,
            type(error).__name__ if error is not None else "",
            str(error) if error is not None else "",
            bool(error is not None and error.retryable),
            asked,
            committed,
            recovered,
        )


async def _in_time(ask: Callable[[], Awaitable[T]]) -> T:
    """What `ask` gives; an engine that has just come back may say "later" for a while."""
    deadline = time.monotonic() + RECOVERY_S
    while True:
        try:
            return await ask()
        except TokentrueError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.2)


async def open_client(url: str, target: Target, timeout_s: float = TIMEOUT_S) -> Client:
    """A renderer client for the server behind `url`."""
    return await make_client(
        ClientConfig(
            client_type="renderer",
            renderer=target.renderer,
            renderer_transport=target.transport,
            dynamo_route=target.dynamo_route if target.transport == "dynamo" else "auto",
            api_base_url=url,
            timeout=timeout_s,
            connect_timeout=2.0,
            max_retries=_RETRIES,
        )
    )


async def network_fault(target: Target, fault: str) -> Outcome:
    """One fault of `NETWORK` or `BEFORE`."""
    async with FaultyProxy(target.url) as proxy, await open_client(proxy.url, target) as client:
        talk = Conversation(client, target.model)
        await talk.first()
        proxy.heal()
        proxy.spoil, proxy.before_forwarding, proxy.spoils = NETWORK.get(fault), BEFORE.get(fault), 1
        return await talk.outcome(fault, proxy, talk.second())


async def refused(target: Target) -> Outcome:
    """Nobody listens any more, and later somebody does."""
    async with FaultyProxy(target.url) as proxy:
        url = proxy.url
        async with await open_client(url, target) as client:
            talk = Conversation(client, target.model)
            await talk.first()
            proxy.heal()
            await proxy.stop()

            return await talk.outcome(
                "connection refused", proxy, talk.second(), mend=lambda: proxy.listen_again(url)
            )


async def tls_to_a_plain_port(target: Target) -> Outcome:
    """A client that was told https, for a server that speaks http."""
    async with FaultyProxy(target.url) as proxy, await open_client(proxy.url, target) as client:
        talk = Conversation(client, target.model)
        await talk.first()
        proxy.heal()
        secure = target.url.replace("http://", "https://")
        async with await open_client(secure, target) as wrong:
            lost = Conversation(wrong, target.model)
            lost.session, lost.messages = talk.session, talk.messages

            return await talk.outcome("https to a plain port", proxy, lost.second())


async def declared(target: Target, fault: str, seed: int) -> Outcome:
    """A fault that the worker itself declares when it sees a seed."""
    async with FaultyProxy(target.url) as proxy, await open_client(proxy.url, target) as client:
        talk = Conversation(client, target.model)
        await talk.first()
        proxy.heal()
        return await talk.outcome(fault, proxy, talk.second(seed=seed))


async def process_fault(
    target: Target,
    fault: str,
    slowly: Mapping[str, object],
    hit: Callable[[], None],
    mend: Callable[[], str | None],
) -> Outcome:
    """A process is stopped or killed in the middle of a long turn.

    Args:
        slowly: Sampling parameters of a turn that takes seconds.
        hit: Does it.
        mend: Undoes it; gives the server's URL when that is another one now.
    """
    async with FaultyProxy(target.url) as proxy, await open_client(proxy.url, target) as client:
        talk = Conversation(client, target.model)
        await talk.first()
        proxy.heal()

        async def mended() -> None:  # async: not in a thread, with whose end a server started there would end
            proxy.upstream = mend() or proxy.upstream

        async def hit_in_the_middle() -> None:
            turn = asyncio.create_task(talk.second(**slowly))
            waiting = asyncio.create_task(proxy.asked.wait())
            await asyncio.wait((turn, waiting), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            await asyncio.sleep(0.3)
            hit()
            await turn

        return await talk.outcome(fault, proxy, hit_in_the_middle(), mended)
