"""An environment of one's own: typed functions become tools, and a few plain methods do the rest.

tokentrue rollout --env examples/own_environment.py:DictionaryEnv --episodes 4 --out run
"""

from collections.abc import Sequence

from tokentrue import EpisodeState, Message, ToolEnv, ToolSet

MEANINGS = {"cat": "a small animal", "oak": "a large tree"}


def look_up(word: str) -> str:
    """Look a word up in the dictionary."""
    return MEANINGS.get(word, f"there is no word {word!r}")


class DictionaryEnv(ToolEnv[str, EpisodeState[str]]):
    """One question per episode; the reward is 1 when the answer has the right meaning in it."""

    def make_task(self, index: int, seed: int) -> str:
        return sorted(MEANINGS)[seed % len(MEANINGS)]

    def setup(self, task: str, seed: int) -> EpisodeState[str]:
        question = Message(role="user", content=f"What does {task} mean?")
        return EpisodeState(task, seed, [question], ToolSet([look_up]))

    def reward(self, messages: Sequence[Message], state: EpisodeState[str]) -> float:
        return float(MEANINGS[state.task] in (messages[-1].content or ""))
