"""`tokentrue doctor` on what is no engine, on a recorded SGLang, and on servers that break one promise each."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # `servers` is no part of the wheel

from servers.pasted_config import play_pasted  # noqa: E402
from servers.processes import free_ports  # noqa: E402
from servers.sglang_replay import CAPTURES, RECORDED_MODEL, SglangReplay  # noqa: E402

from cli.conftest import failure_of, run_command  # noqa: E402
from rendering_folders import write_folder  # noqa: E402

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMES = [
    *("engine", "context limit", "token routes", "tokenizer", "ids honoured", "logprobs aligned", "stop ids"),
    *("logprob meaning", "prefix cache", "weight control", "errors"),
]


@pytest.fixture
def sglang() -> Iterator[SglangReplay]:
    if not CAPTURES.exists():
        pytest.skip("the recorded SGLang is not on this machine (../shared/captures/sglang)")
    with SglangReplay() as server:
        yield server


def found(done) -> dict[str, dict[str, str]]:
    """The findings by name."""
    return {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}


def test_a_recorded_sglang_passes_and_lives(sglang, tmp_path) -> None:
    """Everything is looked at with ids that the server told itself; the configuration plays a rollout."""
    done = run_command("doctor", sglang.url, "--tokenizer", "embedded", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["engine"], report["version"], report["transport"]) == ("sglang", "0.5.23", "sglang")
    assert report["can_train"] is True
    findings = found(done)
    assert list(findings) == NAMES
    assert {name for name, finding in findings.items() if finding["level"] != "ok"} == {"errors"}
    assert findings["logprob meaning"]["evidence"].startswith("scaled: ")
    assert "included, as last of" in findings["stop ids"]["evidence"]
    assert "255 read from the cache" in findings["prefix cache"]["evidence"]
    assert not sglang.is_dead
    assert len(sglang.asked) < 40
    assert len(play_pasted(report["config"], tmp_path, RECORDED_MODEL).turns) >= 2


def test_the_checklist_is_readable(sglang) -> None:
    """Lines of at most 100 columns, one mark each, the verdict, and TOML to paste."""
    done = run_command("doctor", sglang.url)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    heads = [line[6:24].strip() for line in lines if line[:6].strip() in ("ok", "note", "warn", "FAIL")]
    assert heads == NAMES
    assert "one can train on what this endpoint samples" in lines
    assert 'renderer_transport = "sglang"' in lines


def test_another_models_tokenizer_is_found_out_and_kills_nobody(sglang, tmp_path) -> None:
    """Its ids are compared with the server's and never sent: SGLang dies of an id outside its vocabulary."""
    done = run_command("doctor", sglang.url, "--tokenizer", write_folder(tmp_path, CHATML), "--json")
    assert failure_of(done).code == 1
    assert found(done)["tokenizer"]["level"] == "fail"
    assert "ids here and" in found(done)["tokenizer"]["evidence"]
    assert json.loads(done.stdout)["can_train"] is False
    assert "renderer =" not in json.loads(done.stdout)["config"].replace("# ", "")
    assert not sglang.is_dead


def test_a_dead_port_is_one_line() -> None:
    failure = failure_of(run_command("doctor", f"http://127.0.0.1:{free_ports(1)[0]}"))
    assert failure.code == 1
    assert "does a server listen there" in failure.line


def test_a_port_that_never_answers_is_one_line_that_names_the_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        failure = failure_of(run_command("doctor", f"http://127.0.0.1:{silent.getsockname()[1]}", "--timeout", 1))
    assert failure.code == 1
    assert "no whole answer within 1.0 s (timeout_s)" in failure.line
    assert "listen" not in failure.line, "somebody does"


def test_https_where_http_is_spoken_is_one_line(serve) -> None:
    failure = failure_of(run_command("doctor", serve("m").replace("http:", "https:")))
    assert failure.code == 1
    assert "http or https" in failure.line


@pytest.mark.parametrize(
    ("status", "told"), [(404, "serves no /v1/models"), (401, "--api-key-var"), (500, "answers")]
)
def test_what_is_no_engine_or_lets_nobody_in_is_one_line(serve, status, told) -> None:
    failure = failure_of(run_command("doctor", serve("m", status=status)))
    assert failure.code == 1
    assert told in failure.line


def test_a_web_page_is_no_engine(tmp_path) -> None:
    """A plain HTTP server that lists a folder."""
    import http.server
    import threading

    class Pages(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            body = b"<html><body>Welcome to nginx!</body></html>"
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        failure = failure_of(run_command("doctor", f"http://127.0.0.1:{server.server_address[1]}"))
        server.shutdown()
    assert failure.code == 1
    assert "not as an inference engine does" in failure.line


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["ftp://x"], "must be http://host"),
        (["http://127.0.0.1:9", "--api-key-var", "TOKENTRUE_NOT_SET"], "'TOKENTRUE_NOT_SET' is not set"),
        (["http://127.0.0.1:9", "--tokenizer", "/nowhere"], "/nowhere"),
        (["http://127.0.0.1:9", "--transport", "triton"], "triton"),
        (["http://127.0.0.1:9", "--timeout", "0"], "timeout"),
    ],
)
def test_a_wrong_argument_is_the_callers_fault(args, told) -> None:
    failure = failure_of(run_command("doctor", *args))
    assert failure.code == 2
    assert told in failure.line


def test_the_model_has_to_be_named_where_there_are_several(serve) -> None:
    failure = failure_of(run_command("doctor", serve("one", "two")))
    assert (failure.code, "it serves one, two" in failure.line or "serves one, two" in failure.line) == (2, True)
    assert "'three'" in failure_of(run_command("doctor", serve("one", "two"), "--model", "three")).line


def test_an_engine_that_always_says_the_same_is_no_engine_to_train_on(serve) -> None:
    """It echoes the ids, and samples the same eight whatever it is asked for."""
    done = run_command("doctor", serve("m", sampled=(5, 6, 7, 8, 9, 10, 11, 12)), "--json")
    assert failure_of(done).code == 1
    findings = found(done)
    assert findings["engine"]["level"] == "warn"
    assert "was not recognised" in findings["engine"]["advice"]
    assert findings["token routes"]["level"] == "ok"
    assert findings["ids honoured"]["level"] == "fail"
    assert "contradicts the request" in findings["ids honoured"]["evidence"]
    assert "not looked at" in findings["stop ids"]["evidence"]
    assert findings["context limit"]["level"] == "note"
    assert json.loads(done.stdout)["can_train"] is False


def test_the_key_is_sent_and_never_shown(serve, monkeypatch) -> None:
    monkeypatch.setenv("TOKENTRUE_DOCTOR_KEY", "sk-secret-of-the-doctor")
    keys: list[str] = []
    url = serve("m", sampled=(5, 6, 7, 8), authorization=keys)
    done = run_command("doctor", url, "--api-key-var", "TOKENTRUE_DOCTOR_KEY")
    assert set(keys) == {"Bearer sk-secret-of-the-doctor"}
    assert "sk-secret" not in done.stdout + done.stderr
    assert 'api_key_var = "TOKENTRUE_DOCTOR_KEY"' in done.stdout
