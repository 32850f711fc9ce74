"""transformers as the oracle: the text and the ids of a template, over generated conversations.

Both sides get the same sources and the same `tokenizer.json`; transformers renders and encodes with its own
machinery.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache, lru_cache
from typing import Any

import tokenizers
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

from templates.at_hand import Template, missing_tokens, tokenizer_of, unpacked
from templates.corpus import Conversation, conversation
from tokentrue import Message
from tokentrue.errors import TemplateRenderError
from tokentrue.messages import messages_from
from tokentrue.rendering.chat_template import ChatTemplate
from tokentrue.rendering.template_messages import (
    PROBE_CALL,
    PROBE_TOOL,
    ArgumentsForm,
    EmptyContent,
    MessageForm,
    probe_message_form,
)
from tokentrue.rendering.tokenizer import Tokenizer

KWARGS = (
    ("enable_thinking", (False, True)),
    ("thinking", (False, True)),
    ("preserve_thinking", (False, True)),
    ("clear_thinking", (False, True)),
    ("reasoning_effort", ("low", "high")),
    ("tools_in_user_message", (False, True)),
    ("date_string", ("26 Jul 2024",)),
    ("model_identity", ("You are Ada.",)),
)
"""Template variables that callers give, with values; each template gets those that it names."""
NEEDED = {"llama.cpp/fireworks-ai-llama-3-firefunction-v2": (("functions", "[]"), ("datetime", "2026-01-02"))}
"""Variables without which a template fails on every conversation."""


@dataclass(frozen=True)
class Pair:
    """One tokenizer folder, loaded by this package and by transformers, with the tokens of all its templates."""

    ours: Tokenizer
    theirs: transformers.PreTrainedTokenizerFast


@cache
def special_tokens(folder: str) -> dict[str, str]:
    """`bos_token` and the like, read from the folder's config."""
    config = json.loads((unpacked(folder) / "tokenizer_config.json").read_text())
    named = {name: value for name, value in config.items() if name.endswith("_token") and value}
    found = {name: value["content"] if isinstance(value, dict) else value for name, value in named.items()}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def pair_for(template: Template, templates: Iterable[Template]) -> Pair:
    """The tokenizer of `template`, with the tokens of all `templates` that share its folder."""
    ours = tokenizer_of(template.folder)
    found = [missing_tokens(each, ours) for each in templates if each.folder == template.folder]
    return _pair(template.folder, tuple(dict.fromkeys(text for texts in found for text in texts)))


@lru_cache(maxsize=1)  # templates come sorted by folder, and nine real tokenizers twice are gigabytes
def _pair(folder: str, missing: tuple[str, ...]) -> Pair:
    path = unpacked(folder)
    ours = Tokenizer.load(path)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(path / "tokenizer.json"), **special_tokens(folder)
    )
    tokens = [tokenizers.AddedToken(text, special=True, normalized=False) for text in missing]
    theirs.add_tokens(tokens, special_tokens=True)
    ours.backend.add_special_tokens(tokens)
    return Pair(Tokenizer(ours.backend, ours.config, ours.content_hash), theirs)


@cache
def ours_on(day: date, template: Template, kwargs: tuple[tuple[str, Any], ...]) -> ChatTemplate:
    now = datetime(day.year, day.month, day.day, 12)
    return ChatTemplate(template.source, special_tokens(template.folder), kwargs=dict(kwargs), now=now)


def kwargs_of(template: Template, asked: Conversation) -> tuple[tuple[str, Any], ...]:
    named = [(name, value) for name, values in KWARGS if name in template.source for value in values]
    choices = [(), *((one,) for one in named)]
    return (*NEEDED.get(template.name, ()), *choices[asked.choice % len(choices)])


def reference_text(loaded: Pair, template: Template, form: MessageForm, asked: Conversation) -> str | None:
    """What transformers writes; None when the template refuses, or fails on, the conversation."""
    theirs = loaded.theirs
    messages = form.to_templates(messages_from(asked.messages))
    given: dict[str, Any] = {"tools": list(asked.tools) or None, **dict(kwargs_of(template, asked))}
    given["add_generation_prompt"] = asked.add_generation_prompt
    try:
        if form.empty_content is EmptyContent.NULL:
            special = theirs.special_tokens_map
            return render_jinja_template([messages], chat_template=template.source, **special, **given)[0][0]
        text = theirs.apply_chat_template(messages, chat_template=template.source, tokenize=False, **given)
    except Exception:  # noqa: BLE001  (whatever it raises: that it refuses is what is compared)
        return None
    assert isinstance(text, str)
    return text


def both_texts(
    loaded: Pair, template: Template, form: MessageForm, asked: Conversation
) -> tuple[str | None, str | None]:
    """Ours and theirs, of the same day: templates tell the date."""
    messages = form.to_templates(messages_from(asked.messages))
    while True:
        day = date.today()
        theirs = reference_text(loaded, template, form, asked)
        if date.today() == day:
            break
    chat = ours_on(day, template, kwargs_of(template, asked))
    try:
        ours = chat.render_text(messages, asked.tools, add_generation_prompt=asked.add_generation_prompt)
    except TemplateRenderError:
        ours = None
    return ours, theirs


def form_of(template: Template) -> MessageForm:
    """The form in which the template takes messages."""
    return probe_message_form(ours_on(date.today(), template, NEEDED.get(template.name, ())))


def count_equal(template: Template, loaded: Pair, conversations: int) -> int:
    """How many of the first generated conversations are written; each one equal, in text and in ids.

    Raises:
        AssertionError: One differs.
    """
    form, written = form_of(template), 0
    for seed in range(conversations):
        ours, theirs = both_texts(loaded, template, form, conversation(seed))
        assert ours == theirs, f"conversation({seed})"
        if ours is not None and theirs is not None:
            written += 1
            expected = loaded.theirs(theirs, add_special_tokens=False)["input_ids"]
            assert loaded.ours.encode(ours) == expected, f"conversation({seed})"
    return written


def is_written_in_the_form_found(template: Template) -> bool:
    """If transformers writes a call under any form of a message, it does so under the form found."""
    messages = (Message(role="user", content="qzUser"), Message(role="assistant", tool_calls=(PROBE_CALL,)))
    value = json.loads(PROBE_CALL.arguments)["qzKey7"]

    def writes(form: MessageForm) -> bool:
        try:
            found, _ = render_jinja_template(
                [form.to_templates(messages)],
                tools=[PROBE_TOOL],
                chat_template=template.source,
                **special_tokens(template.folder),
                **dict(NEEDED.get(template.name, ())),
            )
        except Exception:  # noqa: BLE001  (a form that the template fails on)
            return False
        said = found[0].rpartition("qzUser")[2]
        return PROBE_CALL.name in said and value in said and f'\\"{value}' not in said

    forms = [MessageForm(arguments, empty) for arguments in ArgumentsForm for empty in EmptyContent]
    return writes(form_of(template)) == any(writes(form) for form in forms)
