"""What becomes of message text that spells a special token: one stated policy, and a warning when it happens.

`as_template` (the default) does what engines and training pipelines do: the rendering is encoded as one text, so
the spelling becomes the token. A prompt is then, id by id, what the model's own template gives anywhere else; but
whoever writes a message, a web page in a tool's result too, can end it and begin another role. `escape` keeps such
text plain: no control marker can come from a message (`markers`). Messages that spell nothing have the same ids
under both.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tokentrue.errors import ConfigError, SpelledMarkerWarning, TemplateRenderError, TokenizerFolderError
from tokentrue.messages import Message, tools_digest
from tokentrue.rendering.chat_template import ChatTemplate
from tokentrue.rendering.markers import MOST_MARKERS, ControlMarkers, plane_for
from tokentrue.rendering.reader import MALFORMED_KEY, Reader
from tokentrue.rendering.template_messages import PROBE_CALL, PROBE_TOOL, MessageForm
from tokentrue.rendering.tokenizer import Match, Tokenizer

_LOGGER = logging.getLogger(__name__)
_REMEMBERED = 65_536
"""How many messages are remembered as read; one takes about 200 bytes."""


class MarkerPolicy(Enum):
    """What becomes of message text that spells a control marker."""

    AS_TEMPLATE = "as_template"
    ESCAPE = "escape"

    @classmethod
    def named(cls, name: str) -> MarkerPolicy:
        """The policy of that name.

        Raises:
            ConfigError: There is none.
        """
        try:
            return cls(name)
        except ValueError:
            allowed = ", ".join(repr(policy.value) for policy in cls)
            raise ConfigError(f"spelled_markers={name!r} is wrong; allowed is one of {allowed}") from None


_BECOMES = {
    MarkerPolicy.AS_TEMPLATE: "it becomes that token's id, as in an engine; spelled_markers='escape' keeps it "
    "plain text",
    MarkerPolicy.ESCAPE: "it is kept plain text",
}


@dataclass(frozen=True, slots=True)
class Written:
    """A rendered conversation; `spelled` are the markers in `text` that are message text and are to stay it."""

    text: str
    spelled: tuple[Match, ...] = ()

    def behind(self, start: int) -> Written:
        """The same without the first `start` characters; no marker of a message stands across that place."""
        moved = (Match(each.start - start, each.end - start, each.id) for each in self.spelled)
        return Written(self.text[start:], tuple(each for each in moved if each.start >= 0))


@dataclass(frozen=True, slots=True)
class _Read:
    """What was found in one message.

    Args:
        spelled: Which field spells which marker.
        needs_marks: Whether a marker is in it, or may stand across one of its ends.
    """

    spelled: tuple[tuple[str, str], ...]
    needs_marks: bool


@dataclass(frozen=True, slots=True)
class SpelledMarkers:
    """One policy for one template and tokenizer, and a bounded memory of the messages that were read (law 8).

    Raises:
        TokenizerFolderError: More markers than can be told apart under `escape`.
    """

    policy: MarkerPolicy
    markers: ControlMarkers = field(repr=False)
    template: ChatTemplate = field(repr=False)
    form: MessageForm = field(repr=False)
    _known: dict[bytes, _Read] = field(default_factory=dict, init=False, repr=False, compare=False)
    _told: dict[tuple[bytes, str], None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.policy is MarkerPolicy.ESCAPE and len(self.markers.tokens) > MOST_MARKERS:
            raise TokenizerFolderError(
                f"spelled_markers='escape' tells {MOST_MARKERS} special tokens apart, and this tokenizer has "
                f"{len(self.markers.tokens)}: use 'as_template'"
            )

    def write(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = False,
    ) -> Written:
        """The conversation as the template writes it, and what of it must not become a marker.

        Raises:
            TemplateRenderError: The template refuses the messages.
            SpelledMarkerError: Under `escape`: who wrote a marker cannot be told.
        """
        listed = self.form.to_templates(messages)
        text = self.template.render_text(listed, tools, add_generation_prompt=add_generation_prompt)
        marks = self.mark(messages, tools, text)
        if marks is None:
            return Written(text)
        marked = self.template.render_text(
            marks.messages, marks.tools, add_generation_prompt=add_generation_prompt
        )
        return Written(text, marks.read(marked, text))

    def encode_with_offsets(self, written: Written) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a rendering, and the characters of it that each stands for.

        Raises:
            SpelledMarkerError: A spelled marker cannot be kept plain text.
        """
        return self.markers.encode_with_offsets(written.text, written.spelled)

    def encode(self, written: Written) -> list[int]:
        """`encode_with_offsets` without the offsets."""
        if not written.spelled:
            return self.markers.tokenizer.encode(written.text)
        return self.encode_with_offsets(written)[0]

    def mark(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], plain: str
    ) -> MarkedMessages | None:
        """The messages with each marker in them marked; None when there is nothing to tell apart.

        Args:
            plain: The rendering of the messages as they are.
        """
        if self.policy is MarkerPolicy.AS_TEMPLATE:
            return None
        needed = [self._read(message).needs_marks for message in messages]
        tools_needed = bool(tools) and self._read_tools(tools).needs_marks
        if not any(needed) and not tools_needed:
            return None
        plane = plane_for(plain)
        listed = [
            self.markers.marked(data, plane) if marked else data
            for data, marked in zip(self.form.to_templates(messages), needed, strict=True)
        ]
        offered = self.markers.marked(tools, plane) if tools_needed else list(tools)
        return MarkedMessages(listed, offered, self.markers, plane)

    def tell(
        self, messages: Sequence[Message], first_index: int = 0, tools: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Warn of each marker that a message spells: once for each message and marker, not once a turn."""
        for index, message in enumerate(messages, start=first_index):
            for where, marker in self._read(message).spelled:
                place = f"message {index} ({message.role}) spells the special token {marker!r} in its {where}"
                self._tell_once(message.digest, marker, place)
        if tools:
            for where, marker in self._read_tools(tools).spelled:
                self._tell_once(
                    tools_digest(tools), marker, f"a tool spells the special token {marker!r} in {where}"
                )

    def _tell_once(self, digest: bytes, marker: str, place: str) -> None:
        key = (digest, marker)
        if key in self._told:
            return
        _make_room(self._told)
        self._told[key] = None
        text = f"{place}: {_BECOMES[self.policy]}"
        _LOGGER.warning("%s", text)
        warnings.warn(text, SpelledMarkerWarning, stacklevel=4)

    def _read(self, message: Message) -> _Read:
        found = self._known.get(message.digest)
        if found is None:
            found = self._read_value(_fields(message, self.form))
            _make_room(self._known)
            self._known[message.digest] = found
        return found

    def _read_tools(self, tools: Sequence[Mapping[str, Any]]) -> _Read:
        digest = tools_digest(tools)
        found = self._known.get(digest)
        if found is None:
            found = self._read_value({"definition": list(tools)})
            self._known[digest] = found
        return found

    def _read_value(self, named: Mapping[str, Any]) -> _Read:
        spelled: dict[tuple[str, str], None] = {}
        needs_marks = False
        for where, value in named.items():
            for text in _texts(value):
                matches = self.markers.find(text)
                if where != MALFORMED_KEY:  # the reader put it there; no template writes it
                    spelled.update(dict.fromkeys((where, self.markers.text_of(match.id)) for match in matches))
                needs_marks = needs_marks or bool(matches) or self.markers.has_open_end(text)
        return _Read(tuple(spelled), needs_marks)


def control_markers(
    template: ChatTemplate, form: MessageForm, tokenizer: Tokenizer, reader: Reader
) -> ControlMarkers:
    """The control markers of a template: what it names, what it is seen to write, and what its reader reads."""
    asked = Message(role="user", content="?")
    thought = Message(role="assistant", content="ok", reasoning_content="So.")
    called = Message(role="assistant", tool_calls=(PROBE_CALL,))
    result = Message(role="tool", content="4", tool_call_id=PROBE_CALL.id, name=PROBE_CALL.name)
    written = [template.default, template.tool_use or ""]
    for messages in ((asked,), (asked, thought, asked), (asked, called, result)):
        try:
            text = template.render_text(form.to_templates(messages), [PROBE_TOOL], add_generation_prompt=True)
        except TemplateRenderError:
            continue
        written.append(text)
    read = set(reader.stop_ids)
    if reader.reasoning is not None:
        read |= {reader.reasoning.opener.id, reader.reasoning.closer.id}
    if reader.tools is not None:
        read |= {token_id for token_id, _ in reader.tools.marks.spellings}
    return ControlMarkers.of(tokenizer, written, read)


@dataclass(frozen=True, slots=True)
class MarkedMessages:
    """Messages and tools as a template takes them, with every marker in them marked."""

    messages: list[dict[str, Any]]
    tools: list[Mapping[str, Any]]
    _markers: ControlMarkers = field(repr=False)
    _plane: int

    def read(self, marked: str, plain: str) -> tuple[Match, ...]:
        """The markers in `plain` that message text wrote; `marked` is the rendering of these messages.

        Raises:
            SpelledMarkerError: That cannot be told.
        """
        return self._markers.read_marks(marked, plain, self._plane)


def _fields(message: Message, form: MessageForm) -> Mapping[str, Any]:
    # Parts that are no text are refused where they are rendered, and have nothing to read here.
    return {} if message.parts else {key: item for key, item in form.to_template(message).items() if key != "role"}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _make_room(memory: dict[Any, Any]) -> None:
    # Forgotten all at once, because several threads may do so: then a message is read, and told of, once more.
    if len(memory) >= _REMEMBERED:
        memory.clear()
