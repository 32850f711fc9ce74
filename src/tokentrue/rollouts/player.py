"""Plays one episode: the only place that knows the order of an environment's hooks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec

from tokentrue.clients.client import Client
from tokentrue.errors import (
    ConfigError,
    EvidenceError,
    OverlongPromptError,
    RecordError,
    UnreadCompletionError,
)
from tokentrue.generation import FinishReason
from tokentrue.messages import Message, messages_from
from tokentrue.rollouts.environment import Environment, StateT, StopReason, TaskT, Truncation, eventually
from tokentrue.rollouts.seeds import derive_seed
from tokentrue.rollouts.trajectory import (
    EpisodeError,
    EpisodeRecord,
    Phase,
    TrajectorySink,
    TurnRecord,
    told_time,
    told_with_place,
)
from tokentrue.sampling import SamplingParams
from tokentrue.sessions.session import Session
from tokentrue.turns import Response

T = TypeVar("T")

_UNSCORED = frozenset({StopReason.ERROR, StopReason.TIMEOUT, StopReason.CANCELLED})


@dataclass(frozen=True, slots=True)
class EpisodeOrder:
    """Which episode to play, and how to sample it.

    Args:
        index: The episode's number in the run.
        run_seed: The seed of the run; the episode's and its turns' seeds are derived from it.
        model: The name the engine serves the model under.
        sampling: Parameters of every turn, without a seed.
        headers: Sent with every turn.
        headers_from_state: Header names by the field of the episode's state whose value they carry; None gives no
            header.
    """

    index: int
    run_seed: int
    model: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    headers: Mapping[str, str] = field(default_factory=dict)
    headers_from_state: Mapping[str, str] = field(default_factory=dict)

    def headers_of(self, state: object) -> dict[str, str]:
        """The headers of one turn.

        Raises:
            ConfigError: The state has no such field.
        """
        found = dict(self.headers)
        for name, key in self.headers_from_state.items():
            if not hasattr(state, key):
                raise ConfigError(f"headers_from_state[{name!r}]: a {type(state).__name__} has no field {key!r}")
            value = getattr(state, key)
            if value is not None:
                found[name] = str(value)
        return found

    @property
    def episode_seed(self) -> int:
        """What `make_task` and `setup` are given."""
        return derive_seed(self.run_seed, "episode", self.index)

    def sampling_of_turn(self, turn: int) -> SamplingParams:
        """The parameters of one turn: its seed depends on run seed, episode and turn, and on nothing else."""
        seed = derive_seed(self.run_seed, "turn", self.index, turn)
        return replace(self.sampling, seed=seed, extra=dict(self.sampling.extra))


@dataclass(frozen=True, slots=True)
class PlayedEpisode:
    """An episode that ended, with its turns.

    `failure` is the exception behind `record.error`, for whoever decides whether the run goes on.
    """

    record: EpisodeRecord
    turns: tuple[TurnRecord, ...]
    failure: Exception | None = None


class EpisodePlayer(Generic[TaskT, StateT]):
    """Plays one episode, once.

    Whatever raises inside the episode ends the episode and is kept in its record; only cancellation and a
    `RecordError` of the sink leave `play`. `cleanup` has run when `play` returns or raises.
    """

    def __init__(
        self, environment: Environment[TaskT, StateT], client: Client, order: EpisodeOrder, sink: TrajectorySink
    ) -> None:
        self._environment = environment
        self._client = client
        self._order = order
        self._sink = sink
        self._state: StateT | None = None
        self._task_json = "null"
        self._phase = Phase.SETUP
        self._turns: list[TurnRecord] = []
        self._known: tuple[Message, ...] = ()
        self._reward: float | None = None
        self._error: EpisodeError | None = None
        self._failure: Exception | None = None
        self._began_at = datetime.now().astimezone()

    async def play(self) -> PlayedEpisode:
        """Play the episode from `make_task` to `cleanup`.

        Raises:
            asyncio.CancelledError: The run was cancelled; the episode was cleaned up and told to the sink.
            RecordError: The sink could not keep a turn or the episode.
        """
        begun = time.perf_counter()
        self._began_at = datetime.now().astimezone()
        cancelled: asyncio.CancelledError | None = None
        try:
            stop = await self._until_stop()
        except asyncio.CancelledError as exc:
            cancelled, stop = exc, StopReason.CANCELLED
        finally:
            interrupted = await self._clean_up()
        episode = self._record(stop, time.perf_counter() - begun)
        self._sink.episode_done(episode)
        stopped = cancelled or interrupted
        if stopped is not None:
            raise stopped
        return PlayedEpisode(episode, tuple(self._turns), self._failure)

    async def _until_stop(self) -> StopReason:
        deadline = asyncio.timeout(self._environment.timeout_s)
        try:
            async with deadline:
                stop = await self._converse()
                if stop not in _UNSCORED:
                    self._phase = Phase.REWARD
                    self._reward = await self._scored()
                return stop
        except RecordError:
            raise
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody cancelled this task: the exception leaked out of something that the environment cancelled.
            self._note(RuntimeError(f"a hook let a cancellation escape: {exc!r}"), self._phase)
            return StopReason.ERROR
        except Exception as exc:  # noqa: BLE001  an environment may raise anything, and ends only its own episode
            if isinstance(exc, TimeoutError) and deadline.expired():
                return StopReason.TIMEOUT
            self._note(exc, self._phase)
            return StopReason.ERROR

    async def _converse(self) -> StopReason:
        seed = self._order.episode_seed
        task = self._environment.make_task(self._order.index, seed)
        self._task_json = task_json(task)
        state = self._state = await eventually(self._environment.setup(task, seed))
        self._sink.episode_started(self._record(StopReason.INTERRUPTED, 0.0))
        session = Session(began_at=told_time(self._began_at))
        tools = state.tools.definitions or None
        while True:
            self._phase = Phase.TURN
            try:
                response = await self._ask(state, tools, session)
            except OverlongPromptError:
                return StopReason.OVERLONG
            self._phase = Phase.ENV_RESPONSE
            stop = await self._answer(state, response.finish_reason)
            if stop is not None:
                return stop

    async def _ask(self, state: StateT, tools: Sequence[dict[str, Any]] | None, session: Session) -> Response:
        asked = tuple(state.messages)
        kept = _shared_prefix(self._known, asked)
        begun = time.perf_counter()
        unread: UnreadCompletionError | None = None
        try:
            response = await self._client.get_response(
                asked,
                self._order.model,
                self._order.sampling_of_turn(len(self._turns)),
                tools,
                session=session,
                headers=self._order.headers_of(state) or None,
            )
        except UnreadCompletionError as exc:
            # What was sampled is kept, whatever a renderer makes of it; the episode has no answer to go on with.
            unread, response = exc, exc.response
        if response.turn is None:
            raise EvidenceError(
                "the client gave no token ids, and an episode without them is no sample",
                detail=response.tokens_missing,
            )
        turn = TurnRecord(
            episode=self._order.index,
            turn=response.turn,
            messages_kept=kept,
            new_messages=asked[kept:],
            message=response.message,
            duration_s=time.perf_counter() - begun,
        )
        self._turns.append(turn)
        self._known = (*asked, response.message)
        state.messages.append(response.message)
        self._sink.turn_done(turn)
        if unread is not None:
            raise unread
        return response

    async def _answer(self, state: StateT, finish_reason: FinishReason) -> StopReason | None:
        environment = self._environment
        if finish_reason is FinishReason.LENGTH and environment.on_truncation is Truncation.STOP:
            return StopReason.TRUNCATED
        if await eventually(environment.is_completed(tuple(state.messages), state)):
            return StopReason.COMPLETED
        # The answer comes before the check of max_turns, so that the model's last call still takes effect and
        # a conversation that ends by itself in its last turn is completed.
        answer = messages_from(await eventually(environment.env_response(tuple(state.messages), state)))
        if not answer:
            return StopReason.COMPLETED
        state.messages.extend(answer)
        if await eventually(environment.is_completed(tuple(state.messages), state)):
            return StopReason.COMPLETED
        return StopReason.MAX_TURNS if len(self._turns) >= environment.max_turns else None

    async def _scored(self) -> float | None:
        if self._state is None:
            return None
        reward = await eventually(self._environment.reward(tuple(self._state.messages), self._state))
        return None if reward is None else float(reward)

    async def _clean_up(self) -> asyncio.CancelledError | None:
        """Run `cleanup` to its end even when this task is cancelled meanwhile; that cancellation is returned."""
        if self._state is None:
            return None
        cleaning = asyncio.ensure_future(self._run_cleanup(self._state))
        interrupted: asyncio.CancelledError | None = None
        while not cleaning.done():
            try:
                await asyncio.wait({cleaning})
            except asyncio.CancelledError as exc:
                interrupted = exc
        try:
            cleaning.result()
        except asyncio.CancelledError as exc:
            interrupted = exc
        except TimeoutError:
            limit = self._environment.cleanup_timeout_s
            self._note(TimeoutError(f"cleanup took longer than {limit} s"), Phase.CLEANUP)
        except Exception as exc:  # noqa: BLE001  an environment may raise anything, and ends only its own episode
            self._note(exc, Phase.CLEANUP)
        return interrupted

    async def _run_cleanup(self, state: StateT) -> None:
        async with asyncio.timeout(self._environment.cleanup_timeout_s):
            await eventually(self._environment.cleanup(state))

    def _note(self, exc: Exception, phase: Phase) -> None:
        if self._error is None:
            self._error = EpisodeError.from_exception(exc, phase)
            self._failure = exc
        else:
            later = (
                f"{self._error.message}; then {phase.value} raised {type(exc).__name__}: {told_with_place(exc)}"
            )
            self._error = replace(self._error, message=later)

    def _record(self, stop_reason: StopReason, duration_s: float) -> EpisodeRecord:
        state = self._state
        return EpisodeRecord(
            index=self._order.index,
            seed=self._order.episode_seed,
            task=self._task_json,
            messages=tuple(state.messages) if state is not None else (),
            tools=state.tools.definitions if state is not None else (),
            stop_reason=stop_reason,
            reward=self._reward if stop_reason not in _UNSCORED else None,
            turns=len(self._turns),
            error=self._error,
            started_at=self._began_at.timestamp(),
            duration_s=duration_s,
            began_at=self._began_at,
        )


def task_json(task: object) -> str:
    """A task as JSON text: dataclasses, enums, tuples and structs become what JSON has for them.

    Raises:
        ConfigError: The task holds something that JSON cannot say.
    """
    try:
        return msgspec.json.encode(task).decode()
    except (TypeError, UnicodeEncodeError) as exc:
        raise ConfigError(f"a task of type {type(task).__name__} cannot be kept as JSON: {exc}") from exc


def _shared_prefix(known: tuple[Message, ...], asked: tuple[Message, ...]) -> int:
    """How many leading messages are the same object or the same message (law 8: hashes, not texts)."""
    shared = 0
    for old, new in zip(known, asked, strict=False):
        if old is not new and old.digest != new.digest:
            break
        shared += 1
    return shared
