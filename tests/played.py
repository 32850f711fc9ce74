"""Conversations played without an engine: given completions go through the real session and renderer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from conversations import TOOLS, assistant_messages, draw_completion, follow_ups, openings, takes
from tokentrue import Message, Renderer, Session
from tokentrue.clients.client import finish_reason_of
from tokentrue.generation import FinishReason, Generation, Usage, make_tokens
from tokentrue.rendering.verdict import OnRewrite
from tokentrue.rollouts.environment import StopReason
from tokentrue.rollouts.trajectory import EpisodeRecord, TurnRecord


@dataclass(frozen=True)
class Played:
    """One episode with its turns."""

    episode: EpisodeRecord
    turns: tuple[TurnRecord, ...]


@dataclass
class Play:
    """Plays one conversation step by step."""

    renderer: Renderer
    messages: list[Message]
    tools: tuple[dict, ...] = TOOLS
    index: int = 0
    on_rewrite: OnRewrite = OnRewrite.EXTEND

    def __post_init__(self) -> None:
        self._session = Session()
        self._turns: list[TurnRecord] = []
        self._known = 0

    def sample(self, ids: Sequence[int], finish_reason: FinishReason = FinishReason.STOP) -> Message:
        """One turn in which exactly `ids` are sampled; the message that they say."""
        asked = tuple(self.messages)
        stitched = self._session.stitch(self.renderer, asked, self.tools, self.on_rewrite)
        tokens = make_tokens(stitched.prompt_ids, ids, [-0.25 - 0.5 * (i % 3) for i in range(len(ids))])
        usage = Usage(len(stitched.prompt_ids), len(ids), None)
        parsed = self.renderer.parse_response(ids, prompt_ids=stitched.prompt_ids, tools=self.tools)
        message = parsed.to_message(f"call_{len(self._turns)}")
        generation = Generation(tokens, finish_reason, usage=usage)
        turn = self._session.commit(stitched, generation, message, finish_reason_of(finish_reason, parsed))
        self._turns.append(TurnRecord(self.index, turn, self._known, asked[self._known :], message))
        self.messages.append(message)
        self._known = len(self.messages)
        return message

    def say(self, text: str, split: bool = False) -> Message:
        """One turn that samples `text` and the close; `split` takes it apart into single characters."""
        pieces = list(text) if split else [text]
        ids = [token_id for piece in pieces for token_id in self.renderer.tokenizer.encode(piece)]
        return self.sample([*ids, self.renderer.stop_ids[0]])

    def answer(self, *messages: Message) -> None:
        """What the environment adds."""
        self.messages.extend(messages)

    def done(self) -> Played:
        """The record of it."""
        episode = EpisodeRecord(
            index=self.index,
            seed=0,
            task="null",
            messages=tuple(self.messages),
            tools=self.tools,
            stop_reason=StopReason.COMPLETED,
            turns=len(self._turns),
        )
        return Played(episode, tuple(self._turns))


def user(text: str) -> Message:
    """A user message."""
    return Message(role="user", content=text)


def tool_result(text: str, call_id: str = "call_0_0") -> Message:
    """A tool's answer."""
    return Message(role="tool", content=text, tool_call_id=call_id, name="look_up")


def draw_conversation(data: st.DataObject, renderer: Renderer, on_rewrite: OnRewrite = OnRewrite.EXTEND) -> Played:
    """Two to four turns as a model might sample them, in splits of its own, cut or stripped of the stop."""
    play = Play(renderer, list(data.draw(openings)), on_rewrite=on_rewrite)
    calls = 1 if renderer.tool_format is not None and renderer.tool_format.name.startswith("bare") else 3
    for _ in range(data.draw(st.integers(2, 4))):
        wanted = data.draw(assistant_messages(calls, reasoning=renderer.reader.reasoning is not None))
        sampled = draw_completion(data, renderer, wanted)
        message = play.sample(sampled.ids, sampled.finish_reason)
        play.answer(*data.draw(follow_ups(message)))
        if not takes(renderer, tuple(play.messages)):
            break
    return play.done()
