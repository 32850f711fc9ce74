"""A record that is looked at in another time zone shows the date that the model was told."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace

import pytest

from rendering.conftest import LLAMA_LIKE
from rendering_folders import write_folder
from tokentrue import EpisodeState, Message, MultiTurnEnv, RendererClient, RolloutPlan, load_renderer, run_rollouts
from tokentrue.engines.engine import EngineInfo
from tokentrue.generation import FinishReason, Generation, make_tokens
from tokentrue.rollouts.comparison import compare_run
from tokentrue.rollouts.record import RecordWriter, open_record
from tokentrue.rollouts.trajectory import RunInfo

HOURLY = LLAMA_LIKE.replace("%d %b %Y", "%d %b %Y %H")
"""Asks for the hour too: then two zones differ at any time of the day."""


class Parrot:
    """An engine that always says the same."""

    def __init__(self, renderer):
        self.said = [*renderer.tokenizer.encode("Ho"), renderer.stop_ids[0]]

    async def generate(self, request):
        await asyncio.sleep(0)
        tokens = make_tokens(request.prompt_ids, self.said, [-0.5] * len(self.said))
        return Generation(tokens, FinishReason.STOP)

    async def close(self):
        """Nothing is open."""


class Talk(MultiTurnEnv[str, EpisodeState[str]]):
    """Three questions."""

    max_turns = 3

    def make_task(self, index, seed):
        return f"question {index}"

    def setup(self, task, seed):
        return EpisodeState(task, seed, [Message("user", task)])

    def env_response(self, messages, state):
        return [Message("user", "and then?")]


@pytest.fixture
def in_zone():
    """Moves this process to another time zone, and back at the end."""
    before = os.environ.get("TZ")

    def move(name):
        os.environ["TZ"] = name
        time.tzset()

    yield move
    os.environ.pop("TZ")
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


def recorded(folder, renderer):
    client = RendererClient(Parrot(renderer), renderer)
    with RecordWriter(folder, RunInfo("talk", "m", EngineInfo("parrot", "1", ("m",), None))) as record:
        asyncio.run(run_rollouts(Talk(), client, "m", RolloutPlan(episodes=2), record=record))
    reader = open_record(folder)
    return reader.episodes(), list(reader.turns())


@pytest.mark.parametrize("here", ["America/Los_Angeles", "Asia/Kolkata", "Asia/Tokyo"])
def test_no_difference_is_shown_that_is_none(tmp_path, in_zone, here) -> None:
    renderer = load_renderer(write_folder(tmp_path / "model", HOURLY))
    in_zone("Asia/Tokyo")
    episodes, turns = recorded(tmp_path / "run", renderer)
    assert {episode.began_at.utcoffset().total_seconds() for episode in episodes} == {9 * 3600}
    assert [episode.started_at for episode in episodes] == [e.began_at.timestamp() for e in episodes]
    in_zone(here)
    assert compare_run(episodes, turns, renderer).differing == 0


def test_a_record_that_does_not_say_its_zone_is_taken_to_be_from_here(tmp_path, in_zone) -> None:
    renderer = load_renderer(write_folder(tmp_path / "model", HOURLY))
    in_zone("Asia/Tokyo")
    episodes, turns = recorded(tmp_path / "run", renderer)
    older = [replace(episode, began_at=None) for episode in episodes]
    assert compare_run(older, turns, renderer).differing == 0
    in_zone("America/Los_Angeles")
    assert compare_run(older, turns, renderer).differing == len(turns)
