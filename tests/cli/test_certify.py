"""`tokentrue certify`: a table for a person, JSON for a program, and an exit code for a script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.conftest import failure_of, run_command
from real_tokenizers import SHARED
from rendering_folders import write_folder
from templates.at_hand import own_renderer
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
        (["./absent"], "absent is not a folder"),
        (["absent/model"], "hf download absent/model --include"),
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


DROPS_TOOLS = (
    "{%- for m in messages %}{%- if m.role != 'tool' %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{{- '<|im_start|>assistant\\n' if add_generation_prompt else '<|endoftext|>' }}"
)
"""As phi-3: a tool's result is left out, and a conversation that asks for no answer ends with the end of text."""


def _folder_of(template: str, folder: Path) -> Path:
    write_folder(folder, template)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<|endoftext|>"}))
    return folder


def test_a_refusal_is_shown_by_its_smallest_conversation_and_both_texts(tmp_path: Path) -> None:
    done = run_command("certify", _folder_of(DROPS_TOOLS, tmp_path), "--tools")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith("tool, then user"))
    assert lines[at + 1 : at + 5] == [
        "    new_message_dropped: the template leaves out the text of message 2 (tool)",
        '    smallest user: What is 2 + 2? / assistant: qzName7 {"qzKey7": "value 0"} / tool: Result 0.',
        "    expected 'Result 0.'",
        "    template '<|im_end|>\\n<|im_start|>assistant\\n'",
    ]
    assert lines[-1] == "4 of 8 follow-ups that the template renders are bridged"


def test_json_has_the_facts_of_a_refusal(tmp_path: Path) -> None:
    done = run_command("certify", _folder_of(DROPS_TOOLS, tmp_path), "--tools", "--json")
    assert done.returncode == 1
    value = json.loads(done.stdout)
    assert (value["bridged"], value["bridged_follow_ups"], value["rendered_follow_ups"]) == (False, 4, 8)
    assert value["generation_prompt"] == "<|im_start|>assistant\n"
    found = next(each for each in value["findings"] if each["follow_up"] == "tool")
    assert found["outcome"] == "refused"
    assert found["conversation"][-1] == "tool: Result 0."
    assert (found["expected"], found["template"]) == ("Result 0.", "<|im_end|>\n<|im_start|>assistant\n")
    assert all(not each["conversation"] for each in value["findings"] if each["outcome"] != "refused")


def test_what_only_the_bridge_keeps_is_told(tmp_path: Path) -> None:
    written = DROPS_TOOLS.replace("{%- if m.role != 'tool' %}", "{%- if true %}")
    done = run_command("certify", _folder_of(written, tmp_path), "--tools")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    at = next(at for at, line in enumerate(lines) if line.split()[:3] == ["tool", "yes", "rewritten"])
    assert lines[at + 1] == "    the template leaves sampled calls out of its history; only the bridge keeps them"
    assert lines[at + 2] == """    sampled 'qzName7 {"qzKey7": "value 0"}'"""
    assert "qzName7" not in lines[at + 3]


@pytest.mark.skipif(not (SHARED / "gpt-oss").is_dir(), reason=f"{SHARED}/gpt-oss is absent")
def test_reasoning_in_a_channel_is_reasoning() -> None:
    certificate = own_renderer("gpt-oss").certificate
    assert certificate.reasoning_format == "channel analysis"
    assert retention(certificate) == "kept before tool results, cut when a user message follows"
