"""Sampling parameters do what they say: seeds, stop ids, several completions of one prompt."""

from __future__ import annotations

import asyncio

from tokentrue.errors import CallerError, EmptyCompletionError, EngineRequestError, UnsupportedParameterError
from tokentrue.generation import FinishReason
from tokentrue.testing.engine_report import BrokenPromiseError, Finding
from tokentrue.testing.engine_subject import NotOfferedError, Subject, distance, ids_of, require

COUNT = 24


async def a_seed_decides(subject: Subject) -> Finding:
    """The same seed gives the same ids and numbers again, another seed others; company is told, not judged."""
    seeds, worst = (1, 2, 3, 2**31 - 1), 0.0
    prompt_ids = subject.prompt(30)
    first = {seed: await subject.sample(prompt_ids, COUNT, temperature=1.0, seed=seed) for seed in seeds}
    for seed, one in first.items():
        apart = distance(one, await subject.sample(prompt_ids, COUNT, temperature=1.0, seed=seed))
        worst = max(worst, apart)
        require(apart <= subject.tolerance, f"seed {seed} gave two completions of one prompt ({apart:.2g} apart)")
    different = len({tuple(ids_of(each)) for each in first.values()})
    require(different == len(seeds), f"{len(seeds)} seeds gave {different} different completions at temperature 1")
    others = [subject.sample(subject.prompt(20), COUNT, temperature=1.0, seed=seed) for seed in range(8)]
    in_company, *_ = await asyncio.gather(
        subject.sample(prompt_ids, COUNT, temperature=1.0, seed=seeds[0]), *others
    )
    same = ids_of(in_company) == ids_of(first[seeds[0]])
    return Finding(
        f"{len(seeds)} seeds, each twice: the same ids, numbers within {worst:.1g}, and {different} different "
        f"completions; among 8 other requests the ids are {'the same' if same else 'others'}",
        {"seeds": len(seeds), "largest_difference_nats": worst, "same_in_company": same},
    )


async def stop_ids_end_a_completion(subject: Subject) -> Finding:
    """A stop id ends the completion where it first comes, and the engine always includes it, or never does.

    With `ignore_eos` it does so too, or the two together are refused: a server that drops the one for the other
    samples on behind a stop.
    """
    included: set[bool] = set()
    stops = 0
    for length in (10, 33, 64, 100):
        prompt_ids, free = await _free_completion(subject, length)
        places = sorted({free.index(each) for each in free})
        for place in sorted({places[0], *places[1::3], places[-1]}):
            included.add(await _includes_its_stop(subject, prompt_ids, free, place))
            stops += 1
        await _unmet_stop_changes_nothing(subject, prompt_ids, free)
    require(len(included) == 1, "the stop id is sometimes the last id of its completion, and sometimes left out")
    try:
        free = ids_of(await subject.sample(prompt_ids, COUNT))
        await _includes_its_stop(subject, prompt_ids, free, len(free) // 2, ignore_eos=True)
        beside = "works as well"
    except (UnsupportedParameterError, EngineRequestError) as exc:
        beside = f"is {type(exc).__name__}"
    always = included.pop()
    return Finding(
        f"{stops} stop ids at different places: each ends its completion, and is "
        f"{'its last id' if always else 'left out of it'}, always; with ignore_eos it {beside}",
        {"stop_ids": stops, "included": always},
    )


async def _free_completion(subject: Subject, length: int) -> tuple[list[int], list[int]]:
    """A prompt, and a greedy completion of it that the model does not end at once."""
    for _ in range(12):
        prompt_ids = subject.prompt(length)
        request = subject.request(prompt_ids, max_tokens=COUNT, temperature=0.0)
        try:
            free = ids_of(await subject.engine.generate(request))
        except EmptyCompletionError:  # its end came first, and this engine leaves it out
            continue
        if len(free) >= COUNT // 2:
            return prompt_ids, free
    raise NotOfferedError("the model ends every completion at once: there is nothing to stop")


async def _includes_its_stop(
    subject: Subject, prompt_ids: list[int], free: list[int], place: int, *, ignore_eos: bool = False
) -> bool:
    place = free.index(free[place])
    request = subject.request(
        prompt_ids, max_tokens=COUNT, temperature=0.0, ignore_eos=ignore_eos, stop_token_ids=(free[place],)
    )
    try:
        generation = await subject.engine.generate(request)
    except EmptyCompletionError:
        require(place == 0, f"nothing came although the stop id is the one at position {place}")
        return False
    subject.check_shape(generation, prompt_ids)
    found = ids_of(generation)
    require(
        found in (free[: place + 1], free[:place]),
        f"with the stop id {free[place]}, first sampled at position {place}, {len(found)} of {COUNT} ids came",
    )
    require(
        generation.finish_reason is FinishReason.STOP,
        f"a stop id ended the completion and the finish reason is {generation.finish_reason.value!r}",
    )
    require(
        generation.stop_reason in (None, free[place]),
        f"id {free[place]} ended the completion, the engine names {generation.stop_reason!r}",
    )
    return len(found) == place + 1


async def _unmet_stop_changes_nothing(subject: Subject, prompt_ids: list[int], free: list[int]) -> None:
    unmet = next(each for each in range(subject.vocab_size) if each not in free)
    request = subject.request(prompt_ids, max_tokens=COUNT, temperature=0.0, stop_token_ids=(unmet,))
    found = ids_of(await subject.engine.generate(request))
    require(found == free, f"the stop id {unmet}, which is not sampled, changes the completion")


async def several_completions(subject: Subject) -> Finding:
    """One request is one completion: n > 1 is refused loudly, and n requests share the prompt's blocks."""
    prompt_ids, count = subject.prompt(150), 4
    try:
        await subject.engine.generate(subject.request(prompt_ids, max_tokens=4, n=2))
    except (CallerError, EngineRequestError) as exc:
        refusal = type(exc).__name__
    else:
        raise BrokenPromiseError("n=2 was asked and one completion came, without an error")
    found = [
        await subject.sample(prompt_ids, COUNT, temperature=1.0, seed=seed, top_p=0.99) for seed in range(count)
    ]
    different = len({tuple(ids_of(each)) for each in found})
    require(different == count, f"{count} requests with {count} seeds gave {different} different completions")
    cached = [each.usage.cached_tokens for each in found[1:]]
    told = [each for each in cached if each is not None]
    require(all(told), f"{count} completions of one prompt computed its blocks again: {cached} of 150 cached")
    reuse = f"{min(told)} of 150 prompt tokens of each further one cached" if told else "reuse is not told"
    return Finding(
        f"n=2 is {refusal}; {count} requests give {different} different completions; {reuse}",
        {"completions": different, **({"cached": min(told)} if told else {})},
    )


async def known_prefixes_are_reused(subject: Subject) -> Finding:
    """Cached tokens grow by whole blocks, turn by turn, up to what the turns before have computed.

    At least the whole blocks of the previous prompt are found again (what was sampled need not be kept), at
    most those of all that is known; and nothing behind a changed id.
    """
    block = subject.server.block_tokens
    prompt_ids, known, previous = subject.prompt(90), 0, 0
    cached: list[int] = []
    for turn in range(6):
        generation = await subject.sample(prompt_ids, 20, temperature=1.0, seed=turn)
        told = generation.usage.cached_tokens
        if told is None:
            raise NotOfferedError("the engine does not tell cached tokens")
        cached.append(told)
        unit = block or 1
        require(told % unit == 0, f"turn {turn} has {told} cached tokens, no multiple of the block of {unit}")
        least, most = previous // (block or 128) * (block or 128), known
        require(least <= told <= most, f"turn {turn} has {told} cached tokens; {least} to {most} are known")
        previous = len(prompt_ids)
        prompt_ids = [*prompt_ids, *ids_of(generation)]
        known = len(prompt_ids) - 1  # the last sampled id was never computed
        prompt_ids += subject.prompt(3)
    changed = [*prompt_ids[:60], subject.other_id(prompt_ids[60]), *prompt_ids[61:]]
    behind = (await subject.sample(changed, 1)).usage.cached_tokens
    require(behind is not None and behind <= 60, f"position 60 was changed, and {behind} tokens were cached")
    return Finding(
        f"6 turns: {', '.join(map(str, cached))} cached tokens"
        f"{f', whole blocks of {block}' if block else ''}; with position 60 changed {behind}",
        {"last_turn_cached": cached[-1], "prompt_of_last_turn": previous},
    )
