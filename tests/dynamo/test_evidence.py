"""Law 4 in front of a frontend that ignores the ids and answers the placeholder message with a 200."""

from __future__ import annotations

import pytest

from tokentrue.errors import EvidenceError

pytestmark = pytest.mark.dynamo


@pytest.mark.parametrize("length", range(1, 25))
def test_a_frontend_that_ignores_the_ids_never_yields_a_sample(dynamo, ask_forgetful, length) -> None:
    """Over the lengths around the placeholder's own, where the token count alone would not tell."""
    with pytest.raises(EvidenceError, match="DYN_DISABLE_FRONTEND_NVEXT"):
        ask_forgetful.generate(dynamo.faults, list(range(1, 1 + length)), max_tokens=20)
    received = dynamo.faults.requests()[-1]
    assert not received.token_in
    assert received.prompt_ids != tuple(range(1, 1 + length)), "the worker really got something else"
