"""Training conversations as token ids: the same ids in the same order as a rollout produces them.

A history is never rendered again. The first prompt is `encode(template text)`; what was sampled follows
verbatim with its close; then comes the text that the template writes behind that close, encoded on its own.
Reasoning of earlier turns therefore stays in the ids. A small share of conversations is rendered again at
the follow-up question instead, as a client without token ids does it (earlier reasoning cut, JSON
respaced), so that the model is at home in both.

Subword regularisation: in a share of the assistant's turns the words are encoded with BPE dropout, so that
the model gives some probability to token sequences which the encoder would never produce, as large models
do. Text that the template or the tools wrote is always encoded canonically.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2
from tokenizers import Tokenizer

from tokentrue.rollouts.shipped import arithmetic, shop
from training.oracle import AssistantTurn, ToolTurn, Turn, UserTurn, play_arithmetic, play_shop

CLOSE = "<|im_end|>"
GENERATION_PROMPT = "<|im_start|>assistant\n"
DROPOUT = 0.05
DROPOUT_TURN_SHARE = 0.05
RENDERED_AGAIN_SHARE = 0.08
PLAIN_HEADER_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation behind its header: ids, and 1 where the assistant wrote the id."""

    ids: list[int]
    mask: list[int]


@dataclass(frozen=True, slots=True)
class Group:
    """Conversations that share one header (the system block), which is run once per batch."""

    header_ids: list[int]
    conversations: list[Encoded]


class Encoder:
    """Text to ids, with or without BPE dropout, and messages to text by the shipped template."""

    def __init__(self, folder: Path) -> None:
        self._exact = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._dropping = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._dropping.model.dropout = DROPOUT
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self._template = environment.from_string((folder / "chat_template.jinja").read_text())
        self.close_id = self._exact.token_to_id(CLOSE)
        self.vocabulary_size = int(self._exact.get_vocab_size())

    def encode(self, text: str, *, dropout: bool = False) -> list[int]:
        """The ids of the text; nothing is added around it."""
        tokenizer = self._dropping if dropout else self._exact
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """The text of the ids, markers included."""
        return str(self._exact.decode(ids, skip_special_tokens=False))

    def render(self, messages: list[dict[str, object]], tools: list[dict[str, object]] | None) -> str:
        """The template's text, with the generation prompt."""
        return str(self._template.render(messages=messages, tools=tools, add_generation_prompt=True))

    def header(self, tools: list[dict[str, object]] | None, system: str | None) -> list[int]:
        """The ids of the system block up to its close, empty without tools and system message."""
        if tools is None and system is None:
            return []
        messages: list[dict[str, object]] = [{"role": "user", "content": ""}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        text = self.render(messages, tools)
        return self.encode(text[: text.index("\n<|im_start|>user")])


def tool_schemas(environment: str) -> list[dict[str, object]]:
    """The tools of an environment as JSON schemas, in the plainest form."""
    integer, text = {"type": "integer"}, {"type": "string"}
    known: dict[str, tuple[str, dict[str, object]]] = {
        "add": ("Add two integers.", {"a": integer, "b": integer}),
        "subtract": ("Subtract b from a.", {"a": integer, "b": integer}),
        "multiply": ("Multiply two integers.", {"a": integer, "b": integer}),
        "price": ("Price of one item.", {"item": text}),
    }
    names = ("add", "subtract", "multiply") if environment == "arithmetic" else ("price", "multiply", "add")
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": known[name][0],
                "parameters": {
                    "type": "object",
                    "properties": known[name][1],
                    "required": list(known[name][1]),
                },
            },
        }
        for name in names
    ]


def varied_schemas(environment: str, rng: random.Random) -> list[dict[str, object]]:
    """The same tools as another framework would describe them: other keys, other order."""
    tools = json.loads(json.dumps(tool_schemas(environment)))
    style = rng.randrange(5)
    for tool in tools:
        parameters = tool["function"]["parameters"]
        if style == 0:
            parameters["additionalProperties"] = False
        elif style == 1:
            tool["function"]["strict"] = True
        elif style == 2:
            for name, schema in parameters["properties"].items():
                schema["title"] = name.title()
        elif style == 3:
            for name, schema in parameters["properties"].items():
                schema["description"] = f"The {name}."
        else:
            parameters.pop("required")
    if rng.random() < 0.5:
        rng.shuffle(tools)
    return list(tools)


def user_text(turn: Turn) -> str:
    """What the template writes for a turn that is not the assistant's."""
    if isinstance(turn, UserTurn):
        return f"<|im_start|>user\n{turn.text}{CLOSE}\n"
    if isinstance(turn, ToolTurn):
        blocks = "".join(f"\n<tool_response>\n{result}\n</tool_response>" for result in turn.results)
        return f"<|im_start|>user{blocks}{CLOSE}\n"
    raise TypeError(f"{turn!r} is the assistant's")


def encode_conversation(
    encoder: Encoder,
    turns: list[Turn],
    rng: random.Random,
    *,
    has_header: bool,
    rendered_again_share: float = RENDERED_AGAIN_SHARE,
) -> Encoded:
    """One conversation behind its header, stitched as a rollout stitches it."""
    ids: list[int] = []
    mask: list[int] = []
    start = 0
    follow_up = next((i for i, turn in enumerate(turns) if i and isinstance(turn, UserTurn)), None)
    pending = "\n" if has_header else ""
    if follow_up is not None and rng.random() < rendered_again_share:
        start = follow_up + 1
        pending += encoder.render(_messages(turns[:start]), None).removesuffix(GENERATION_PROMPT)
    for turn in turns[start:]:
        if not isinstance(turn, AssistantTurn):
            pending += user_text(turn)
            continue
        context = encoder.encode(pending + GENERATION_PROMPT)
        sampled = encoder.encode(turn.sampled_text(), dropout=rng.random() < DROPOUT_TURN_SHARE)
        sampled.append(encoder.close_id)
        ids += context + sampled
        mask += [0] * len(context) + [1] * len(sampled)
        pending = "\n"
    return Encoded(ids, mask)


def _messages(turns: list[Turn]) -> list[dict[str, object]]:
    messages: list[dict[str, object]] = []
    for turn in turns:
        if isinstance(turn, UserTurn):
            messages.append({"role": "user", "content": turn.text})
        elif isinstance(turn, ToolTurn):
            messages += [{"role": "tool", "content": result} for result in turn.results]
        else:
            calls = [{"function": {"name": call.name, "arguments": call.arguments}} for call in turn.calls]
            message: dict[str, object] = {"role": "assistant", "content": turn.content, "tool_calls": calls}
            messages.append(message | {"reasoning_content": turn.reasoning})
    return messages


def play(environment: str, seed: int, split: arithmetic.Split, rng: random.Random) -> list[Turn]:
    """The oracle's conversation for one task of one environment."""
    if environment == "arithmetic":
        return play_arithmetic(arithmetic.make_task(seed, split), rng)
    return play_shop(shop.make_task(seed, split), rng)


def groups(encoder: Encoder, seed: int, size: int, header_share: float = 1.0) -> Iterator[Group]:
    """Endless groups of training conversations; two thirds arithmetic, the harder of the two."""
    rng = random.Random(f"groups/{seed}")
    task_seed = seed * 1_000_000_000
    while True:
        environment = "arithmetic" if rng.random() < 0.62 else "shop"
        tools: list[dict[str, object]] | None = tool_schemas(environment)
        system = None
        if rng.random() >= PLAIN_HEADER_SHARE:
            tools = varied_schemas(environment, rng)
            system = rng.choice((None, "You are a helpful assistant.", "Use the tools.", "Answer with the tools."))
        if rng.random() >= header_share:
            tools, system = None, None
        header_ids = encoder.header(tools, system)
        conversations = []
        for task in range(task_seed, task_seed + size):
            turns = play(environment, task, "train", rng)
            conversations.append(encode_conversation(encoder, turns, rng, has_header=bool(header_ids)))
        task_seed += size
        yield Group(header_ids, conversations)
