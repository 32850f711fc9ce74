"""Registers one model with Dynamo's discovery and serves it; runs in Dynamo's own venv."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamo.common.rl import RLRouteRegistry, register_rl_routes
from dynamo.common.token_budget import TokenBudget, publish_token_budget
from dynamo.llm import ModelInput, ModelRuntimeConfig, ModelType, WorkerType, register_model
from dynamo.runtime import DistributedRuntime

Handler = Callable[[dict[str, Any], Any], AsyncIterator[dict[str, Any]]]
Route = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What is announced: a model folder under a name, and the parsers the frontend shall run, if any."""

    folder: Path
    name: str
    context_limit: int
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    takes_ids: bool = True


async def serve(model: ServedModel, handler: Handler, routes: Mapping[str, Route] | None = None) -> None:
    """Announce `model` and answer its requests until this process is stopped.

    Args:
        routes: Control routes by name; a frontend's RL port tells of them, and DYN_SYSTEM_PORT serves them.
    """
    runtime = DistributedRuntime(
        asyncio.get_running_loop(), os.environ["DYN_DISCOVERY_BACKEND"], os.environ["DYN_REQUEST_PLANE"]
    )
    endpoint = runtime.endpoint(f"tokentrue.{model.name}.generate")
    settings = ModelRuntimeConfig()
    settings.context_length = model.context_limit
    # Without a published budget the frontend checks no length at all; dynamo.vllm publishes the same one.
    publish_token_budget(settings, TokenBudget(model.context_limit, True, True))
    if model.takes_ids:
        settings.set_engine_specific("vllm_inference_v1_generate", json.dumps(True))
    settings.tool_call_parser = model.tool_call_parser
    settings.reasoning_parser = model.reasoning_parser
    await register_model(
        ModelInput.Tokens,
        ModelType.Chat | ModelType.Completions,
        endpoint,
        str(model.folder),
        model.name,
        worker_type=WorkerType.Aggregated,
        runtime_config=settings,
    )
    served = [endpoint.serve_endpoint(handler, graceful_shutdown=False)]
    if routes:
        registry = RLRouteRegistry(runtime, world_size=1)
        register_rl_routes(runtime, registry, routes, enable_dispatch=True)
        control = runtime.endpoint(f"tokentrue.{model.name}.rl")
        served.append(control.serve_endpoint(registry.dispatch_stream, graceful_shutdown=False))
    await asyncio.gather(*served)
