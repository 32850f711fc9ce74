"""The shipped tasks: drawn from their seed, held-out ones apart, solvable with the tools, scored strictly."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentrue.rollouts.shipped import arithmetic, shop

SEEDS = st.integers(0, 10**12)
SPLITS = st.sampled_from(["train", "heldout"])


@given(SEEDS, SPLITS)
def test_a_task_follows_from_its_seed(seed: int, split: arithmetic.Split) -> None:
    assert arithmetic.make_task(seed, split) == arithmetic.make_task(seed, split)
    assert shop.make_task(seed, split) == shop.make_task(seed, split)


@given(SEEDS, SPLITS)
def test_the_first_question_belongs_to_one_split_only(seed: int, split: arithmetic.Split) -> None:
    """Splits are disjoint because membership is a function of the content."""
    assert arithmetic.split_of(arithmetic.make_task(seed, split).questions[0].expression) == split
    wanted = shop.make_task(seed, split).questions[0].wanted
    assert shop.split_of(wanted) == shop.split_of(wanted[::-1]) == split


def solve(expression: arithmetic.Expression) -> int:
    """Work an expression out with the tools themselves."""
    if isinstance(expression, int):
        return expression
    tool = {tool.__name__: tool for tool in arithmetic.TOOLS}[expression.tool]
    return int(tool(solve(expression.left), solve(expression.right)))


@given(SEEDS, SPLITS)
def test_the_tools_lead_to_the_answer(seed: int, split: arithmetic.Split) -> None:
    task = arithmetic.make_task(seed, split)
    for question in task.questions:
        assert solve(question.expression) == question.answer
        assert 0 <= question.answer <= arithmetic.LARGEST_VALUE
    assert arithmetic.score(task, [f"The answer is {q.answer}." for q in task.questions]) == 1.0
    first = task.questions[0].expression
    assert any(isinstance(side, arithmetic.Operation) for side in (first.left, first.right))


@given(SEEDS, SPLITS)
def test_the_shops_tools_lead_to_the_total_or_to_what_is_missing(seed: int, split: shop.Split) -> None:
    task = shop.make_task(seed, split)
    price, multiply, add = shop.make_tools(task)
    answers = []
    for question in task.questions:
        prices = {line.item: price(line.item) for line in question.wanted}
        missing = [item for item, text in prices.items() if text.startswith("error")]
        assert tuple(missing) == question.missing
        if missing:
            answers.append(f"Sorry, there is no {' and no '.join(missing)} here.")
            continue
        total = "0"
        for line in question.wanted:
            total = add(int(total), int(multiply(line.quantity, int(prices[line.item]))))
        assert int(total) == question.total
        answers.append(f"That is {total}.")
    assert shop.score(task, answers) == 1.0


@given(
    st.recursive(
        st.integers(0, 99),
        lambda side: st.builds(arithmetic.Operation, st.sampled_from(["add", "subtract", "multiply"]), side, side),
        max_leaves=5,
    )
)
def test_infix_means_what_the_expression_means(expression: arithmetic.Expression) -> None:
    assert eval(arithmetic.infix(expression)) == arithmetic.evaluate(expression)


def test_scoring_is_strict() -> None:
    task = arithmetic.make_task(1, "train")
    right = [f"It is {question.answer}." for question in task.questions]
    assert arithmetic.score(task, right) == 1.0
    assert arithmetic.score(task, right[:-1]) == 0.0
    assert arithmetic.score(task, [*right, "and more"]) == 0.0
    assert arithmetic.score(task, ["I do not know."] * len(right)) == 0.0
    assert arithmetic.score(task, [f"{text} Or 77777." for text in right]) == 0.0


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Sorry, there is no pear here.", 1.0),
        ("We do not have any pear.", 1.0),
        ("Sorry, there is no plum here.", 0.0),
        ("A pear costs nothing", 0.0),
        ("There is no pear, so 12.", 0.0),
    ],
)
def test_an_honest_refusal_names_the_item_and_no_number(text: str, score: float) -> None:
    question = shop.Question("How much are 2 pears?", (shop.Line("pear", 2),), None, ("pear",))
    assert shop.score_answer(question, text) == score


def test_wrong_tasks_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="is not 4"):
        arithmetic.Question("What is 1 + 2?", arithmetic.Operation("add", 1, 2), 4)
    with pytest.raises(ValueError, match="missing"):
        shop.Question("How much are 2 pears?", (shop.Line("pear", 2),), 4, ("pear",))
    for room in (arithmetic, shop):
        with pytest.raises(ValueError, match="question"):
            room.Task(*([()] * (1 if room is arithmetic else 2)))


def test_both_environments_draw_every_kind_of_task() -> None:
    tasks = [arithmetic.make_task(seed, "heldout") for seed in range(300)]
    assert 0.4 < sum(len(task.questions) == 2 for task in tasks) / 300 < 0.6
    shops = [shop.make_task(seed, "heldout") for seed in range(300)]
    assert 0.15 < sum(bool(task.questions[0].missing) for task in shops) / 300 < 0.35
    assert len({json.dumps([q.text for q in task.questions]) for task in tasks}) > 290
