"""Every real template at hand, paired with a real tokenizer, and what holds for each: bridges and law 6.

The data lie beside the repository and never in it. A template without a tokenizer of its own gets the one
that has most of its special tokens; the others are put in, as a model of that family would have them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers

from real_tokenizers import SHARED, unpacked
from templates.spoken import TYPED_TOOLS
from templates.vocabularies import missing_tokens_of, special_tokens_of, vocabulary_of
from tokentrue import Message, Renderer, ToolCall
from tokentrue.errors import TemplateRenderError
from tokentrue.generation import FinishReason
from tokentrue.rendering.bridge import Bridge
from tokentrue.rendering.chat_template import ChatTemplate
from tokentrue.rendering.formats.parsed import CallStatus
from tokentrue.rendering.proof_cache import ProofCache
from tokentrue.rendering.reader import ParsedResponse
from tokentrue.rendering.renderer import Tools, make_renderer
from tokentrue.rendering.stops import derive_stops
from tokentrue.rendering.template_messages import probe_message_form
from tokentrue.rendering.tokenizer import Tokenizer, read_stop_ids
from tokentrue.turns import Junction

FOLDERS = (
    "qwen3",
    "llama-3.1",
    "mistral-nemo",
    "deepseek-v3",
    "glm-4.5",
    "gpt-oss",
    "gemma-4",
    "tinyllama",
    "phi-3",
)
NOW = datetime(2026, 1, 2)


@dataclass(frozen=True)
class Template:
    """One template: its name in the table, its source, and the tokenizer folder it is paired with."""

    name: str
    source: str
    folder: str

    @classmethod
    def paired(cls, name: str, source: str) -> Template:
        """A template with the tokenizer that has most of its special tokens."""
        family = vocabulary_of(source)
        if family is not None and family.folder is not None:
            return cls(name, source, family.folder)
        spelled = set(special_tokens_of(source))
        # Two tokenizers that both know none of them: the plain one.
        folder = max(("tinyllama", *FOLDERS), key=lambda folder: len(spelled & _added_in(folder)))
        return cls(name, source, folder)


@cache
def tokenizer_of(folder: str) -> Tokenizer:
    """The tokenizer of a folder."""
    return Tokenizer.load(unpacked(folder))


@cache
def templates_at_hand() -> tuple[Template, ...]:
    """The folders' own templates, then the archive's; empty where the data are not at hand."""
    if not SHARED.is_dir():
        return ()
    own = [Template(name, (SHARED / name / "chat_template.jinja").read_text(), name) for name in FOLDERS]
    found = []
    with tarfile.open(SHARED / "templates.tar.xz") as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            data = archive.extractfile(member)
            if data is not None and member.name.endswith(".jinja"):
                name = member.name.removeprefix("templates/").removesuffix(".jinja")
                source = data.read().decode()
                found.append(Template.paired(name, source))
    return (*own, *found)


def templates_in(folder: Path) -> tuple[Template, ...]:
    """The `.jinja` files of any folder, each with the tokenizer that has most of its special tokens."""
    sources = [(path.stem, path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.jinja"))]
    return tuple(Template.paired(name, source) for name, source in sources)


@cache
def _added_in(folder: str) -> frozenset[str]:
    text = (unpacked(folder) / "tokenizer.json").read_text(encoding="utf-8")
    # Only this list: the vocabulary behind it is megabytes.
    added, _ = json.JSONDecoder().raw_decode(text, text.index("[", text.index('"added_tokens"')))
    return frozenset(token["content"] for token in added)


def missing_tokens(template: Template, tokenizer: Tokenizer) -> list[str]:
    """The special tokens that a template spells and its tokenizer lacks."""
    return missing_tokens_of(template.source, lambda text: tokenizer.added_token(text) is not None)


def renderer_for(template: Template) -> Renderer:
    """The renderer of a template, with its missing special tokens put into a copy of the tokenizer."""
    tokenizer = tokenizer_of(template.folder)
    missing = missing_tokens(template, tokenizer)
    if missing:
        tokenizer = _with_tokens(tokenizer, missing)
    chat = ChatTemplate(template.source, tokenizer.special_tokens, now=NOW)
    stop_ids = _stop_ids(template, chat, tokenizer, missing)
    proofs = ProofCache.of_environment(os.environ)  # the same renderer is asked for by several tests
    return make_renderer(tokenizer, chat, stop_ids, template.name, proofs=proofs)


def _with_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokenizer:
    """A copy that knows `texts` as special tokens; the tables of the model, which no token changes, are shared."""
    original = tokenizer.backend
    backend = tokenizers.Tokenizer(original.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if getattr(original, part) is not None:
            setattr(backend, part, getattr(original, part))
    known = sorted(original.get_added_tokens_decoder().items())
    backend.add_tokens([token for _, token in known])
    assert repr(sorted(backend.get_added_tokens_decoder().items())) == repr(known)
    backend.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in texts])
    named = hashlib.sha256(json.dumps([tokenizer.content_hash, list(texts)]).encode()).hexdigest()
    return Tokenizer(backend, tokenizer.config, named)


def _stop_ids(
    template: Template, chat: ChatTemplate, tokenizer: Tokenizer, missing: Sequence[str]
) -> tuple[int, ...]:
    """The family's own where they are known and borrowed; else the folder's, the derived and the family's."""
    family = vocabulary_of(template.source)
    texts = family.stops if family is not None else ()
    added = tuple(info.id for text in texts if (info := tokenizer.added_token(text)) is not None)
    if family is not None and not family.is_guessed and set(texts) & set(missing):
        return added
    named, _ = read_stop_ids(unpacked(template.folder), tokenizer)
    derived = derive_stops(chat, probe_message_form(chat), tokenizer, (*named, *added)).ids
    return tuple(dict.fromkeys((*named, *derived, *added)))


@cache
def own_renderer(folder: str) -> Renderer:
    """The renderer of a folder with its own template, kept for the life of the process."""
    return renderer_for(next(template for template in templates_at_hand() if template.name == folder))


class BridgeOutcome(Enum):
    """How a bridge compares with the template's own full rendering."""

    RIGHT = "right"
    WRONG = "wrong"
    REFUSED = "refused"
    NOT_RENDERED = "not rendered"


@dataclass(frozen=True)
class Scenario:
    """What follows a sampled message; the words in it occur nowhere else."""

    name: str
    assistant: Message
    new: tuple[Message, ...]


def _result(index: int) -> Message:
    return Message(role="tool", content=f"qzResult{index}", tool_call_id=f"call{index:05d}", name="look_up")


def _call(index: int) -> ToolCall:
    return ToolCall("look_up", json.dumps({"s": f"qzSaid{index}"}), f"call{index:05d}")


_SAID, _ASKED = Message(role="assistant", content="qzSaid9"), Message(role="user", content="qzAsked")
SCENARIOS = (
    Scenario("user", _SAID, (_ASKED,)),
    Scenario("tool", Message(role="assistant", tool_calls=(_call(0),)), (_result(0),)),
    Scenario("tools", Message(role="assistant", tool_calls=(_call(0), _call(1))), (_result(0), _result(1))),
    Scenario("tool, user", Message(role="assistant", tool_calls=(_call(0),)), (_result(0), _ASKED)),
    Scenario("system", _SAID, (Message(role="system", content="qzRule"), _ASKED)),
    Scenario("reasoning", Message(role="assistant", content="qzSaid9", reasoning_content="qzSaid8"), (_ASKED,)),
)
_OPENINGS = (
    (Message(role="system", content="You answer."), Message(role="user", content="Hello there.")),
    (Message(role="user", content="Hello there."),),
)


def judge_bridge(renderer: Renderer, scenario: Scenario) -> tuple[BridgeOutcome, str]:
    """The outcome of one scenario, and the reason of a refusal or the evidence of a fault."""
    found = (BridgeOutcome.NOT_RENDERED, "")
    for opening in _OPENINGS:
        found = _judge(renderer, scenario, opening)
        if found[0] in (BridgeOutcome.RIGHT, BridgeOutcome.WRONG):
            break
    return found


def _judge(renderer: Renderer, scenario: Scenario, opening: tuple[Message, ...]) -> tuple[BridgeOutcome, str]:
    history = (*opening, scenario.assistant)
    try:
        prompt = renderer.render_ids(opening, tools=TYPED_TOOLS)
        full = renderer.render_ids((*history, *scenario.new), tools=TYPED_TOOLS).tolist()
        _, said = completion(renderer, scenario.assistant, opening)
    except TemplateRenderError as error:
        return BridgeOutcome.NOT_RENDERED, str(error)
    body = said[:-1] if said and said[-1] in renderer.stop_ids else said
    sampled = [*body, _sampled_stop(renderer, renderer.tokenizer.decode(full), scenario, opening)]
    outcome = renderer.bridge_to_next_turn(
        prompt, sampled, scenario.new, history=history, finish_reason=FinishReason.STOP, tools=TYPED_TOOLS
    )
    if not isinstance(outcome, Bridge):
        return BridgeOutcome.REFUSED, f"{outcome.why.value}: {outcome.detail}"
    added = list(outcome.added_ids)
    text = renderer.tokenizer.decode(added)
    before = full[len(full) - len(added) - 1] if len(full) > len(added) else -1
    # Added tokens split text before merges: at either end of one, what stands on the other side changes no id.
    border = (renderer.tokenizer.added_token_of_id(each) for each in (before, added[0]))
    kept = sampled[:-1] if outcome.junction is Junction.OPENER_DROPPED else sampled
    is_right = (
        full[len(full) - len(added) :] == added
        and any(info is not None for info in border)
        and all((message.content or "") in text for message in scenario.new)
        and "qzSaid" not in text
        and outcome.prompt_ids.tolist() == [*prompt.tolist(), *kept, *added]
    )
    return (BridgeOutcome.RIGHT, "") if is_right else (BridgeOutcome.WRONG, text)


def _sampled_stop(renderer: Renderer, text: str, scenario: Scenario, opening: tuple[Message, ...]) -> int:
    """The stop that the template writes behind the sampled message: what a model would end it with.

    Where it writes none there (GLM: a system message follows, whose opener is no stop), it is the one that it
    writes when a user goes on; where none there either, the first of the stop set.
    """
    found = _first_stop(renderer, text, scenario.new[0])
    if found is None:
        listed = (*opening, scenario.assistant, _ASKED)
        with contextlib.suppress(TemplateRenderError):
            found = _first_stop(renderer, renderer.render_text(listed, tools=TYPED_TOOLS), _ASKED)
    return renderer.stop_ids[0] if found is None else found


def _first_stop(renderer: Renderer, text: str, new: Message) -> int | None:
    ends = [match.end() for match in re.finditer(r"qzSaid\d", text)]
    start = ends[-1] if ends else 0
    between = text[start : text.find(new.content or "", start)]
    spelled = [(between.find(renderer.tokenizer.id_text(stop)), stop) for stop in renderer.stop_ids]
    return min((found for found in spelled if found[0] >= 0), default=(0, None))[1]


def completion(
    renderer: Renderer,
    message: Message,
    opening: Sequence[Message] = (Message(role="user", content="?"),),
    tools: Tools = TYPED_TOOLS,
) -> tuple[list[int], list[int]]:
    """The prompt that `message` continues, and its ids up to the stop.

    Where the generation prompt is no part of history, the prompt is what both have in common.
    """
    prompt = renderer.render_text(opening, tools=tools)
    whole = renderer.render_text((*opening, message), tools=tools, add_generation_prompt=False)
    encode = renderer.tokenizer.encode
    prompt_ids, whole_ids = encode(prompt), encode(whole)
    same = next((i for i, (a, b) in enumerate(zip(prompt_ids, whole_ids, strict=False)) if a != b), None)
    same = min(len(prompt_ids), len(whole_ids)) if same is None else same
    if whole.startswith(prompt) and same < len(prompt_ids):
        ids = encode(whole[len(prompt) :])
    else:
        prompt_ids, ids = prompt_ids[:same], whole_ids[same:]
    ends = [i for i, token_id in enumerate(ids) if token_id in renderer.stop_ids]
    return prompt_ids, ids[: ends[0] + 1] if ends else ids


def completion_behind(
    renderer: Renderer, asked: Sequence[Message], said: Message, new: Sequence[Message], tools: Tools
) -> list[int]:
    """What a model that writes as its template does samples for `said`, with the stop that `new` begins with.

    Where the template writes no stop behind a message (GLM: the next role's token is one), it is that of `new`;
    where it writes none there either, the first of the stop set.
    """
    before = renderer.render_text(asked, tools=tools, add_generation_prompt=False)
    ended = renderer.render_text((*asked, said), tools=tools, add_generation_prompt=False)
    if ended.startswith(before):
        _, ids = completion(renderer, said, asked, tools)
    else:
        # The message changes what is written of older ones (gpt-oss drops analysis): say it to a question.
        _, ids = completion(renderer, said, tools=tools)
    if ids and ids[-1] in renderer.stop_ids:
        return ids
    further = renderer.render_text((*asked, said, *new), tools=tools, add_generation_prompt=False)
    behind = renderer.tokenizer.encode(further[len(ended) :])[:1] if further.startswith(ended) else []
    return [*ids, *(behind if behind and behind[0] in renderer.stop_ids else renderer.stop_ids[:1])]


_PIECES = (
    *("a", "Yes", " ", "\n", "é", "漢字", "🙂", '"', "'", "\\", "{", "}", "[", "]"),
    *(":", ",", "7", "null", "true", "<", ">", "```", "|", "word " * 40),
)


def random_messages(renderer: Renderer, seed: int, count: int) -> Iterator[Message]:
    """Messages that the template may be asked to write."""
    chance = random.Random(seed)
    form = renderer.tool_format
    reads_reasoning = renderer.reader.reasoning is not None or (form is not None and "is reasoning" in form.name)

    def text(most: int = 5) -> str:
        return "".join(chance.choice(_PIECES) for _ in range(chance.randint(0, most)))

    def said() -> str:
        return "S" + text() + "E"

    def value() -> Any:
        return chance.choice([text(), chance.randint(-9, 9), chance.random() < 0.5, [text(), 1], {"k": text()}])

    def arguments() -> str:
        typed = {"s": text, "text": text, "i": lambda: chance.randint(-99, 99), "b": lambda: chance.random() < 0.5}
        typed |= {"n": lambda: chance.choice([1.5, -2, 0.25]), "a": lambda: [value()], "o": lambda: {"k": value()}}
        keys = chance.sample(sorted(typed), chance.randint(0, 4))
        return json.dumps({key: typed[key]() for key in keys}, ensure_ascii=False)

    for _ in range(count):
        calls = chance.choice([0, 1, 1, 2, 3]) if renderer.tool_format is not None else 0
        names = [chance.choice(["look_up", "send"]) for _ in range(calls)]
        yield Message(
            role="assistant",
            content=said() if not calls or chance.random() < 0.4 else None,
            reasoning_content=said() if reads_reasoning and chance.random() < 0.5 else None,
            tool_calls=tuple(ToolCall(name, arguments(), f"call{i:05d}") for i, name in enumerate(names)),
        )


def _is_channels(renderer: Renderer) -> bool:
    return renderer.tool_format is not None and renderer.tool_format.name.startswith("channels")


@dataclass(frozen=True)
class Inverse:
    """Law 6 over many messages.

    Args:
        untold: Where the template writes strings without quotes: messages whose strings cannot be told from the
            rest of the call, each of which came back as a call that cannot be read, with all that was written.
            Where the type of what stands inside of an object is not written: messages that came back as one for
            which the template writes the same.
    """

    right: int
    refused: int
    wrong: tuple[str, ...]
    untold: int = 0

    def __str__(self) -> str:
        return f"{self.right}/{self.right + self.untold + len(self.wrong)}"


def judge_inverse(renderer: Renderer, seed: int, count: int) -> Inverse:
    """Write and read `count` messages; a message is compared with what the template keeps of it."""
    right, refused, untold, wrong = 0, 0, 0, []
    for message in random_messages(renderer, seed, count):
        try:
            prompt, ids = completion(renderer, message)
            kept = normal_form(renderer, message)
        except TemplateRenderError:
            refused += 1
            continue
        parsed = renderer.reader.parse(ids, prompt_tail=prompt[-16:], tools=TYPED_TOOLS)
        same = parsed.to_message("call").digest == kept.digest
        if same and all(call.status is CallStatus.OK for call in parsed.tool_calls):
            right += 1
        elif _is_untold(renderer, message, parsed, ids):
            untold += 1
        else:
            wrong.append(f"{renderer.tokenizer.decode(ids)!r} was read as {parsed!r}, not {kept!r}")
    return Inverse(right, refused, tuple(wrong), untold)


def _is_untold(renderer: Renderer, message: Message, parsed: ParsedResponse, ids: list[int]) -> bool:
    if _cannot_be_told(renderer, message):
        return all(call.raw for call in parsed.tool_calls)
    return _types_no_members(renderer) and completion(renderer, parsed.to_message("call"))[1] == ids


def _cannot_be_told(renderer: Renderer, message: Message) -> bool:
    """Whether the template writes strings without quotes or escapes, and one of them has what could end it."""
    name = renderer.tool_format.name if renderer.tool_format is not None else ""
    enders = ",=()[]{}'\"" if "strings without quotes" in name else "'\\" if "are not escaped" in name else ""
    values = [value for call in message.tool_calls for value in json.loads(call.arguments).values()]
    return any(isinstance(value, str) and set(value) & set(enders) for value in values)


def _types_no_members(renderer: Renderer) -> bool:
    """Whether text inside of an object or a list is typed by a schema only, and these tools have none for it."""
    return renderer.tool_format is not None and renderer.tool_format.name.startswith("nested tags")


def normal_form(renderer: Renderer, message: Message) -> Message:
    """What the template keeps of `message`, found by looking for sentinels in its rendering.

    Templates drop text beside a call (Llama, Mistral, DeepSeek), reasoning, or all calls but the first
    (gpt-oss). Harmony has no content beside a call: it is written as reasoning.
    """
    calls = tuple(
        ToolCall(call.name, json.dumps({"s": f"qzArgs{i}q"}), call.id) for i, call in enumerate(message.tool_calls)
    )
    content = "qzContent" if message.content else None
    thought = "qzThought" if message.reasoning_content else None
    masked = Message(role="assistant", content=content, reasoning_content=thought, tool_calls=calls)
    prompt, ids = completion(renderer, masked)
    decode = renderer.tokenizer.decode
    text = decode(ids)
    if prompt and renderer.tokenizer.added_token_of_id(prompt[-1]) is None:
        # SentencePiece has no space of its own behind plain text: the one that stands there is the template's.
        text = decode([*prompt, *ids])[len(decode(prompt)) :]
    kept = [call for i, call in enumerate(message.tool_calls) if f"qzArgs{i}q" in text]
    numbered = [f"functions.{call.name}:{i}" for i, call in enumerate(message.tool_calls)]
    if kept and numbered[0] in text:  # Kimi's template makes ids of its own
        kept = [ToolCall(call.name, call.arguments, numbered[i]) for i, call in enumerate(kept)]
    written_ids = bool(kept) and kept[0].id is not None and kept[0].id in text
    said = message.content if "qzContent" in text else None
    reasoning = message.reasoning_content if "qzThought" in text else None
    lead = text[: text.find("qzContent")] if said is not None else ""
    if said is not None and lead.isspace() and renderer.reader.reasoning is None:
        # White space that the template writes in history and not in its generation prompt is the model's.
        said = lead + said
    if _is_channels(renderer) and kept and said is not None:
        said, reasoning = None, said
    return Message(
        role="assistant",
        content=_as_encoded(renderer, said),
        reasoning_content=_as_encoded(renderer, reasoning),
        tool_calls=tuple(
            ToolCall(
                call.name, _as_encoded_json(renderer, call.arguments), call.id if written_ids else f"call_{i}"
            )
            for i, call in enumerate(kept)
        ),
    )


def _as_encoded(renderer: Renderer, text: str | None) -> str | None:
    """Text as the tokenizer can hold it: some normalise it (Qwen: NFC)."""
    return renderer.tokenizer.decode(renderer.tokenizer.encode(text)) if text else text


def _as_encoded_json(renderer: Renderer, arguments: str) -> str:
    def through(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: through(inner) for key, inner in item.items()}
        if isinstance(item, list):
            return [through(inner) for inner in item]
        return _as_encoded(renderer, item) if isinstance(item, str) else item

    return json.dumps(through(json.loads(arguments)), ensure_ascii=False)
