"""Does the configuration that `tokentrue doctor` prints work? Paste it into a file, load it, play two episodes."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Sequence
from pathlib import Path

from tokentrue.clients.making import make_client
from tokentrue.config import ClientConfig
from tokentrue.messages import Message
from tokentrue.rollouts.environment import EpisodeState, SingleTurnEnv, StopReason
from tokentrue.rollouts.runner import RolloutPlan, RolloutResult, run_rollouts
from tokentrue.rollouts.shipped.environments import CalculatorEnv
from tokentrue.sampling import SamplingParams


class Words(SingleTurnEnv[int, EpisodeState[int]]):
    """One message, one answer, no tools."""

    def make_task(self, index: int, seed: int) -> int:
        """The number of the episode."""
        del seed
        return index

    def setup(self, task: int, seed: int) -> EpisodeState[int]:
        """One message."""
        return EpisodeState(task, seed, [Message(role="user", content=f"Say {task} words.")])

    def reward(self, messages: Sequence[Message], state: EpisodeState[int]) -> float:
        """Nothing is scored."""
        del messages, state
        return 0.0


def play_pasted(config: str, folder: Path, model: str, *, with_tools: bool = True) -> RolloutResult:
    """Two episodes with a client made of `config`, of the calculator or of `Words`; none ended in an error."""
    path = folder / "tokentrue.toml"
    path.write_text(config)
    assert set(tomllib.loads(config)) <= {
        *("client_type", "api_base_url", "renderer", "renderer_transport", "api_key_var"),
    }

    async def run() -> RolloutResult:
        async with await make_client(ClientConfig.from_file(path)) as client:
            plan = RolloutPlan(2, concurrency=2, sampling=SamplingParams(temperature=0.8, max_tokens=200))
            return await run_rollouts(CalculatorEnv() if with_tools else Words(), client, model, plan)

    result = asyncio.run(run())
    assert all(episode.stop_reason is not StopReason.ERROR for episode in result.records), result.records
    assert all(len(turn.turn.tokens.completion_ids) for turn in result.turns)
    return result
