"""The engine under test, and the ways in which every check asks it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokentrue.engines.engine import Engine
from tokentrue.generation import EngineInfo, GenerateRequest, Generation, LogprobsMode
from tokentrue.sampling import SamplingParams
from tokentrue.testing.engine_report import BrokenPromiseError
from tokentrue.tokens import TokenIds

Oracle = Callable[[Sequence[int], Sequence[int]], Sequence[float]]
"""(prompt ids, completion ids) → the log-softmax at temperature 1 of each completion id, by a forward pass."""

InWork = Callable[[], Awaitable[float]]
"""How many requests the server is working on now, by its own account."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the suite may know about the server behind an engine.

    Args:
        block_tokens: Size of a block of its prefix cache; None when it is not known.
        in_work: Its own count of requests in work.
        checks_ids: False for a server that ends on an id outside its vocabulary: such a one is not sent.
    """

    block_tokens: int | None = None
    in_work: InWork | None = None
    checks_ids: bool = True


class NotOfferedError(Exception):
    """There is nothing to check here; says why."""


def require(condition: bool, complaint: str) -> None:
    """Go on when the condition is met.

    Raises:
        BrokenPromiseError: It is not; with the complaint.
    """
    if not condition:
        raise BrokenPromiseError(complaint)


@dataclass(slots=True)
class Subject:
    """What is checked; see `check_engine` for the fields.

    `prompt` draws from `rng`, so that no earlier run has left the same ids in a server's prefix cache.
    """

    engine: Engine
    model: str
    vocab_size: int
    context_limit: int
    oracle: Oracle | None
    server: ServerFacts
    tolerance: float
    rng: random.Random
    info: EngineInfo | None = None
    mode: LogprobsMode | None = None
    """What the log-probabilities mean, once it was measured."""

    def prompt(self, length: int) -> list[int]:
        """So many ids, of the vocabulary's lower half: special ids are mostly at its upper end."""
        return [self.rng.randrange(max(2, self.vocab_size // 2)) for _ in range(length)]

    def other_id(self, token_id: int) -> int:
        """Another id of the same half."""
        return (token_id + 1) % max(2, self.vocab_size // 2)

    def request(self, prompt_ids: Sequence[int], **sampling: Any) -> GenerateRequest:
        """A request with the vocabulary's size known."""
        return GenerateRequest(
            self.model, TokenIds(prompt_ids), SamplingParams.from_args(sampling), vocab_size=self.vocab_size
        )

    async def sample(self, prompt_ids: Sequence[int], count: int, **sampling: Any) -> Generation:
        """Exactly `count` ids: the model's own end does not stop them.

        Raises:
            BrokenPromiseError: Another number came, or the reply is about another prompt.
        """
        asked = {"temperature": 0.0, "ignore_eos": True, **sampling}
        generation = await self.engine.generate(self.request(prompt_ids, max_tokens=count, **asked))
        self.check_shape(generation, prompt_ids)
        length = len(generation.tokens.completion_ids)
        require(length == count, f"max_tokens={count} was asked, without an end, and {length} ids came")
        return generation

    def check_shape(self, generation: Generation, prompt_ids: Sequence[int]) -> None:
        """What every reply must be: about this prompt, with one log-probability per id, and counted right.

        Raises:
            BrokenPromiseError: It is not.
        """
        tokens, usage = generation.tokens, generation.usage
        require(tokens.prompt_ids == list(prompt_ids), "the reply names other prompt ids than were sent")
        length = len(tokens.completion_ids)
        require(
            len(tokens.completion_logprobs) == length,
            f"{length} ids came with {len(tokens.completion_logprobs)} log-probabilities",
        )
        for name, told, real in (
            ("prompt", usage.prompt_tokens, len(prompt_ids)),
            ("completion", usage.completion_tokens, length),
        ):
            require(told in (None, real), f"the engine counts {told} {name} tokens, there are {real}")

    async def expected(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        """What the oracle says, computed off the event loop.

        Raises:
            NotOfferedError: There is no oracle.
        """
        if self.oracle is None:
            raise NotOfferedError("no oracle was given, so nothing can say what the numbers should be")
        return list(await asyncio.to_thread(self.oracle, list(prompt_ids), list(completion_ids)))


def ids_of(generation: Generation) -> list[int]:
    """The sampled ids."""
    return generation.tokens.completion_ids.tolist()


def logprobs_of(generation: Generation) -> list[float]:
    """Their log-probabilities."""
    return generation.tokens.completion_logprobs.tolist()


def distance(one: Generation, other: Generation) -> float:
    """How far apart two completions are: infinite with other ids, else the largest difference in nats."""
    if ids_of(one) != ids_of(other):
        return float("inf")
    return max(abs(a - b) for a, b in zip(logprobs_of(one), logprobs_of(other), strict=True))


def part_at(one: Generation, other: Generation) -> int | None:
    """The first place with different ids, or None when there is none in their common length."""
    pairs = itertools.zip_longest(ids_of(one), ids_of(other))
    return next((place for place, (mine, theirs) in enumerate(pairs) if mine != theirs), None)
