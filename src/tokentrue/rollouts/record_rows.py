"""Rows of a record and the values they stand for: `*_from_row(*_row(value)) == value`.

A turn's row holds only what the turn added (law 8): the prompt ids behind those that an earlier turn of the same
episode saw or sampled. `KnownTurns` takes the known ones away when writing and puts them back when reading. (A
turn's spans speak of its new ids only, so they are stored as they are.)
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

import numpy as np

from tokentrue.errors import AlignmentError, RecordError, TokentrueError
from tokentrue.generation import EngineInfo, FinishReason, LogprobsMode, Usage, VersionSource, WeightSpan
from tokentrue.messages import Message, messages_from
from tokentrue.rollouts.environment import StopReason
from tokentrue.rollouts.record_texts import KeptTexts, ToldTexts
from tokentrue.rollouts.trajectory import EpisodeError, EpisodeRecord, Phase, RunInfo, TurnRecord
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import IntArray, Logprobs, TokenIds, TurnTokens
from tokentrue.turns import CutSpan, How, Junction, Stitch, TokenKind, TokenSpan, Turn, Why, without
from tokentrue.weights import UNSET_LABEL

Row = dict[str, Any]
"""One row, by column name; the columns are declared in `record.py`."""


@dataclass(frozen=True, slots=True)
class StoredPrompt:
    """A prompt as a row holds it.

    `prompt_ids == without(all_ids(base_turn)[:base_len], removed) + added_ids`; `base_turn` None means that all
    ids are added ones. Only a splice has removed ids.
    """

    base_turn: int | None
    base_len: int
    added_ids: IntArray
    removed: tuple[CutSpan, ...] = ()


class KnownTurns:
    """The turns of one episode so far. `restore(strip(turn))` gives back the turn's prompt."""

    def __init__(self) -> None:
        self._all_ids: dict[int, TokenIds] = {}
        self._turns: dict[int, Turn] = {}

    def add(self, turn: Turn) -> None:
        """Know a turn, so that later ones can be stored by reference to it."""
        self._turns[turn.index] = turn
        self._all_ids[turn.index] = turn.tokens.all_ids()

    def strip(self, turn: Turn) -> StoredPrompt:
        """What has to be stored of a prompt. The base is the anchor, else the turn before."""
        prompt = turn.tokens.prompt_ids
        if turn.stitch.removed:
            return self._strip_spliced(turn)
        base_turn = turn.stitch.anchor_turn
        if base_turn not in self._turns:
            base_turn = max(self._turns, default=None)
        if base_turn is None:
            return StoredPrompt(None, 0, prompt.array())
        base_len = self._shared_ids(self._turns[base_turn], prompt)
        return StoredPrompt(base_turn, base_len, prompt.tail(base_len))

    def _strip_spliced(self, turn: Turn) -> StoredPrompt:
        """A splice by its base and what was removed, however it was spliced; a broken one whole, for its law."""
        prompt, stitch = turn.tokens.prompt_ids, turn.stitch
        stored = StoredPrompt(stitch.anchor_turn, stitch.anchor_len, prompt.tail(stitch.known_len), stitch.removed)
        try:
            is_spliced = self.restore(stored) == prompt
        except (RecordError, AlignmentError):
            is_spliced = False
        return stored if is_spliced else StoredPrompt(None, 0, prompt.array(), stitch.removed)

    def _shared_ids(self, base: Turn, prompt: TokenIds) -> int:
        """How many leading ids the prompt shares with everything that the base turn saw and sampled."""
        given, sampled = base.tokens.prompt_ids, base.tokens.completion_ids
        total = len(given) + len(sampled)
        # A stitched prompt shares the base's rope: then only the ids behind it are read.
        if len(prompt) >= total and prompt.starts_with(given):
            behind = prompt.tail(len(given))[: len(sampled)]
            if np.array_equal(behind, sampled.array()):
                return total
        known = self._all_ids[base.index].array()
        shorter = min(len(known), len(prompt))
        different = np.flatnonzero(known[:shorter] != prompt.array()[:shorter])
        return int(different[0]) if len(different) else shorter

    def restore(self, stored: StoredPrompt) -> TokenIds:
        """The prompt ids; known ones are shared, not copied.

        Raises:
            RecordError: The base turn is missing from the record, or shorter than the row says.
        """
        if stored.base_turn is None:
            return TokenIds(stored.added_ids)
        known = self._all_ids.get(stored.base_turn)
        if known is None or len(known) < stored.base_len:
            raise RecordError(
                f"a prompt builds on {stored.base_len} ids of turn {stored.base_turn}, "
                f"which has {'not been recorded' if known is None else f'only {len(known)}'}"
            )
        if stored.removed:
            return TokenIds(without(TokenIds(known.array()[: stored.base_len]), stored.removed)).extended(
                stored.added_ids
            )
        shared = known if stored.base_len == len(known) else TokenIds(known.array()[: stored.base_len])
        return shared.extended(stored.added_ids)


def turn_row(record: TurnRecord, stored: StoredPrompt) -> Row:
    """The row of a turn whose prompt was stripped; inverse of `turn_from_row`."""
    turn, stitch = record.turn, record.turn.stitch
    stop, kept = turn.stop_reason, KeptTexts()
    return {
        "episode": record.episode,
        "turn": turn.index,
        "how": stitch.how.value,
        "why": stitch.why.value,
        "detail": kept.text("detail", stitch.detail),
        "junction": stitch.junction.value if stitch.junction is not None else None,
        "anchor_turn": stitch.anchor_turn,
        "known_len": stitch.known_len,
        "base_turn": stored.base_turn,
        "base_len": stored.base_len,
        "prompt_len": len(turn.tokens.prompt_ids),
        "added_ids": stored.added_ids,
        "completion_ids": turn.tokens.completion_ids.array(),
        "completion_logprobs": turn.tokens.completion_logprobs.array(),
        "ids_crc32": _crc32(stored, turn.tokens),
        "prompt_spans": [
            {"start": span.start, "end": span.end, "owner": span.owner, "kind": span.kind.value}
            for span in turn.prompt_spans
        ],
        "finish_reason": turn.finish_reason.value,
        "stop_id": stop if isinstance(stop, int) else None,
        "stop_text": kept.text("stop_text", stop) if isinstance(stop, str) else None,
        "usage_prompt": turn.usage.prompt_tokens,
        "usage_completion": turn.usage.completion_tokens,
        "usage_cached": turn.usage.cached_tokens,
        "request_id": kept.text("request_id", turn.request_id),
        "weight_spans": [
            {"version": kept.maybe(f"version {i}", span.version), "start": span.start, "end": span.end}
            for i, span in enumerate(turn.weight_spans)
        ],
        "messages_kept": record.messages_kept,
        "new_messages": _messages_json(record.new_messages),
        "message": _messages_json((record.message,)),
        "duration_s": record.duration_s,
        "logprobs_mode": turn.logprobs_mode.value,
        "weight_evidence": [_evidence(i, span, kept) for i, span in enumerate(turn.weight_spans)],
        "resumed_at": list(turn.resumed_at),
        "unread": kept.text("unread", turn.unread),
        "removed_spans": [{"start": span.start, "end": span.end} for span in stitch.removed],
        "surrogates": kept.surrogates,  # the last one: each text above may add to it
    }


def turn_from_row(row: Row, known: KnownTurns) -> TurnRecord:
    """Restore a turn, and know it for the ones behind it.

    Raises:
        RecordError: The row contradicts itself or the laws.
    """
    where = f"turn {row['turn']} of episode {row['episode']}"
    try:
        # Before schema version 5 nothing was spliced.
        removed = tuple(CutSpan(span["start"], span["end"]) for span in row["removed_spans"] or ())
        stored = StoredPrompt(row["base_turn"], row["base_len"], row["added_ids"], removed)
        prompt_ids = known.restore(stored)
        if len(prompt_ids) != row["prompt_len"]:
            raise RecordError(f"its prompt has {len(prompt_ids)} ids and should have {row['prompt_len']}")
        turn = _turn(row, prompt_ids, removed)
        if _crc32(stored, turn.tokens) != row["ids_crc32"]:
            raise RecordError("its ids or log-probabilities are not those that were written")
        (message,) = _messages(row["message"])
        record = TurnRecord(
            episode=row["episode"],
            turn=turn,
            messages_kept=row["messages_kept"],
            new_messages=_messages(row["new_messages"]),
            message=message,
            duration_s=row["duration_s"],
        )
    except (TokentrueError, ValueError, TypeError) as exc:
        raise RecordError(f"{where} cannot be restored: {exc}") from exc
    known.add(turn)
    return record


def _crc32(stored: StoredPrompt, tokens: TurnTokens) -> int:
    """A checksum of what a row holds of ids and log-probabilities: an Arrow stream has none of its own."""
    edges = [edge for span in stored.removed for edge in (span.start, span.end)]
    crc = zlib.crc32(np.array(edges, dtype="<i4").tobytes())
    crc = zlib.crc32(stored.added_ids.astype("<i4", copy=False).tobytes(), crc)
    crc = zlib.crc32(tokens.completion_ids.array().astype("<i4", copy=False).tobytes(), crc)
    return zlib.crc32(tokens.completion_logprobs.array().astype("<f8", copy=False).tobytes(), crc)


def _turn(row: Row, prompt_ids: TokenIds, removed: tuple[CutSpan, ...]) -> Turn:
    said = ToldTexts(row)
    stop: int | str | None = row["stop_id"] if row["stop_id"] is not None else said.maybe("stop_text")
    return Turn(
        index=row["turn"],
        tokens=TurnTokens(prompt_ids, TokenIds(row["completion_ids"]), Logprobs(row["completion_logprobs"])),
        stitch=Stitch(
            how=How(row["how"]),
            why=Why(row["why"]),
            detail=said.text("detail"),
            junction=Junction(row["junction"]) if row["junction"] is not None else None,
            anchor_turn=row["anchor_turn"],
            known_len=row["known_len"],
            removed=removed,
        ),
        finish_reason=FinishReason(row["finish_reason"]),
        stop_reason=stop,
        usage=Usage(row["usage_prompt"], row["usage_completion"], row["usage_cached"]),
        prompt_spans=tuple(
            TokenSpan(span["start"], span["end"], span["owner"], TokenKind(span["kind"]))
            for span in row["prompt_spans"]
        ),
        request_id=said.text("request_id"),
        weight_spans=_weight_spans(row, said),
        # Records of schema version 1 do not say.
        logprobs_mode=LogprobsMode(row["logprobs_mode"] or LogprobsMode.UNKNOWN),
        resumed_at=tuple(row["resumed_at"] or ()),
        # Before schema version 4 it was logged, and not kept.
        unread=said.maybe("unread") or "",
    )


def _evidence(index: int, span: WeightSpan, kept: KeptTexts) -> Row:
    before, after = span.between if span.between is not None else (None, None)
    return {
        "source": span.source.value,
        "before": kept.maybe(f"before {index}", before),
        "after": kept.maybe(f"after {index}", after),
    }


def _weight_spans(row: Row, texts: ToldTexts) -> tuple[WeightSpan, ...]:
    # Before schema version 3 only engines said anything of versions.
    said = row["weight_evidence"]
    if said is None:
        said = [{"source": VersionSource.ENGINE, "before": None, "after": None} for _ in row["weight_spans"]]
    spans = []
    for i, (span, why) in enumerate(zip(row["weight_spans"], said, strict=True)):
        between = None
        if why["before"] is not None:
            between = (texts.restored(f"before {i}", why["before"]), texts.restored(f"after {i}", why["after"]))
        version = None if span["version"] is None else texts.restored(f"version {i}", span["version"])
        source = VersionSource(why["source"])
        if version == UNSET_LABEL and source is VersionSource.ENGINE:
            # Older records took the label that an engine is born with for a version.
            version, source = None, VersionSource.UNKNOWN
        spans.append(WeightSpan(version, span["start"], span["end"], source, between))
    return tuple(spans)


def episode_row(episode: EpisodeRecord) -> Row:
    """The row of an episode; inverse of `episode_from_row`."""
    error, kept = episode.error, KeptTexts()
    return {
        "episode": episode.index,
        "seed": episode.seed,
        "task": kept.text("task", episode.task),
        "messages": _messages_json(episode.messages),
        "tools": _json(list(episode.tools)),
        "stop_reason": episode.stop_reason.value,
        "reward": episode.reward,
        "turns": episode.turns,
        "error_type": kept.text("error_type", error.type_name) if error else None,
        "error_message": kept.text("error_message", error.message) if error else None,
        "error_phase": error.phase.value if error else None,
        "error_trace": kept.text("error_trace", error.trace) if error else None,
        "started_at": episode.started_at,
        "duration_s": episode.duration_s,
        "began_at": episode.began_at.isoformat() if episode.began_at is not None else None,
        "surrogates": kept.surrogates,  # the last one: each text above may add to it
    }


def episode_from_row(row: Row) -> EpisodeRecord:
    """Restore an episode.

    Raises:
        RecordError: The row cannot be read.
    """
    try:
        error, said = None, ToldTexts(row)
        if row["error_type"] is not None:
            error = EpisodeError(
                said.text("error_type"),
                said.text("error_message"),
                Phase(row["error_phase"]),
                said.text("error_trace"),
            )
        return EpisodeRecord(
            index=row["episode"],
            seed=row["seed"],
            task=said.text("task"),
            messages=_messages(row["messages"]),
            tools=tuple(json.loads(row["tools"])),
            stop_reason=StopReason(row["stop_reason"]),
            reward=row["reward"],
            turns=row["turns"],
            error=error,
            started_at=row["started_at"],
            duration_s=row["duration_s"],
            # Before schema version 4 only the second was kept, and not in which time zone.
            began_at=datetime.fromisoformat(row["began_at"]) if row["began_at"] is not None else None,
        )
    except (TokentrueError, ValueError, TypeError) as exc:
        raise RecordError(f"episode {row['episode']} cannot be restored: {exc}") from exc


def run_info_json(info: RunInfo) -> Row:
    """`run.json` without its schema version; inverse of `run_info_from_json`."""
    sampling = {
        f.name: value
        for f in fields(SamplingParams)
        if f.name != "extra" and (value := getattr(info.sampling, f.name)) != f.default
    }
    values = {f.name: getattr(info, f.name) for f in fields(RunInfo)}
    engine = {f.name: getattr(info.engine, f.name) for f in fields(EngineInfo)}
    engine["logprobs_mode"] = info.engine.logprobs_mode.value
    return values | {
        "engine": engine,
        "sampling": sampling | dict(info.sampling.extra),
        "versions": dict(info.versions),
        "config": dict(info.config),
    }


def run_info_from_json(values: Mapping[str, Any]) -> RunInfo:
    """Restore what `run_info_json` wrote.

    Raises:
        RecordError: A field is missing, unknown or of the wrong kind.
    """
    try:
        told = values["engine"]
        mode = LogprobsMode(told["logprobs_mode"])
        engine = EngineInfo(**{**told, "models": tuple(told["models"]), "logprobs_mode": mode})
        sampling = SamplingParams.from_args(values["sampling"])
        return RunInfo(**{**values, "engine": engine, "sampling": sampling})
    except (KeyError, TypeError, ValueError) as exc:
        raise RecordError(f"run.json does not describe a run: {exc!r}") from exc


def _json(value: object) -> str:
    # ASCII escapes keep even a lone surrogate, which a model may well have written and UTF-8 cannot hold.
    try:
        return json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError) as exc:
        raise RecordError(f"a message or tool cannot be kept as JSON: {exc}") from exc


def _messages_json(messages: Sequence[Message]) -> str:
    return _json([message.to_openai() for message in messages])


def _messages(text: str) -> tuple[Message, ...]:
    return messages_from(json.loads(text))
