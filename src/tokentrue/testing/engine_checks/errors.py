"""Bad input is a typed error, and leaves the engine as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tokentrue.errors import (
    EngineRequestError,
    InvalidSamplingError,
    InvalidTokenIdError,
    TokentrueError,
    UnknownModelError,
    UnsupportedParameterError,
)
from tokentrue.generation import GenerateRequest
from tokentrue.testing.engine_checks.limits import NO_SUCH_MODEL
from tokentrue.testing.engine_report import BrokenPromiseError, Finding
from tokentrue.testing.engine_subject import Subject, distance, require


@dataclass(frozen=True, slots=True)
class BadInput:
    """A request that must not be answered with a sample.

    Args:
        name: What is wrong with it.
        make: Writes the request; may itself raise one of `errors`, and then nothing was sent.
        errors: Each of these is right.
        reaches_the_engine: Nothing on this side refuses it: the engine itself has to.
    """

    name: str
    make: Callable[[Subject], GenerateRequest]
    errors: tuple[type[TokentrueError], ...]
    reaches_the_engine: bool = False


def _prompt(*ids: Any) -> Callable[[Subject], GenerateRequest]:
    return lambda subject: subject.request(ids, max_tokens=2)


def _sampling(**wrong: Any) -> Callable[[Subject], GenerateRequest]:
    return lambda subject: subject.request(subject.prompt(5), **{"max_tokens": 2, **wrong})


def _over_vocabulary(subject: Subject) -> GenerateRequest:
    return subject.request([1, subject.vocab_size], max_tokens=2)


def _over_vocabulary_unknown(subject: Subject) -> GenerateRequest:
    return replace(_over_vocabulary(subject), vocab_size=None)


def _stop_over_vocabulary(subject: Subject) -> GenerateRequest:
    return subject.request(subject.prompt(5), max_tokens=2, stop_token_ids=(subject.vocab_size,))


def _unknown_model(subject: Subject) -> GenerateRequest:
    return replace(subject.request(subject.prompt(5), max_tokens=2), model=NO_SUCH_MODEL)


_ID, _SAMPLING = (InvalidTokenIdError,), (InvalidSamplingError,)

BAD_INPUTS = (
    BadInput("no prompt id", _prompt(), _ID),
    BadInput("a negative id", _prompt(1, -1), _ID),
    BadInput("an id of 2^31", _prompt(1, 2**31), _ID),
    BadInput("a float id", _prompt(1, 2.5), _ID),
    BadInput("an id beyond the vocabulary", _over_vocabulary, _ID),
    BadInput(
        "an id beyond a vocabulary of unknown size", _over_vocabulary_unknown, (*_ID, EngineRequestError), True
    ),
    BadInput("a stop id beyond the vocabulary", _stop_over_vocabulary, _ID),
    BadInput("an unknown model", _unknown_model, (UnknownModelError,)),
    BadInput("temperature -1", _sampling(temperature=-1.0), _SAMPLING),
    BadInput("top_p 0", _sampling(top_p=0.0), _SAMPLING),
    BadInput("max_tokens 0", _sampling(max_tokens=0), _SAMPLING),
    BadInput("a parameter nobody has", _sampling(no_such_parameter=1), (UnsupportedParameterError,)),
)


async def bad_input_is_a_typed_error(subject: Subject) -> Finding:
    """Each bad input is the error that says what is wrong, before sending where that can be known; and what
    the engine samples afterwards is what it sampled before."""
    prompt_ids = subject.prompt(20)
    before = await subject.sample(prompt_ids, 4)
    made = [each for each in BAD_INPUTS if subject.server.checks_ids or not each.reaches_the_engine]
    for bad in made:
        await _refused(subject, bad)
    apart = distance(before, await subject.sample(prompt_ids, 4))
    require(apart <= subject.tolerance, "after bad input the engine samples something else")
    withheld = [each.name for each in BAD_INPUTS if each not in made]
    unsent = f"; never sent, as it may end the server: {', '.join(withheld)}" if withheld else ""
    return Finding(
        f"{len(made)} bad inputs, each its typed error, and the engine goes on{unsent}", {"inputs": len(made)}
    )


async def _refused(subject: Subject, bad: BadInput) -> None:
    wanted = " or ".join(each.__name__ for each in bad.errors)
    try:
        await subject.engine.generate(bad.make(subject))
    except bad.errors:
        return
    except TokentrueError as exc:
        raise BrokenPromiseError(f"{bad.name} is {type(exc).__name__}, not {wanted}: {exc}") from exc
    raise BrokenPromiseError(f"{bad.name} was answered with a sample")
