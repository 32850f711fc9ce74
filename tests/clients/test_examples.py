"""Every example is short, is there for each client and transport, and those for vLLM run without a vLLM."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = [f"{client}_{transport}" for client in ("chat", "token", "renderer") for transport in ("vllm", "dynamo")]
ROUTES = {"/v1/chat/completions", "/tokenize", "/inference/v1/generate", "/v1/chat/completions/derender"}


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short(name) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 40


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("vllm")])
def test_an_example_for_vllm_runs(world, name, capsys) -> None:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    async def about(_, server) -> None:
        await asyncio.wait_for(example.main(server.url + "/v1", "m"), 30)

    world.run(about, server={"routes": set(ROUTES)})
    told = capsys.readouterr().out
    assert "turn 1: " + ("engine_rendered" if name == "chat_vllm" else "bridged") in told
    assert "1 samples" in told
