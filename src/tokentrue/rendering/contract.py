"""What sessions and clients need of a renderer: the contract that ours and a plugged-in one keep.

`tokentrue.testing.check_renderer` holds any object against it, by the laws and not by its type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from tokentrue.generation import FinishReason
from tokentrue.messages import Message, SupportsModelDump
from tokentrue.rendering.bridge import Bridge
from tokentrue.rendering.reader import ParsedResponse
from tokentrue.rendering.rendered import RenderedTokens
from tokentrue.rendering.tail import BridgeRefused
from tokentrue.tokens import TokenIds

Messages = Sequence[Message | Mapping[str, Any] | SupportsModelDump]
Tools = Sequence[Mapping[str, Any] | SupportsModelDump]


class RendererContract(Protocol):
    """Messages to ids, bridges, and ids back to messages, for one model.

    Immutable, and used from several threads at once. Every method raises `InvalidMessageError` for a message
    that is not in OpenAI chat shape.
    """

    @property
    def identity(self) -> str:
        """Equal for two renderers exactly when they write the same ids; part of a session's paths."""
        ...

    @property
    def vocab_size(self) -> int:
        """One more than the largest id; no id that it writes is as large."""
        ...

    def get_stop_token_ids(self) -> tuple[int, ...]:
        """The ids that end a completion; never empty."""
        ...

    def with_template_kwargs(self, template_kwargs: Mapping[str, Any]) -> RendererContract:
        """The same renderer with further variables for the chat template.

        Raises:
            TemplateRenderError, UnsupportedParameterError: It cannot be used with them.
        """
        ...

    def render_ids(
        self, messages: Messages, *, tools: Tools | None = None, add_generation_prompt: bool = True
    ) -> TokenIds:
        """The prompt ids of `messages`, from nothing: the same ids for the same messages, whenever asked.

        Raises:
            TemplateRenderError: The messages cannot be rendered.
        """
        ...

    def render(
        self, messages: Messages, *, tools: Tools | None = None, add_generation_prompt: bool = True
    ) -> RenderedTokens:
        """`render_ids`, with the writer of every id, or no spans at all where that is not known."""
        ...

    def bridge_to_next_turn(
        self,
        previous_prompt_ids: Sequence[int],
        previous_completion_ids: Sequence[int],
        new_messages: Messages,
        *,
        history: Messages | None = None,
        finish_reason: FinishReason | None = None,
        tools: Tools | None = None,
    ) -> Bridge | BridgeRefused:
        """The prompt that extends a turn by `new_messages`, or the reason why there is none.

        Law 1: a `Bridge` starts with `previous_prompt_ids + previous_completion_ids`, verbatim; the one
        exception is the junction `opener_dropped`. Law 2: what it adds behind the close is how the full
        rendering of `[*history, *new_messages]` ends. A stop in the middle of the completion is refused.

        Args:
            history: The conversation up to and including the sampled assistant message; sessions give it.
            finish_reason: Tells a truncated completion (`LENGTH`) from one whose stop id the engine left out.
        """
        ...

    def parse_response(
        self, ids: Sequence[int], prompt_ids: Sequence[int] = (), tools: Tools | None = None
    ) -> ParsedResponse:
        """Read a completion; law 6: the inverse of writing it. Never raises on what a model wrote."""
        ...


@runtime_checkable
class FollowsTheClock(Protocol):
    """A renderer whose template may ask for the date. Without this method a renderer's date never changes."""

    def at(self, now: datetime) -> RendererContract:
        """The renderer for a conversation that began at `now`; itself where the date makes no difference."""
        ...


@runtime_checkable
class TellsText(Protocol):
    """A renderer that says what ids spell, which a verdict on a bridge needs; see `verdict`.

    A wrapper must define it: Python 3.12 and later see no method here that only `__getattr__` gives.
    """

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        ...
