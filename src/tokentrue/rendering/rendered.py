"""A rendered prompt, with the writer of every id."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokentrue.errors import TemplateRenderError
from tokentrue.messages import Message, ToolCall
from tokentrue.rendering.glue import Stretch, Treatment, split_at_sentinels
from tokentrue.rendering.sentinels import sentinel
from tokentrue.tokens import TokenIds
from tokentrue.turns import TokenSpan


@dataclass(frozen=True, slots=True)
class RenderedTokens:
    """A conversation as ids.

    Args:
        token_ids: The ids, length n.
        spans: Who wrote each id; they tile 0..n. Empty when the template changes message text in a way
            that was not recognised: `owners` and `kinds` then raise instead of guessing.
        stop_token_ids: The ids that end a completion of this prompt.
        text: What was encoded.
    """

    token_ids: TokenIds
    spans: tuple[TokenSpan, ...]
    stop_token_ids: tuple[int, ...]
    text: str

    def owners(self) -> NDArray[np.int32]:
        """Index of the message that each id belongs to, -1 for none. Shape (n,), int32.

        Raises:
            TemplateRenderError: The writers of this rendering are not known.
        """
        return self._per_token([(span, span.owner) for span in self._known_spans()])

    def kinds(self) -> NDArray[np.int32]:
        """`TokenKind` value of each id. Shape (n,), int32.

        Raises:
            TemplateRenderError: The writers of this rendering are not known.
        """
        return self._per_token([(span, int(span.kind.value)) for span in self._known_spans()])

    def _known_spans(self) -> tuple[TokenSpan, ...]:
        if not self.spans and len(self.token_ids):
            raise TemplateRenderError("it is not known which message wrote which id of this rendering")
        return self.spans

    def _per_token(self, values: Sequence[tuple[TokenSpan, int]]) -> NDArray[np.int32]:
        out = np.empty(len(self.token_ids), dtype=np.int32)
        for span, value in values:
            out[span.start : span.end] = value
        return out


@dataclass(frozen=True, slots=True)
class _MaskedBody:
    word: str
    candidates: tuple[str, ...]
    owner: int


def _mask(message: Message, index: int) -> tuple[Message, list[_MaskedBody]]:
    bodies: list[_MaskedBody] = []

    def masked(kind: str, text: str | None) -> str | None:
        if not text:
            return text
        word = sentinel(kind, index)
        texts = dict.fromkeys(treatment.apply(text) for treatment in Treatment)
        # Templates also trim newlines only, for reasoning (Qwen3).
        bodies.append(
            _MaskedBody(word, tuple(dict.fromkeys((*texts, text.strip("\n"), text.lstrip("\n")))), index)
        )
        return word

    reasoning = masked("R", message.reasoning_content)
    content = masked("C", message.content)
    calls: list[ToolCall] = []
    for position, call in enumerate(message.tool_calls):
        word = sentinel("T", index, position)
        arguments = json.dumps({"qz": word})
        value = call.arguments_or_text()
        texts = dict.fromkeys((json.dumps(value, ensure_ascii=False), call.arguments))
        bodies.append(_MaskedBody(arguments, tuple(texts), index))
        calls.append(ToolCall(name=call.name, arguments=arguments, id=call.id))
    changed = Message(
        role=message.role,
        content=content,
        reasoning_content=reasoning,
        tool_calls=tuple(calls),
        tool_call_id=message.tool_call_id,
        name=message.name,
        extra=dict(message.extra),
    )
    return changed, bodies


@dataclass(frozen=True, slots=True)
class MaskedConversation:
    """A conversation whose every text is a word that occurs once; see `sentinels`."""

    messages: tuple[Message, ...]
    bodies: tuple[_MaskedBody, ...]

    @classmethod
    def of(cls, messages: Sequence[Message]) -> MaskedConversation:
        """Mask content, reasoning and call arguments of every message."""
        pairs = [_mask(message, index) for index, message in enumerate(messages)]
        return cls(tuple(m for m, _ in pairs), tuple(body for _, found in pairs for body in found))

    @classmethod
    def of_callers(cls, messages: Sequence[Message]) -> MaskedConversation:
        """Mask the messages that a model did not write; the others stay as they are."""
        pairs = [
            _mask(message, index) if message.role != "assistant" else (message, [])
            for index, message in enumerate(messages)
        ]
        return cls(tuple(m for m, _ in pairs), tuple(body for _, found in pairs for body in found))

    def locate(self, masked_text: str, real_text: str) -> tuple[Stretch, ...] | None:
        """Where each body stands in `real_text`; None when that cannot be told for certain."""
        shown = sorted(
            (body for body in self.bodies if body.word in masked_text), key=lambda b: masked_text.find(b.word)
        )
        parts = split_at_sentinels(masked_text, [body.word for body in shown])
        if parts is None or not real_text.startswith(parts[0]):
            return None
        position = len(parts[0])
        stretches: list[Stretch] = []
        for body, part in zip(shown, parts[1:], strict=True):
            for candidate in body.candidates:
                if real_text.startswith(candidate + part, position):
                    stretches.append(Stretch(position, position + len(candidate), body.owner))
                    position += len(candidate) + len(part)
                    break
            else:
                return None
        return tuple(stretches) if position == len(real_text) else None


UNKNOWN_WRITERS: tuple[TokenSpan, ...] = ()
"""The spans of a rendering whose writers are not known."""
