"""Tokenizer folders by name: the embedded model's, a folder's path, or a model in the local Hugging Face cache."""

from __future__ import annotations

import re
from pathlib import Path

from tokentrue.errors import TokenizerFolderError

EMBEDDED = "embedded"
"""The name of the shipped model, as an engine and as a tokenizer folder."""

EMBEDDED_FOLDER = Path(__file__).resolve().parent.parent / "engines" / "embedded" / "model"

_REPOSITORY = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)


def folder_of(path_or_name: str | Path) -> Path:
    """The tokenizer folder of a path or a name.

    A name such as "Qwen/Qwen3-8B" is the snapshot that the local Hugging Face cache (`HF_HOME`, `HF_HUB_CACHE`)
    has as that model's main; vLLM and transformers fill it too. No network is used: what a run renders with must
    not depend on what a hub answers today.

    Args:
        path_or_name: "embedded", the path of a folder, or a name; an existing folder wins over the cache.

    Returns:
        The folder; a path that is neither is returned as it is, for the reader of its files to refuse.

    Raises:
        TokenizerFolderError: It has the form of a name, and the cache has no tokenizer.json of it.
    """
    if path_or_name == EMBEDDED:
        return EMBEDDED_FOLDER
    if isinstance(path_or_name, Path) or Path(path_or_name).exists():
        return Path(path_or_name)
    if not _REPOSITORY.fullmatch(path_or_name):
        return Path(path_or_name)
    return _snapshot(path_or_name)


def _snapshot(name: str) -> Path:
    # Half a second of imports, for names only.
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    try:
        found = huggingface_hub.try_to_load_from_cache(name, "tokenizer.json", cache_dir=constants.HF_HUB_CACHE)
    except HFValidationError:
        return Path(name)
    if not isinstance(found, str):
        raise TokenizerFolderError(
            f"{name} is not a folder, and {constants.HF_HUB_CACHE} has no model of that name with tokenizer.json; "
            f"fetch it first: hf download {name} --include '*.json' --include '*.jinja'"
        )
    return Path(found).parent
