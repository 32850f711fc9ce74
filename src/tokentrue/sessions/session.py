"""One conversation: its tree, and the two steps of every turn, stitch and commit (pure)."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from tokentrue.generation import FinishReason, Generation
from tokentrue.messages import Message, SupportsModelDump
from tokentrue.rendering.contract import FollowsTheClock, RendererContract
from tokentrue.rendering.verdict import OnRewrite, Verdict
from tokentrue.sessions.stitch import (
    Anchor,
    NotExtended,
    StitchedPrompt,
    extend_prompt,
    judge_prompt,
    place_prompt,
    stitch_prompt,
)
from tokentrue.sessions.tree import ConversationTree, chain, root_identity
from tokentrue.turns import How, Turn

_ENCODER = msgspec.json.Encoder()


@dataclass(slots=True)
class Session:
    """One conversation with everything that was sampled in it. Not shared between event loops.

    Args:
        id: Sent as `X-Session-ID`, so that a router can keep the conversation on one engine.
        began_at: The date that a template tells in all of this conversation; None until its first turn.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    began_at: datetime | None = None
    _tree: ConversationTree = field(default_factory=ConversationTree, repr=False)
    _canonical: dict[bytes, Message] = field(default_factory=dict, repr=False)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All committed turns, in the order in which they were committed."""
        return tuple(self._tree.turns)

    @property
    def turns_without_ids(self) -> int:
        """How many sampled messages came without ids; they are no turns."""
        return len(self._tree.without_ids)

    def read_messages(
        self, values: str | Sequence[Message | Mapping[str, Any] | SupportsModelDump]
    ) -> tuple[Message, ...]:
        """The canonical form of a conversation; messages seen before are recognised by their bytes.

        Raises:
            InvalidMessageError: Names the index of the message that is wrong.
        """
        if isinstance(values, str):
            return (Message(role="user", content=values),)
        return tuple(self._read_message(value, index) for index, value in enumerate(values))

    def _read_message(self, value: Message | Mapping[str, Any] | SupportsModelDump, index: int) -> Message:
        if isinstance(value, Message):
            return value
        try:
            raw = _ENCODER.encode(value)
        except (TypeError, ValueError):
            return Message.from_any(value, f"messages[{index}]")
        key = hashlib.blake2b(raw, digest_size=16).digest()
        found = self._canonical.get(key)
        if found is None:
            found = self._canonical[key] = Message.from_any(value, f"messages[{index}]")
        return found

    def clocked(self, renderer: RendererContract, now: datetime) -> RendererContract:
        """`renderer` at the time at which this conversation began, which is `now` if it begins now.

        A conversation that crosses midnight keeps its date, so its prompts keep their beginning.
        """
        if self.began_at is None:
            self.began_at = now
        return renderer.at(self.began_at) if isinstance(renderer, FollowsTheClock) else renderer

    def stitch(
        self,
        renderer: RendererContract,
        messages: Sequence[Message],
        tools: tuple[dict[str, Any], ...] = (),
        on_rewrite: OnRewrite = OnRewrite.EXTEND,
    ) -> StitchedPrompt:
        """The prompt for `messages`; changes nothing. See `stitch_prompt`."""
        return stitch_prompt(self._tree, renderer, messages, tools, on_rewrite)

    def extend(
        self,
        renderer: RendererContract,
        messages: Sequence[Message],
        tools: tuple[dict[str, Any], ...] = (),
        on_rewrite: OnRewrite = OnRewrite.EXTEND,
    ) -> StitchedPrompt | NotExtended:
        """The prompt from known ids, or why there is none; it is not rendered. See `extend_prompt`."""
        return extend_prompt(self._tree, renderer, messages, tools, on_rewrite)

    def judge(
        self, renderer: RendererContract, messages: Sequence[Message], tools: tuple[dict[str, Any], ...] = ()
    ) -> Verdict | None:
        """How the bridge for `messages` compares with the template's full text; None where none is made.

        Raises:
            TemplateRenderError, UnsupportedParameterError: As `verdict.judge`.
        """
        extended = extend_prompt(self._tree, renderer, messages, tools)
        if isinstance(extended, NotExtended) or extended.stitch.how is not How.BRIDGED:
            return None
        return judge_prompt(self._tree, renderer, messages, tools, extended)

    def place(
        self, renderer_identity: str, messages: Sequence[Message], tools: tuple[dict[str, Any], ...] = ()
    ) -> StitchedPrompt | Anchor | NotExtended:
        """What is known of `messages`, for who bridges without a renderer. See `place_prompt`."""
        return place_prompt(self._tree, root_identity(renderer_identity, tools), messages)

    def hashes_of(
        self, renderer_identity: str, messages: Sequence[Message], tools: tuple[dict[str, Any], ...] = ()
    ) -> tuple[bytes, ...]:
        """The path that `messages` take, whatever is known of it."""
        return tuple(chain(root_identity(renderer_identity, tools), messages))

    def commit_without_ids(self, hashes: tuple[bytes, ...], message: Message) -> None:
        """Remember that `message` was sampled without its ids being told, so that a later turn can say so."""
        self._tree.commit_without_ids(hashes, message)

    def commit(
        self,
        stitched: StitchedPrompt,
        generation: Generation,
        message: Message,
        finish_reason: FinishReason,
        unread: str = "",
    ) -> Turn:
        """Enter a turn that was received whole, and return it as it is kept; `unread` as on a `Turn`."""
        turn = Turn(
            index=len(self._tree.turns),
            tokens=generation.tokens,
            stitch=stitched.stitch,
            finish_reason=finish_reason,
            stop_reason=generation.stop_reason,
            usage=generation.usage,
            prompt_spans=stitched.spans,
            request_id=generation.request_id,
            weight_spans=generation.weight_spans,
            logprobs_mode=generation.logprobs_mode,
            resumed_at=generation.resumed_at,
            unread=unread,
        )
        if stitched.is_judged:
            self._tree.judged.add(turn.index)
        self._tree.commit(stitched.hashes, turn, message)
        return turn
