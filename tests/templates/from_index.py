"""Every chat template that llama.cpp and TRL carry, taken from the package index: the widest public set.

    llama_cpp_python-0.3.36.tar.gz   vendor/llama.cpp/models/templates/*.jinja
    trl-1.16.0-py3-none-any.whl      trl/chat_templates/*.jinja

The archives are found on the index's own pages, because `pip download` builds a source archive's metadata and
that one needs a C++ compiler for it. Both are checked by their sha256, and only their templates are kept, in
`build/`: they are third-party data that is never part of the repository. The index is PIP_INDEX_URL's, else
pypi.org's.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from templates.at_hand import Template, templates_at_hand

KEPT = Path(__file__).resolve().parents[2] / "build" / "templates-from-index"
_TIMEOUT_S = 120.0


class IndexUnreachableError(Exception):
    """The package index, or an archive on it, cannot be had."""


@dataclass(frozen=True)
class Archive:
    """One archive on the index, and where its templates lie in it."""

    project: str
    file: str
    sha256: str
    folder: str
    prefix: str

    def members(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """The templates in the archive, by the last part of their path."""
        if self.file.endswith(".whl"):
            with zipfile.ZipFile(io.BytesIO(data)) as wheel:
                for name in wheel.namelist():
                    if self.folder in name and name.endswith(".jinja"):
                        yield Path(name).name, wheel.read(name)
            return
        with tarfile.open(fileobj=io.BytesIO(data)) as sources:
            for member in sources:
                if self.folder in member.name and member.name.endswith(".jinja"):
                    opened = sources.extractfile(member)
                    if opened is not None:
                        yield Path(member.name).name, opened.read()


ARCHIVES = (
    Archive(
        "llama-cpp-python",
        "llama_cpp_python-0.3.36.tar.gz",
        "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
        "/vendor/llama.cpp/models/templates/",
        "llama.cpp",
    ),
    Archive(
        "trl",
        "trl-1.16.0-py3-none-any.whl",
        "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396",
        "trl/chat_templates/",
        "trl",
    ),
)


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as reply:
            data: bytes = reply.read()
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise IndexUnreachableError(f"{url}: {error}") from error
    return data


def _address(archive: Archive) -> str:
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    page = f"{index}/{archive.project}/"
    for link in re.findall(r'href="([^"]+)"', _get(page).decode()):
        address, _, _ = link.partition("#")
        if address.rsplit("/", maxsplit=1)[-1] == archive.file:
            return urllib.parse.urljoin(page, address)
    raise IndexUnreachableError(f"{page} lists no {archive.file}")


def _templates_of(archive: Archive) -> Path:
    """The folder with the archive's templates, downloaded where it is not there yet."""
    kept = KEPT / archive.sha256[:16]
    if kept.is_dir():
        return kept
    data = _get(_address(archive))
    found = hashlib.sha256(data).hexdigest()
    if found != archive.sha256:
        raise IndexUnreachableError(f"{archive.file} has the sha256 {found}, not {archive.sha256}")
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=KEPT) as part:
        folder = Path(part) / "all"
        folder.mkdir()
        for name, source in archive.members(data):
            (folder / name).write_bytes(source)
        # Two processes may do so at once: whoever is first wins, and both have the same files.
        if not kept.exists():
            shutil.move(folder, kept)
    return kept


@dataclass(frozen=True)
class IndexTemplates:
    """What the archives hold.

    Args:
        files: How many templates there are, copies included.
        distinct: How many of them differ.
        further: Those that are not at hand beside the repository, with a tokenizer each.
    """

    files: int
    distinct: int
    further: tuple[Template, ...]


@cache
def index_templates() -> IndexTemplates:
    """Every template in the archives.

    Raises:
        IndexUnreachableError: They cannot be had; says why.
    """
    known = {_fingerprint(template.source) for template in templates_at_hand()}
    seen: set[str] = set()
    further: list[Template] = []
    files = 0
    for archive in ARCHIVES:
        for path in sorted(_templates_of(archive).glob("*.jinja")):
            files += 1
            source = path.read_text(encoding="utf-8")
            if _fingerprint(source) in seen:
                continue
            seen.add(_fingerprint(source))
            if _fingerprint(source) not in known:
                further.append(Template.paired(f"{archive.prefix}/{path.stem}", source))
    return IndexTemplates(files, len(seen), tuple(further))


def _fingerprint(source: str) -> str:
    return hashlib.sha256("\n".join(source.splitlines()).encode()).hexdigest()
