"""What an environment is: the rules of one kind of episode.

One environment object serves all episodes of a run, so whatever belongs to one episode lives in that
episode's state. A hook is a plain function when it does not wait and `async` when it does; both spellings are
accepted everywhere.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from tokentrue.messages import Message, SupportsModelDump, messages_from
from tokentrue.rollouts.tools import ToolSet

T = TypeVar("T")
TaskT = TypeVar("TaskT")
Eventually: TypeAlias = T | Awaitable[T]
"""A value, or an awaitable of it: what a hook may return."""
NewMessage: TypeAlias = Message | Mapping[str, Any] | SupportsModelDump
"""A message as an environment may write it."""


class StopReason(Enum):
    """Why an episode ended."""

    COMPLETED = "completed"
    """The environment said so, or had nothing more to say."""
    MAX_TURNS = "max_turns"
    """The model used up its turns while the environment still had an answer for it."""
    TRUNCATED = "truncated"
    """A completion ran into its token limit, and the environment stops there."""
    OVERLONG = "overlong"
    """The conversation left no room to generate."""
    TIMEOUT = "timeout"
    """The episode took longer than the environment allows."""
    ERROR = "error"
    """Something raised; the episode's error says what and where."""
    CANCELLED = "cancelled"
    """The run was stopped from outside (Ctrl-C, or another episode's fatal error)."""
    INTERRUPTED = "interrupted"
    """The process died; only a reader of the record finds this."""


class Truncation(Enum):
    """What a completion that ran into its token limit does to the episode."""

    STOP = "stop"
    CONTINUE = "continue"


@dataclass(slots=True)
class EpisodeState(Generic[TaskT]):
    """Everything that belongs to one episode; subclass it as a dataclass to add fields.

    Args:
        task: What this episode is about.
        seed: The episode's own seed, for whatever the environment draws.
        messages: The conversation so far; `setup` gives the first messages, in any shape that
            `messages_from` reads, and the player appends to it.
        tools: The tools that the model is offered in this episode.
    """

    task: TaskT
    seed: int
    messages: list[Message]
    tools: ToolSet = field(default_factory=ToolSet)

    def __post_init__(self) -> None:
        self.messages = list(messages_from(self.messages))


StateT = TypeVar("StateT", bound=EpisodeState[Any])


class Environment(ABC, Generic[TaskT, StateT]):
    """The contract between the player of episodes and the rules of an environment.

    One episode is: `make_task`, `setup`, then turns of the model, each followed by `is_completed` and
    `env_response`; at the end `reward`, and `cleanup` always, whatever raised or was cancelled.

    Attributes:
        max_turns: How many turns the model has.
        timeout_s: Seconds that one episode may take from `setup` to `reward`; None means no limit.
        cleanup_timeout_s: Seconds that `cleanup` may take.
        on_truncation: Whether a truncated completion ends the episode.
    """

    max_turns: ClassVar[int] = 1
    timeout_s: ClassVar[float | None] = None
    cleanup_timeout_s: ClassVar[float] = 30.0
    on_truncation: ClassVar[Truncation] = Truncation.STOP

    @abstractmethod
    def make_task(self, index: int, seed: int) -> TaskT:
        """The task of episode number `index`; a pure function of both arguments."""

    @abstractmethod
    def setup(self, task: TaskT, seed: int) -> Eventually[StateT]:
        """Begin an episode. If it raises, it has cleaned up after itself: `cleanup` gets no state then."""

    def is_completed(self, messages: Sequence[Message], state: StateT) -> Eventually[bool]:
        """Whether the episode is over; asked after each message of the model and of the environment."""
        del messages, state
        return False

    @abstractmethod
    def env_response(self, messages: Sequence[Message], state: StateT) -> Eventually[Sequence[NewMessage]]:
        """The environment's answer to the model's last message; empty ends the episode as completed."""

    def reward(self, messages: Sequence[Message], state: StateT) -> Eventually[float | None]:
        """The reward of a finished episode, or None when the environment does not score."""
        del messages, state
        return None

    def cleanup(self, state: StateT) -> Eventually[None]:
        """Release what `setup` opened; runs exactly once for every state, also on errors and cancellation."""
        del state
        return None

    @property
    def name(self) -> str:
        """The name that a record keeps: the class's import path."""
        return f"{type(self).__module__}:{type(self).__qualname__}"


class MultiTurnEnv(Environment[TaskT, StateT]):
    """An environment that answers the model, up to `max_turns` turns."""

    max_turns: ClassVar[int] = 10


class SingleTurnEnv(Environment[TaskT, StateT]):
    """One prompt, one completion, one reward."""

    max_turns: ClassVar[int] = 1

    def env_response(self, messages: Sequence[Message], state: StateT) -> Eventually[Sequence[NewMessage]]:
        """Nothing: the first completion ends the episode."""
        del messages, state
        return ()


async def eventually(value: Eventually[T]) -> T:
    """The value that a hook returned, waited for when the hook was `async`."""
    if inspect.isawaitable(value):
        awaited: T = await value
        return awaited
    return value
