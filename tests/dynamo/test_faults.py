"""Every way in which a worker can fail behind a real frontend, and the error it becomes."""

from __future__ import annotations

import pytest

from tokentrue.errors import (
    AbortedError,
    AlignmentError,
    EngineBusyError,
    EngineFailureError,
    EngineRequestError,
    EngineTimeoutError,
    TokentrueError,
)

pytestmark = pytest.mark.dynamo

PROMPT = [21, 22, 23]


@pytest.mark.parametrize(
    ("seed", "expected", "status"),
    [
        pytest.param(9001, EngineRequestError, 400, id="ValueError"),
        pytest.param(9002, EngineRequestError, 400, id="InvalidArgument"),
        pytest.param(9003, EngineRequestError, 400, id="HttpError-422"),
        pytest.param(9004, EngineFailureError, 500, id="RuntimeError"),
        pytest.param(9005, EngineFailureError, 500, id="Unknown"),
        pytest.param(9007, EngineBusyError, 503, id="HttpError-503"),
        pytest.param(9008, EngineBusyError, 429, id="HttpError-429"),
        pytest.param(9010, EngineFailureError, 504, id="TimeoutError"),
        pytest.param(9011, AbortedError, 499, id="Cancelled"),
        pytest.param(9012, EngineRequestError, 400, id="HttpError-400"),
        pytest.param(9020, EngineFailureError, 500, id="in-band-error"),
        pytest.param(9021, EngineFailureError, 500, id="raises-in-the-middle"),
        pytest.param(9022, AbortedError, 200, id="no-finish-reason"),
        pytest.param(9023, AlignmentError, 200, id="one-logprob-too-few"),
        pytest.param(9025, AbortedError, 200, id="aborted"),
    ],
)
def test_a_fault_becomes_the_error_that_says_what_to_do(dynamo, ask, seed, expected, status) -> None:
    with pytest.raises(TokentrueError) as raised:
        ask.generate(dynamo.faults, PROMPT, max_tokens=20, seed=seed)
    assert type(raised.value) is expected
    assert raised.value.status == status
    assert ask.generate(dynamo.faults, PROMPT, max_tokens=20).tokens.completion_ids, "the next request is answered"


def test_a_server_that_does_not_answer_in_time_is_a_timeout_and_the_worker_is_told(
    dynamo, ask, eventually
) -> None:
    with pytest.raises(EngineTimeoutError):
        ask.generate(dynamo.faults, PROMPT, max_tokens=20, seed=9024, settings={"timeout_s": 0.5})
    eventually(lambda: dynamo.faults.requests()[-1].how == "cancelled", "the worker's request was cancelled")


@pytest.mark.parametrize("seed", [9006, 9009], ids=["EngineShutdown", "WorkerUnavailable"])
def test_a_worker_that_declares_itself_gone_is_busy_and_comes_back(dynamo, ask, eventually, seed) -> None:
    """The frontend keeps such a worker out for about five seconds, and then uses it again by itself."""
    with pytest.raises(EngineBusyError) as raised:
        ask.generate(dynamo.mortal, PROMPT, max_tokens=20, seed=seed)
    assert raised.value.status == 503
    assert raised.value.retryable

    def answers() -> bool:
        try:
            return bool(ask.generate(dynamo.mortal, PROMPT, max_tokens=20).tokens.completion_ids)
        except EngineBusyError:
            return False

    eventually(answers, "the worker is used again")
