"""`tokentrue doctor` on a real vLLM: with everything switched on, and with the two flags left out."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from servers.pasted_config import play_pasted
from servers.plain_http import exchange
from servers.vllm.install import ensure_vllm
from servers.vllm.server import MODEL_NAME, VllmServer

from tokentrue.engines.embedded.engine import MODEL_FOLDER
from tokentrue.transports.models import models_call

pytestmark = pytest.mark.vllm


def doctor(*args: object) -> tuple[int, dict, dict]:
    """Exit code, report, and findings by name."""
    command = [sys.executable, "-c", "from tokentrue.cli.main import main; main()", "doctor", *map(str, args)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    return done.returncode, report, {finding["name"]: finding for finding in report["findings"]}


@pytest.mark.parametrize("tokenizer", [["--tokenizer", "embedded"], []])
def test_with_everything_on_one_can_train_and_the_configuration_works(vllm, tmp_path, tokenizer) -> None:
    code, report, found = doctor(vllm.url, *tokenizer)
    assert (code, report["can_train"], report["engine"], report["version"]) == (0, True, "vllm", "0.32.0")
    levels = {name: finding["level"] for name, finding in found.items()}
    assert levels == dict.fromkeys(levels, "ok") | ({} if tokenizer else {"tokenizer": "note"})
    assert "echoed" in found["ids honoured"]["evidence"]
    assert "not echoed" not in found["ids honoured"]["evidence"]
    assert found["logprob meaning"]["evidence"].startswith("raw: ")
    assert "224 read from the cache" in found["prefix cache"]["evidence"]
    assert "GET /weight_info tells 'default'" in found["weight control"]["evidence"]
    assert "OverlongPromptError" in found["errors"]["evidence"]
    assert exchange(vllm.url, models_call()).status == 200
    # Without a tokenizer the server parses tool calls, and this one was started without a parser.
    play_pasted(report["config"], tmp_path, MODEL_NAME, with_tools=bool(tokenizer))


def test_without_the_two_flags_it_says_which_ones(tmp_path) -> None:
    """No token route without --enable-scale-out, and nothing can be looked at that needs one."""
    left_out = frozenset({"--enable-scale-out", "--enable-prompt-tokens-details"})
    with VllmServer(ensure_vllm(), MODEL_FOLDER, tmp_path, left_out=left_out) as server:
        code, report, found = doctor(server.url, "--tokenizer", "embedded")
        assert (code, report["can_train"]) == (1, False)
        assert found["token routes"]["level"] == "fail"
        assert "--enable-scale-out" in found["token routes"]["advice"]
        assert found["tokenizer"]["level"] == "ok"
        assert "no token route" in found["ids honoured"]["evidence"]
        assert exchange(server.url, models_call()).status == 200


def test_scale_out_alone_leaves_the_cache_uncounted_and_the_weights_alone(tmp_path) -> None:
    settings = {"VLLM_SERVER_DEV_MODE": "0"}
    left_out = frozenset({"--enable-prompt-tokens-details"})
    flags = ("--logprobs-mode", "processed_logprobs")
    python = ensure_vllm()
    with VllmServer(python, MODEL_FOLDER, tmp_path, left_out=left_out, settings=settings, flags=flags) as server:
        code, _, found = doctor(server.url, "--tokenizer", "embedded")
        assert code == 0
        assert found["prefix cache"]["level"] == "note"
        assert "--enable-prompt-tokens-details" in found["prefix cache"]["advice"]
        assert found["logprob meaning"]["evidence"].startswith("processed: ")
        assert found["weight control"]["level"] == "note"
        assert "VLLM_SERVER_DEV_MODE=1" in found["weight control"]["advice"]
