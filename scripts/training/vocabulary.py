"""Train the tokenizer: byte-level BPE over the oracle's conversations, every digit a token of its own."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from training.conversations import play, tool_schemas, user_text, varied_schemas
from training.oracle import AssistantTurn

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ATOMIC = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
LARGEST_VOCABULARY = 768
# Contractions, words with one leading character, single digits, punctuation with its newlines, white space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(folder: Path, conversations: int = 4000) -> int:
    """Write tokenizer.json and tokenizer_config.json; returns the vocabulary size, added tokens included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LARGEST_VOCABULARY - len(SPECIAL) - len(ATOMIC),
        min_frequency=20,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(conversations), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ATOMIC])
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(tokenizer.token_to_id(text)): {
            "content": text,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": text in SPECIAL,
        }
        for text in SPECIAL + ATOMIC
    }
    config = {
        "added_tokens_decoder": added,
        "add_bos_token": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 2048,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return int(tokenizer.get_vocab_size())


def _texts(conversations: int) -> Iterator[str]:
    """Text with the atomic markers cut out: nothing is ever merged across them."""
    rng = random.Random("vocabulary")
    for seed in range(conversations):
        environment = ("arithmetic", "shop")[seed % 2]
        text = "<|im_start|>assistant\n"
        for turn in play(environment, seed, "train", rng):
            text += turn.sampled_text() if isinstance(turn, AssistantTurn) else user_text(turn)
        if seed % 20 < 2:
            text += json.dumps(varied_schemas(environment, rng) + tool_schemas(environment)) + "\nsystem\nTools:\n"
            text += "<tools>\n</tools> You are a helpful assistant. Use the tools. Answer with the tools."
        for marker in SPECIAL + ATOMIC:
            text = text.replace(marker, "\x00")
        yield from text.split("\x00")
