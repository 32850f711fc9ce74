"""What speaks to each kind of engine: one row for each value of `renderer_transport`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tokentrue.clients.token_routes import (
    DynamoTokenRoute,
    GenerateRoute,
    SglangTokenRoute,
    TokenRoutes,
    VllmTokenRoutes,
)
from tokentrue.config import ClientConfig
from tokentrue.engines.dynamo import DynamoEngine
from tokentrue.engines.engine import EngineServer, Server
from tokentrue.engines.http import HttpEngine
from tokentrue.errors import ConfigError
from tokentrue.rendering.contract import RendererContract
from tokentrue.transports.dynamo import DynamoTransport
from tokentrue.transports.openai_chat import ChatTransport, DynamoChat, VllmChat
from tokentrue.transports.parameters import OnUnsupported
from tokentrue.transports.sglang import SglangChat, SglangTransport
from tokentrue.transports.transport import Transport
from tokentrue.transports.vllm import VllmTransport


@dataclass(frozen=True, slots=True)
class Wire:
    """The codecs of one engine.

    Args:
        transport: Of its token route.
        engine: What clients talk to, over the connections that it is given.
        chat: Of its chat route.
        token_routes: What the token client samples from ids by.
        missing_without_renderer: Why the token client needs a renderer there; "" where it does not.
        tokenizes: Whether it serves `/tokenize`.
    """

    transport: Transport
    engine: Callable[[HttpEngine], EngineServer]
    chat: ChatTransport
    token_routes: Callable[[Server, RendererContract | None], TokenRoutes]
    missing_without_renderer: str
    tokenizes: bool


def _as_it_is(server: HttpEngine) -> EngineServer:
    return server


def _vllm(config: ClientConfig, policy: OnUnsupported) -> Wire:
    del config
    return Wire(
        transport=VllmTransport(on_unsupported=policy),
        engine=_as_it_is,
        chat=VllmChat(on_unsupported=policy),
        token_routes=lambda server, renderer: VllmTokenRoutes(server, renderer, policy),
        missing_without_renderer="",
        tokenizes=True,
    )


def _dynamo(config: ClientConfig, policy: OnUnsupported) -> Wire:
    by_generate = VllmTransport(on_unsupported=policy)

    def token_routes(server: Server, renderer: RendererContract | None) -> TokenRoutes:
        if config.dynamo_route == "generate" and renderer is not None:
            return GenerateRoute(server, by_generate, renderer)
        # The frontend parses on this route only.
        return DynamoTokenRoute(server, DynamoTransport(send_tools=True, on_unsupported=policy))

    return Wire(
        transport=by_generate if config.dynamo_route == "generate" else DynamoTransport(on_unsupported=policy),
        engine=DynamoEngine if config.dynamo_route == "auto" else _as_it_is,
        chat=DynamoChat(on_unsupported=policy),
        token_routes=token_routes,
        missing_without_renderer="Dynamo has no /tokenize",
        tokenizes=False,
    )


def _sglang(config: ClientConfig, policy: OnUnsupported) -> Wire:
    transport = SglangTransport(on_unsupported=policy, data_parallel_rank=config.data_parallel_rank)

    def token_routes(server: Server, renderer: RendererContract | None) -> TokenRoutes:
        if renderer is None:
            raise ConfigError("a token client for SGLang needs a renderer: answers of /generate are parsed here")
        return SglangTokenRoute(server, renderer, transport)

    return Wire(
        transport=transport,
        engine=_as_it_is,
        chat=SglangChat(on_unsupported=policy),
        token_routes=token_routes,
        missing_without_renderer="answers of SGLang's /generate are parsed here",
        tokenizes=True,
    )


WIRES: Mapping[str, Callable[[ClientConfig, OnUnsupported], Wire]] = {
    "vllm": _vllm,
    "dynamo": _dynamo,
    "sglang": _sglang,
}
"""By the value of `renderer_transport`."""


def wire_of(config: ClientConfig) -> Wire:
    """The codecs that `config` asks for."""
    name = config.renderer_transport or "vllm"
    return WIRES[name](config, OnUnsupported(config.on_unsupported))
