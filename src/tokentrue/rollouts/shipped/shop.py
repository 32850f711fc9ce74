"""Shop tasks: what do these things cost together? Prices must be looked up, and some things are not sold.

A task is a pure function of `(seed, split)`. Prices and stock are drawn per task, so nothing about them can be
remembered. The two splits cannot share a first question: the digest of what is wanted decides the split.
"""

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tokentrue.rollouts.shipped.arithmetic import add, multiply

Split = Literal["train", "heldout"]

PLURALS = {
    "apple": "apples",
    "bagel": "bagels",
    "candle": "candles",
    "carrot": "carrots",
    "cherry": "cherries",
    "cookie": "cookies",
    "egg": "eggs",
    "grape": "grapes",
    "lemon": "lemons",
    "melon": "melons",
    "muffin": "muffins",
    "onion": "onions",
    "peach": "peaches",
    "pear": "pears",
    "pencil": "pencils",
    "plum": "plums",
    "potato": "potatoes",
    "spoon": "spoons",
    "tomato": "tomatoes",
    "walnut": "walnuts",
}
"""Everything a customer may ask for, by the name the `price` tool knows."""

_HELD_OUT_SHARE = 8  # one shopping list in eight is held out
_MISSING_SHARE = 0.25  # the part of the tasks in which something is not sold
_INTEGER = re.compile(r"-?\d+")
_REFUSAL = re.compile(r"\b(no|not|none|sorry|cannot)\b|n't\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Line:
    """So many of one item."""

    item: str
    quantity: int


@dataclass(frozen=True, slots=True)
class Question:
    """One user message. `total` is None exactly when something wanted is `missing` from the shop."""

    text: str
    wanted: tuple[Line, ...]
    total: int | None
    missing: tuple[str, ...]

    def __post_init__(self) -> None:
        if (self.total is None) != bool(self.missing):
            raise ValueError(f"total {self.total!r} does not go with missing items {self.missing!r}")


@dataclass(frozen=True, slots=True)
class Task:
    """The questions, asked one after the other, and the shop's prices: an item without a price is not sold."""

    questions: tuple[Question, ...]
    prices: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        if not self.questions:
            raise ValueError("a task needs at least one question")


def make_tools(task: Task) -> tuple[Callable[..., str], ...]:
    """The tools of one task's shop: `price`, `multiply` and `add`."""
    prices = dict(task.prices)

    def price(item: str) -> str:
        """Price of one item."""
        return str(prices[item]) if item in prices else f"error: no {item} here"

    return (price, multiply, add)


def split_of(wanted: Sequence[Line]) -> Split:
    """The split that owns every task whose first question asks for these lines, in whatever order."""
    key = ",".join(sorted(f"{line.quantity} {line.item}" for line in wanted))
    return "heldout" if hashlib.sha256(key.encode()).digest()[0] % _HELD_OUT_SHARE == 0 else "train"


def make_task(seed: int, split: Split) -> Task:
    """The task number `seed` of a split; the same arguments give the same task on every machine."""
    rng = random.Random(f"shop/{split}/{seed}")
    names = list(PLURALS)
    while True:
        rng.shuffle(names)
        first = tuple(Line(item, rng.randint(2, 9)) for item in names[: rng.choice((1, 2, 2))])
        if split_of(first) == split:
            break
    second = (Line(names[len(first)], rng.randint(2, 9)),)
    prices = {item: rng.randint(2, 99) for item in PLURALS}
    is_short = rng.random() < _MISSING_SHARE
    if is_short:
        del prices[rng.choice(first).item]
    form = rng.choice(
        ("How much are {}?", "What do {} cost?", "Price of {}, please.", "I want {}. What is the total?")
    )
    questions = [_ask(form, first, prices)]
    # A customer who was told "we have none" always asks for something else, so that such a task is no shorter.
    if is_short or rng.random() < 0.3:
        questions.append(
            _ask(rng.choice(("And what about {}?", "And {}?", "How much for {} then?")), second, prices)
        )
    return Task(tuple(questions), tuple(sorted(prices.items())))


def score_answer(question: Question, text: str) -> float:
    """1.0 for the right total as the last integer or, when something is missing, for naming it and no total."""
    integers = _INTEGER.findall(text)
    if question.total is not None:
        return 1.0 if integers and int(integers[-1]) == question.total else 0.0
    names_all = all(item in text for item in question.missing)
    return 1.0 if names_all and _REFUSAL.search(text) and not integers else 0.0


def score(task: Task, answers: Sequence[str]) -> float:
    """1.0 when every question was answered rightly, in order; else 0.0."""
    if len(answers) != len(task.questions):
        return 0.0
    return min(score_answer(question, text) for question, text in zip(task.questions, answers, strict=True))


def _ask(form: str, wanted: tuple[Line, ...], prices: dict[str, int]) -> Question:
    listed = " and ".join(f"{line.quantity} {PLURALS[line.item]}" for line in wanted)
    missing = tuple(line.item for line in wanted if line.item not in prices)
    total = None if missing else sum(line.quantity * prices[line.item] for line in wanted)
    return Question(form.format(listed), wanted, total, missing)
