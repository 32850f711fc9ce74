"""Law 4: the ids that were sent are the ids that the model saw, all of them, and each request its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tokentrue.generation import Generation
from tokentrue.testing.engine_report import Finding
from tokentrue.testing.engine_subject import Subject, distance, ids_of, logprobs_of, part_at, require

SAMPLED = 4


def prompt_lengths(subject: Subject) -> list[int]:
    """From one id to the longest prompt that leaves room for `SAMPLED`, and around a block's end."""
    block, limit = subject.server.block_tokens or 32, subject.context_limit
    wanted = (1, 2, block - 1, block, block + 1, limit // 3, limit - SAMPLED)
    return sorted({length for length in wanted if 1 <= length <= limit - SAMPLED})


async def ids_in_are_ids_seen(subject: Subject) -> Finding:
    """One changed id, first, middle or last, changes what comes; the same ids give the same again.

    A server that cuts a prompt silently, or answers another one, gives the same answer to both. That is seen
    from outside, without believing a count or an echo; where those are told they are compared as well.
    """
    lengths, echoed, counted, nearest = prompt_lengths(subject), 0, 0, float("inf")
    for length in lengths:
        prompt_ids = subject.prompt(length)
        first = await subject.sample(prompt_ids, SAMPLED)
        echoed += first.prompt_ids_echoed
        counted += first.usage.prompt_tokens is not None
        noise = distance(first, await subject.sample(prompt_ids, SAMPLED))
        require(noise <= subject.tolerance, f"{length} ids sent twice, greedily, gave two answers ({noise:.2g})")
        for place in sorted({0, length // 2, length - 1}):
            changed = [*prompt_ids]
            changed[place] = subject.other_id(prompt_ids[place])
            moved = distance(first, await subject.sample(changed, SAMPLED))
            require(
                moved > noise,
                f"of a prompt of {length} ids the one at position {place} makes no difference: it was not seen",
            )
            nearest = min(nearest, moved)
    return Finding(
        f"{len(lengths)} prompts of {lengths[0]} to {lengths[-1]} ids: each changed id changes the answer; "
        f"{echoed} echoed and equal, {counted} counted and equal",
        {"prompts": len(lengths), "echoed": echoed, "counted": counted, "smallest_change_nats": nearest},
    )


async def answers_are_not_mixed_up(subject: Subject) -> Finding:
    """Many requests at once get what each gets alone; where two ids are equally likely, either may come."""
    prompts = [subject.prompt(5 + 9 * number) for number in range(16)]
    alone = [await subject.sample(prompt, 8) for prompt in prompts]
    together = await asyncio.gather(*(subject.sample(prompt, 8) for prompt in prompts))
    worst = 0.0
    for number, (one, other) in enumerate(zip(alone, together, strict=True)):
        worst = max(worst, _difference(subject, one, other, f"request {number} of {len(prompts)} at once"))
    others = sum(ids_of(one) != ids_of(other) for one, other in zip(alone, together, strict=True))
    return Finding(
        f"{len(prompts)} prompts at once: {len(prompts) - others} with the ids they get alone, log-probabilities "
        f"within {worst:.1g}; {others} parted where two ids are equally likely",
        {"requests": len(prompts), "parted": others, "largest_difference_nats": worst},
    )


def _difference(subject: Subject, one: Generation, other: Generation, where: str) -> float:
    part = part_at(one, other)
    end = len(ids_of(one)) if part is None else part + 1
    pairs = zip(logprobs_of(one)[:end], logprobs_of(other)[:end], strict=True)
    worst = max(abs(a - b) for a, b in pairs)
    require(
        worst <= subject.tolerance,
        f"{where} gets another answer than alone: {_shown(one)} against {_shown(other)}",
    )
    return worst


def _shown(generation: Generation) -> str:
    pairs: Sequence[tuple[int, float]] = list(zip(ids_of(generation), logprobs_of(generation), strict=True))
    return ", ".join(f"{token_id} ({logprob:.4f})" for token_id, logprob in pairs[:4])
