"""`check_engine` on a real vLLM, and on the embedded engine beside it: transformers says what the numbers are."""

from __future__ import annotations

import pytest
from servers import conformance

from tokentrue.testing import Outcome
from tokentrue.transports.vllm import VllmTransport

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def oracle(vllm, tmp_path_factory):
    with conformance.best_oracle(tmp_path_factory.mktemp("oracle") / "oracle.log") as found:
        assert found.name.startswith("transformers")
        yield found


def test_vllm_keeps_every_promise(vllm, oracle) -> None:
    report = conformance.check(conformance.vllm(vllm, VllmTransport()), oracle)
    report.raise_if_broken()
    assert {row.outcome for row in report.rows} == {Outcome.HOLDS}, str(report)


def test_the_embedded_engine_keeps_every_promise_by_transformers_numbers(oracle) -> None:
    report = conformance.check(conformance.embedded(), oracle)
    report.raise_if_broken()
    assert {row.outcome for row in report.rows} == {Outcome.HOLDS}, str(report)
