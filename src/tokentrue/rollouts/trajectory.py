"""What a run leaves behind: one value per turn, per episode and per run. A record stores exactly these."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Protocol

from tokentrue.errors import TokentrueError
from tokentrue.generation import EngineInfo
from tokentrue.messages import Message
from tokentrue.raised import place_of
from tokentrue.rollouts.environment import StopReason
from tokentrue.sampling import SamplingParams
from tokentrue.turns import Turn

_TRACE_FRAMES = 6


class Phase(Enum):
    """Which part of an episode raised."""

    SETUP = "setup"
    TURN = "turn"
    ENV_RESPONSE = "env_response"
    REWARD = "reward"
    CLEANUP = "cleanup"


@dataclass(frozen=True, slots=True)
class EpisodeError:
    """What raised in an episode.

    Args:
        type_name: The exception's class; with its module unless it is a builtin.
        message: Its text, and for what is not Tokentrue's own where in its author's code it was raised.
        phase: Where it was raised.
        trace: The innermost frames, for the author of an environment; "" for Tokentrue's own errors.
    """

    type_name: str
    message: str
    phase: Phase
    trace: str = ""

    @classmethod
    def from_exception(cls, exc: BaseException, phase: Phase) -> EpisodeError:
        """Describe an exception that was caught."""
        kind = type(exc)
        module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        own = isinstance(exc, TokentrueError)
        trace = "" if own else "".join(traceback.format_tb(exc.__traceback__)[-_TRACE_FRAMES:])
        return cls(module + kind.__qualname__, told_with_place(exc), phase, trace)


def told_with_place(exc: BaseException) -> str:
    """What an exception says, with `file:line in function` of its author's code; Tokentrue's own need none."""
    place = "" if isinstance(exc, TokentrueError) else place_of(exc)
    return f"{exc} ({place})".lstrip() if place else str(exc)


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """One turn of one episode, with what it added to the conversation.

    The conversation after this turn is
    `conversation after the turn before[:messages_kept] + new_messages + (message,)`.

    Args:
        episode: The episode's index in the run.
        turn: Ids, log-probabilities and how the prompt was made.
        messages_kept: Leading messages of the conversation that were there after the turn before.
        new_messages: The messages that this turn's prompt added.
        message: What the model's ids say.
        duration_s: Seconds from the question to the answer.
    """

    episode: int
    turn: Turn
    messages_kept: int
    new_messages: tuple[Message, ...]
    message: Message
    duration_s: float = 0.0

    def conversation(self, before: tuple[Message, ...]) -> tuple[Message, ...]:
        """The conversation after this turn, from the one after the turn before."""
        return (*before[: self.messages_kept], *self.new_messages, self.message)


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """One episode.

    Args:
        index: Its number in the run, from 0.
        seed: Its own seed.
        task: The task as JSON text.
        messages: The whole conversation.
        tools: The tool definitions that the model was offered.
        stop_reason: Why it ended; `INTERRUPTED` while it runs.
        reward: None when it was not scored.
        turns: How many turns it took.
        error: What raised, if anything did.
        started_at: Unix time in seconds.
        began_at: The same moment as a date with its offset from UTC: what a template that asks for it is told.
            None in records before schema version 4.
        duration_s: Seconds from `setup` to the end of `cleanup`.
    """

    index: int
    seed: int
    task: str
    messages: tuple[Message, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    stop_reason: StopReason = StopReason.INTERRUPTED
    reward: float | None = None
    turns: int = 0
    error: EpisodeError | None = None
    started_at: float = 0.0
    duration_s: float = 0.0
    began_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a record's `run.json` says about the run; given by whoever starts it.

    Args:
        environment: The environment's import path or shipped name.
        model: The name the engine serves the model under.
        engine: What the engine says of itself.
        transport: "vllm", "dynamo", ... or "embedded".
        seed: The seed of the run.
        episodes: How many were asked for.
        concurrency: How many ran at a time.
        sampling: The parameters of every turn; the seed of each turn is derived.
        tokenizer_hash: Content hash of the tokenizer.
        template_hash: Content hash of the chat template.
        versions: Package name to version.
        config: Any further settings, as JSON values.
        created_at: ISO 8601 with an offset, or "".
    """

    environment: str
    model: str
    engine: EngineInfo
    transport: str = ""
    seed: int = 0
    episodes: int = 0
    concurrency: int = 1
    sampling: SamplingParams = field(default_factory=SamplingParams)
    tokenizer_hash: str = ""
    template_hash: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    created_at: str = ""


def told_time(began_at: datetime) -> datetime:
    """What a template is told of a moment: the clock on the wall where the run was, and no zone."""
    return began_at.replace(tzinfo=None)


class TrajectorySink(Protocol):
    """Takes what happens in a run, while it happens. Called on the event loop: returns at once."""

    def episode_started(self, episode: EpisodeRecord) -> None:
        """An episode was set up; its stop reason is `INTERRUPTED` until it ends."""
        ...

    def turn_done(self, turn: TurnRecord) -> None:
        """A turn ended."""
        ...

    def episode_done(self, episode: EpisodeRecord) -> None:
        """An episode ended, after its cleanup."""
        ...
