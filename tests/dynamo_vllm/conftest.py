"""One Dynamo for the whole session whose worker is a real vLLM, stopped at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # `servers` is no part of the wheel

from servers.dynamo.server import DynamoServer, Frontend, Worker  # noqa: E402
from servers.dynamo_vllm.install import ensure_dynamo_vllm  # noqa: E402
from servers.dynamo_vllm.server import DYNAMO_VLLM, READY_TIMEOUT_S  # noqa: E402
from servers.processes import free_ports  # noqa: E402


@dataclass(frozen=True, slots=True)
class Running:
    """A frontend with vLLM's ways in switched on, one without, and the worker that both know.

    The worker tells its metrics on `system_port`.
    """

    frontend: Frontend
    plain: Frontend
    worker: Worker
    system_port: int


@pytest.fixture(scope="session")
def dynamo_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A running Dynamo with a real vLLM behind it."""
    with DynamoServer(ensure_dynamo_vllm(), tmp_path_factory.mktemp("dynamo-vllm") / "run") as server:
        frontend = server.start_frontend()
        plain = server.start_frontend("plain", {"DYN_VLLM_ENABLE_INFERENCE_V1_GENERATE": "0"})
        (system_port,) = free_ports(1)  # Dynamo 1.6.1 takes 16 signed bits
        settings = {**DYNAMO_VLLM.settings, "DYN_SYSTEM_PORT": str(system_port)}
        worker = server.start_worker(replace(DYNAMO_VLLM, settings=settings))
        server.wait_ready(READY_TIMEOUT_S)
        yield Running(frontend, plain, worker, system_port)
