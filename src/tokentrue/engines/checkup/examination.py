"""A whole checkup: who answers, then one probe after the other, within a time and with few tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from tokentrue.engines.checkup.finding import DYNAMO, SGLANG, VLLM, Finding, Level, Look, Patient
from tokentrue.engines.checkup.server import (
    probe_errors,
    probe_routes,
    probe_tokenizer,
    probe_weights,
    rendered_by_server,
)
from tokentrue.engines.checkup.tokens import (
    context_told,
    probe_alignment,
    probe_cache,
    probe_ids,
    probe_logprobs,
    probe_stop,
)
from tokentrue.engines.dynamo import DynamoEngine
from tokentrue.engines.http import HttpEngine
from tokentrue.errors import (
    CallerError,
    ConfigError,
    ConnectionLostError,
    EngineError,
    TokentrueError,
    TransportError,
)
from tokentrue.generation import EngineInfo
from tokentrue.messages import Message
from tokentrue.rendering.renderer import Renderer
from tokentrue.tokens import TokenIds
from tokentrue.transports.dynamo import DynamoTransport
from tokentrue.transports.identity import identity_calls, read_identity
from tokentrue.transports.sglang import SglangTransport
from tokentrue.transports.transport import ModelCard, Transport
from tokentrue.transports.vllm import VllmTransport

AUTO = "auto"

TRANSPORTS: Mapping[str, Transport] = {
    VLLM: VllmTransport(),
    DYNAMO: DynamoTransport(),
    SGLANG: SglangTransport(),
}

_OWNERS = {"vllm": VLLM, "sglang": SGLANG, "nvidia": DYNAMO}
"""`owned_by` in a model list, for a server that hides everything else."""

_NAMES = {VLLM: "vLLM", DYNAMO: "NVIDIA Dynamo", SGLANG: "SGLang"}

_SAFE_IDS = TokenIds(range(16, 48))
"""Ids that every vocabulary has."""

TOKENIZER = "tokenizer"
"""The finding that says whether a tokenizer folder is the served model's."""

_ROUTES = "token routes"
_IDS = "ids honoured"

_BEFORE: tuple[tuple[str, Callable[[Patient], Awaitable[Look]]], ...] = (
    (_ROUTES, probe_routes),
    (TOKENIZER, probe_tokenizer),
)
_BY_IDS: tuple[tuple[str, Callable[[Patient], Awaitable[Look]]], ...] = (
    (_IDS, probe_ids),
    ("logprobs aligned", probe_alignment),
    ("stop ids", probe_stop),
    ("logprob meaning", probe_logprobs),
    ("prefix cache", probe_cache),
    ("weight control", probe_weights),
    ("errors", probe_errors),
)


@dataclass(frozen=True, slots=True)
class Question:
    """Which endpoint to look at, and with what.

    Args:
        url: The server's root, with or without `/v1`.
        transport: A member of `TRANSPORTS`, or `AUTO` to recognise it.
        model: None means the only one.
        api_key: Sent as a bearer token; never shown.
        timeout_s: For everything together.
        renderer: The model's tokenizer and template, when they are at hand.
    """

    url: str
    transport: str = AUTO
    model: str | None = None
    api_key: str | None = None
    timeout_s: float = 30.0
    renderer: Renderer | None = None


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found."""

    url: str
    engine: str
    version: str
    transport: str
    model: str
    findings: tuple[Finding, ...]

    @property
    def can_train(self) -> bool:
        """Whether nothing was found that forbids training on what is sampled here."""
        return all(finding.level is not Level.FAIL for finding in self.findings)


async def examine(question: Question) -> Examination:
    """Look at an endpoint: about twenty requests for a few tokens, and nothing that changes it or may kill it.

    Raises:
        ConfigError: The URL is none, or the model is not served, or several are and none was named.
        EngineError: What answers is no inference engine, or does not let us in.
        TransportError: Nothing answers.
    """
    until = time.monotonic() + question.timeout_s
    asked = HttpEngine(
        question.url, VllmTransport(), api_key=question.api_key, timeout_s=question.timeout_s, max_retries=0
    )
    async with asked:
        cards = await asked.exchange(VllmTransport().write_models(), VllmTransport().read_models)
        card = _chosen(cards, question.model)
        engine, version = await _who_answers(asked, card)
    name = question.transport if question.transport != AUTO else engine or VLLM
    server = HttpEngine(
        question.url, TRANSPORTS[name], api_key=question.api_key, timeout_s=question.timeout_s, max_retries=0
    )
    async with server:
        info = EngineInfo(engine or name, version, tuple(card.id for card in cards), card.context_limit)
        prompt_ids, source = await _prompt(server, engine, card.id, question.renderer)
        by_ids = DynamoEngine(server) if name == DYNAMO else server
        patient = Patient(
            server, by_ids, TRANSPORTS[name], engine, info, card.id, prompt_ids, source, question.renderer
        )
        findings = [_introduction(patient, version, name), *await _all_looks(patient, until)]
    return Examination(question.url, engine, version, name, card.id, tuple(findings))


def _chosen(cards: tuple[ModelCard, ...], model: str | None) -> ModelCard:
    names = ", ".join(card.id for card in cards) or "none"
    if model is None and len(cards) != 1:
        raise ConfigError(f"give --model: the server serves {names}")
    for card in cards:
        if model in (None, card.id):
            return card
    raise ConfigError(f"the server does not serve {model!r}; it serves {names}")


async def _who_answers(server: HttpEngine, card: ModelCard) -> tuple[str, str]:
    for call in identity_calls(_OWNERS.get(card.owner, VLLM)):
        found = await server.exchange(call, partial(read_identity, call))
        if found is not None:
            return found.engine, found.version
    return _OWNERS.get(card.owner, ""), ""


async def _prompt(server: HttpEngine, engine: str, model: str, renderer: Renderer | None) -> tuple[TokenIds, str]:
    """A prompt whose ids the server knows: best as it renders one itself."""
    messages = (Message("user", "Tell me a story about a fox."),)
    unknown = EngineInfo(engine, "", (model,), None)
    nobody = Patient(server, server, VllmTransport(), engine, unknown, model, _SAFE_IDS, "")
    try:
        ids = await rendered_by_server(nobody, messages)
    except (EngineError, CallerError, ConnectionLostError):
        # It tells no ids of messages, for whatever reason: the probes say more of it.
        ids = None
    if ids is not None and len(ids):
        return ids, "as the server renders a message"
    # A wrong tokenizer's ids would kill SGLang.
    if renderer is not None and engine != SGLANG:
        return renderer.render_ids(messages), "a message as the given template renders it"
    return _SAFE_IDS, "small ids, which every vocabulary has"


def _introduction(patient: Patient, version: str, transport: str) -> Finding:
    who = " ".join(part for part in (_NAMES.get(patient.engine, ""), version) if part)
    serves = f"serves {', '.join(patient.info.models)}; spoken to as {transport!r}"
    if not who:
        evidence = f"an engine that does not say which one; {serves}"
        return Finding("engine", Level.WARN, evidence, "give --transport: it was not recognised")
    if patient.engine != transport:
        evidence = f"{who}; {serves}"
        return Finding("engine", Level.NOTE, evidence, f"--transport auto would take {patient.engine!r}")
    return Finding("engine", Level.OK, f"{who}; {serves}")


async def _all_looks(patient: Patient, until: float) -> list[Finding]:
    told = context_told(patient)
    findings = [Finding("context limit", told.level, told.evidence, told.advice)]
    findings += [await _look(name, probe, patient, until) for name, probe in _BEFORE]
    routes = next(finding for finding in findings if finding.name == _ROUTES)
    if routes.level is Level.FAIL:
        why = "not looked at: there is no token route"
        return [*findings, *(Finding(name, Level.NOTE, why) for name, _ in _BY_IDS)]
    for at, (name, probe) in enumerate(_BY_IDS):
        findings.append(await _look(name, probe, patient, until))
        if name == _IDS and findings[-1].level is Level.FAIL:
            why = "not looked at: the ids of the prompt are not used"
            return [*findings, *(Finding(left, Level.NOTE, why) for left, _ in _BY_IDS[at + 1 :])]
    return findings


async def _look(name: str, probe: Callable[[Patient], Awaitable[Look]], patient: Patient, until: float) -> Finding:
    left_s = until - time.monotonic()
    if left_s <= 0:
        return Finding(name, Level.WARN, "not looked at: the time was over", "give more with --timeout")
    try:
        async with asyncio.timeout(left_s):
            look = await probe(patient)
    except TimeoutError:
        return Finding(name, Level.WARN, f"no answer within {left_s:.0f} s", "give more with --timeout")
    except TransportError as exc:
        return Finding(name, Level.FAIL, f"the server went away: {exc}", "look at the server's log")
    except TokentrueError as exc:
        return Finding(name, Level.FAIL, f"{type(exc).__name__}: {exc}")
    return Finding(name, look.level, look.evidence, look.advice)
