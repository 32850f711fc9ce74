"""`tokentrue certify`: a table for a person, JSON for a program, and an exit code for a script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.conftest import failure_of, run_command
from templates.families import FAMILIES, family_renderer
from tokentrue.cli.certify import certificate_lines, outcome, retention
from tokentrue.rendering.certificate import Verdict


def test_a_template_that_is_bridged_throughout_ends_with_zero() -> None:
    done = run_command("certify", "embedded")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:7]] == [
        "folder", "template", "stops", "close", "prompt", "reasoning", "tools"
    ]  # fmt: skip
    assert lines[-1].endswith("that the template renders are bridged")
    assert max(map(len, lines)) <= 200


def test_the_policy_for_spelled_markers_is_told() -> None:
    told = run_command("certify", "embedded", "--spelled-markers", "escape").stdout
    assert "spelled in a message: kept plain text" in told
    value = json.loads(run_command("certify", "embedded", "--json").stdout)
    assert value["spelled_markers"] == "as_template"
    assert value["control_markers"] > 0


def test_json_holds_the_same_findings() -> None:
    done = run_command("certify", "embedded", "--json", "--tools")
    value = json.loads(done.stdout)
    assert done.returncode == 0
    assert value["bridged"] is True
    assert all(finding["tools"] for finding in value["findings"])
    assert {finding["outcome"] for finding in value["findings"]} <= {
        "exact",
        "junction",
        "rewritten",
        "not rendered",
    }
    assert value["close"] in [stop["text"] for stop in value["stops"]]


def test_a_template_that_is_refused_ends_with_one(tmp_path: Path) -> None:
    source = json.loads(run_command("certify", "embedded", "--json").stdout)["folder"]
    for name in ("tokenizer.json", "generation_config.json"):
        if (Path(source) / name).is_file():
            (tmp_path / name).write_bytes((Path(source) / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}"
    )
    done = run_command("certify", tmp_path, "--stop-id", 1)
    assert (done.returncode, done.stderr) == (1, "")
    assert "no_atomic_close: no stop token stands between" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent"], "absent is not a folder"),
        (["embedded", "--template-kwargs", "{"], "--template-kwargs is not valid JSON"),
        (["embedded", "--template-kwargs", "[]"], "must be a JSON object, not '[]'"),
    ],
)
def test_a_wrong_value_is_one_line(arguments: list[str], says: str) -> None:
    failure = failure_of(run_command("certify", *arguments))
    assert failure.code == 2
    assert says in failure.line


def test_a_rewritten_history_is_shown_as_both_texts() -> None:
    from rendering.conftest import QWEN_LIKE
    from templates.families import Family

    rewriting = Family(
        "qwen_like",
        QWEN_LIKE,
        ("<tool_call>", "</tool_call>", "<|im_start|>", "<|im_end|>"),
        "",
        stops=("<|im_end|>",),
    )
    renderer = family_renderer(rewriting)
    findings = list(renderer.certificate.findings)
    assert "rewritten" in {outcome(finding) for finding in findings}
    text = "\n".join(certificate_lines(renderer, findings))
    assert "\n    sampled '" in text
    assert "\n    rendered '" in text
    assert retention(renderer.certificate) == "kept before tool results, cut when a user message follows"


def test_what_a_template_refuses_itself_is_not_held_against_it() -> None:
    bare = family_renderer(next(family for family in FAMILIES if family.name == "bare"))
    refused = [f for f in bare.certificate.findings if f.verdict is Verdict.REFUSED]
    assert [outcome(finding) for finding in refused] == ["not rendered"]
    assert "one call" in refused[0].detail
