"""`check_engine` on the embedded model behind a real Dynamo frontend, by both of its token routes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from servers import conformance

from tokentrue.engines.dynamo import DynamoEngine
from tokentrue.engines.fleet import Endpoint, Fleet
from tokentrue.testing import Outcome
from tokentrue.transports.dynamo import DynamoTransport
from tokentrue.transports.vllm import VllmTransport

pytestmark = pytest.mark.dynamo


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    with conformance.best_oracle(tmp_path_factory.mktemp("oracle") / "oracle.log") as found:
        yield found


def test_dynamos_chat_route_keeps_every_promise(dynamo, oracle) -> None:
    candidate = conformance.dynamo(dynamo.frontend, dynamo.embedded, DynamoTransport(), "Dynamo, embedded worker")
    report = conformance.check(candidate, oracle)
    report.raise_if_broken()
    assert {row.outcome for row in report.rows} == {Outcome.HOLDS}, str(report)


def test_by_either_route_and_in_a_fleet_it_streams_and_samples_the_same(dynamo, oracle) -> None:
    """Whole turns go by the token route, streams by the chat route: the same ids and log-probabilities."""
    candidate = conformance.dynamo(dynamo.frontend, dynamo.embedded, DynamoTransport(), "Dynamo, both routes")
    make = candidate.make
    in_a_fleet = replace(candidate, make=lambda: Fleet([Endpoint("a", DynamoEngine(make()))]))
    report = conformance.check(in_a_fleet, oracle)
    report.raise_if_broken()
    assert {row.name for row in report.rows if row.outcome is Outcome.NOT_OFFERED} == {"prefix reuse"}, str(report)


def test_dynamos_route_of_vllms_shape_keeps_every_promise_and_neither_counts_nor_streams(dynamo, oracle) -> None:
    title = "Dynamo, embedded worker, /inference/v1/generate"
    candidate = conformance.dynamo(dynamo.frontend, dynamo.embedded, VllmTransport(), title)
    report = conformance.check(candidate, oracle)
    report.raise_if_broken()
    rows = {row.name for row in report.rows if row.outcome is Outcome.NOT_OFFERED}
    assert rows == {"prefix reuse", "streaming"}, str(report)
