"""The whole completion is one call, `{"name": …, "parameters": …}`, without markers (Llama 3)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tokentrue.rendering.formats.marks import Marks
from tokentrue.rendering.formats.parsed import CallKeys, CallStatus, ReadPiece, Schemas, Spoken, SpokenKind

_LONGEST_BEGINNING = 512
"""So many characters may stand in front of the first key; behind more white space it is text."""


@dataclass(frozen=True, slots=True)
class BareJson:
    """A call is what begins like one: `{` and the name's key first. Text that does so is a call as well."""

    keys: CallKeys
    marks: Marks = field(default_factory=Marks)

    @property
    def name(self) -> str:
        return f"bare json with {self.keys.name_key!r} and {self.keys.arguments_key!r}"

    def start(self, schemas: Schemas, prompt: str = "") -> _BareReader:
        """A reader for one completion."""
        return _BareReader(self)


class _BareReader:
    def __init__(self, form: BareJson) -> None:
        self._form = form
        self._held: list[str] = []
        self._begin = ""
        self._decided: bool | None = None

    @property
    def reasoning_is_open(self) -> bool:
        return False

    def feed(self, text: str) -> list[ReadPiece]:
        self._held.append(text)
        if self._decided is None:
            self._begin = (self._begin + text).lstrip()[:_LONGEST_BEGINNING]
            self._decided = self._decide(self._begin)
        return self._flush() if self._decided is False else []

    def finish(self, *, stopped: bool) -> list[ReadPiece]:
        if not self._decided:
            return self._flush()
        raw = self._form.marks.plain("".join(self._held))
        call = self._form.keys.read(raw)
        if call.status is CallStatus.INVALID_JSON and call.name is None and not raw.rstrip().endswith("}"):
            call = replace(call, status=CallStatus.UNCLOSED)
        return [call]

    def _decide(self, begin: str) -> bool | None:
        """True: a call; False: text; None: too little of it is there."""
        if begin and not begin.startswith("{"):
            return False
        text = begin[1:].lstrip()
        key = f'"{self._form.keys.name_key}"'
        if text.startswith(key):
            return True
        return None if key.startswith(text) and len(begin) < _LONGEST_BEGINNING else False

    def _flush(self) -> list[ReadPiece]:
        held, self._held = "".join(self._held), []
        return [Spoken(SpokenKind.CONTENT, self._form.marks.plain(held))] if held else []
