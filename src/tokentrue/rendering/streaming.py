"""Reading a completion while it is sampled: ids in, in pieces of any size; deltas out. Pure.

Law: any split of the ids gives the same response, and the deltas concatenate to it: the texts of all
`ContentDelta` are the content, those of all `ReasoningDelta` the reasoning, the calls of all `CallDelta` the
calls. Reading a whole completion at once is one such split, so there is no second reader.

Nothing is given out that later ids could change: no half character, no half marker, no white space that the
template may own. A call comes as one delta, when its block has ended: only then is it known whether its
arguments can be read, and arguments that cannot are never given out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from tokentrue.rendering.formats.frames import Frame, FrameCutter
from tokentrue.rendering.formats.held_text import TrimmedText
from tokentrue.rendering.formats.marks import MarkedDecoder, Marks
from tokentrue.rendering.formats.parsed import ParsedToolCall, ReadPiece, Schemas, Spoken, SpokenKind, judged
from tokentrue.rendering.formats.reasoning import ReasoningFormat, ReasoningState
from tokentrue.rendering.formats.tool_format import FormatReader, ToolFormat
from tokentrue.rendering.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More content."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """One attempted call, whole: its name, its arguments as JSON text, and its status."""

    index: int
    call: ParsedToolCall


Delta = ContentDelta | ReasoningDelta | CallDelta


@dataclass(frozen=True, slots=True)
class ReadingRules:
    """What a streaming reader needs to know about one model and one request."""

    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    reasoning: ReasoningFormat | None
    tools: ToolFormat | None
    schemas: Schemas
    prompt_tail: tuple[int, ...] = ()
    frames: tuple[Frame, ...] = ()


class _Stage(Enum):
    BEFORE_REASONING = auto()
    REASONING = auto()
    BEHIND_REASONING = auto()
    SAYING = auto()


class _PlainReader:
    """The format reader of a template whose calls are not read: everything is content."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks

    @property
    def reasoning_is_open(self) -> bool:
        return False

    def feed(self, text: str) -> list[ReadPiece]:
        return [Spoken(SpokenKind.CONTENT, self._marks.plain(text))] if text else []

    def finish(self, *, stopped: bool) -> list[ReadPiece]:
        return []


def _format_reader(rules: ReadingRules, marks: Marks) -> FormatReader:
    if rules.tools is None:
        return _PlainReader(marks)
    return rules.tools.start(rules.schemas, rules.tools.marks.of_ids(rules.prompt_tail, rules.tokenizer))


class StreamingReader:
    """Reads one completion. Make one per completion; `finish` ends it."""

    def __init__(self, rules: ReadingRules) -> None:
        form = rules.reasoning
        marks = rules.tools.marks if rules.tools is not None else Marks()
        if form is not None:
            marks = marks.including(rules.tokenizer, (form.opener.id, form.closer.id))
        marks = marks.including(
            rules.tokenizer, [token_id for frame in rules.frames for token_id in frame.token_ids]
        )
        self._rules = rules
        self._marks = marks
        self._frame = FrameCutter(rules.frames, marks)
        # A reasoning marker that the format does not know is spelled out for it.
        known = rules.tools.marks if rules.tools is not None else marks
        self._foreign = {
            ord(char): text
            for token_id, text in marks.spellings
            if known.char(token_id) is None and (char := marks.char(token_id)) is not None
        }
        last = rules.prompt_tail[-1] if rules.prompt_tail else None
        self._decoder = MarkedDecoder(marks, rules.tokenizer, last)
        self._format = _format_reader(rules, marks)
        self._held_stop: int | None = None
        self._held: list[str] = []
        self._calls = 0
        self._said_reasoning = False
        self._stage = _Stage.SAYING if form is None else _Stage.BEFORE_REASONING
        self._thought = TrimmedText("")
        self._gap = TrimmedText("")
        if form is not None and form.is_open(rules.prompt_tail):
            self._begin_reasoning(form, self._lead_in_prompt(form))
        elif form is not None and (left := self._gap_behind_prompt(form)):
            self._stage, self._gap = _Stage.BEHIND_REASONING, TrimmedText(left)
        self._state = ReasoningState.OPEN if self._stage is _Stage.REASONING else ReasoningState.ABSENT

    @property
    def reasoning(self) -> ReasoningState:
        """What the completion did about reasoning so far."""
        if self._format.reasoning_is_open:
            return ReasoningState.OPEN
        if self._said_reasoning and self._state is ReasoningState.ABSENT:
            return ReasoningState.CLOSED
        return self._state

    @property
    def stop_id(self) -> int | None:
        """The stop id that was fed last; None when the last id is none."""
        return self._held_stop

    def feed(self, ids: Iterable[int]) -> tuple[Delta, ...]:
        """Read more ids; returns what is certain now. Never raises on what a model wrote."""
        certain: list[int] = []
        for token_id in ids:
            if self._held_stop is not None:
                # A stop id in the middle is text like any other id.
                certain.append(self._held_stop)
                self._held_stop = None
            if token_id in self._rules.stop_ids:
                self._held_stop = token_id
            else:
                certain.append(token_id)
        return self._deltas(self._read(self._frame.push(self._decoder.feed(certain))))

    def finish(self) -> tuple[Delta, ...]:
        """Read the end; returns the rest."""
        pieces = self._read(self._frame.push(self._decoder.finish()) + self._frame.end())
        if self._stage is _Stage.REASONING:
            pieces += self._thinking(self._thought.end(cut=False))
        else:
            if self._stage is _Stage.BEFORE_REASONING:
                pieces += self._say("".join(self._held))
            elif self._stage is _Stage.BEHIND_REASONING:
                pieces += self._say(self._gap.end(cut=False))
            was_open = self._format.reasoning_is_open
            pieces += self._format.finish(stopped=self._held_stop is not None)
            self._state = ReasoningState.OPEN if was_open else self._state
        return self._deltas(pieces)

    def _read(self, text: str) -> list[ReadPiece]:
        pieces: list[ReadPiece] = []
        form = self._rules.reasoning
        if form is not None and self._stage is _Stage.BEFORE_REASONING and text:
            text = self._find_opener(form, text)
        if form is not None and self._stage is _Stage.REASONING and text:
            thought, found, text = text.partition(self._char(form.closer.id))
            pieces += self._thinking(self._thought.push(thought))
            if found:
                pieces += self._thinking(self._thought.end(cut=True))
                self._end_reasoning(form, ReasoningState.CLOSED)
        if self._stage is _Stage.BEHIND_REASONING and text:
            text = self._gap.push(text)
            if text:
                self._stage = _Stage.SAYING
                text += self._gap.end(cut=False)
        if self._stage is _Stage.SAYING and text:
            pieces += self._say(text)
        return pieces

    def _find_opener(self, form: ReasoningFormat, text: str) -> str:
        self._held.append(text)
        stripped = text.lstrip()
        if not stripped:
            return ""
        held, self._held = "".join(self._held), []
        if stripped.startswith(self._char(form.opener.id)):
            self._begin_reasoning(form, form.lead)
            self._state = ReasoningState.OPEN
            return stripped[1:]
        if stripped.startswith(self._char(form.closer.id)):
            # Templates without an opener in their history write the closer alone where nothing was thought.
            self._end_reasoning(form, ReasoningState.ABSENT)
            return stripped[1:]
        self._stage = _Stage.SAYING
        return held

    def _begin_reasoning(self, form: ReasoningFormat, lead: str) -> None:
        self._stage = _Stage.REASONING
        self._thought = TrimmedText(lead, form.trail)

    def _end_reasoning(self, form: ReasoningFormat, state: ReasoningState) -> None:
        self._stage, self._state = _Stage.BEHIND_REASONING, state
        self._gap = TrimmedText(form.gap)

    def _lead_in_prompt(self, form: ReasoningFormat) -> str:
        """The white space behind the opener that the prompt does not hold already."""
        tail = self._rules.prompt_tail
        opened_at = max(position for position, token_id in enumerate(tail) if token_id == form.opener.id)
        behind = self._rules.tokenizer.decode(tail[opened_at + 1 :]) if tail[opened_at + 1 :] else ""
        return form.lead.removeprefix(behind) if behind else form.lead

    def _gap_behind_prompt(self, form: ReasoningFormat) -> str:
        """The white space that is still to come where the prompt ends with closed reasoning."""
        tail = self._rules.prompt_tail
        closed = [position for position, token_id in enumerate(tail) if token_id == form.closer.id]
        if not closed:
            return ""
        rest = tail[closed[-1] + 1 :]
        behind = self._rules.tokenizer.decode(rest) if rest else ""
        return form.gap.removeprefix(behind) if form.gap.startswith(behind) else ""

    def _char(self, token_id: int) -> str:
        return self._marks.char(token_id) or ""

    def _say(self, text: str) -> list[ReadPiece]:
        return self._format.feed(text.translate(self._foreign))

    def _thinking(self, text: str) -> list[ReadPiece]:
        return [Spoken(SpokenKind.REASONING, self._marks.plain(text))] if text else []

    def _deltas(self, pieces: Sequence[ReadPiece]) -> tuple[Delta, ...]:
        deltas: list[Delta] = []
        for piece in pieces:
            if isinstance(piece, ParsedToolCall):
                deltas.append(CallDelta(self._calls, judged(piece, self._rules.schemas)))
                self._calls += 1
            elif piece.kind is SpokenKind.REASONING:
                self._said_reasoning = True
                deltas.append(ReasoningDelta(piece.text))
            else:
                deltas.append(ContentDelta(piece.text))
        return tuple(deltas)
