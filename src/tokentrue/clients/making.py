"""From a configuration to a client that is ready."""

from __future__ import annotations

import asyncio

from tokentrue.clients.bridging import Bridging, EngineBridging, LocalBridging
from tokentrue.clients.chat import OpenAIChatCompletionsClient
from tokentrue.clients.client import Client
from tokentrue.clients.renderer import RendererClient
from tokentrue.clients.token import OpenAIChatCompletionsTokenClient
from tokentrue.clients.wires import Wire, wire_of
from tokentrue.config import ClientConfig
from tokentrue.engines.engine import Engine, EngineServer
from tokentrue.engines.fleet import Endpoint, Fleet
from tokentrue.engines.fleet_policy import FleetPolicy
from tokentrue.engines.http import HttpEngine
from tokentrue.engines.logprobs import LogprobsModes, MeasuredEngine, MeasuredServer
from tokentrue.engines.policy import Bracket, BracketedEngine, PolicyClock
from tokentrue.engines.resuming import ResumingEngine
from tokentrue.errors import ConfigError
from tokentrue.rendering.contract import RendererContract, TellsText
from tokentrue.rendering.renderer import Renderer, load_renderer
from tokentrue.rendering.verdict import OnRewrite

RANK_HEADER = "X-data-parallel-rank"


async def make_client(
    config: ClientConfig, renderer: RendererContract | None = None, clock: PolicyClock | None = None
) -> Client:
    """The client that `config` describes, for the endpoint that its `client_idx` picks. Close it.

    Nothing is asked of the endpoint yet. A tokenizer folder is read in a thread. The first turn whose sampling
    shapes the distribution is followed by a few short requests, which find out what its
    log-probabilities mean, unless `measure_logprobs` is off.

    Args:
        renderer: Used instead of the one that the configuration names, so that many clients share it.
        clock: Read before and after every turn, so that a turn says which policy version sampled it: an `Admin`,
            or a `GivenVersion` that the training loop sets.

    Raises:
        ConfigError: The key is not in the environment, or a renderer is needed and none is named, or the renderer
            is not what `tool_parser` or `reasoning_parser` says.
        TokenizerFolderError, TemplateRenderError: The tokenizer folder cannot be used.
    """
    chosen = config.resolve()
    _check_policy(chosen, clock)
    chosen.api_key()  # a missing key is told before a tokenizer is loaded
    if renderer is None and chosen.client_type != "openai_chat_completions":
        renderer = await _loaded(chosen)
    if renderer is not None:
        _check_parsers(chosen, renderer)
    wire = wire_of(chosen)
    _check_renderer(chosen, renderer, wire)
    engine = _fleet(config) if config.fleet else _http_engine(chosen, chosen.max_retries)
    bracket = None if clock is None else Bracket(clock, chosen.cache_salt_by_version)
    return _client(chosen, engine, renderer, wire, bracket)


def _http_engine(chosen: ClientConfig, max_retries: int) -> EngineServer:
    headers = dict(chosen.extra_headers)
    if chosen.data_parallel_rank is not None:
        headers[RANK_HEADER] = str(chosen.data_parallel_rank)
    wire = wire_of(chosen)
    engine = HttpEngine(
        chosen.api_base_url,
        wire.transport,
        api_key=chosen.api_key(),
        timeout_s=chosen.timeout,
        connect_timeout_s=chosen.connect_timeout,
        max_connections=chosen.max_connections,
        max_retries=max_retries,
        extra_headers=headers,
        allow_auth_headers=chosen.allow_auth_headers,
    )
    return wire.engine(engine)


def _fleet(config: ClientConfig) -> Fleet:
    """All endpoints as one engine; it is the fleet that repeats what may be repeated, so its members do not."""
    every = config.resolve_all()
    ranked = any(each.data_parallel_rank is not None for each in every)
    if ranked and (config.renderer_transport, config.client_type) == ("sglang", "openai_chat_completions_token"):
        raise ConfigError("ClientConfig.fleet: ranks of SGLang are for client_type='renderer' only")
    endpoints = []
    for each in every:
        engine = _http_engine(each, max_retries=0)
        if config.measure_logprobs and config.client_type == "renderer":
            engine = MeasuredServer(engine)  # two endpoints may mean two things by a log-probability
        endpoints.append(Endpoint(_endpoint_name(each), engine))
    return Fleet(endpoints, FleetPolicy(attempts=1 + config.max_retries))


def _endpoint_name(chosen: ClientConfig) -> str:
    rank = chosen.data_parallel_rank
    return chosen.api_base_url if rank is None else f"{chosen.api_base_url} rank {rank}"


def _client(
    chosen: ClientConfig,
    engine: EngineServer,
    renderer: RendererContract | None,
    wire: Wire,
    bracket: Bracket | None,
) -> Client:
    if chosen.client_type == "renderer" and renderer is not None:
        wrapped = _wrapped(engine, chosen, bracket)
        return RendererClient(wrapped, renderer, chosen.clip_max_tokens, OnRewrite(chosen.on_rewrite))
    modes = LogprobsModes() if chosen.measure_logprobs else None
    if chosen.client_type == "openai_chat_completions":
        return OpenAIChatCompletionsClient(engine, wire.chat, chosen.clip_max_tokens, modes, bracket)
    routes = wire.token_routes(engine, renderer)
    bridging: Bridging = EngineBridging(engine)
    if renderer is not None and chosen.bridge_tokenizer != "engine":
        bridging = LocalBridging(renderer, OnRewrite(chosen.on_rewrite))
    return OpenAIChatCompletionsTokenClient(
        engine, wire.chat, routes, bridging, chosen.clip_max_tokens, modes, bracket
    )


def _wrapped(engine: Engine, chosen: ClientConfig, bracket: Bracket | None) -> Engine:
    """Resuming is outermost: each part of a resumed turn is attributed, and salted, by itself."""
    if bracket is not None:
        engine = BracketedEngine(engine, bracket)
    if chosen.measure_logprobs and not chosen.fleet:
        engine = MeasuredEngine(engine)
    if chosen.resume_aborted:
        engine = ResumingEngine(engine, chosen.resume_aborted, chosen.clip_max_tokens)
    return engine


def _check_policy(config: ClientConfig, clock: PolicyClock | None) -> None:
    if config.cache_salt_by_version and clock is None:
        raise ConfigError(
            "ClientConfig.cache_salt_by_version needs to know the version: give make_client a clock, which is an "
            "Admin or a GivenVersion"
        )
    if config.resume_aborted and config.client_type != "renderer":
        raise ConfigError(
            f"ClientConfig.resume_aborted={config.resume_aborted} is for client_type 'renderer': with "
            f"{config.client_type!r} the engine parses the answer, and would see only the rest of a resumed turn"
        )


async def _loaded(config: ClientConfig) -> Renderer | None:
    """The renderer that `renderer` and `renderer_model_name` name, or None when they name none."""
    name = config.renderer_model_name if config.renderer == "auto" else config.renderer
    if name is None or name == "none":
        return None
    return await asyncio.to_thread(
        load_renderer,
        name,
        template_kwargs=config.template_kwargs,
        spelled_markers=config.spelled_markers,
        fast_tokenizer=config.fast_tokenizer,
    )


def _check_renderer(config: ClientConfig, renderer: RendererContract | None, wire: Wire) -> None:
    if config.bridge_tokenizer == "engine" and not wire.tokenizes:
        raise ConfigError(
            "ClientConfig.bridge_tokenizer='engine' is for 'vllm' and 'sglang': Dynamo has no /tokenize"
        )
    is_local = renderer is not None and config.bridge_tokenizer != "engine"
    if config.on_rewrite != "extend" and not is_local and config.client_type == "openai_chat_completions_token":
        raise ConfigError(
            f"ClientConfig.on_rewrite={config.on_rewrite!r} compares with the template's full text, so bridges "
            f"must be made by a renderer here: name one, and leave bridge_tokenizer at 'auto' or 'local'"
        )
    if config.on_rewrite != "extend" and is_local and not isinstance(renderer, TellsText):
        raise ConfigError(
            f"ClientConfig.on_rewrite={config.on_rewrite!r} compares texts, and a {type(renderer).__name__} does "
            f"not tell them: it has no method text_of(ids)"
        )
    if renderer is not None or config.client_type == "openai_chat_completions":
        return
    how = "set renderer to a tokenizer folder or 'embedded', or renderer_model_name to a folder"
    if config.client_type == "renderer":
        raise ConfigError(f"ClientConfig.client_type='renderer' needs a renderer: {how}")
    if wire.missing_without_renderer:
        raise ConfigError(
            f"ClientConfig.renderer_transport={config.renderer_transport!r} needs a renderer, as "
            f"{wire.missing_without_renderer}: {how}"
        )
    if config.bridge_tokenizer == "local":
        raise ConfigError(f"ClientConfig.bridge_tokenizer='local' needs a renderer: {how}")


def _check_parsers(config: ClientConfig, renderer: RendererContract) -> None:
    """Parsers are derived from the template; a configured one is a claim, and is held against what was derived."""
    if not isinstance(renderer, Renderer):
        _check_nothing_claimed(config, renderer)
        return
    tools = renderer.tool_format.name if renderer.tool_format is not None else None
    thinks = renderer.reader.reasoning.opener.text if renderer.reader.reasoning is not None else None
    for name, claimed, derived in (
        ("tool_parser", config.tool_parser, tools),
        ("reasoning_parser", config.reasoning_parser, thinks),
    ):
        if claimed not in (None, "auto", derived):
            raise ConfigError(
                f"ClientConfig.{name}={claimed!r} is not what the template of {renderer.folder!r} gives, which is "
                f"{derived!r}; allowed is that, 'auto' or None"
            )


def _check_nothing_claimed(config: ClientConfig, renderer: RendererContract) -> None:
    for name, claimed in (("tool_parser", config.tool_parser), ("reasoning_parser", config.reasoning_parser)):
        if claimed not in (None, "auto"):
            raise ConfigError(
                f"ClientConfig.{name}={claimed!r} cannot be held against a "
                f"{type(renderer).__name__}, which reads completions in its own way; allowed is 'auto' or None"
            )
