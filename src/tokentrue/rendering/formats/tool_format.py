"""The seam between a completion and its grammar: what a format of tool calls must offer."""

from __future__ import annotations

from typing import Protocol

from tokentrue.rendering.formats.marks import Marks
from tokentrue.rendering.formats.parsed import ParsedToolCall, ReadPiece, Schemas


class FormatReader(Protocol):
    """Reads one completion, without its leading reasoning, from marked text in pieces of any size.

    Law: any split of the text gives the same pieces, once neighbours of one kind are joined.
    """

    @property
    def reasoning_is_open(self) -> bool:
        """Whether the text so far ends inside reasoning that this format itself marks (harmony)."""
        ...

    def feed(self, text: str) -> list[ReadPiece]:
        """What is certain now. Never raises on model output."""
        ...

    def finish(self, *, stopped: bool) -> list[ReadPiece]:
        """The rest.

        Args:
            stopped: The completion ended with a stop id; otherwise it may be cut off.
        """
        ...


class ToolFormat(Protocol):
    """One template's grammar of tool calls."""

    @property
    def name(self) -> str:
        """The grammar's name, as a certificate prints it."""
        ...

    @property
    def marks(self) -> Marks:
        """The markers that it matches as ids."""
        ...

    def start(self, schemas: Schemas, prompt: str = "") -> FormatReader:
        """A reader for one completion.

        Args:
            prompt: The end of the prompt as marked text; empty where it is not at hand.
        """
        ...


class CallBody(Protocol):
    """The grammar of what stands between the markers of a call."""

    @property
    def name(self) -> str:
        """The grammar's name."""
        ...

    def read(self, body: str, marks: Marks, schemas: Schemas, *, closed: bool) -> tuple[ParsedToolCall, ...]:
        """The calls in `body`, which is marked text. Never raises on model output.

        Args:
            closed: The closing marker was there, or the grammar has none and the completion was stopped.
        """
        ...
