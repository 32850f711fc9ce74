"""Whatever fails between a session and a real Dynamo: a typed error, nothing half received, and it goes on."""

from __future__ import annotations

import asyncio
import signal

import pytest
from servers.dynamo.install import ensure_dynamo
from servers.dynamo.server import EMBEDDED, FAULTS, DynamoServer
from servers.expected_faults import BY_GENERATE, DECLARED, EXPECTED
from servers.faults import (
    BEFORE,
    NETWORK,
    Target,
    declared,
    network_fault,
    process_fault,
    refused,
    tls_to_a_plain_port,
)
from servers.processes import signal_group

pytestmark = pytest.mark.dynamo


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Dynamo that these tests may break."""
    with DynamoServer(ensure_dynamo(), tmp_path_factory.mktemp("faults")) as running:
        running.start_frontend()
        running.start_worker(EMBEDDED)
        running.start_worker(FAULTS)
        running.wait_ready()
        yield running


@pytest.fixture
def target(server) -> Target:
    return Target("dynamo", server.frontends[0].url, "dynamo", EMBEDDED.model_name)


def check(outcome) -> None:
    assert outcome.error in EXPECTED[outcome.fault].split(" or "), outcome
    assert outcome.is_lawful, outcome


@pytest.mark.parametrize("fault", [*NETWORK, *BEFORE])
def test_a_way_that_fails(target, fault) -> None:
    check(asyncio.run(network_fault(target, fault)))


@pytest.mark.parametrize("fault", [refused, tls_to_a_plain_port])
def test_no_way_at_all(target, fault) -> None:
    check(asyncio.run(fault(target)))


@pytest.mark.parametrize("seed", DECLARED)
@pytest.mark.parametrize("route", ["token_data", "generate"])
def test_what_the_worker_declares(server, seed, route) -> None:
    worker, expected = server.workers[1], {"token_data": EXPECTED, "generate": BY_GENERATE}[route]
    url = server.frontends[0].url
    target = Target("dynamo", url, "dynamo", FAULTS.model_name, str(worker.model_folder), route)
    outcome = asyncio.run(declared(target, DECLARED[seed], seed))
    assert outcome.error == expected[outcome.fault], outcome
    assert outcome.is_lawful, outcome


SLOWLY = {"seed": 9024}


@pytest.fixture
def slow_target(server) -> Target:
    worker = server.workers[1]
    return Target("dynamo", server.frontends[0].url, "dynamo", FAULTS.model_name, str(worker.model_folder))


def test_a_worker_that_stands_still(server, slow_target) -> None:
    pid = server.workers[1].process.pid

    def stop() -> None:
        signal_group(pid, signal.SIGSTOP)

    def go_on() -> None:
        signal_group(pid, signal.SIGCONT)

    check(asyncio.run(process_fault(slow_target, "SIGSTOP of the engine", SLOWLY, stop, go_on)))


def test_a_frontend_that_is_killed_and_started_again(server, slow_target) -> None:
    def again() -> str:
        server.frontends.pop(0)
        frontend = server.start_frontend("second")
        server.wait_ready()
        return frontend.url

    kill = server.frontends[0].process.kill
    check(asyncio.run(process_fault(slow_target, "kill -9 of the frontend", SLOWLY, kill, again)))


def test_a_worker_that_is_killed_and_started_again(server, slow_target) -> None:
    worker = server.workers[1]

    def again() -> None:
        server.restart_worker(worker)
        server.wait_ready()

    check(asyncio.run(process_fault(slow_target, "kill -9 of the engine", SLOWLY, worker.process.kill, again)))
