"""A model folder without weights: a byte-level BPE of a few hundred ids and a ChatML template.

Dynamo needs a tokenizer, a template and a context length to serve a model; the fault worker needs nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CONTEXT_LIMIT = 2048
END = "<|im_end|>"
_SPECIAL = ("<|endoftext|>", "<|im_start|>", END)
_ATOMIC = ("<think>", "</think>", "<tool_call>", "</tool_call>")
_TRAINED_IDS = 400
_CORPUS = (
    "the quick brown fox jumps over the lazy dog and reads what it was sent",
    "system user assistant tool: you have sent ids, I count them and answer",
    "please go on, carry on, continue, once more, and again",
    "0 1 2 3 4 5 6 7 8 9 10 20 30 40 50 60 70 80 90 100",
)
_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def write_tiny_model(folder: Path) -> None:
    """Write the folder; the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    end_ids = [tokenizer.token_to_id(END), tokenizer.token_to_id("<|endoftext|>")]
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT_LIMIT,
            "bos_token": None,
            "eos_token": END,
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "chat_template": _TEMPLATE,
            "added_tokens_decoder": {
                str(tokenizer.token_to_id(text)): {
                    "content": text,
                    "special": text in _SPECIAL,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "single_word": False,
                }
                for text in (*_SPECIAL, *_ATOMIC)
            },
        },
    )
    _write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": CONTEXT_LIMIT,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 2,
            "eos_token_id": end_ids[0],
        },
    )
    _write_json(folder / "generation_config.json", {"eos_token_id": end_ids, "do_sample": True})


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_TRAINED_IDS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 20, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in _SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in _ATOMIC])
    return tokenizer


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
