"""Stop tokens found by asking the template, for folders that name too few.

generation_config.json is the truth about where an engine stops. A folder without it names only the
tokenizer's eos, which for some families is not what ends a message: phi-3 ends one with `<|end|>`,
GLM with the next message's opener, gpt-oss a tool call with `<|call|>`, Gemma one with `<|tool_response>`.

A message is rendered as the last one and again with a follow-up; what both renderings show behind it
belongs to it. With the eos in there, that is the stop. Else the one added token in there is, if it
cannot be an inner one: a token that stands between two calls is inner, and so may be the counterpart of a
token that only calls open with (DeepSeek's `<｜tool▁calls▁begin｜>`). Whatever is not certain is told
and not taken: a stop id too many cuts answers off, one too few is refused by the bridge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokentrue.errors import TemplateRenderError
from tokentrue.messages import Message, ToolCall
from tokentrue.rendering.chat_template import ChatTemplate
from tokentrue.rendering.sentinels import sentinel
from tokentrue.rendering.template_messages import PROBE_CALL, PROBE_TOOL, MessageForm
from tokentrue.rendering.tokenizer import Tokenizer

_SAID, _NEW, _ASKED = sentinel("A", 0), sentinel("N", 0), sentinel("U", 0)
_VALUE = "qzValue7"
_SHOWN = 80
_SPELLED_AS_INNER = ("</", "[/")


@dataclass(frozen=True, slots=True)
class DerivedStops:
    """Stop ids that the template shows, and where it shows none that is certain.

    Args:
        ids: The certain ones, in addition to those that the folder names.
        doubts: One sentence for each kind of message whose end is not known.
    """

    ids: tuple[int, ...]
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Ends:
    """What a template writes around one kind of assistant message.

    Args:
        ended: Behind the message when it is the last one.
        followed: Behind it, up to the text of the next message.
        header: Between the question and the message's own text.
    """

    ended: str
    followed: str
    header: str

    @property
    def shared(self) -> str:
        """What belongs to the message, whatever follows."""
        pairs = zip(self.ended, self.followed, strict=False)
        differs = next((at for at, (a, b) in enumerate(pairs) if a != b), None)
        return self.ended[: min(len(self.ended), len(self.followed)) if differs is None else differs]


def derive_stops(
    template: ChatTemplate, form: MessageForm, tokenizer: Tokenizer, named: Sequence[int] = ()
) -> DerivedStops:
    """The ids with which the template ends a plain message and a tool call, where they are certain.

    Args:
        named: The stop ids that the folder names.
    """
    prober = _Prober(template, form, tokenizer)
    plain, plain_doubt, is_opener = _plain_stop(prober, named)
    known = [*named, *plain]
    call, call_doubt = _call_stop(prober, known, is_opener=is_opener)
    doubts = tuple(doubt for doubt in (plain_doubt, call_doubt) if doubt)
    return DerivedStops(tuple(dict.fromkeys((*plain, *call))), doubts)


@dataclass(frozen=True, slots=True)
class _Prober:
    template: ChatTemplate
    form: MessageForm
    tokenizer: Tokenizer

    def ends(self, message: Message, new: Message, words: tuple[str, str], *, tools: bool) -> _Ends | None:
        """What stands around `message`; `words` are the first and the last of it. None when it is not written."""
        question = Message(role="user", content=_ASKED)
        ended = self._render((question, message), tools)
        followed = self._render((question, message, new), tools)
        if ended is None or followed is None or words[1] not in ended or words[1] not in followed:
            return None
        first = ended.rfind(words[0])
        header = ended[max(ended.rfind(_ASKED), 0) : first]
        behind = followed[followed.rfind(words[1]) + len(words[1]) :]
        return _Ends(ended[ended.rfind(words[1]) + len(words[1]) :], behind.split(_NEW)[0], header)

    def two_calls(self) -> tuple[str, str]:
        """What stands between the arguments of two calls, and behind them; "" where only one call is written."""
        two = tuple(
            ToolCall(PROBE_CALL.name, f'{{"qzKey7": "{_VALUE}n{index}"}}', f"qzCallId{index}") for index in (1, 2)
        )
        question = Message(role="user", content=_ASKED)
        text = self._render((question, Message(role="assistant", tool_calls=two)), True)
        if text is None or f"{_VALUE}n1" not in text or f"{_VALUE}n2" not in text:
            return "", ""
        return text[text.rfind(f"{_VALUE}n1") : text.rfind(f"{_VALUE}n2")], text[text.rfind(f"{_VALUE}n2") :]

    def tokens(self, text: str) -> list[int]:
        """The added tokens in `text`, in their order, without those that are white space."""
        found = (self.tokenizer.added_token_of_id(token_id) for token_id in self.tokenizer.encode(text))
        return [info.id for info in found if info is not None and info.text.strip()]

    def is_bos(self, token: int) -> bool:
        """Whether the token begins a conversation: no model samples it."""
        return self.tokenizer.id_text(token) == self.template.special_tokens.get("bos_token")

    def doubt(self, what: str, behind: str) -> str:
        """One sentence about a message whose stop is not certain."""
        behind = behind if len(behind) <= _SHOWN else behind[:_SHOWN] + "…"
        listed = [f"{self.tokenizer.id_text(token)} ({token})" for token in dict.fromkeys(self.tokens(behind))]
        told = f"; if the model stops at {' or '.join(listed)}, say so" if listed else ""
        return (
            f"no stop is known to end {what}{told} (--stop-id N, stop_token_ids=[N], or eos_token_id in "
            f"generation_config.json): behind it the template writes {behind!r}"
        )

    def _render(self, messages: tuple[Message, ...], tools: bool) -> str | None:
        try:
            return self.template.render_text(self.form.to_templates(messages), [PROBE_TOOL] if tools else [])
        except TemplateRenderError:
            return None


def _plain_stop(prober: _Prober, named: Sequence[int]) -> tuple[tuple[int, ...], str, bool]:
    """The stop of a message of text, what is doubtful about it, and whether the next message's opener is it."""
    said = Message(role="assistant", content=_SAID)
    ends = prober.ends(said, Message(role="user", content=_NEW), (_SAID, _SAID), tools=False)
    if ends is None:
        return (), "", False
    shared, ended, followed = (prober.tokens(text) for text in (ends.shared, ends.ended, ends.followed))
    is_opener = not ended
    for tokens in (shared, ended, followed):
        if set(tokens) & set(named):
            return (), "", is_opener and tokens[0] in named
        if tokens and (len(tokens) == 1 or is_opener) and not prober.is_bos(tokens[0]):
            return (tokens[0],), "", is_opener
        if tokens:
            return (), prober.doubt("a message of text", ends.ended or ends.followed), False
    return (), "", False


def _call_stop(prober: _Prober, known: Sequence[int], *, is_opener: bool) -> tuple[tuple[int, ...], str]:
    """The stop of a tool call where it is another one than `known`, and what is doubtful about it.

    Args:
        is_opener: The next message's opener stops a message of text; then it may stop a call too.
    """
    call = Message(role="assistant", tool_calls=(PROBE_CALL,))
    result = Message(role="tool", content=_NEW, tool_call_id=PROBE_CALL.id, name=PROBE_CALL.name)
    ends = prober.ends(call, result, (PROBE_CALL.name, _VALUE), tools=True)
    if ends is None:
        return (), ""
    shared = prober.tokens(ends.shared)
    if set(shared) & set(known) or set(prober.tokens(ends.ended)) & set(known):
        return (), ""
    between, behind_two = prober.two_calls()
    if set(prober.tokens(behind_two)) & set(known):
        return (), ""  # with one call alone it leaves the stop out (DeepSeek-V3)
    inner = set(prober.tokens(between))
    left = [token for token in shared if token not in inner]
    opened = _only_in_calls(prober, ends.header) - inner
    if not left and is_opener:
        behind = prober.tokens(ends.followed[len(ends.shared) :])
        if set(behind[1:]) & set(known):
            return (), ""  # the known stop is written there, only not behind the last message (Apriel 1.6)
        return tuple(token for token in behind[:1] if token not in inner), ""
    certain = len(left) == 1 and not opened and not _is_spelled_as_inner(prober, left[0])
    return (tuple(left), "") if certain else ((), prober.doubt("a tool call", ends.followed))


def _only_in_calls(prober: _Prober, header: str) -> set[int]:
    """The added tokens in front of a call that a message of text does not begin with."""
    said = Message(role="assistant", content=_SAID)
    plain = prober.ends(said, Message(role="user", content=_NEW), (_SAID, _SAID), tools=True)
    return set(prober.tokens(header)) - set(prober.tokens(plain.header if plain is not None else ""))


def _is_spelled_as_inner(prober: _Prober, token: int) -> bool:
    return prober.tokenizer.id_text(token).startswith(_SPELLED_AS_INNER)
