"""Whatever fails between a session and a real vLLM: a typed error, nothing half received, and it goes on."""

from __future__ import annotations

import asyncio
import signal

import pytest
from servers.expected_faults import EXPECTED
from servers.faults import BEFORE, NETWORK, Target, network_fault, process_fault, refused, tls_to_a_plain_port
from servers.processes import signal_group
from servers.vllm.install import ensure_vllm
from servers.vllm.server import MODEL_NAME, VllmServer

from tokentrue.engines.embedded.engine import MODEL_FOLDER

pytestmark = pytest.mark.vllm

SLOWLY = {"max_tokens": 1500, "min_tokens": 1500}


def check(outcome) -> None:
    assert outcome.error in EXPECTED[outcome.fault].split(" or "), outcome
    assert outcome.is_lawful, outcome


@pytest.fixture
def target(vllm) -> Target:
    return Target("vllm", vllm.url, "vllm", MODEL_NAME)


@pytest.mark.parametrize("fault", [*NETWORK, *BEFORE])
def test_a_way_that_fails(target, fault) -> None:
    check(asyncio.run(network_fault(target, fault)))


@pytest.mark.parametrize("fault", [refused, tls_to_a_plain_port])
def test_no_way_at_all(target, fault) -> None:
    check(asyncio.run(fault(target)))


def test_an_engine_that_stands_still_and_one_that_is_killed_and_started_again(tmp_path) -> None:
    """On a server of its own: the other tests need theirs."""
    with VllmServer(ensure_vllm(), MODEL_FOLDER, tmp_path / "first") as server:
        pid = server.processes[0].pid
        target = Target("vllm", server.url, "vllm", MODEL_NAME)

        def stop() -> None:
            signal_group(pid, signal.SIGSTOP)

        def go_on() -> None:
            signal_group(pid, signal.SIGCONT)

        check(asyncio.run(process_fault(target, "SIGSTOP of the engine", SLOWLY, stop, go_on)))
        again = VllmServer(ensure_vllm(), MODEL_FOLDER, tmp_path / "again")
        try:
            kill = server.processes[0].kill
            outcome = process_fault(target, "kill -9 of the engine", SLOWLY, kill, lambda: again.__enter__().url)
            check(asyncio.run(outcome))
        finally:
            again.stop()
