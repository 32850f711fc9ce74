"""`tokentrue doctor` on a real Dynamo: one that works, and one that ignores the ids."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from servers.pasted_config import play_pasted

pytestmark = pytest.mark.dynamo


def doctor(*args: object) -> tuple[int, dict, dict]:
    """Exit code, report, and findings by name."""
    command = [sys.executable, "-c", "from tokentrue.cli.main import main; main()", "doctor", *map(str, args)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    return done.returncode, report, {finding["name"]: finding for finding in report["findings"]}


@pytest.mark.parametrize("tokenizer", [["--tokenizer", "embedded"], []])
def test_a_working_frontend_is_known_and_the_configuration_works(dynamo, tmp_path, tokenizer) -> None:
    model = dynamo.embedded.kind.model_name
    code, report, found = doctor(dynamo.frontend.url, "--model", model, *tokenizer)
    assert (code, report["engine"], report["version"], report["transport"]) == (0, "dynamo", "1.6.1", "dynamo")
    assert found["tokenizer"]["level"] == ("ok" if tokenizer else "note")
    for name in ("ids honoured", "logprobs aligned", "stop ids", "logprob meaning", "errors"):
        assert found[name]["level"] == "ok", found[name]
    assert "ids travel by /inference/v1/generate" in found["token routes"]["evidence"]
    assert found["logprob meaning"]["evidence"].startswith("raw: ")
    assert "DYN_ENABLE_RL=1" in found["weight control"]["advice"]
    play_pasted(report["config"], tmp_path, model)


def test_without_the_token_route_ids_travel_on_the_chat_route(dynamo) -> None:
    model = dynamo.embedded.kind.model_name
    code, _, found = doctor(dynamo.chatty.url, "--model", model, "--tokenizer", "embedded")
    assert code == 0
    assert "ids travel as nvext.token_data" in found["token routes"]["evidence"]
    assert "; echoed" in found["ids honoured"]["evidence"]


def test_a_frontend_that_ignores_nvext_is_good_enough_with_the_token_route(dynamo) -> None:
    """Its chat route answers placeholders; ids travel by the other one."""
    frontend = dynamo.server.start_frontend("half-deaf", {"DYN_DISABLE_FRONTEND_NVEXT": "1"})
    dynamo.server.wait_ready()
    model = dynamo.embedded.kind.model_name
    code, _, found = doctor(frontend.url, "--model", model, "--tokenizer", "embedded")
    assert code == 0, [finding for finding in found.values() if finding["level"] == "fail"]
    assert found["ids honoured"]["level"] == "ok"
    assert found["prefix cache"]["level"] == "note"


def test_a_frontend_that_ignores_the_ids_is_found_out(dynamo) -> None:
    """It answers 200, from the placeholder message."""
    model = dynamo.embedded.kind.model_name
    code, report, found = doctor(dynamo.forgetful.url, "--model", model, "--tokenizer", "embedded")
    assert (code, report["can_train"]) == (1, False)
    assert found["ids honoured"]["level"] == "fail"
    assert "DYN_DISABLE_FRONTEND_NVEXT" in found["ids honoured"]["advice"]
    assert "not used" in found["stop ids"]["evidence"]
