"""What is left of a run that was killed, interrupted, or ran out of disk: always a record that can be read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tokentrue.rollouts.environment import StopReason
from tokentrue.rollouts.record import RecordForm, open_record
from tokentrue.rollouts.summary import summarize

RUN = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from tokentrue.errors import RecordError
    from tokentrue.generation import EngineInfo
    from tokentrue.messages import Message
    from tokentrue.rollouts.environment import EpisodeState, MultiTurnEnv
    from tokentrue.rollouts.record import RecordWriter
    from tokentrue.rollouts.runner import RolloutPlan, run_rollouts
    from tokentrue.rollouts.trajectory import RunInfo
    from tokentrue.testing.scripted_client import ScriptedClient

    class Continues(MultiTurnEnv[int, EpisodeState[int]]):
        max_turns = 6
        def make_task(self, index, seed):
            return index
        def setup(self, task, seed):
            return EpisodeState(task, seed, [Message(role="user", content=f"task {task}")])
        def env_response(self, messages, state):
            return [Message(role="user", content="more " * 20)]
        async def cleanup(self, state):
            await asyncio.sleep(0)
            print("cleaned", state.task, flush=True)

    class Told:
        # Says on stdout that a turn is on the disk: the other process acts on it.
        def __init__(self, record):
            self.record, self.turns = record, 0
        def episode_started(self, episode):
            self.record.episode_started(episode)
            print("started", episode.index, flush=True)
        def turn_done(self, turn):
            self.record.turn_done(turn)
            print("turn", turn.episode, turn.turn.index, flush=True)
        def episode_done(self, episode):
            self.record.episode_done(episode)

    def policy(messages, rng):
        return Message(role="assistant", content="y" * rng.randrange(50))

    async def main():
        info = RunInfo("test", "m", EngineInfo("scripted", "", ("m",), None))
        with RecordWriter(Path(sys.argv[1]), info) as record:
            plan = RolloutPlan(10**6, concurrency=4)
            await run_rollouts(Continues(), ScriptedClient(policy), "m", plan, record=Told(record))
    """
)


def start(folder, ending):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", RUN + textwrap.dedent(ending), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told_until(process, turns):
    """What the run told until so many turns were on the disk."""
    lines = []
    for line in process.stdout:
        lines.append(line.split())
        if sum(words[0] == "turn" for words in lines) >= turns:
            break
    return lines


def told_turns(lines):
    return {(int(words[1]), int(words[2])) for words in lines if words[0] == "turn"}


def test_a_killed_run_has_every_turn_that_it_told(tmp_path):
    """kill -9 at an arbitrary moment: the record is open, whole, and keeps the laws."""
    folder = tmp_path / "run"
    process = start(folder, "asyncio.run(main())")
    lines = told_until(process, 150)
    process.send_signal(signal.SIGKILL)
    lines += [line.split() for line in process.stdout]
    process.communicate()
    reader = open_record(folder)
    turns = list(reader.turns())
    assert reader.form is RecordForm.OPEN
    found = {(turn.episode, turn.turn.index) for turn in turns}
    whole_lines = [words for words in lines if words[0] != "turn" or len(words) == 3]
    assert told_turns(whole_lines) <= found
    assert len(found) <= len(told_turns(whole_lines)) + 4
    summary = summarize(reader.episodes(), turns)
    assert summary.laws_hold
    assert summary.stop_reasons[StopReason.INTERRUPTED] <= 4
    by_episode = {e.index: e for e in reader.episodes()}
    for episode in by_episode.values():
        recorded = [turn for turn in turns if turn.episode == episode.index]
        assert episode.turns == len(recorded)


def test_ctrl_c_cleans_up_closes_the_record_and_is_raised_again(tmp_path):
    """SIGINT in the middle of a run: every episode that was set up is cleaned up, the record is closed."""
    folder = tmp_path / "run"
    process = start(folder, "asyncio.run(main())")
    lines = told_until(process, 100)
    process.send_signal(signal.SIGINT)
    lines += [line.split() for line in process.stdout]
    err = process.stderr.read()
    process.communicate()
    assert process.returncode == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")
    started = [words[1] for words in lines if words[0] == "started"]
    cleaned = [words[1] for words in lines if words[0] == "cleaned"]
    assert sorted(started) == sorted(cleaned)
    reader = open_record(folder)
    assert reader.form is RecordForm.CLOSED
    assert {(turn.episode, turn.turn.index) for turn in reader.turns()} == told_turns(lines)
    reasons = [e.stop_reason for e in reader.episodes()]
    assert len(reasons) == len(started)
    assert set(reasons) <= {StopReason.CANCELLED, StopReason.MAX_TURNS}
    assert 1 <= reasons.count(StopReason.CANCELLED) <= 4


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
def test_a_full_disk_is_one_clear_line_and_leaves_what_was_written(tmp_path):
    """The limit on the size of files stands for the disk: the run stops, and the rows before are whole."""
    folder = tmp_path / "run"
    process = start(
        folder,
        """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        try:
            asyncio.run(main())
        except RecordError as exc:
            print("error", exc, flush=True)
        """,
    )
    out, err = process.communicate(timeout=60)
    lines = [line.split() for line in out.splitlines()]
    errors = [line for line in out.splitlines() if line.startswith("error")]
    assert err == ""
    assert len(errors) == 1
    assert errors[0].startswith(f"error {folder / 'turns.arrows'} cannot be written: {os.strerror(27)}")
    reader = open_record(folder)
    assert reader.torn_bytes == 0
    assert {(turn.episode, turn.turn.index) for turn in reader.turns()} == told_turns(lines)
