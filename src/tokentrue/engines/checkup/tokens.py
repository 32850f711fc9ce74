"""Probes of the token route: are ids honoured, echoed and aligned, where does it stop, what does it cache."""

from __future__ import annotations

from tokentrue.engines.checkup.finding import (
    ANY_ID,
    CACHE_ADVICE,
    COMPLETION_LEN,
    ROUTE_ADVICE,
    Level,
    Look,
    Patient,
)
from tokentrue.engines.logprobs import measure_logprobs_mode
from tokentrue.errors import EvidenceError
from tokentrue.generation import FinishReason, Generation, LogprobsMode
from tokentrue.tokens import TokenIds

_HALF = COMPLETION_LEN // 2
_LONG_PROMPT = 256
_SAME_NATS = 0.2

_MEANING = {
    LogprobsMode.RAW: "of the model at temperature 1, whatever temperature and truncation are asked for",
    LogprobsMode.SCALED: "after temperature, before truncation",
    LogprobsMode.PROCESSED: "of what was sampled from, after temperature and truncation",
}


async def probe_ids(patient: Patient) -> Look:
    """Are the prompt's ids used? By the count, by the echo, and by what a continuation of them does.

    The greedy completion of `prompt + completion[:4]` is `completion[4:]` on an engine that continues ids, and
    another prompt of the same length has another one.
    """
    try:
        whole = await patient.sampled(patient.prompt_ids)
        begun = patient.prompt_ids.extended(whole.tokens.completion_ids[:_HALF])
        rest = await patient.sampled(begun, max_tokens=COMPLETION_LEN - _HALF)
        other = await patient.sampled(TokenIds(list(patient.prompt_ids)[::-1]))
    except EvidenceError as exc:
        return Look(Level.FAIL, f"the reply contradicts the request: {exc}", _route_advice(patient))
    counted = _counted(whole, patient)
    continues = list(rest.tokens.completion_ids) == list(whole.tokens.completion_ids[_HALF:])
    differs = list(other.tokens.completion_ids) != list(whole.tokens.completion_ids)
    told = [
        f"{len(patient.prompt_ids)} ids sent ({patient.prompt_source}), {counted}",
        "echoed" if whole.prompt_ids_echoed else "not echoed",
        f"greedy ids {list(whole.tokens.completion_ids)}",
        f"{'the same' if continues else f'others, {list(rest.tokens.completion_ids)},'} from half way",
        f"{'others' if differs else 'the same'} after the prompt backwards",
    ]
    evidence = "; ".join(told)
    if not whole.prompt_ids_echoed and not continues and not differs:
        return Look(Level.FAIL, evidence, _route_advice(patient))
    if not continues or not differs:
        advice = "greedy sampling is not repeatable here: rely on the engine's count and echo of ids"
        return Look(Level.WARN, evidence, advice)
    return Look(Level.OK, evidence)


def _counted(generation: Generation, patient: Patient) -> str:
    count = generation.usage.prompt_tokens
    return "not counted by the engine" if count is None else f"{count} counted by the engine"


def _route_advice(patient: Patient) -> str:
    return ROUTE_ADVICE.get(patient.engine, "use a server with a token route: vLLM, Dynamo or SGLang")


async def probe_alignment(patient: Patient) -> Look:
    """Is there one log-probability per sampled id, and the same one when half the ids come from the prompt?"""
    whole = await patient.sampled(patient.prompt_ids)
    begun = patient.prompt_ids.extended(whole.tokens.completion_ids[:_HALF])
    rest = await patient.sampled(begun, max_tokens=COMPLETION_LEN - _HALF)
    count = len(whole.tokens.completion_ids)
    evidence = f"{count} ids, {len(whole.tokens.completion_logprobs)} finite log-probabilities"
    if list(rest.tokens.completion_ids) != list(whole.tokens.completion_ids[_HALF:]):
        return Look(Level.OK, evidence)
    pairs = zip(whole.tokens.completion_logprobs[_HALF:], rest.tokens.completion_logprobs, strict=True)
    apart = max(abs(float(first) - float(second)) for first, second in pairs)
    evidence += f"; from half way they differ by {apart:.1e} nats at most"
    if apart > _SAME_NATS:
        advice = "the same ids have two log-probabilities: look for a stale prefix cache, or mixed weights"
        return Look(Level.WARN, evidence, advice)
    return Look(Level.OK, evidence)


async def probe_stop(patient: Patient) -> Look:
    """Is a stop id the last id of the completion, or stripped? A bridge does either, and has to be told."""
    # With `ignore_eos`, Dynamo takes no stop id from anybody.
    whole = list((await patient.sampled(patient.prompt_ids, ignore_eos=False)).tokens.completion_ids)
    place = next((at for at in range(1, len(whole)) if whole[at] not in whole[:at]), None)
    if place is None:
        return Look(Level.NOTE, f"the greedy completion {whole} repeats one id: nothing to stop at")
    stopped = await patient.sampled(patient.prompt_ids, ignore_eos=False, stop_token_ids=[whole[place]])
    found, reason = list(stopped.tokens.completion_ids), stopped.finish_reason
    asked = f"stop id {whole[place]}, sampled at position {place}"
    if reason is not FinishReason.STOP:
        evidence = f"{asked}, did not stop it: {found}, finish reason {reason.value}"
        return Look(Level.FAIL, evidence, "the server ignores stop_token_ids: turns would run on")
    told = "told" if stopped.stop_reason is not None else "not told"
    if found == whole[: place + 1]:
        return Look(Level.OK, f"{asked}: included, as last of {len(found)} ids; stop reason {told}")
    if found == whole[:place]:
        return Look(Level.OK, f"{asked}: stripped; the bridge restores it; stop reason {told}")
    return Look(Level.WARN, f"{asked}: stopped at {found}", "greedy sampling is not repeatable here")


async def probe_logprobs(patient: Patient) -> Look:
    """What the log-probabilities mean where a request shapes the distribution."""
    found = await measure_logprobs_mode(patient.by_ids, patient.model, patient.prompt_ids, vocab_size=ANY_ID)
    if found.mode is LogprobsMode.UNKNOWN:
        advice = "sample at temperature 1 without truncation, where every meaning is one number"
        return Look(Level.WARN, found.why, advice)
    return Look(Level.OK, f"{found.mode.value}: {_MEANING[found.mode]} ({found.why})")


async def probe_cache(patient: Patient) -> Look:
    """Is a prompt that was seen before read from the prefix cache, and does the server say so?"""
    length = min(_LONG_PROMPT, (patient.info.context_limit or 2 * _LONG_PROMPT) // 2)
    ids = list(patient.prompt_ids)
    prompt = TokenIds((ids * (length // len(ids) + 1))[:length])
    # By the server's own codec: of Dynamo's two routes only the chat route counts cached ids.
    request = patient.request(prompt, temperature=0.0, max_tokens=1)
    try:
        await patient.server.generate(request)
        cached = (await patient.server.generate(request)).usage.cached_tokens
    except EvidenceError:
        cached = None  # That route ignores ids; the one that ids travel by was looked at before.
    advice = CACHE_ADVICE.get(patient.engine, "")
    if cached is None:
        return Look(Level.NOTE, f"a prompt of {length} ids, sent twice: cached ids are not counted", advice)
    evidence = f"a prompt of {length} ids, sent twice: {cached} read from the cache the second time"
    return Look(Level.OK, evidence) if cached else Look(Level.WARN, evidence, advice)


def context_told(patient: Patient) -> Look:
    """Does the server say how long a sequence may be?"""
    limit = patient.info.context_limit
    if limit is None:
        evidence = "not told by /v1/models: a conversation that grows too long is found out by an error only"
        return Look(Level.NOTE, evidence)
    return Look(Level.OK, f"{limit} tokens, by /v1/models")
