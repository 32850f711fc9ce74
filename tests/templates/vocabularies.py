"""What the vocabularies of families that are not at hand hold: their special tokens, and the true stops.

Templates spell special tokens, and most spellings are told by their brackets. The table names those that are
not, those that look like one and are plain text, and where a model of the family stops: that stands in its
generation_config.json, which is no part of a template.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_BRACKETED = re.compile(
    r'<\|[^|<>\s]{1,40}\|>|<｜[^｜<>]{1,40}｜>|<\|[a-z_"]{1,20}>|</?think>|\[/?[A-Z_]{3,20}\]'
    r"|\[e~\[|\]~!?b[\[\]]|<SPECIAL_\d+>|</?TOOLCALL>|</?minimax:tool_call>"
)
_NEVER_TOKENS = {"[INST]", "[/INST]"}
_HY3 = (
    *("<think{}>", "</think{}>", "<tool_calls{}>", "</tool_calls{}>", "<tool_call{}>", "</tool_call{}>"),
    *("<tool_sep{}>", "<arg_key{}>", "</arg_key{}>", "<arg_value{}>", "</arg_value{}>"),
    *("<tool_responses{}>", "</tool_responses{}>", "<tool_response{}>", "</tool_response{}>"),
    *("<｜hy_User{}｜>", "<｜hy_Assistant{}｜>", "<｜hy_begin_of_sentence{}｜>", "<｜hy_eos{}｜>"),
    "<｜reasoning_mode{}｜>",
)
_LAGUNA = (
    *("〈|EOS|〉", "<assistant>", "</assistant>", "<tool_call>", "</tool_call>"),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
)


@dataclass(frozen=True)
class Vocabulary:
    """One family's vocabulary, as far as its template does not tell it.

    Args:
        mark: A text that this family's templates hold and no others do.
        stops: Where its models stop.
        tokens: Special tokens whose spelling is not bracketed, or that the template does not spell out.
        plain: Bracketed spellings that are plain text in this family.
        is_guessed: The stops are read off the template: the family's generation_config.json was not seen.
        folder: The tokenizer at hand to take, where one that has as many of the tokens has one that no model of
            the family has: a parameter `s` would be closed by a stop, `</s>`.
    """

    mark: str
    stops: tuple[str, ...]
    tokens: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    is_guessed: bool = False
    folder: str | None = None


VOCABULARIES = (
    Vocabulary("<|call|>", ("<|return|>", "<|call|>")),
    Vocabulary("<|tool_response>", ("<turn|>", "<|tool_response>")),
    Vocabulary("<|observation|>", ("<|endoftext|>", "<|user|>", "<|observation|>")),
    Vocabulary("<|END_OF_TURN_TOKEN|>", ("<|END_OF_TURN_TOKEN|>",)),
    Vocabulary(
        "]<]minimax[>[",
        ("[e~[",),
        ("]<]minimax[>[", "<mm:think>", "</mm:think>"),
        is_guessed=True,
        folder="gpt-oss",
    ),
    Vocabulary("[e~[", ("[e~[",)),
    Vocabulary("<SPECIAL_12>", ("<SPECIAL_12>",)),
    Vocabulary("<|start_header_id|>", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")),
    Vocabulary(
        "<seed:eos>",
        ("<seed:eos>",),
        ("<seed:bos>", "<seed:eos>", "<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>"),
    ),
    Vocabulary(
        "<beginning_of_sentence>",
        ("<end_of_sentence>",),
        ("<begin_of_document>", "<beginning_of_sentence>", "<end_of_sentence>"),
    ),
    Vocabulary("<start_of_turn>", ("<end_of_turn>",), ("<start_of_turn>", "<end_of_turn>", "<start_of_image>")),
    Vocabulary("<end_of_utterance>", ("<end_of_utterance>",), ("<end_of_utterance>", "<image>")),
    Vocabulary("〈|EOS|〉", ("</assistant>", "〈|EOS|〉"), _LAGUNA),
    Vocabulary("<｜hy_eos{}｜>", ("<｜hy_eos:opensource｜>",), tuple(text.format(":opensource") for text in _HY3)),
    Vocabulary("<|tool_calls|>", ("<|flush|>", "<|calls|>"), ("<|flush|>",)),
    Vocabulary("<|tools_suffix|>", ("<|assistant_end|>", "<|tools_suffix|>"), is_guessed=True),
    Vocabulary("<|im_middle|>", ("<|im_end|>",)),
    Vocabulary("<|end_of_msg|>", ("<|end_of_msg|>",), is_guessed=True),
    Vocabulary("<|start_of_role|>", ("<|end_of_text|>",)),
    Vocabulary("<|role_end|>", ("<|role_end|>",), ("<role>", "</role>")),
    Vocabulary("<|message_sep|>", ("<|message_sep|>",), is_guessed=True),
    Vocabulary("<|begin_assistant|>", ("<|end|>",), ("<tool_calls>", "</tool_calls>")),
    Vocabulary("<|tool_result|>", ("<|end|>",)),
    Vocabulary("<|eom|>", ("<|end_of_text|>", "<|eot|>"), ("<|end_of_text|>",)),
    Vocabulary("<|Bot|>", ("<｜end▁of▁sentence｜>",), is_guessed=True),
    Vocabulary("<<SYS>>", ("</s>",), ("<image>",), plain=("[INST]", "[/INST]")),
    Vocabulary("<tool_def_sep>", ("<|im_end|>",), ("<tool_sep>", "<tool_def_sep>"), is_guessed=True),
    Vocabulary("<REKA_IMG_TOKEN>", ("<sep>",), ("<sep>",), is_guessed=True),
    Vocabulary("dsml_token", ("<｜end▁of▁sentence｜>",), ("｜DSML｜",)),
)
"""The first whose mark a template holds is its family's."""


def vocabulary_of(source: str) -> Vocabulary | None:
    """The family's entry; None where the tokenizer at hand and the template say everything."""
    return next((entry for entry in VOCABULARIES if entry.mark in source), None)


def special_tokens_of(source: str) -> list[str]:
    """The special tokens that a template's own vocabulary has."""
    entry = vocabulary_of(source)
    plain = entry.plain if entry is not None else ()
    spelled = [text for text in _BRACKETED.findall(source) if text not in plain and "{" not in text]
    return list(dict.fromkeys([*spelled, *(entry.tokens if entry is not None else ())]))


def missing_tokens_of(source: str, is_known: Callable[[str], bool]) -> list[str]:
    """Those that a tokenizer lacks."""
    return [text for text in special_tokens_of(source) if not is_known(text) and text not in _NEVER_TOKENS]
