"""What a template writes around a whole message, between its generation prompt and the message's own text.

    before TEXT after

A frame is found by what comes out wrong without it: known messages are rendered and read, and where the text
does not come back, what stands around it is the frame, when it is the same for every text. It is taken off only
where it stands at the very beginning; its added tokens are matched as ids. A completion without it, or cut inside
it, is read as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokentrue.messages import Message
from tokentrue.rendering.formats.held_text import TrimmedText
from tokentrue.rendering.formats.marks import Marks, is_mark
from tokentrue.rendering.formats.probing import KEY, TEXT, THOUGHT, VALUE, Probes

_OTHER_TEXT = "7 qzWords8\n\né qzEnd9"

Part = int | str
"""An added token, by its id, or other text."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame; `after` is taken off only where `before` was."""

    before: tuple[Part, ...]
    after: tuple[Part, ...] = ()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The added tokens in it."""
        return tuple(part for part in self.before + self.after if isinstance(part, int))


def marked(parts: Sequence[Part], marks: Marks) -> str:
    """`parts` as the marked text of these marks."""
    return "".join(part if isinstance(part, str) else marks.char(part) or "" for part in parts)


class FrameCutter:
    """Takes a frame off marked text in pieces. Law: any split of the text gives the same.

    What comes out is `text` without the `before` of the longest frame that it begins with, and without the `after`
    of that frame.
    """

    def __init__(self, frames: Sequence[Frame], marks: Marks) -> None:
        self._frames = {marked(frame.before, marks): marked(frame.after, marks) for frame in frames}
        self._held = ""
        self._is_decided = not frames
        self._inner = TrimmedText("")

    def push(self, text: str) -> str:
        """More text; returns what is certain to stand inside of a frame, or without one."""
        if not self._is_decided:
            text = self._held + text
            self._held = ""
            if any(len(before) > len(text) and before.startswith(text) for before in self._frames):
                self._held = text
                return ""
            text = self._decide(text)
        return self._inner.push(text)

    def end(self) -> str:
        """The rest: nothing can follow."""
        rest = self._inner.push(self._decide(self._held)) if not self._is_decided else ""
        return rest + self._inner.end(cut=True)

    def _decide(self, text: str) -> str:
        self._is_decided = True
        found = max((before for before in self._frames if text.startswith(before)), key=len, default=None)
        if found is None:
            return text
        self._inner = TrimmedText("", self._frames[found])
        return text[len(found) :]


ReadContent = Callable[[tuple[Frame, ...], list[int], list[int]], str]
"""With these frames, the content of the completion (the last argument) of a prompt."""


def derive_frames(probes: Probes, read: ReadContent) -> tuple[Frame, ...]:
    """The frames of a template; empty where everything is read without one, or where none would help."""
    frames: tuple[Frame, ...] = ()
    kinds = [
        [(text, make(text, *arguments)) for text in (TEXT, _OTHER_TEXT)]
        for make, arguments in ((_said, ()), (_thought, ()), (probes.message, ({KEY: VALUE},)))
    ]
    for messages in kinds:
        right = [message for kind in kinds for _, message in kind if _is_read(probes, message, frames, read)]
        wanted = [message for _, message in messages]
        if all(message in right for message in wanted):
            continue
        found = {_frame_around(probes, message, text) for text, message in messages}
        frame = found.pop()
        if frame is None or found:
            continue
        # What was read right stays so: harmony's analysis stands before text beside a call, and is reasoning.
        if all(_is_read(probes, message, (*frames, frame), read) for message in (*wanted, *right)):
            frames = (*frames, frame)
    return frames


def _said(text: str) -> Message:
    return Message(role="assistant", content=text)


def _thought(text: str) -> Message:
    return Message(role="assistant", content=text, reasoning_content=THOUGHT)


def _is_read(probes: Probes, message: Message, frames: tuple[Frame, ...], read: ReadContent) -> bool:
    found = probes.prompt_and_completion(message)
    # White space before the text, where history has it and the generation prompt has not, is what a model samples.
    return found is not None and read(frames, *found).lstrip() == message.content


def _frame_around(probes: Probes, message: Message, text: str) -> Frame | None:
    said = probes.ended(message)
    before, found, after = said.partition(text) if said is not None else ("", "", "")
    if not before.strip():
        before = ""  # white space before the text is what a model samples
    if not found or THOUGHT in before + after or not before + after:
        return None
    # Behind text beside a call stands the call.
    return Frame(_parts(before, probes.marks), _parts(after, probes.marks) if not message.tool_calls else ())


def _parts(text: str, marks: Marks) -> tuple[Part, ...]:
    parts: list[Part] = []
    for char in text:
        if is_mark(char):
            parts.append(marks.id_of(char))
        elif parts and isinstance(parts[-1], str):
            parts[-1] += char
        else:
            parts.append(char)
    return tuple(parts)
