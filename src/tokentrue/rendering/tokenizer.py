"""A Hugging Face tokenizer folder. The only door to the `tokenizers` library.

`tokenizer.json` is the truth: `AutoTokenizer` is known to disagree with it for some families
(phi-3 under LlamaTokenizer). Text is encoded without the post-processor's special tokens, because the
chat template writes BOS itself; so BOS is never there twice.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers
import tokenizers.models

from tokentrue.errors import InvalidTokenIdError, TemplateRenderError, TokenizerFolderError
from tokentrue.rendering.run_memory import Key, Run, RunMemory, run_of

_WORTH_KEEPING = 512
"""Texts shorter than this are encoded whole: looking for their runs would cost as much."""

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TokenizerFolderError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise TokenizerFolderError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerFolderError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


class IdsOnly(Protocol):
    """A faster library: ids, and nothing else."""

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, as `Tokenizer.encode` gives them, from any number of threads."""
        ...


def _token_text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _valid(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TemplateRenderError(
            f"the text holds half a surrogate pair ({text[error.start]!r} at character {error.start}): no "
            f"tokenizer can encode it"
        ) from error
    return text


@dataclass(frozen=True, slots=True)
class AddedTokenInfo:
    """One added token: matched in text before the merges are, so always a boundary."""

    id: int
    text: str
    special: bool
    strips: bool


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Text to ids and back, exactly as `tokenizer.json` says.

    Args:
        backend: The loaded library object.
        config: `tokenizer_config.json`.
        content_hash: SHA-256 of `tokenizer.json`, in hex.
        fast: A faster library that was proved to give the same ids (`fast_tokenizer`).
    """

    backend: tokenizers.Tokenizer = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    content_hash: str
    fast: IdsOnly | None = field(default=None, repr=False, compare=False)
    _added: dict[str, AddedTokenInfo] = field(default_factory=dict, init=False, repr=False)
    _added_ids: dict[int, AddedTokenInfo] = field(default_factory=dict, init=False, repr=False)
    _runs: RunMemory | None = field(default=None, init=False, repr=False, compare=False)
    _matchers: list[AddedTokenMatcher] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        single = False
        for token_id, token in self.backend.get_added_tokens_decoder().items():
            info = AddedTokenInfo(token_id, token.content, token.special, token.lstrip or token.rstrip)
            self._added[token.content] = info
            self._added_ids[token_id] = info
            single = single or token.single_word
        # Whether such a token is matched depends on what stands beside it, across the end of a run.
        object.__setattr__(self, "_runs", None if single else RunMemory())

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json` and `tokenizer_config.json` from `folder`.

        Raises:
            TokenizerFolderError: A file is missing or unreadable; names it.
        """
        path = folder / "tokenizer.json"
        if not folder.is_dir():
            raise TokenizerFolderError(
                f"{folder} is not a folder; a tokenizer folder holds tokenizer.json and the chat template"
            )
        if not path.is_file():
            raise TokenizerFolderError(f"{path} is missing; only tokenizers with a tokenizer.json can be loaded")
        config_path = folder / "tokenizer_config.json"
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise TokenizerFolderError(f"cannot read {path}: {error.strerror}") from error
        try:
            backend = tokenizers.Tokenizer.from_str(raw.decode("utf-8"))
        except Exception as error:
            raise TokenizerFolderError(f"{path} is no tokenizer: {error}") from error
        backend.no_truncation()
        backend.no_padding()
        config = _read_json(config_path) if config_path.is_file() else {}
        return cls(backend, config, hashlib.sha256(raw).hexdigest())

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        largest = max(self._added_ids, default=-1)
        return max(self.backend.get_vocab_size(with_added_tokens=True), largest + 1)

    @property
    def special_tokens(self) -> dict[str, str]:
        """`bos_token`, `eos_token`, … that the folder names, as a chat template may print them."""
        named = ((name, _token_text(self.config.get(name))) for name in _SPECIAL_NAMES)
        return {name: text for name, text in named if text is not None}

    def added_token(self, text: str) -> AddedTokenInfo | None:
        """The added token that is spelled exactly `text`, if there is one."""
        return self._added.get(text)

    def added_token_at(self, text: str, position: int) -> AddedTokenInfo | None:
        """The longest added token that stands in `text` at `position`, if there is one."""
        found = (info for spelled, info in self._added.items() if spelled and text.startswith(spelled, position))
        return max(found, key=lambda info: len(info.text), default=None)

    def added_token_of_id(self, token_id: int) -> AddedTokenInfo | None:
        """The added token with that id, if there is one."""
        return self._added_ids.get(token_id)

    def is_byte(self, token_id: int) -> bool:
        """Whether the token is one byte written `<0x0A>`, as SentencePiece spells what it has no piece for."""
        text = self.backend.id_to_token(token_id)
        return text is not None and len(text) == 6 and text.startswith("<0x") and text.endswith(">")

    def added_tokens(self) -> tuple[AddedTokenInfo, ...]:
        """All added tokens, by id."""
        return tuple(self._added_ids[token_id] for token_id in sorted(self._added_ids))

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; spelled special tokens become their ids, nothing is put around."""
        if self.fast is not None:
            return self.fast.encode(_valid(text))
        found = self._by_runs(text, with_offsets=False)
        if found is not None:
            joined: list[int] = np.concatenate([run.ids for _, run in found]).tolist()
            return joined
        # encode_batch_fast releases the GIL for the whole call, encode holds it (110 ms at 32k tokens).
        ids: list[int] = self.backend.encode_batch_fast([_valid(text)], add_special_tokens=False)[0].ids
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of `text` and, for each, the characters [start, end) that it stands for."""
        found = self._by_runs(text, with_offsets=True)
        if found is not None:
            ids: list[int] = np.concatenate([run.ids for _, run in found]).tolist()
            places = np.concatenate([run.offsets + start for start, run in found if run.offsets is not None])
            return ids, [(start, end) for start, end in places.tolist()]
        encoding = self.backend.encode_batch([_valid(text)], add_special_tokens=False)[0]
        return encoding.ids, encoding.offsets

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each of `texts`, as `tokenizers` gives them; nothing is remembered."""
        valid = [_valid(text) for text in texts]
        return [each.ids for each in self.backend.encode_batch_fast(valid, add_special_tokens=False)]

    def _by_runs(self, text: str, *, with_offsets: bool) -> list[tuple[int, Run]] | None:
        """The runs of `text` and the added tokens in front of them, with their places; None: encode it whole."""
        if self._runs is None or len(text) < _WORTH_KEEPING:
            return None
        if not self._matchers:
            self._matchers.append(self.matcher())
        cuts = [(0, 0), *self._matchers[0].places(text)]
        ends = [*(start for start, _ in cuts[1:]), len(text)]
        keys = [(text[start:cut], text[cut:end]) for (start, cut), end in zip(cuts, ends, strict=True)]
        known = {
            key: run for key in keys if (run := self._runs.get(key)) and (run.has_offsets or not with_offsets)
        }
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        known.update(zip(missing, self._encode_runs(missing, with_offsets=with_offsets), strict=True))
        if any(front and int(known[front, run].ids[0]) not in self._added_ids for front, run in missing):
            return None  # the token in front does not stay one there, so it is no boundary
        for key in missing:
            self._runs.put(key, known[key])
        return [(start, known[key]) for (start, _), key in zip(cuts, keys, strict=True)]

    def _encode_runs(self, keys: Sequence[Key], *, with_offsets: bool) -> list[Run]:
        encode = self.backend.encode_batch if with_offsets else self.backend.encode_batch_fast
        encodings = encode([_valid(front + run) for front, run in keys], add_special_tokens=False)
        return [run_of(each.ids, each.offsets if with_offsets else None) for each in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens included. Lossy where ids cut a character: never a carrier."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=False)
        return text

    def matcher(self) -> AddedTokenMatcher:
        """What finds added tokens in a text exactly as `encode` does, at a tenth of its cost and less."""
        # Of one symbol only: whatever is between two added tokens is one unknown word to it.
        backend = self._with_added(tokenizers.models.WordLevel({"\0": 0}, unk_token="\0"), {})
        return AddedTokenMatcher(backend, self, _ids_of(backend, self._added, {}), self._pattern())

    def _pattern(self) -> re.Pattern[str] | None:
        """What finds added tokens faster still; None where one of them is matched by more than its spelling."""
        tokens = self.backend.get_added_tokens_decoder().values()
        if any(each.normalized or each.single_word or each.lstrip or each.rstrip for each in tokens):
            return None
        spelled = sorted((each.content for each in tokens if each.content), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, spelled)) or "(?!)")

    def renamed(self, names: Mapping[int, str]) -> RenamedTokenizer:
        """The same tokenizer, with other spellings for some added tokens; the model's tables are shared.

        Args:
            names: Token id to a character that is no piece of the vocabulary.
        """
        backend = self._with_added(self.backend.model, names)
        if self.backend.pre_tokenizer is not None:
            backend.pre_tokenizer = self.backend.pre_tokenizer
        return RenamedTokenizer(backend, _ids_of(backend, self._added, names))

    def _with_added(self, model: tokenizers.models.Model, names: Mapping[int, str]) -> tokenizers.Tokenizer:
        backend = tokenizers.Tokenizer(model)
        if self.backend.normalizer is not None:
            backend.normalizer = self.backend.normalizer
        listed = sorted(self.backend.get_added_tokens_decoder().items())
        backend.add_tokens(
            [
                tokenizers.AddedToken(
                    names.get(token_id, token.content),
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=token.normalized,
                    special=token.special,
                )
                for token_id, token in listed
            ]
        )
        return backend

    @property
    def normalizes_added_tokens(self) -> bool:
        """Whether an added token may be matched in text that does not spell it before it is normalised."""
        listed = self.backend.get_added_tokens_decoder().values()
        return self.backend.normalizer is not None and any(token.normalized for token in listed)

    def id_text(self, token_id: int) -> str:
        """How one token is spelled, for a person.

        Raises:
            InvalidTokenIdError: No token has that id.
        """
        added = self._added_ids.get(token_id)
        if added is not None:
            return added.text
        if self.backend.id_to_token(token_id) is None:
            raise InvalidTokenIdError(f"token id {token_id} is outside the vocabulary of {self.vocab_size}")
        return self.decode([token_id])


def _ids_of(
    backend: tokenizers.Tokenizer, added: Mapping[str, AddedTokenInfo], names: Mapping[int, str]
) -> dict[int, int]:
    """The ids that `backend` gives to added tokens, and which those are here."""
    found: dict[int, int] = {}
    for info in added.values():
        there = backend.token_to_id(names.get(info.id, info.text))
        if there is not None:
            found[there] = info.id
    return found


@dataclass(frozen=True, slots=True)
class Match:
    """An added token in a text: characters `start` to `end` (excluded) spell it."""

    start: int
    end: int
    id: int


@dataclass(frozen=True, slots=True)
class AddedTokenMatcher:
    """Finds added tokens by the library's own rules: the leftmost, of those the longest."""

    backend: tokenizers.Tokenizer = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    _ids: Mapping[int, int] = field(repr=False)
    _pattern: re.Pattern[str] | None = field(repr=False)

    def places(self, text: str) -> list[tuple[int, int]]:
        """Where the added tokens in `text` stand, in order, with the white space that they swallow."""
        if self._pattern is not None:
            return [found.span() for found in self._pattern.finditer(text)]
        encoding = self.backend.encode_batch([_valid(text)], add_special_tokens=False)[0]
        found = zip(encoding.ids, encoding.offsets, strict=True)
        return [(start, end) for own_id, (start, end) in found if own_id in self._ids]

    def find(self, text: str) -> tuple[Match, ...]:
        """The added tokens in `text`, in order; white space that they swallow is left out."""
        encoding = self.backend.encode_batch([_valid(text)], add_special_tokens=False)[0]
        found: list[Match] = []
        for own_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            token_id = self._ids.get(own_id)
            info = self.tokenizer.added_token_of_id(token_id) if token_id is not None else None
            if info is not None:
                at = text.find(info.text, start, end)
                found.append(Match(at, at + len(info.text), info.id) if at >= 0 else Match(start, end, info.id))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class RenamedTokenizer:
    """A tokenizer with other spellings for some added tokens, and the same ids; see `Tokenizer.renamed`."""

    backend: tokenizers.Tokenizer = field(repr=False)
    _ids: Mapping[int, int] = field(repr=False)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """As `Tokenizer.encode_with_offsets`, of a text in which the tokens are spelled by their new names."""
        encoding = self.backend.encode_batch([_valid(text)], add_special_tokens=False)[0]
        return [self._ids.get(token_id, token_id) for token_id in encoding.ids], encoding.offsets


def read_stop_ids(folder: Path, tokenizer: Tokenizer) -> tuple[tuple[int, ...], bool]:
    """The stop ids that the folder names, and whether that is the whole set.

    generation_config's come first, then the tokenizer's eos; only generation_config is complete.

    Raises:
        TokenizerFolderError: generation_config.json is broken, or names an id that is no integer.
    """
    path = folder / "generation_config.json"
    named: Any = _read_json(path).get("eos_token_id") if path.is_file() else None
    listed: Sequence[Any] = named if isinstance(named, list) else [] if named is None else [named]
    for value in listed:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TokenizerFolderError(f"{path}: eos_token_id {value!r} is not an integer")
    eos = _token_text(tokenizer.config.get("eos_token"))
    if eos is not None:
        eos_id = tokenizer.backend.token_to_id(eos)
        if eos_id is not None:
            listed = [*listed, eos_id]
    return tuple(dict.fromkeys(listed)), named is not None


def read_chat_templates(folder: Path, config: dict[str, Any]) -> tuple[str, str | None]:
    """The default and the tool-use template of a folder: files first, then tokenizer_config.

    Raises:
        TokenizerFolderError: There is none, or a named set has no usable member.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), None
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerFolderError(f"cannot read {path}: {error}") from error
    found = config.get("chat_template")
    if isinstance(found, str):
        return found, None
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        default, tool_use = named.get("default"), named.get("tool_use")
        if isinstance(default, str) and (tool_use is None or isinstance(tool_use, str)):
            return default, tool_use
        raise TokenizerFolderError(f"{folder}: the named chat templates {sorted(map(str, named))} have no default")
    raise TokenizerFolderError(
        f"{folder} has no chat template: neither chat_template.jinja nor chat_template in tokenizer_config.json"
    )
