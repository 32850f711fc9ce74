"""A checkpoint that this engine does not compute is refused and never approximated."""

import json
import shutil
from pathlib import Path

import pytest

from tokentrue.engines.embedded.weights import load_weights
from tokentrue.errors import ConfigError


@pytest.fixture
def copy(model_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(model_folder, tmp_path / "model")
    return tmp_path / "model"


def test_the_shipped_checkpoint_is_small_and_half_precision(model_folder: Path) -> None:
    assert (model_folder / "model.safetensors").stat().st_size <= 5_000_000
    weights = load_weights(model_folder)
    assert weights.config.max_position_embeddings == 2048
    assert len(weights.eos_token_ids) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("architectures", ["Qwen3ForCausalLM"]),
        ("hidden_act", "gelu"),
        ("num_key_value_heads", 1),
        ("rope_scaling", {"rope_type": "yarn"}),
        ("tie_word_embeddings", False),
        ("vocab_size", 5),
        ("num_hidden_layers", 99),
    ],
)
def test_another_architecture_is_refused_by_name(copy: Path, name: str, value: object) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(ConfigError):
        load_weights(copy)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"{"])
def test_missing_and_broken_files_are_named(copy: Path, name: str, content: bytes | None) -> None:
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    with pytest.raises(ConfigError, match="model"):
        load_weights(copy)


def test_a_configuration_that_lacks_a_number_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    del config["rope_theta"]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="rope_theta"):
        load_weights(copy)
