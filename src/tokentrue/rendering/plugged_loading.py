"""Makes a renderer of the `renderers` package over a tokenizer folder: the one place that imports the package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokentrue.errors import ConfigError, RendererContractError, UnsupportedParameterError
from tokentrue.rendering.plugged import PluggedRenderer, told_of
from tokentrue.rendering.tokenizer import Tokenizer, read_chat_templates


@dataclass(frozen=True, slots=True)
class PluggedTokenizer:
    """The tokenizer as the package wants one: ours, so that no other library is needed and threads may share it.

    Args:
        name_or_path: Some of its renderers choose a variant by the model's name on the hub.
        chat_template: Some of them look into it for the same reason; they never render it.
    """

    own: Tokenizer = field(repr=False)
    name_or_path: str
    chat_template: str = field(default="", repr=False)

    @property
    def eos_token_id(self) -> int | None:
        """The id of `eos_token`, or None where the folder names none."""
        return self._named("eos_token")

    @property
    def unk_token_id(self) -> int | None:
        """The id of `unk_token`, or None where the folder names none."""
        return self._named("unk_token")

    def _named(self, which: str) -> int | None:
        text = self.own.special_tokens.get(which)
        found: int | None = self.own.backend.token_to_id(text) if text is not None else None
        return found

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """The ids of `text`, nothing around them."""
        if add_special_tokens:
            raise RendererContractError("a plugged-in renderer asked for special tokens around its text")
        return self.own.encode(text)

    def decode(self, token_ids: Sequence[int], **_: Any) -> str:
        """The text of ids, special tokens included."""
        return self.own.decode(token_ids)

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> Any:
        """The id of a token, or of each; the unknown token's, or None, where there is no such token."""
        if isinstance(tokens, list):
            return [self.convert_tokens_to_ids(each) for each in tokens]
        found = self.own.backend.token_to_id(tokens)
        return self.unk_token_id if found is None else found

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        """Ids with the characters each stands for."""
        ids, offsets = self.own.encode_with_offsets(text)
        return {"input_ids": ids, "offset_mapping": offsets}


def load_plugged_renderer(
    folder: str | Path, family: str, *, options: Mapping[str, Any] | None = None, model_name: str = ""
) -> PluggedRenderer:
    """A renderer of the `renderers` package, over the tokenizer of a folder. No hub is asked for anything.

    Args:
        folder: A folder with tokenizer.json, and tokenizer_config.json for its special tokens.
        family: The package's name for it: "qwen3", "glm-4.5", "llama-3", …; "custom" with an `import_path` option.
        options: Fields of that family's configuration, such as `{"enable_thinking": False}`.
        model_name: The model's name on the hub, where the package chooses a variant by it.

    Raises:
        ConfigError: The package is not installed, or does not know the family or an option.
        TokenizerFolderError: The folder, or a file in it, is missing or unreadable.
        RendererContractError: What was made keeps no promise worth making.
    """
    own = Tokenizer.load(Path(folder))
    template = read_chat_templates(Path(folder), own.config)[0]
    tokenizer = PluggedTokenizer(own, model_name or str(folder), template)
    return _made(tokenizer, family, dict(options or {}), {})


def _made(
    tokenizer: PluggedTokenizer, family: str, options: dict[str, Any], kwargs: Mapping[str, Any]
) -> PluggedRenderer:
    try:
        import renderers
        from renderers.configs import config_from_name
    except ImportError as exc:
        raise ConfigError(
            f"the renderers package cannot be used ({exc}): pip install 'tokentrue[renderers]'"
        ) from exc
    try:
        config = type(config_from_name(family)).model_validate({"name": family, **options})
        plug_in = renderers.create_renderer(tokenizer, config, chat_template_kwargs=dict(kwargs) or None)
    except Exception as exc:
        if kwargs:
            raise UnsupportedParameterError("chat_template_kwargs", f"renderers {family!r}", told_of(exc)) from exc
        raise ConfigError(f"renderers cannot make a renderer {family!r} with {options}: {told_of(exc)}") from exc
    told = json.dumps({**options, **kwargs}, sort_keys=True, default=repr)

    def remake(further: Mapping[str, Any]) -> PluggedRenderer:
        return _made(tokenizer, family, options, {**kwargs, **further})

    return PluggedRenderer(plug_in, tokenizer.own, f"renderers {renderers.__version__} {family} {told}", remake)
