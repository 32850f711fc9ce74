"""The oracle: plays a task with its real tools and says what a good assistant would have sampled.

It exists for training only. The package contains no policy but the model.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tokentrue.rollouts.shipped import arithmetic, shop

CONTENT_BEFORE_CALLS_SHARE = 0.08
COMPACT_JSON_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call."""

    name: str
    arguments: dict[str, int | str]


@dataclass(frozen=True, slots=True)
class AssistantTurn:
    """What the assistant samples in one turn; `compact` says how it spaces its JSON."""

    reasoning: str
    content: str
    calls: tuple[Call, ...] = ()
    compact: bool = False

    def sampled_text(self) -> str:
        """The text as sampled, without the close."""
        blocks = [self.content] if self.content else []
        for call in self.calls:
            body = {"name": call.name, "arguments": call.arguments}
            separators = (",", ":") if self.compact else (", ", ": ")
            blocks.append(f"<tool_call>\n{json.dumps(body, separators=separators)}\n</tool_call>")
        return f"<think>\n{self.reasoning}\n</think>\n\n" + "\n".join(blocks)


@dataclass(frozen=True, slots=True)
class UserTurn:
    """A question."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolTurn:
    """The results of the calls of the turn before, in their order."""

    results: tuple[str, ...]


Turn = AssistantTurn | UserTurn | ToolTurn


@dataclass(slots=True)
class _Play:
    rng: random.Random
    tools: dict[str, Callable[..., str]]
    turns: list[Turn] = field(default_factory=list)

    def call(self, reasoning: str, calls: list[Call]) -> tuple[str, ...]:
        content = ""
        if self.rng.random() < CONTENT_BEFORE_CALLS_SHARE:
            content = self.rng.choice(("Let me check.", "One moment.", "I will use the tools."))
        is_compact = self.rng.random() < COMPACT_JSON_SHARE
        self.turns.append(AssistantTurn(reasoning, content, tuple(calls), is_compact))
        results = tuple(self.tools[call.name](**call.arguments) for call in calls)
        self.turns.append(ToolTurn(results))
        return results

    def answer(self, total: str) -> None:
        """The number is said once or twice; the wording is free."""
        reasoning = self.rng.choice((f"Done, {total}.", f"That is {total}.", f"So {total}.", "Done."))
        form = self.rng.choice(("The answer is {}.", "The answer is {}.", "It is {}.", "That gives {}.", "{}"))
        self.turns.append(AssistantTurn(reasoning, form.format(total)))


def play_arithmetic(task: arithmetic.Task, rng: random.Random) -> list[Turn]:
    """The whole conversation of one arithmetic task, solved."""
    play = _Play(rng, {tool.__name__: tool for tool in arithmetic.TOOLS})
    for question in task.questions:
        play.turns.append(UserTurn(question.text))
        expression: arithmetic.Expression = question.expression
        is_first = True
        while isinstance(expression, arithmetic.Operation):
            ready = _ready_operations(expression)
            spelled = " and ".join(arithmetic.infix(operation) for operation in ready)
            forms = ("First {}.", "{} first.", "{} now.") if is_first else ("Then {}.", "Next {}.", "{} now.")
            calls = [Call(op.tool, {"a": _number(op.left), "b": _number(op.right)}) for op in ready]
            results = play.call(rng.choice(forms).format(spelled), calls)
            expression = _with_results(expression, dict(zip(ready, map(int, results), strict=True)))
            is_first = False
        play.answer(str(expression))
    return play.turns


def play_shop(task: shop.Task, rng: random.Random) -> list[Turn]:
    """The whole conversation of one shop task, solved or honestly refused."""
    play = _Play(rng, {tool.__name__: tool for tool in shop.make_tools(task)})
    for question in task.questions:
        play.turns.append(UserTurn(question.text))
        items = [line.item for line in question.wanted]
        look_up = rng.choice(("Look up {}.", "Price of {} first.", "First {}.")).format(" and ".join(items))
        prices = play.call(look_up, [Call("price", {"item": item}) for item in items])
        if question.missing:
            _refuse(play, " and no ".join(question.missing))
            continue
        pairs = [(line.quantity, int(price)) for line, price in zip(question.wanted, prices, strict=True)]
        spelled = " and ".join(f"{quantity} * {price}" for quantity, price in pairs)
        reasoning = rng.choice(("Then {}.", "Next {}.", "{} now.")).format(spelled)
        totals = play.call(reasoning, [Call("multiply", {"a": quantity, "b": price}) for quantity, price in pairs])
        if len(totals) == 2:
            reasoning = rng.choice(("Then {}.", "Next {}.", "{} now.")).format(f"{totals[0]} + {totals[1]}")
            totals = play.call(reasoning, [Call("add", {"a": int(totals[0]), "b": int(totals[1])})])
        play.answer(totals[0])
    return play.turns


def _refuse(play: _Play, missing: str) -> None:
    reasoning = play.rng.choice((f"No {missing} here.", f"There is no {missing}."))
    form = play.rng.choice(("Sorry, there is no {} here.", "Sorry, we have no {}.", "There is no {} here."))
    play.turns.append(AssistantTurn(reasoning, form.format(missing)))


def _ready_operations(expression: arithmetic.Operation) -> list[arithmetic.Operation]:
    inner = [side for side in (expression.left, expression.right) if isinstance(side, arithmetic.Operation)]
    if not inner:
        return [expression]
    return [operation for side in inner for operation in _ready_operations(side)]


def _with_results(
    expression: arithmetic.Operation, results: dict[arithmetic.Operation, int]
) -> arithmetic.Expression:
    if expression in results:
        return results[expression]
    sides = [
        _with_results(side, results) if isinstance(side, arithmetic.Operation) else side
        for side in (expression.left, expression.right)
    ]
    return arithmetic.Operation(expression.tool, sides[0], sides[1])


def _number(side: arithmetic.Expression) -> int:
    if not isinstance(side, int):
        raise TypeError(f"{side!r} has not been worked out yet")
    return side
