"""The two shipped environments: a calculator with follow-up questions, and a shop with parallel look-ups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from tokentrue.messages import Message
from tokentrue.rollouts.environment import EpisodeState, NewMessage
from tokentrue.rollouts.shipped import arithmetic, shop
from tokentrue.rollouts.tool_env import ToolEnv
from tokentrue.rollouts.tools import ToolSet


@dataclass(slots=True)
class CalculatorState(EpisodeState[arithmetic.Task]):
    """The answers that the model gave so far."""

    answers: list[str] = field(default_factory=list)


@dataclass(slots=True)
class ShopState(EpisodeState[shop.Task]):
    """The answers that the model gave so far."""

    answers: list[str] = field(default_factory=list)


def _asked(text: str) -> Message:
    return Message(role="user", content=text)


def _next_question(
    questions: Sequence[arithmetic.Question] | Sequence[shop.Question], answers: list[str], answer: Message
) -> Sequence[NewMessage]:
    """Note an answer and pose the question that follows it, if there is one."""
    answers.append(answer.content or "")
    return [_asked(questions[len(answers)].text)] if len(answers) < len(questions) else ()


class CalculatorEnv(ToolEnv[arithmetic.Task, CalculatorState]):
    """Expressions to work out with `add`, `subtract` and `multiply`, then perhaps a follow-up on the result.

    The reward is 1.0 only when every answer is right.
    """

    max_turns: ClassVar[int] = 12

    def __init__(self, split: arithmetic.Split = "heldout") -> None:
        self._split: arithmetic.Split = split

    def make_task(self, index: int, seed: int) -> arithmetic.Task:
        """One task of the split; `seed` already depends on `index`."""
        del index
        return arithmetic.make_task(seed, self._split)

    def setup(self, task: arithmetic.Task, seed: int) -> CalculatorState:
        """The first question is the whole prompt."""
        return CalculatorState(task, seed, [_asked(task.questions[0].text)], ToolSet(arithmetic.TOOLS))

    def user_response(self, messages: Sequence[Message], state: CalculatorState) -> Sequence[NewMessage]:
        """The follow-up question, once."""
        return _next_question(state.task.questions, state.answers, messages[-1])

    def reward(self, messages: Sequence[Message], state: CalculatorState) -> float:
        """1.0 when every question was answered rightly, else 0.0."""
        del messages
        return arithmetic.score(state.task, state.answers)


class ShopEnv(ToolEnv[shop.Task, ShopState]):
    """What do these things cost together? Prices are looked up, in parallel, and some things are not sold.

    The reward is 1.0 only when every answer is right.
    """

    max_turns: ClassVar[int] = 12

    def __init__(self, split: shop.Split = "heldout") -> None:
        self._split: shop.Split = split

    def make_task(self, index: int, seed: int) -> shop.Task:
        """One task of the split; `seed` already depends on `index`."""
        del index
        return shop.make_task(seed, self._split)

    def setup(self, task: shop.Task, seed: int) -> ShopState:
        """The first question is the whole prompt; the tools are those of this task's shop."""
        return ShopState(task, seed, [_asked(task.questions[0].text)], ToolSet(shop.make_tools(task)))

    def user_response(self, messages: Sequence[Message], state: ShopState) -> Sequence[NewMessage]:
        """The next question, if there is one."""
        return _next_question(state.task.questions, state.answers, messages[-1])

    def reward(self, messages: Sequence[Message], state: ShopState) -> float:
        """1.0 when every question was answered rightly, else 0.0."""
        del messages
        return shop.score(state.task, state.answers)
