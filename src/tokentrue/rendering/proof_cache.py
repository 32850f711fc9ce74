"""What was proved about a template, kept in the user's cache folder: proved once, and not by each process.

Only what is a pure function of its key is kept: whether a short history is enough, and the certificate. The
key is a hash of all that they follow from: the template with its kwargs and what it is told of the time, the
tokenizer, the stops, the policy for markers, the two libraries, and this room's own source. So nothing has to be
invalidated, and an entry that cannot be read, is not whole, or could have been written by another user counts as
absent. A cache never fails a load.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec

from tokentrue.rendering.certificate import Certificate
from tokentrue.rendering.chat_template import ChatTemplate
from tokentrue.rendering.spelled import MarkerPolicy
from tokentrue.rendering.tokenizer import Tokenizer

MOST_ENTRIES = 256
"""The oldest go when there are more: an entry has about 3 kB, and a template that tells the date has one a day."""

_FOLDER_VARIABLE = "TOKENTRUE_CACHE_DIR"
_OFF = "off"


@dataclass(frozen=True, slots=True)
class Proof:
    """What is kept of one template, tokenizer and stop set.

    Args:
        short_history: What `short_history_is_enough` found.
        certificate: None until somebody asked for it.
    """

    short_history: bool
    certificate: Certificate | None = None


@dataclass(frozen=True, slots=True)
class ProofCache:
    """Proofs on the disk; used from any number of processes at once.

    Args:
        folder: Where they are; None keeps nothing.
    """

    folder: Path | None = None

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> ProofCache:
        """The cache that the environment asks for.

        `TOKENTRUE_CACHE_DIR` names the folder, or is "off"; without it `XDG_CACHE_HOME/tokentrue` is used, and
        without that `~/.cache/tokentrue`.
        """
        named = environment.get(_FOLDER_VARIABLE, "")
        if named.lower() == _OFF:
            return cls()
        if named:
            return cls(Path(named))
        base = environment.get("XDG_CACHE_HOME", "")
        if os.path.isabs(base):  # the XDG specification has relative paths ignored
            return cls(Path(base) / "tokentrue")
        home = environment.get("HOME", "")
        return cls(Path(home) / ".cache" / "tokentrue" if os.path.isabs(home) else None)

    def read(self, key: str) -> Proof | None:
        """The proof that was kept under `key`; None when there is none that is whole."""
        if self.folder is None:
            return None
        try:
            if not (_is_ours(self.folder) and _is_ours(self.folder / key)):
                return None
            digest, _, payload = (self.folder / key).read_bytes().partition(b"\n")
        except OSError:
            return None
        if digest != _digest(payload):
            return None
        try:
            return msgspec.json.decode(payload, type=Proof)
        except (msgspec.DecodeError, ValueError):
            return None

    def write(self, key: str, proof: Proof) -> None:
        """Keep `proof`, whole or not at all; where the folder cannot be written nothing is kept."""
        if self.folder is None:
            return
        payload = msgspec.json.encode(proof)
        # The proof is in memory and can be found again: a full disk or a read-only home is no failure.
        with contextlib.suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_ours(self.folder):
                return
            handle, name = tempfile.mkstemp(dir=self.folder, prefix=".")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_digest(payload) + b"\n" + payload)
                os.replace(name, self.folder / key)
            finally:
                Path(name).unlink(missing_ok=True)
            self._make_room(self.folder)

    @staticmethod
    def _make_room(folder: Path) -> None:
        entries = [path for path in folder.iterdir() if len(path.name) == hashlib.sha256().digest_size * 2]
        if len(entries) > MOST_ENTRIES:
            by_age = sorted(entries, key=lambda path: path.stat().st_mtime)
            for path in by_age[: len(entries) - MOST_ENTRIES]:
                path.unlink(missing_ok=True)


def _is_ours(path: Path) -> bool:
    """Whether nobody else can have written it: what others may write proves nothing."""
    if not hasattr(os, "getuid"):
        return True
    found = path.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def proof_key(
    template: ChatTemplate, tokenizer: Tokenizer, stop_ids: tuple[int, ...], policy: MarkerPolicy
) -> str:
    """A name for all that a proof follows from."""
    parts = [
        _OWN_VERSION,
        template.content_hash,
        template.told_time,
        tokenizer.content_hash,
        list(stop_ids),
        policy.value,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _own_version() -> str:
    """A hash of what computes proofs: this room's source, Python, and the libraries behind its doors."""
    hashed = hashlib.sha256(repr([sys.version_info, version("jinja2"), version("tokenizers")]).encode())
    package = Path(__file__).resolve().parent
    for path in sorted([*package.rglob("*.py"), *package.parent.glob("*.py")]):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()


_OWN_VERSION = _own_version()
"""Read when the code is imported: files that change later are not the code that runs."""


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).hexdigest().encode()
