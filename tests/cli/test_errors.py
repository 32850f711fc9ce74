"""Every way to fail is one line on standard error, with an exit code that says whose fault it is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.conftest import COMMAND, failure_of, run_command
from tokentrue.engines.embedded.engine import MODEL_FOLDER
from tokentrue.rollouts.record import RecordForm, open_record

ROLLOUT = ("rollout", "--env", "calculator", "--episodes", 1, "--max-turns", 1, "--max-tokens", 4)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--episodes", "0"), "'--episodes'"),
        (("--episodes", "many"), "'--episodes'"),
        (("--concurrency", "0"), "'--concurrency'"),
        (("--temperature", "9"), "temperature=9.0 is outside"),
        (("--top-p", "0"), "top_p=0.0 is outside"),
        (("--top-k", "-7"), "top_k=-7 must be at least"),
        (("--max-tokens", "0"), "max_tokens=0 must be at least 1"),
        (("--max-turns", "0"), "'--max-turns'"),
        (("--episode-timeout", "0"), "'--episode-timeout'"),
        (("--transport", "carrier-pigeon"), "'vllm', 'dynamo'"),
        (("--engine", "ftp://host"), "neither 'embedded', nor an http(s) URL, nor a folder"),
        (("--engine", "http://user:pw@host"), "carries a user or a password"),
        (("--model", "gpt-5"), "serves 'tokentrue-embedded', not 'gpt-5'"),
        (("--api-key-env", "KEY"), "for a server"),
        (("--env", "chess"), "names no environment"),
        (("--env", "no_such_module:Env"), "no module 'no_such_module'"),
        (("--env", "no/such/file.py:Env"), "no file 'no/such/file.py'"),
        (("--env", "json:JSONDecoder"), "no subclass"),
        (("--colour", "green"), "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_value_is_the_callers_fault(args: tuple[str, ...], words: str, out: Path) -> None:
    failure = failure_of(run_command(*ROLLOUT, "--out", out, *args))
    assert failure.code == 2
    assert words in failure.line
    assert not out.exists()


def test_a_missing_option_is_named() -> None:
    failure = failure_of(run_command("rollout", "--env", "calculator"))
    assert failure.code == 2
    assert "'--out'" in failure.line


def test_an_unknown_command_is_named() -> None:
    failure = failure_of(run_command("dance"))
    assert failure.code == 2
    assert "'dance'" in failure.line


def test_a_dead_server_is_named_at_once(out: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        failure = failure_of(run_command(*ROLLOUT, "--engine", url, "--out", out))
    assert failure.code == 1
    assert url in failure.line
    assert "is the server running" in failure.line
    assert not out.exists()


def test_an_unknown_model_is_answered_with_those_served(serve: Callable[..., str], out: Path) -> None:
    failure = failure_of(run_command(*ROLLOUT, "--engine", serve("a", "b"), "--model", "c", "--out", out))
    assert failure.code == 2
    assert "'c'" in failure.line
    assert "'a', 'b'" in failure.line


def test_several_models_and_no_choice_is_an_error(serve: Callable[..., str], out: Path) -> None:
    failure = failure_of(run_command(*ROLLOUT, "--engine", serve("b", "a"), "--out", out))
    assert failure.code == 2
    assert "give --model: a, b" in failure.line


@pytest.mark.parametrize("status", [404, 500, 503])
def test_a_server_that_does_not_answer_is_the_engines_fault(
    serve: Callable[..., str], status: int, out: Path
) -> None:
    failure = failure_of(run_command(*ROLLOUT, "--engine", serve("m", status=status), "--out", out))
    assert failure.code == 1
    assert not out.exists()


BROKEN_ENV = """
from tokentrue import SingleTurnEnv

class Env(SingleTurnEnv):
    def make_task(self, index, seed):
        return index
    def setup(self, task, seed):
        return {}["question"]
"""


def test_a_start_that_failed_leaves_its_folder_free_and_names_the_line(out: Path, tmp_path: Path) -> None:
    """Every episode crashes before a token is sampled; the mended environment takes the same --out."""
    environment = tmp_path / "mine.py"
    environment.write_text(BROKEN_ENV)
    args = ("rollout", "--env", f"{environment}:Env", "--episodes", 3, "--max-tokens", 8, "--out", out)
    done = run_command(*args)
    line = BROKEN_ENV[: BROKEN_ENV.index("question")].count("\n") + 1
    assert done.returncode == 1
    assert f"the first: KeyError: 'question' ({environment}:{line} in setup)" in done.stderr
    assert f"record     none: nothing was sampled, and {out} is free again" in done.stdout
    assert not out.exists()
    mended = BROKEN_ENV.replace('{}["question"]', 'EpisodeState(task, seed, [Message("user", "hi")])')
    environment.write_text(mended.replace("import", "import EpisodeState, Message,"))
    assert run_command(*args).returncode == 0
    assert len(open_record(out).episodes()) == 3


def test_the_list_says_which_error_and_where(out: Path, tmp_path: Path) -> None:
    environment = tmp_path / "mine.py"
    working = BROKEN_ENV.replace('{}["question"]', 'EpisodeState(task, seed, [Message("user", "hi")])')
    environment.write_text(
        working.replace("import", "import EpisodeState, Message,")
        + "    def reward(self, messages, state):\n        import json\n        return json.loads('{')\n"
    )
    args = ("rollout", "--env", f"{environment}:Env", "--episodes", 2, "--max-tokens", 8, "--out", out)
    assert run_command(*args).returncode == 1
    lines = run_command("inspect", out, "--list").stdout.splitlines()
    assert "in reward: JSONDecodeError: " in lines[1]
    assert lines[1].endswith("in reward)")
    assert max(map(len, lines)) <= 100
    rows = [json.loads(row) for row in run_command("inspect", out, "--list", "--json").stdout.splitlines()]
    assert {(row["error_type"], row["error_phase"]) for row in rows} == {
        ("json.decoder.JSONDecodeError", "reward")
    }
    # Not the line of `json` that raised it: the one of the environment that called it.
    assert f"({environment}:{len(environment.read_text().splitlines())} in reward)" in rows[0]["error"]


def test_logprobs_without_an_episode_are_refused(record: Path) -> None:
    failure = failure_of(run_command("inspect", record, "--logprobs"))
    assert (failure.code, "--episode N" in failure.line) == (2, True)


def test_no_folder_is_made_for_a_page(record: Path, tmp_path: Path) -> None:
    page = tmp_path / "slip" / "page.html"
    failure = failure_of(run_command("inspect", record, "--html", page))
    assert failure.code == 2
    assert f"{page} cannot be written: there is no folder {page.parent}" in failure.line
    assert not page.parent.exists()
    assert run_command("inspect", record, "--html", tmp_path / "page.html").returncode == 0


def test_an_engine_without_the_token_route_says_so(serve: Callable[..., str], out: Path) -> None:
    """The only model is taken without asking, and the server knows no POST."""
    failure = failure_of(run_command(*ROLLOUT, "--engine", serve("m"), "--tokenizer", "embedded", "--out", out))
    assert failure.code == 1
    assert "does not serve the token route" in failure.line
    assert not out.exists()


def test_a_key_that_is_not_set_is_named(serve: Callable[..., str], out: Path) -> None:
    failure = failure_of(
        run_command(*ROLLOUT, "--engine", serve("m"), "--api-key-env", "NO_SUCH_KEY", "--out", out)
    )
    assert failure.code == 2
    assert "'NO_SUCH_KEY'" in failure.line


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", "{", "is no tokenizer"),
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("chat_template.jinja", "{% if %}", "template"),
        ("tokenizer_config.json", "[]", "must hold a JSON object"),
        ("generation_config.json", '{"eos_token_id": "x"}', "is not an integer"),
    ],
)
def test_an_unreadable_tokenizer_folder_is_named(
    tmp_path: Path, out: Path, name: str, content: str | None, words: str
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(MODEL_FOLDER, folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    failure = failure_of(run_command(*ROLLOUT, "--tokenizer", folder, "--out", out))
    assert failure.code == 2
    assert words in failure.line


def test_a_tokenizer_folder_that_is_not_there_is_named(out: Path) -> None:
    failure = failure_of(run_command(*ROLLOUT, "--tokenizer", "/no/such/folder", "--out", out))
    assert failure.code == 2
    assert "/no/such/folder" in failure.line


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(MODEL_FOLDER, folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    data["added_tokens"][-1]["special"] = True
    (folder / "tokenizer.json").write_text(json.dumps(data))
    failure = failure_of(run_command(*ROLLOUT, "--tokenizer", folder, "--out", out))
    assert failure.code == 2
    assert "is not the one of the model" in failure.line


def test_a_folder_without_a_model_is_refused_as_an_engine(tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL_FOLDER, folder)
    (folder / "model.safetensors").unlink()
    failure = failure_of(run_command(*ROLLOUT, "--engine", folder, "--out", out))
    assert failure.code == 2
    assert "cannot read the weights" in failure.line


def test_a_taken_folder_is_left_alone(out: Path) -> None:
    out.mkdir()
    (out / "mine").write_text("precious")
    failure = failure_of(run_command(*ROLLOUT, "--out", out))
    assert failure.code == 2
    assert "is not an empty folder" in failure.line
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_file_as_out_is_refused(out: Path) -> None:
    out.write_text("precious")
    assert failure_of(run_command(*ROLLOUT, "--out", out)).code == 2
    assert out.read_text() == "precious"


def test_an_out_that_cannot_be_made_is_the_records_fault() -> None:
    failure = failure_of(run_command(*ROLLOUT, "--out", "/proc/no/record"))
    assert failure.code == 1
    assert "/proc/no/record" in failure.line


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only a privileged user can mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line(tiny_disk: Path) -> None:
    args = ("rollout", "--env", "calculator", "--episodes", 64, "--out", tiny_disk / "out")
    failure = failure_of(run_command(*args))
    assert failure.code == 1
    assert "No space left on device" in failure.line


def test_a_page_on_a_full_disk_is_one_line(record: Path) -> None:
    failure = failure_of(run_command("inspect", record, "--html", "/dev/full"))
    assert failure.code == 1
    assert "/dev/full cannot be written: No space left on device" in failure.line


@pytest.mark.parametrize("args", [(), ("--list",), ("--episode", 0), ("--json",)], ids=str)
def test_a_full_standard_output_is_one_line(record: Path, args: tuple[object, ...]) -> None:
    with open("/dev/full", "w") as full:
        failure = failure_of(run_command("inspect", record, *args, stdout=full))
    assert failure.code == 1
    assert "standard output cannot be written: No space left on device" in failure.line


@pytest.mark.parametrize("command", ["inspect", "rollout", "--help"])
def test_a_closed_pipe_is_silent(record: Path, out: Path, command: str) -> None:
    """As when `head` has seen enough: the exit code is what a shell gives a process that SIGPIPE ended."""
    args = {"inspect": ("inspect", record), "rollout": (*ROLLOUT, "--out", out), "--help": ("--help",)}[command]
    reading, writing = os.pipe()
    os.close(reading)
    done = run_command(*args, stdout=writing)
    os.close(writing)
    assert done.returncode == 141
    assert "tokentrue:" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    if command == "rollout":
        assert open_record(out).form is RecordForm.CLOSED


WAITING_ENV = """
import asyncio
from tokentrue.messages import Message
from tokentrue.rollouts.environment import EpisodeState, MultiTurnEnv, Truncation

class Waits(MultiTurnEnv):
    max_turns = 3
    on_truncation = Truncation.CONTINUE
    def make_task(self, index, seed):
        return index
    def setup(self, task, seed):
        return EpisodeState(task, seed, [Message(role="user", content="hello")])
    async def env_response(self, messages, state):
        print("turn", flush=True)
        await asyncio.Event().wait()
"""


def test_ctrl_c_leaves_a_valid_record(tmp_path: Path, out: Path) -> None:
    environment = tmp_path / "waits.py"
    environment.write_text(WAITING_ENV)
    args = ["rollout", "--env", f"{environment}:Waits", "--episodes", "3", "--concurrency", "2", "--out", str(out)]
    with subprocess.Popen(
        [*COMMAND, *args, "--max-tokens", "4"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
        code = process.wait(timeout=60)
    assert line == "turn\n"
    assert code == 130
    assert errors.count("\n") == 1
    assert f"interrupted: the record in {out} is valid and holds" in errors
    reader = open_record(out)
    assert reader.form is RecordForm.CLOSED
    assert next(reader.turns()).turn.index == 0
    assert failure_free(run_command("inspect", out))


def failure_free(done: subprocess.CompletedProcess[str]) -> bool:
    return done.returncode == 0 and not done.stderr


def test_no_record_is_named(tmp_path: Path) -> None:
    failure = failure_of(run_command("inspect", tmp_path / "nothing"))
    assert failure.code == 2
    assert "nothing does not exist" in failure.line
    (tmp_path / "empty").mkdir()
    failure = failure_of(run_command("inspect", tmp_path / "empty"))
    assert failure.code == 1
    assert "it is no record" in failure.line


def test_a_folder_of_records_names_them(record: Path) -> None:
    failure = failure_of(run_command("inspect", record.parent))
    assert failure.code == 2
    assert str(record) in failure.line


def test_a_server_of_another_model_needs_its_tokenizer(serve: Callable[..., str], out: Path) -> None:
    failure = failure_of(run_command(*ROLLOUT, "--engine", serve("m"), "--out", out))
    assert failure.code == 2
    assert "--tokenizer is needed: a folder with the tokenizer and chat template of 'm'" in failure.line
    assert not out.exists()


def test_a_broken_record_is_named(record: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(record, copy)
    (copy / "turns.parquet").write_bytes(b"not parquet")
    failure = failure_of(run_command("inspect", copy))
    assert failure.code == 1
    assert "turns.parquet is broken" in failure.line


def test_an_episode_that_is_not_there_is_named(record: Path) -> None:
    failure = failure_of(run_command("inspect", record, "--episode", 7))
    assert failure.code == 2
    assert "its episodes are 0 to 2" in failure.line


def test_json_goes_with_no_episode(record: Path) -> None:
    assert failure_of(run_command("inspect", record, "--episode", 0, "--json")).code == 2


@pytest.mark.parametrize("changed", ["tokenizer", "chat template"])
def test_another_tokenizer_than_the_runs_is_refused(record: Path, tmp_path: Path, changed: str) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(MODEL_FOLDER, folder)
    path = folder / ("tokenizer.json" if changed == "tokenizer" else "chat_template.jinja")
    path.write_text(path.read_text() + "\n{#- other -#}\n" * (changed != "tokenizer") + "\n")
    failure = failure_of(run_command("inspect", record, "--episode", 0, "--tokenizer", folder))
    assert failure.code == 2
    assert f"the {changed} in" in failure.line
    assert "is not the one of this run" in failure.line


def test_a_tokenizer_folder_that_has_moved_is_asked_for(record: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(record, copy)
    content = json.loads((copy / "run.json").read_text())
    content["config"]["tokenizer"] = "/gone/for/good"
    (copy / "run.json").write_text(json.dumps(content))
    failure = failure_of(run_command("inspect", copy, "--episode", 0))
    assert failure.code == 2
    assert "give --tokenizer" in failure.line
    assert failure_free(run_command("inspect", copy, "--episode", 0, "--tokenizer", MODEL_FOLDER))


def test_the_demo_plays_on_the_embedded_engine_only(tmp_path: Path) -> None:
    failure = failure_of(run_command("demo", "--engine", "http://127.0.0.1:9", "--out", tmp_path / "demo"))
    assert failure.code == 2
    assert "tokentrue rollout" in failure.line
