"""Calculator tasks: an expression to work out with tools, then perhaps one follow-up on its result.

A task is a pure function of `(seed, split)`. The two splits cannot share a first question: the digest of its
expression, whatever its wording, decides which split it belongs to.

Every first question holds at least two dependent operations, so solving it takes three model turns or more: the
innermost operations (two in parallel where the expression allows it), the outer one, the answer.
"""

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Split = Literal["train", "heldout"]
ToolName = Literal["add", "subtract", "multiply"]
Expression: TypeAlias = "Operation | int"

LARGEST_VALUE = 9999
"""No operand and no result leaves 0..9999: the tool protocol is tested, not the copying of long numbers."""

_HELD_OUT_SHARE = 8  # one expression in eight is held out
_SYMBOLS: dict[ToolName, str] = {"add": "+", "subtract": "-", "multiply": "*"}
_ADDITIVE: tuple[ToolName, ...] = ("add", "subtract")
_INTEGER = re.compile(r"-?\d+")


@dataclass(frozen=True, slots=True)
class Operation:
    """One tool call of the solution; an operand that is itself an operation has to be called first."""

    tool: ToolName
    left: Expression
    right: Expression


@dataclass(frozen=True, slots=True)
class Question:
    """One user message, the expression it asks for and that expression's value."""

    text: str
    expression: Operation
    answer: int

    def __post_init__(self) -> None:
        if evaluate(self.expression) != self.answer:
            raise ValueError(f"{infix(self.expression)} is not {self.answer!r}")


@dataclass(frozen=True, slots=True)
class Task:
    """The first question and at most one follow-up, asked once the first was answered."""

    questions: tuple[Question, ...]

    def __post_init__(self) -> None:
        if not self.questions:
            raise ValueError("a task needs at least one question")


def add(a: int, b: int) -> str:
    """Add two integers."""
    return str(a + b)


def subtract(a: int, b: int) -> str:
    """Subtract b from a."""
    return str(a - b)


def multiply(a: int, b: int) -> str:
    """Multiply two integers."""
    return str(a * b)


TOOLS = (add, subtract, multiply)


def evaluate(expression: Expression) -> int:
    """The value of an expression."""
    if isinstance(expression, int):
        return expression
    left, right = evaluate(expression.left), evaluate(expression.right)
    if expression.tool == "add":
        return left + right
    return left - right if expression.tool == "subtract" else left * right


def infix(expression: Expression) -> str:
    """The expression as people write it: `(14 + 27) * 3`, with the brackets that precedence needs."""
    if isinstance(expression, int):
        return str(expression)
    binds_tightly = expression.tool == "multiply"
    left, right = infix(expression.left), infix(expression.right)
    if binds_tightly and _is_additive(expression.left):
        left = f"({left})"
    if _is_additive(expression.right):
        right = f"({right})"
    return f"{left} {_SYMBOLS[expression.tool]} {right}"


def split_of(expression: Operation) -> Split:
    """The split that owns every task whose first question asks for this expression."""
    digest = hashlib.sha256(infix(expression).encode()).digest()
    return "heldout" if digest[0] % _HELD_OUT_SHARE == 0 else "train"


def make_task(seed: int, split: Split) -> Task:
    """The task number `seed` of a split; the same arguments give the same task on every machine."""
    rng = random.Random(f"arithmetic/{split}/{seed}")
    while True:
        expression = _draw_expression(rng)
        if _stays_in_range(expression) and split_of(expression) == split:
            break
    questions = [Question(_word_question(rng, expression), expression, evaluate(expression))]
    if rng.random() < 0.5:
        questions.append(_draw_follow_up(rng, questions[0].answer))
    return Task(tuple(questions))


def score_answer(question: Question, text: str) -> float:
    """1.0 when the last integer in the final message is the answer, else 0.0."""
    integers = _INTEGER.findall(text)
    return 1.0 if integers and int(integers[-1]) == question.answer else 0.0


def score(task: Task, answers: Sequence[str]) -> float:
    """1.0 when every question was answered, in order, by a message whose last integer is right; else 0.0."""
    if len(answers) != len(task.questions):
        return 0.0
    return min(score_answer(question, text) for question, text in zip(task.questions, answers, strict=True))


def _is_additive(expression: Expression) -> bool:
    return isinstance(expression, Operation) and expression.tool != "multiply"


def _stays_in_range(expression: Expression) -> bool:
    if not 0 <= evaluate(expression) <= LARGEST_VALUE:
        return False
    return isinstance(expression, int) or (_stays_in_range(expression.left) and _stays_in_range(expression.right))


def _draw_number(rng: random.Random) -> int:
    low, high = rng.choices(((2, 9), (10, 99), (100, 999)), (0.3, 0.5, 0.2))[0]
    return rng.randint(low, high)


def _draw_expression(rng: random.Random) -> Operation:
    a, b, c, d = (_draw_number(rng) for _ in range(4))
    inner, outer, other = (rng.choice(_ADDITIVE) for _ in range(3))
    shape = rng.randrange(7)
    if shape == 0:
        return Operation(outer, Operation(inner, a, b), c)
    if shape == 1:
        return Operation("multiply", Operation(inner, a, b), c)
    if shape == 2:
        return Operation("multiply", a, Operation(inner, b, c))
    if shape == 3:
        return Operation(outer, Operation("multiply", a, b), c)
    if shape == 4:
        return Operation(outer, a, Operation("multiply", b, c))
    if shape == 5:
        joined: ToolName = rng.choice(("add", "subtract", "multiply"))
        return Operation(joined, Operation(inner, a, b), Operation(other, c, d))
    return Operation(outer, Operation("multiply", a, b), Operation("multiply", c, d))


def _word_question(rng: random.Random, expression: Operation) -> str:
    in_words = _in_words(expression)
    if in_words is not None and rng.random() < 0.3:
        return in_words
    form = rng.choice(
        ("What is {}?", "How much is {}?", "Compute {}.", "Please work out {}.", "Calculate {} for me.")
    )
    return form.format(infix(expression))


def _in_words(expression: Operation) -> str | None:
    first, last = expression.left, expression.right
    if not isinstance(first, Operation) or not isinstance(last, int):
        return None
    if first.tool == "add":
        start = f"Add {first.left} and {first.right}"
    elif first.tool == "subtract":
        start = f"Subtract {first.right} from {first.left}"
    else:
        start = f"Multiply {first.left} by {first.right}"
    then = {"add": "add", "subtract": "subtract", "multiply": "multiply by"}[expression.tool]
    return f"{start}, then {then} {last}."


def _draw_follow_up(rng: random.Random, previous: int) -> Question:
    forms: dict[ToolName, tuple[str, ...]] = {
        "add": ("Now add {} to that.", "And plus {}?"),
        "subtract": ("Now subtract {} from that.", "And minus {}?"),
        "multiply": ("Now multiply that by {}.", "And times {}?"),
    }
    while True:
        tool: ToolName = rng.choice(("add", "subtract", "multiply"))
        operation = Operation(tool, previous, _draw_number(rng))
        if _stays_in_range(operation):
            break
    return Question(rng.choice(forms[tool]).format(operation.right), operation, evaluate(operation))
