"""Probes of the server around the token route: its routes, its errors, its tokenizer, its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from tokentrue.engines.checkup.finding import (
    DYNAMO,
    ROUTE_ADVICE,
    SGLANG,
    VLLM,
    WEIGHTS_ADVICE,
    Level,
    Look,
    Patient,
)
from tokentrue.errors import EngineError, EvidenceError, OverlongPromptError, TemplateError, UnknownModelError
from tokentrue.generation import ChatRequest, GenerateRequest
from tokentrue.messages import Message
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from tokentrue.transports.openai_chat import DynamoChat
from tokentrue.transports.tokenize import read_probe, read_tokenize, write_probe, write_tokenize
from tokentrue.transports.transport import HttpCall, HttpReply

_ROUTES = {
    VLLM: (
        "/inference/v1/generate",
        "/v1/chat/completions/tokens",
        "/v1/chat/completions/derender",
        "/tokenize",
        "/v1/chat/completions",
    ),
    DYNAMO: ("/inference/v1/generate", "/v1/chat/completions"),
}
"""Asked with an empty object, which none of them carries out. SGLang's are known: none is switched on or off."""

_TOKEN_ROUTE = {VLLM: "/inference/v1/generate", DYNAMO: "/v1/chat/completions", SGLANG: "/generate"}

_LONGEST_OVERLONG = 16_384
"""A prompt longer than this is not sent only to see it refused."""

_CONVERSATIONS = (
    (Message("user", "Say a word. \u4e16\u754c \U0001f642 \t end"),),
    (
        Message("system", "You are terse."),
        Message("user", "Hi"),
        Message("assistant", "Hello."),
        Message("user", "  2+2?\n"),
    ),
)


async def probe_routes(patient: Patient) -> Look:
    """Which routes that tokens could travel by are served?"""
    if patient.engine == SGLANG:
        return Look(Level.OK, "/generate takes ids and gives ids on every SGLang")
    served: list[str] = []
    missing: list[str] = []
    for path in _ROUTES.get(patient.engine, _ROUTES[VLLM]):
        is_served = await patient.server.exchange(write_probe(path), read_probe)
        (served if is_served else missing).append(path)
    evidence = f"served: {', '.join(served) or 'none'}"
    evidence += f"; not served: {', '.join(missing)}" if missing else ""
    needed = _TOKEN_ROUTE.get(patient.transport.name, "")
    if needed not in served:
        advice = ROUTE_ADVICE.get(patient.engine, "use a server with a token route: vLLM, Dynamo or SGLang")
        return Look(Level.FAIL, evidence, advice)
    if patient.engine == DYNAMO:
        is_vllms = "/inference/v1/generate" in served
        by = "by /inference/v1/generate" if is_vllms else "as nvext.token_data on the chat route"
        evidence += f"; ids travel {by}"
    return Look(Level.OK, evidence)


async def probe_errors(patient: Patient) -> Look:
    """Is a wrong request refused with a word that can be understood?

    A model that is not served, and a prompt as long as the context. Nothing else is tried: what a server says to
    ids outside the vocabulary is not worth a crash.
    """
    if patient.engine == SGLANG:
        evidence = "not tried: SGLang serves any model name, and dies of some wrong requests"
        return Look(Level.NOTE, evidence)
    told = [await _refusal_of_model(patient)]
    limit = patient.info.context_limit
    if limit is not None and limit <= _LONGEST_OVERLONG:
        told.append(await _refusal_of_length(patient, limit))
    surprises = [answer.text for answer in told if not answer.is_expected]
    evidence = "; ".join(answer.text for answer in told)
    if surprises:
        return Look(Level.WARN, evidence, "clients cannot tell what is wrong: report this server's answer")
    return Look(Level.OK, evidence)


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    is_expected: bool


async def _refusal_of_model(patient: Patient) -> _Answer:
    request = replace(
        patient.request(patient.prompt_ids, max_tokens=1), model=f"{patient.model}-that-nobody-serves"
    )
    return await _refused(patient, request, "another model's name", UnknownModelError)


async def _refusal_of_length(patient: Patient, limit: int) -> _Answer:
    ids = patient.prompt_ids.tolist()
    request = patient.request(TokenIds((ids * (limit // len(ids) + 1))[:limit]), max_tokens=1)
    return await _refused(patient, request, f"{limit} ids of prompt", OverlongPromptError)


async def _refused(patient: Patient, request: GenerateRequest, what: str, expected: type[Exception]) -> _Answer:
    call = patient.transport.write_generate(request)
    try:
        await patient.server.exchange(call, lambda reply: patient.transport.read_generate(request, reply))
    except expected as exc:
        return _Answer(f"{what}: {type(exc).__name__}", True)
    except (EngineError, OverlongPromptError) as exc:
        return _Answer(f"{what}: {type(exc).__name__} instead of {expected.__name__} ({exc})", False)
    return _Answer(f"{what}: answered as if it were right", False)


async def probe_tokenizer(patient: Patient) -> Look:
    """Does the server render conversations to the ids that the given tokenizer folder renders them to?"""
    if patient.renderer is None:
        evidence = "not compared, and ids cannot be rendered here"
        return Look(Level.NOTE, evidence, "give --tokenizer FOLDER, the served model's tokenizer and template")
    same = []
    for messages in _CONVERSATIONS:
        try:
            ours = patient.renderer.render_ids(messages)
        except TemplateError:
            continue
        theirs = await rendered_by_server(patient, messages)
        if theirs is None:
            return Look(Level.NOTE, "not compared: the server tells no ids of a conversation")
        if list(ours) != list(theirs):
            return Look(Level.FAIL, _difference(ours, theirs), "give the tokenizer folder that is served")
        same.append(str(len(ours)))
    evidence = f"{len(same)} conversations have the same ids ({' and '.join(same)}) here and there"
    return Look(Level.OK, evidence)


def _difference(ours: TokenIds, theirs: TokenIds) -> str:
    pairs = zip(ours, theirs, strict=False)
    place = next((at for at, (one, two) in enumerate(pairs) if one != two), min(len(ours), len(theirs)))
    here, there = list(ours[place : place + 4]), list(theirs[place : place + 4])
    return f"a conversation has {len(ours)} ids here and {len(theirs)} there; from {place} on {here} and {there}"


async def rendered_by_server(patient: Patient, messages: Sequence[Message]) -> TokenIds | None:
    """The ids that the server renders a conversation to, or None when it does not tell.

    Raises:
        EngineError, TransportError: It refuses, and not because it has no such route.
    """
    if patient.engine == DYNAMO:
        request = ChatRequest(patient.model, tuple(messages), SamplingParams(max_tokens=1, temperature=0.0))
        transport = DynamoChat()
        reply = await patient.server.exchange(
            transport.write_chat(request), lambda got: transport.read_chat(request, got)
        )
        return reply.generation.tokens.prompt_ids if reply.generation is not None else None
    call = write_tokenize(patient.model, messages, (), {})
    try:
        return await patient.server.exchange(call, read_tokenize)
    except EvidenceError:
        raise
    except EngineError as exc:
        if exc.status in (404, 405, 403):
            return None
        raise


class _Version(msgspec.Struct):
    weight_version: str | None = None


_VERSION = msgspec.json.Decoder(_Version)


async def probe_weights(patient: Patient) -> Look:
    """Which policy version sampled, and can weights be swapped here? Only asked, never done."""
    generation = await patient.sampled(patient.prompt_ids, max_tokens=1)
    versions = sorted({span.version for span in generation.weight_spans if span.version})
    said = "replies name no policy version"
    if versions:
        said = f"replies name policy version {', '.join(versions)}"
    elif generation.weight_spans:
        said = "replies name a policy version, which was never set"
    advice = WEIGHTS_ADVICE.get(patient.engine, "")
    if patient.engine == DYNAMO:
        return Look(Level.NOTE, f"{said}; weights are swapped at the port of DYN_RL_PORT", advice)
    path = "/model_info" if patient.engine == SGLANG else "/weight_info"
    found = await patient.server.exchange(HttpCall("GET", path, idempotent=True), _read_version)
    if found is None:
        return Look(Level.NOTE, f"{said}; GET {path} is not served: no route swaps weights", advice)
    return Look(Level.OK, f"{said}; GET {path} tells {found!r}: routes that swap weights are on")


def _read_version(reply: HttpReply) -> str | None:
    if reply.status != 200:
        return None
    try:
        return _VERSION.decode(reply.body).weight_version
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
