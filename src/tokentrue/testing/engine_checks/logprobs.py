"""Law 3: each sampled id comes with its own log-probability, of the distribution that the engine says."""

from __future__ import annotations

import asyncio
import math

from tokentrue.generation import Generation, LogprobsMode
from tokentrue.testing.engine_checks.ids import prompt_lengths
from tokentrue.testing.engine_report import Finding
from tokentrue.testing.engine_subject import NotOfferedError, Subject, ids_of, logprobs_of, require


async def logprobs_belong_to_their_ids(subject: Subject) -> Finding:
    """The engine against itself, no oracle needed: an id asked for alone, behind the prompt and the ids before
    it, has the log-probability that it has within a completion.

    Numbers that are shifted by one, or reordered, are aligned in length and fail here.
    """
    prompt_ids, count = subject.prompt(40), 12
    whole = await subject.sample(prompt_ids, count)
    found = list(zip(ids_of(whole), logprobs_of(whole), strict=True))
    if all(logprob == 0.0 for _, logprob in found):
        raise NotOfferedError("greedy log-probabilities are all 0 here (as sampled): nothing to tell apart")
    worst = 0.0
    for place, (token_id, logprob) in enumerate(found):
        behind = [*prompt_ids, *ids_of(whole)[:place]]
        alone = await subject.sample(behind, 1)
        worst = max(worst, abs(logprobs_of(alone)[0] - logprob))
        require(
            worst <= subject.tolerance,
            f"id {token_id} at position {place} has {logprob:.5f} in its completion, and asked for alone id "
            f"{ids_of(alone)[0]} has {logprobs_of(alone)[0]:.5f}",
        )
    return Finding(
        f"{count} ids, each asked for again alone: log-probabilities within {worst:.1g}",
        {"ids": count, "largest_difference_nats": worst},
    )


async def measured_mode(subject: Subject) -> tuple[LogprobsMode, int]:
    """What the log-probabilities mean, and over how many ids that was seen.

    Of one place the two likeliest ids are sampled at two temperatures. Raw numbers are those of greedy sampling
    at both; processed ones are a distribution over those two; what else follows the temperature is scaled.

    Raises:
        NotOfferedError: No place showed enough.
    """
    apart, sums, count = 0.0, list[float](), 0
    for length in (3, 24, 50, 77):
        prompt_ids = subject.prompt(length)
        greedy = await subject.sample(prompt_ids, 1)
        for temperature in (0.5, 1.5):
            told: dict[int, float] = {}
            for seed in range(6):
                one = await subject.sample(prompt_ids, 1, temperature=temperature, top_k=2, seed=seed)
                told[ids_of(one)[0]] = logprobs_of(one)[0]
            best = ids_of(greedy)[0]
            if best in told:
                apart, count = max(apart, abs(told[best] - logprobs_of(greedy)[0])), count + 1
            if len(told) == 2:
                sums.append(sum(map(math.exp, told.values())))
    if not count:
        raise NotOfferedError("the likeliest id was never sampled at temperature 0.5 or 1.5")
    if apart <= subject.tolerance:
        return LogprobsMode.RAW, count
    if not sums:
        return LogprobsMode.UNKNOWN, count
    is_whole = all(abs(each - 1) < max(1e-3, subject.tolerance) for each in sums)
    return (LogprobsMode.PROCESSED if is_whole else LogprobsMode.SCALED), count


async def logprobs_mode_is_what_it_says(subject: Subject) -> Finding:
    """The engine's word for what its log-probabilities mean is what is measured."""
    measured, count = await measured_mode(subject)
    subject.mode = measured
    said = (await subject.engine.describe(subject.model)).logprobs_mode
    if LogprobsMode.UNKNOWN not in (said, measured):
        require(
            said is measured,
            f"the engine says {said.value!r}; by how they change with temperature and top_k they are "
            f"{measured.value!r}",
        )
    return Finding(
        f"{measured.value} by measurement ({count} ids at two temperatures); the engine says {said.value!r}",
        {"ids": count},
    )


async def logprobs_equal_a_forward_pass(subject: Subject) -> Finding:
    """The oracle's numbers, id by id: short and long prompts, greedy and sampled, cached, and many at once."""
    if subject.oracle is None:
        raise NotOfferedError("no oracle was given")
    if subject.mode is None:
        subject.mode, _ = await measured_mode(subject)
    generations = await _sampled_in_every_way(subject)
    differences: list[float] = []
    for generation in generations:
        ids = ids_of(generation)
        expected = await subject.expected(generation.tokens.prompt_ids.tolist(), ids)
        for place, (found, right) in enumerate(zip(logprobs_of(generation), expected, strict=True)):
            differences.append(abs(found - right))
            require(
                differences[-1] <= subject.tolerance,
                f"id {ids[place]} at position {place} behind {len(generation.tokens.prompt_ids)} prompt ids has "
                f"{found:.6f}, the forward pass says {right:.6f}: {differences[-1]:.2g} nats apart, allowed are "
                f"{subject.tolerance:g}",
            )
    differences.sort()
    at_99 = differences[int(0.99 * (len(differences) - 1))]
    return Finding(
        f"{len(differences)} ids: at most {differences[-1]:.1g} nats from the forward pass, 99 % {at_99:.1g}",
        {"ids": len(differences), "largest_nats": differences[-1], "p99_nats": at_99},
    )


async def _sampled_in_every_way(subject: Subject) -> list[Generation]:
    raw = [
        {"temperature": 0.0},
        {"temperature": 0.7, "top_p": 0.9, "seed": 2},
        {"temperature": 1.5, "top_k": 20, "seed": 3},
    ]
    ways = [{"temperature": 1.0, "seed": 1}, *(raw if subject.mode is LogprobsMode.RAW else [])]
    generations = []
    for length in prompt_lengths(subject):
        prompt_ids, count = subject.prompt(length), min(16, subject.context_limit - length)
        generations += [await subject.sample(prompt_ids, count, **way) for way in ways]
    last = generations[len(generations) // 2].tokens
    longer = [*last.prompt_ids.tolist(), *last.completion_ids.tolist(), *subject.prompt(7)]
    generations.append(await subject.sample(longer, 16, temperature=1.0, seed=4))
    prompts = [subject.prompt(11 * number + 1) for number in range(12)]
    generations += await asyncio.gather(
        *(subject.sample(each, 12, temperature=1.0, seed=seed) for seed, each in enumerate(prompts))
    )
    return generations
