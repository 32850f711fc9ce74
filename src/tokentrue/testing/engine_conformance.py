"""`check_engine`: one suite for every engine, embedded, served, or your own.

An engine is only worth training on when its promises hold on the machine where it runs. The suite asks the engine
and believes nothing it says without a second look: a prompt with one id changed must be answered otherwise, an id
asked for alone must have the log-probability it had in company, and so on. It needs nothing but the engine; with
an oracle (a forward pass of the same model) the numbers themselves are checked, with the server's own count of
requests in work the effect of cancelling.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from tokentrue.engines.engine import Engine
from tokentrue.testing.engine_checks.cancelling import cancelling_stops_the_sampling
from tokentrue.testing.engine_checks.errors import bad_input_is_a_typed_error
from tokentrue.testing.engine_checks.ids import answers_are_not_mixed_up, ids_in_are_ids_seen
from tokentrue.testing.engine_checks.limits import limits_hold_at_every_boundary, the_engine_says_what_it_is
from tokentrue.testing.engine_checks.logprobs import (
    logprobs_belong_to_their_ids,
    logprobs_equal_a_forward_pass,
    logprobs_mode_is_what_it_says,
)
from tokentrue.testing.engine_checks.sampling import (
    a_seed_decides,
    known_prefixes_are_reused,
    several_completions,
    stop_ids_end_a_completion,
)
from tokentrue.testing.engine_checks.streaming import deltas_are_the_whole
from tokentrue.testing.engine_report import BrokenPromiseError, CheckRow, EngineReport, Finding, Law, Outcome
from tokentrue.testing.engine_subject import NotOfferedError, Oracle, ServerFacts, Subject

CHECK_TIMEOUT_S = 120.0
"""An engine that lets one check wait longer than this has broken its promise."""

TOLERANCE_NATS = 1e-4
"""Between two single-precision computations of one model. For bf16 give `tolerance=0.1`."""


@dataclass(frozen=True, slots=True)
class Check:
    """One promise and the coroutine that tests it."""

    name: str
    law: Law
    run: Callable[[Subject], Awaitable[Finding]]


CHECKS = (
    Check("describe", Law.DESCRIBE, the_engine_says_what_it_is),
    Check("ids in = ids seen", Law.EVIDENCE, ids_in_are_ids_seen),
    Check("logprobs belong to ids", Law.ALIGNED, logprobs_belong_to_their_ids),
    Check("logprobs mode", Law.ALIGNED, logprobs_mode_is_what_it_says),
    Check("logprobs = forward pass", Law.ALIGNED, logprobs_equal_a_forward_pass),
    Check("many at once", Law.EVIDENCE, answers_are_not_mixed_up),
    Check("prefix reuse", Law.COST, known_prefixes_are_reused),
    Check("seed", Law.SAMPLING, a_seed_decides),
    Check("stop ids", Law.SAMPLING, stop_ids_end_a_completion),
    Check("n", Law.SAMPLING, several_completions),
    Check("limits", Law.LIMITS, limits_hold_at_every_boundary),
    Check("bad input", Law.ERRORS, bad_input_is_a_typed_error),
    Check("streaming", Law.EVIDENCE, deltas_are_the_whole),
    Check("cancelling", Law.CANCELLING, cancelling_stops_the_sampling),
)
"""In the order in which they are made: what the engine says comes first, since later checks compare with it."""


async def check_engine(  # noqa: PLR0913  one keyword for each thing that the suite may know about the engine
    engine: Engine,
    *,
    model: str,
    vocab_size: int,
    context_limit: int,
    oracle: Oracle | None = None,
    server: ServerFacts | None = None,
    tolerance: float = TOLERANCE_NATS,
    seed: int | None = None,
    only: Collection[str] | None = None,
) -> EngineReport:
    """Make every check and report; an engine that breaks a promise is a row, not an exception.

    Nothing else should use the engine meanwhile: counts of cached tokens and running requests are compared.

    Args:
        model: The name it serves the model under.
        vocab_size: Ids are below it.
        context_limit: Tokens of prompt and completion together.
        oracle: A forward pass of the same weights, in the same precision; called off the event loop.
        server: What is known about the server behind it; None means nothing.
        tolerance: Nats by which two computations of one log-probability may differ.
        seed: Of the prompts; None draws new ones every time, so that none is in a server's prefix cache already.
        only: Names of `CHECKS` to make; None means all.

    Raises:
        ValueError: A number cannot be right, or `only` names no check.
    """
    _check_arguments(vocab_size, context_limit, only)
    subject = Subject(
        engine=engine,
        model=model,
        vocab_size=vocab_size,
        context_limit=context_limit,
        oracle=oracle,
        server=server if server is not None else ServerFacts(),
        tolerance=tolerance,
        rng=random.Random(seed),
    )
    rows = [await _row(check, subject) for check in CHECKS if only is None or check.name in only]
    return EngineReport(subject.info, tuple(rows))


def _check_arguments(vocab_size: int, context_limit: int, only: Collection[str] | None) -> None:
    if vocab_size < 16 or context_limit < 512:
        raise ValueError(f"{vocab_size=} must be at least 16 and {context_limit=} at least 512")
    unknown = set(only or ()) - {check.name for check in CHECKS}
    if unknown:
        names = ", ".join(repr(check.name) for check in CHECKS)
        raise ValueError(f"there is no check {sorted(unknown)}; there are {names}")


async def _row(check: Check, subject: Subject) -> CheckRow:
    started = time.monotonic()
    outcome, finding = Outcome.BREAKS, Finding("")
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            finding = await check.run(subject)
        outcome = Outcome.HOLDS
    except NotOfferedError as exc:
        outcome, finding = Outcome.NOT_OFFERED, Finding(str(exc))
    except BrokenPromiseError as exc:
        finding = Finding(str(exc))
    except TimeoutError:
        finding = Finding(f"no end after {CHECK_TIMEOUT_S:.0f} s")
    except Exception as exc:  # noqa: BLE001  (whatever an engine raises in place of a sample is what was found)
        finding = Finding(f"{type(exc).__name__}: {exc}")
    seconds = time.monotonic() - started
    return CheckRow(check.name, check.law, outcome, finding.evidence, finding.numbers, seconds)
