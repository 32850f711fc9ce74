"""Every example is short, is there for each client and transport; those for vLLM and SGLang run without either."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TRANSPORTS = ("vllm", "dynamo", "sglang")
NAMES = [f"{client}_{transport}" for client in ("chat", "token", "renderer") for transport in TRANSPORTS]
ROUTES = {"/v1/chat/completions", "/tokenize", "/inference/v1/generate", "/v1/chat/completions/derender"}


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short(name) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 40


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("dynamo")])
def test_an_example_runs(world, name, capsys) -> None:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    async def about(_, server) -> None:
        await asyncio.wait_for(example.main(server.url + "/v1", "m"), 30)

    settings = {"server": {"routes": set(ROUTES)}} if name.endswith("vllm") else {"renderer_transport": "sglang"}
    world.run(about, **settings)
    told = capsys.readouterr().out
    assert "turn 1: " + ("engine_rendered" if name.startswith("chat") else "bridged") in told
    assert "1 samples" in told
