"""The context limit at every boundary, and what the engine says of itself."""

from __future__ import annotations

from tokentrue.errors import MaxTokensTooLargeError, OverlongPromptError, UnknownModelError
from tokentrue.generation import FinishReason, Generation
from tokentrue.testing.engine_report import BrokenPromiseError, Finding
from tokentrue.testing.engine_subject import Subject, ids_of, require

NO_SUCH_MODEL = "no-such-model-tokentrue"


async def the_engine_says_what_it_is(subject: Subject) -> Finding:
    """`describe` names the model and its limit, and a model that is not served is an error."""
    info = await subject.engine.describe(subject.model)
    subject.info = info
    require(subject.model in info.models, f"it serves {info.models!r}, without {subject.model!r}")
    require(
        info.context_limit in (None, subject.context_limit),
        f"it tells a context limit of {info.context_limit}, {subject.context_limit} was expected",
    )
    try:
        await subject.engine.describe(NO_SUCH_MODEL)
    except UnknownModelError:
        pass
    else:
        raise BrokenPromiseError(f"it describes the model {NO_SUCH_MODEL!r}, which nobody serves")
    limit = "no limit told" if info.context_limit is None else f"limit {info.context_limit}"
    return Finding(
        f"{info.name} {info.version or '(no version told)'}, {limit}, log-probabilities {info.logprobs_mode.value}"
    )


async def limits_hold_at_every_boundary(subject: Subject) -> Finding:
    """A prompt of limit - 1 has room for one id, one of the limit has none; `max_tokens` beyond the room is cut
    to it, or refused with the room named."""
    limit = subject.context_limit
    for length, count in ((5, 1), (limit - 2, 1), (limit - 2, 2), (limit - 1, 1)):
        generation = await subject.sample(subject.prompt(length), count)
        require(
            generation.finish_reason is FinishReason.LENGTH,
            f"{length} prompt ids and max_tokens={count} ended with {generation.finish_reason.value!r}",
        )
    for length in (limit, limit + 1):
        await _overlong(subject, length)
    ways = {f"{count} beyond": await _beyond_the_room(subject, limit - 2, 2 + count) for count in (1, 50)}
    ways["unset"] = await _beyond_the_room(subject, limit - 2, None)
    beyond = "; ".join(f"max_tokens {name}: {what}" for name, what in ways.items())
    return Finding(
        f"prompts of {limit - 2} and {limit - 1} are sampled to the last place, {limit} and {limit + 1} are "
        f"OverlongPromptError; {beyond}",
        {"limit": limit, "clips": all(what == "clipped" for what in ways.values())},
    )


async def _overlong(subject: Subject, length: int) -> None:
    try:
        await subject.engine.generate(subject.request(subject.prompt(length), max_tokens=1))
    except OverlongPromptError as exc:
        told = (exc.prompt_len, exc.limit)
        require(
            told == (length, subject.context_limit),
            f"a prompt of {length} ids is refused as (length, limit) {told}",
        )
    else:
        raise BrokenPromiseError(f"a prompt of {length} ids was taken, the limit is {subject.context_limit}")


async def _beyond_the_room(subject: Subject, length: int, max_tokens: int | None) -> str:
    room = subject.context_limit - length
    prompt_ids = subject.prompt(length)
    try:
        generation: Generation = await subject.engine.generate(
            subject.request(prompt_ids, max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        )
    except MaxTokensTooLargeError as exc:
        require(exc.room == room, f"max_tokens={max_tokens} is refused with room for {exc.room}, there is {room}")
        return "refused"
    subject.check_shape(generation, prompt_ids)
    came = len(ids_of(generation))
    require(came == room, f"max_tokens={max_tokens} behind {length} ids gave {came} ids, there is room for {room}")
    require(
        generation.finish_reason is FinishReason.LENGTH, "the context is full and the finish reason is not length"
    )
    return "clipped"
