"""A rollout from the command line: what it records, and that its seed decides everything."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.conftest import failure_of, run_command
from tokentrue import load_renderer
from tokentrue.cli.inspect import renderer_of
from tokentrue.engines.embedded.engine import MODEL_FOLDER
from tokentrue.rendering.spelled import MarkerPolicy
from tokentrue.rollouts.record import RecordForm, open_record

SHORT = ("--episodes", 2, "--max-turns", 2, "--max-tokens", 24)


def test_a_run_records_what_it_was(record: Path) -> None:
    reader = open_record(record)
    info = reader.info
    assert reader.form is RecordForm.CLOSED
    assert (info.model, info.transport, info.episodes, info.seed) == ("tokentrue-embedded", "embedded", 3, 0)
    assert info.engine.models == ("tokentrue-embedded",)
    assert (info.sampling.temperature, info.sampling.max_tokens) == (1.0, 80)
    assert info.config["tokenizer"] == "embedded"
    assert info.config["max_turns"] == 4
    assert info.tokenizer_hash
    assert info.template_hash
    assert {"python", "numpy"} <= set(info.versions)
    assert max(episode.turns for episode in reader.episodes()) <= 4


def test_the_policy_for_spelled_markers_is_recorded_and_found_again(tmp_path: Path) -> None:
    args = ("rollout", "--env", "calculator", *SHORT, "--spelled-markers", "escape", "--out", tmp_path / "run")
    assert run_command(*args).returncode == 0
    reader = open_record(tmp_path / "run")
    assert reader.info.config["spelled_markers"] == "escape"
    assert renderer_of(reader, None).markers.policy is MarkerPolicy.ESCAPE
    assert run_command("inspect", tmp_path / "run").returncode == 0


def test_the_seed_decides_every_id(tmp_path: Path) -> None:
    def ids(name: str, *args: object) -> list[list[int]]:
        done = run_command("rollout", "--env", "shop", *SHORT, *args, "--out", tmp_path / name, anew=True)
        assert (done.returncode, done.stderr) == (0, "")
        return [turn.turn.tokens.completion_ids.tolist() for turn in open_record(tmp_path / name).turns()]

    first = ids("first", "--seed", 5, "--concurrency", 1)
    assert ids("second", "--seed", 5, "--concurrency", 2) == first
    assert ids("third", "--seed", 6) != first


def test_a_folder_is_an_engine_under_its_own_name(tmp_path: Path) -> None:
    folder = tmp_path / "my-llama"
    shutil.copytree(MODEL_FOLDER, folder)
    done = run_command("rollout", "--env", "calculator", *SHORT, "--engine", folder, "--out", tmp_path / "run")
    assert (done.returncode, done.stderr) == (0, "")
    info = open_record(tmp_path / "run").info
    assert (info.model, info.config["tokenizer"]) == ("my-llama", str(folder))
    assert run_command("inspect", tmp_path / "run", "--episode", 0).returncode == 0


def test_a_server_is_an_engine(serve: Callable[..., str], tmp_path: Path) -> None:
    """The only model that it serves is the default, and every id that it sampled is recorded."""
    renderer = load_renderer(MODEL_FOLDER)
    sampled = (*renderer.tokenizer.encode("It is 4."), renderer.stop_ids[0])
    keys: list[str] = []
    url = serve("small", sampled=sampled, authorization=keys)
    args = ("rollout", "--env", "calculator", *SHORT, "--engine", url, "--api-key-env", "SMALL_KEY")
    args = (*args, "--tokenizer", "embedded")
    done = run_command(*args, "--out", tmp_path / "run", env={"SMALL_KEY": "s3cret"})
    assert (done.returncode, done.stderr) == (0, "")
    reader = open_record(tmp_path / "run")
    assert (reader.info.model, reader.info.transport, reader.info.engine.name) == ("small", "vllm", "vllm")
    turns = list(reader.turns())
    assert turns
    assert all(turn.turn.tokens.completion_ids == list(sampled) for turn in turns)
    assert set(keys) == {"Bearer s3cret"}
    assert b"s3cret" not in b"".join(path.read_bytes() for path in (tmp_path / "run").iterdir())


def test_a_server_with_another_vocabulary_is_found_out(serve: Callable[..., str], tmp_path: Path) -> None:
    """An id that the tokenizer does not have ends the episode with an error that names it."""
    url = serve("small", sampled=(100_000, 1))
    args = ("rollout", "--env", "calculator", *SHORT, "--engine", url, "--tokenizer", "embedded")
    done = run_command(*args, "--out", tmp_path / "run")
    failure = failure_of(done)
    assert failure.code == 1
    assert "100000 is outside the vocabulary" in failure.line


def test_the_environment_is_limited_for_this_run_only(tmp_path: Path) -> None:
    from tokentrue.cli.running import Limits, limited_environment

    limited = limited_environment("calculator", Limits(max_turns=1, episode_timeout_s=0.5))
    assert (limited.max_turns, limited.timeout_s) == (1, 0.5)
    plain = limited_environment("calculator", Limits())
    assert (plain.max_turns, plain.timeout_s) == (type(plain).max_turns, None)


FAILING_ENV = """
from tokentrue.messages import Message
from tokentrue.rollouts.environment import EpisodeState, MultiTurnEnv

class Fails(MultiTurnEnv):
    def make_task(self, index, seed):
        return index
    def setup(self, task, seed):
        raise RuntimeError("no\\nluck")
    def env_response(self, messages, state):
        return []
"""


def test_a_run_in_which_every_episode_fails_is_a_failure(tmp_path: Path) -> None:
    environment = tmp_path / "fails.py"
    environment.write_text(FAILING_ENV)
    done = run_command("rollout", "--env", f"{environment}:Fails", *SHORT, "--out", tmp_path / "run")
    failure = failure_of(done)
    assert failure.code == 1
    assert "RuntimeError: no luck" in failure.line
    assert "errors     RuntimeError 2" in done.stdout


@pytest.mark.parametrize("option", ["temperature", "top-p", "top-k"])
def test_sampling_options_reach_the_record(tmp_path: Path, option: str) -> None:
    value = {"temperature": 0.0, "top-p": 0.5, "top-k": 3}[option]
    args = ("rollout", "--env", "calculator", "--episodes", 1, "--max-turns", 1, "--max-tokens", 4)
    done = run_command(*args, f"--{option}", value, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert getattr(open_record(tmp_path / "run").info.sampling, option.replace("-", "_")) == value
