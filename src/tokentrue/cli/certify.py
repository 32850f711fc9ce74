"""`tokentrue certify`: what can be proved about a chat template, by kind of follow-up."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Any

import click

from tokentrue.cli.door import CommandFailed, ExitCode
from tokentrue.cli.report import WIDTH
from tokentrue.config import SPELLED_MARKERS
from tokentrue.errors import ConfigError
from tokentrue.rendering.certificate import Certificate, Finding, FollowUpKind, Verdict
from tokentrue.rendering.formats.tool_calls import CallsWritten
from tokentrue.rendering.renderer import Renderer, load_renderer
from tokentrue.rendering.spelled import MarkerPolicy
from tokentrue.turns import Junction

_ABSENT = "none"
_UNREAD = {
    CallsWritten.UNREAD: "written by the template, and not read: no known grammar reads them back",
    CallsWritten.DROPPED: "none: the template writes no calls",
    CallsWritten.REFUSED: "none: the template refuses a message with calls",
    CallsWritten.NOTHING: "none: the template renders no message without variables of its own",
}
_CANNOT_RENDER = "the chat template refuses these messages"
"""How a `TemplateRenderError` begins that is the template's own word: there is nothing to bridge then."""


@click.command()
@click.argument("folder", metavar="FOLDER|NAME")
@click.option(
    "--tools/--no-tools",
    "with_tools",
    default=None,
    help="Only the follow-ups with, or without, tools offered.  [default: both]",
)
@click.option(
    "--stop-id", "stop_ids", type=int, multiple=True, metavar="N", help="A further stop id; may be repeated."
)
@click.option(
    "--template-kwargs", metavar="JSON", help='Variables for the template, such as {"enable_thinking": false}.'
)
@click.option(
    "--spelled-markers",
    type=click.Choice(SPELLED_MARKERS),
    default=SPELLED_MARKERS[0],
    help="What becomes of message text that spells a special token; see `rollout`.  [default: as_template]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the certificate as JSON.")
def certify(folder: str, **options: Any) -> None:
    """Prove which follow-ups a template can be bridged for.

    FOLDER is a Hugging Face tokenizer folder; NAME is "embedded", or a model in the local Hugging
    Face cache, such as Qwen/Qwen3-8B (no hub is asked). Each probe is a short conversation, played as an
    engine would play it; the bridge is compared, id by id, with the full rendering.

    \b
    exact      the bridged prompt is the full rendering
    junction   the same, behind what was added where sampling stopped
    rewritten  what the bridge adds is what the template writes, but a full rendering would change
               earlier ids; only the bridge keeps what was sampled
    refused    no bridge can be proved; told are the reason, the smallest conversation that shows
               it, what a bridge would have to find in the template's text, and what it writes

    Exit code 0 when every follow-up that the template can render at all is bridged, else 1.

    The proof is kept in ~/.cache/tokentrue; TOKENTRUE_CACHE_DIR names another folder, or "off".
    """
    renderer = load_renderer(
        folder,
        template_kwargs=_template_kwargs(options["template_kwargs"]),
        stop_token_ids=options["stop_ids"],
        spelled_markers=options["spelled_markers"],
    )
    certificate = renderer.certificate
    wanted: bool | None = options["with_tools"]
    findings = [f for f in certificate.findings if wanted is None or f.with_tools == wanted]
    if options["as_json"]:
        click.echo(json.dumps(certificate_json(renderer, findings), ensure_ascii=False))
    else:
        for line in certificate_lines(renderer, findings):
            click.echo(line)
    if any(is_unbridged(finding) for finding in findings):
        raise CommandFailed(ExitCode.FAILED)


def _template_kwargs(text: str | None) -> Mapping[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--template-kwargs is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"--template-kwargs must be a JSON object, not {text!r}")
    return value


def is_unbridged(finding: Finding) -> bool:
    """Whether the template can render this follow-up, and yet no bridge was proved."""
    return finding.verdict is Verdict.REFUSED and not cannot_render(finding)


def cannot_render(finding: Finding) -> bool:
    """Whether the template itself refuses the conversation."""
    return finding.verdict is Verdict.REFUSED and _CANNOT_RENDER in finding.detail


def outcome(finding: Finding) -> str:
    """One word for a finding."""
    if finding.verdict is Verdict.REFUSED:
        return "not rendered" if cannot_render(finding) else "refused"
    if finding.verdict is Verdict.TEMPLATE_REWRITES_HISTORY:
        return "rewritten"
    is_plain = finding.verdict is Verdict.EXACT and finding.junction is Junction.EXACT
    return "exact" if is_plain else "junction"


def retention(certificate: Certificate) -> str:
    """What the template does with reasoning of earlier turns."""
    if certificate.reasoning_format is None:
        return _ABSENT
    exact = (Verdict.EXACT, Verdict.EXACT_BEHIND_JUNCTION)
    kept = {
        kind: any(f.kind is kind and f.verdict in exact for f in certificate.findings)
        for kind in (FollowUpKind.AFTER_REASONING, FollowUpKind.TOOL_AFTER_REASONING)
    }
    if kept[FollowUpKind.AFTER_REASONING]:
        return "kept"
    if kept[FollowUpKind.TOOL_AFTER_REASONING]:
        return "kept before tool results, cut when a user message follows"
    return "cut from history"


def certificate_json(renderer: Renderer, findings: list[Finding]) -> dict[str, Any]:
    """The certificate as JSON values."""
    certificate = renderer.certificate
    return {
        "folder": renderer.folder,
        "template_hash": certificate.template_hash,
        "tokenizer_hash": certificate.tokenizer_hash,
        "close": certificate.close,
        "stops": [{"id": i, "text": renderer.tokenizer.id_text(i)} for i in certificate.stop_ids],
        "generation_prompt": certificate.generation_prompt,
        "reasoning_format": certificate.reasoning_format,
        "reasoning_retention": retention(certificate),
        "tool_format": certificate.tool_format,
        "tool_calls": certificate.calls.value,
        "text_as_parts": list(certificate.text_as_parts),
        "spelled_markers": renderer.markers.policy.value,
        "control_markers": len(renderer.markers.markers.tokens),
        "stop_doubts": list(certificate.stop_doubts),
        "bridged": not any(is_unbridged(finding) for finding in findings),
        "bridged_follow_ups": _bridged(findings),
        "rendered_follow_ups": _rendered(findings),
        "findings": [
            {
                "follow_up": finding.kind.value,
                "tools": finding.with_tools,
                "outcome": outcome(finding),
                "junction": finding.junction.value if finding.junction is not None else None,
                "detail": finding.detail,
                "history_free": finding.history_free,
                "expected": finding.expected,
                "template": finding.template,
                "conversation": list(finding.conversation),
            }
            for finding in findings
        ],
    }


def certificate_lines(renderer: Renderer, findings: list[Finding]) -> list[str]:
    """The certificate in plain lines of at most 100 columns."""
    certificate = renderer.certificate
    stops = ", ".join(f"{renderer.tokenizer.id_text(i)} ({i})" for i in certificate.stop_ids)
    lines = [
        _row("folder", renderer.folder),
        _row("template", certificate.template_hash[:12]),
        _row("stops", stops),
        _row("close", certificate.close or _ABSENT),
        _row("prompt", repr(certificate.generation_prompt)),
        _row("reasoning", f"{certificate.reasoning_format or _ABSENT}; in history: {retention(certificate)}"),
        _row("tools", certificate.tool_format or _UNREAD[certificate.calls]),
        _row("content", _content(certificate)),
        _row("markers", f"{len(renderer.markers.markers.tokens)}; spelled in a message: {_spelled(renderer)}"),
        *(line for doubt in certificate.stop_doubts for line in textwrap.wrap(f"uncertain: {doubt}", 2 * WIDTH)),
        "",
        f"{'follow-up':<24}{'tools':<7}{'outcome':<14}{'junction':<16}history",
    ]
    for finding in findings:
        lines += _finding_lines(finding)
    told = f"{_bridged(findings)} of {_rendered(findings)} follow-ups that the template renders are bridged"
    return [*lines, "", told]


def _bridged(findings: list[Finding]) -> int:
    return sum(finding.verdict is not Verdict.REFUSED for finding in findings)


def _rendered(findings: list[Finding]) -> int:
    return sum(not cannot_render(finding) for finding in findings)


def _finding_lines(finding: Finding) -> list[str]:
    junction = finding.junction.value if finding.junction is not None else "-"
    history = "-" if finding.verdict is Verdict.REFUSED else "not needed" if finding.history_free else "needed"
    tools = "yes" if finding.with_tools else "no"
    line = f"{finding.kind.value:<24}{tools:<7}{outcome(finding):<14}{junction:<16}{history}"
    return [line, *(_cut(f"    {told}") for told in _told(finding))]


def _told(finding: Finding) -> list[str]:
    """What is behind a finding, one line each: the reason, the smallest case, and both texts."""
    if not finding.expected and not finding.template:
        return [" ".join(finding.detail.split())] if finding.detail else []
    if finding.verdict is Verdict.REFUSED:
        reason = finding.detail.partition(": expected ")[0]
        case = " / ".join(" ".join(each.split()) for each in finding.conversation)
        return [reason, f"smallest {case}", f"expected {finding.expected!r}", f"template {finding.template!r}"]
    # A rewritten history whose detail is its two texts needs no sentence.
    sentence = [] if finding.detail.startswith("sampled ") else [finding.detail]
    return [*sentence, f"sampled {finding.expected!r}", f"rendered {finding.template!r}"]


def _content(certificate: Certificate) -> str:
    roles = ", ".join(certificate.text_as_parts)
    return f"a list of text parts: {roles}; as text the template loses it" if roles else "text"


def _spelled(renderer: Renderer) -> str:
    escapes = renderer.markers.policy is MarkerPolicy.ESCAPE
    return "kept plain text" if escapes else "that token, as in an engine"


def _row(name: str, text: str) -> str:
    return _cut(f"{name:<11}{text}")


def _cut(line: str) -> str:
    return line if len(line) <= 2 * WIDTH else line[: 2 * WIDTH - 1] + "…"
