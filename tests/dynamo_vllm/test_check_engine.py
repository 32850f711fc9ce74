"""`check_engine` on a real vLLM behind a real Dynamo, by both of the frontend's token routes."""

from __future__ import annotations

import pytest
from servers import conformance

from tokentrue.testing import Outcome
from tokentrue.transports.dynamo import DynamoTransport
from tokentrue.transports.vllm import VllmTransport

pytestmark = pytest.mark.dynamo_vllm


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    with conformance.best_oracle(tmp_path_factory.mktemp("oracle") / "oracle.log") as found:
        assert found.name.startswith("transformers")
        yield found


def test_the_chat_route_keeps_every_promise(dynamo_vllm, oracle) -> None:
    title = "Dynamo, vLLM worker"
    candidate = conformance.dynamo_vllm(
        dynamo_vllm.frontend, dynamo_vllm.worker, DynamoTransport(), title, dynamo_vllm.system_port
    )
    report = conformance.check(candidate, oracle)
    report.raise_if_broken()
    assert {row.outcome for row in report.rows} == {Outcome.HOLDS}, str(report)


def test_the_route_of_vllms_shape_keeps_every_promise_and_neither_counts_nor_streams(dynamo_vllm, oracle) -> None:
    title = "Dynamo, vLLM worker, /inference/v1/generate"
    candidate = conformance.dynamo_vllm(
        dynamo_vllm.frontend, dynamo_vllm.worker, VllmTransport(), title, dynamo_vllm.system_port
    )
    report = conformance.check(candidate, oracle)
    report.raise_if_broken()
    rows = {row.name for row in report.rows if row.outcome is Outcome.NOT_OFFERED}
    assert rows == {"prefix reuse", "streaming"}, str(report)
