"""The two shipped environments: questions in turn, tools of the task, a reward only for all answers."""

from __future__ import annotations

import asyncio

import pytest

from tokentrue.messages import Message, ToolCall
from tokentrue.rollouts.environment import eventually
from tokentrue.rollouts.loading import load_environment
from tokentrue.rollouts.shipped import arithmetic


def right_answers(task):
    if isinstance(task, arithmetic.Task):
        return [f"It is {q.answer}." for q in task.questions]
    return [f"No {q.missing[0]}, sorry." if q.missing else f"{q.total}" for q in task.questions]


def converse(environment, task, answers):
    """Give the answers one after the other; the conversation and the reward."""

    async def run():
        state = await eventually(environment.setup(task, 1))
        for answer in answers:
            state.messages.append(Message(role="assistant", content=answer))
            state.messages += await eventually(environment.env_response(tuple(state.messages), state))
        return state.messages, await eventually(environment.reward(tuple(state.messages), state))

    return asyncio.run(run())


@pytest.mark.parametrize("name", ["calculator", "shop"])
def test_every_question_is_posed_after_the_answer_to_the_one_before(name):
    """All right answers, in order, earn 1.0; the last is answered with silence."""
    environment = load_environment(name)
    for seed in range(20):
        task = environment.make_task(0, seed)
        messages, reward = converse(environment, task, right_answers(task))
        assert [m.content for m in messages if m.role == "user"] == [q.text for q in task.questions]
        assert messages[-1].role == "assistant"
        assert reward == 1.0


@pytest.mark.parametrize("name", ["calculator", "shop"])
def test_one_wrong_or_missing_answer_earns_nothing(name):
    """A reward for half a task would teach half a task."""
    environment = load_environment(name)
    tasks = [environment.make_task(0, seed) for seed in range(40)]
    for task in (task for task in tasks if len(task.questions) == 2):
        answers = right_answers(task)
        assert converse(environment, task, answers[:1])[1] == 0.0
        assert converse(environment, task, [answers[0], "-1"])[1] == 0.0
        assert converse(environment, task, ["-1", answers[1]])[1] == 0.0


def test_parallel_look_ups_are_answered_with_this_shops_prices():
    """The prices belong to the task; the tool messages come in the order of the calls."""
    environment = load_environment("shop")
    task = environment.make_task(0, 3)
    (first, price), (second, other), *_ = task.prices

    async def run():
        state = await eventually(environment.setup(task, 1))
        calls = [("a", first), ("b", second), ("c", "unicorn")]
        message = Message(
            role="assistant",
            tool_calls=tuple(ToolCall("price", f'{{"item": "{item}"}}', call_id) for call_id, item in calls),
        )
        return await eventually(environment.env_response((*state.messages, message), state))

    answers = asyncio.run(run())
    assert [(m.tool_call_id, m.content) for m in answers] == [
        ("a", str(price)),
        ("b", str(other)),
        ("c", "error: no unicorn here"),
    ]


def test_tasks_are_a_function_of_the_seed_and_their_tools_are_described():
    """Same seed, same task; the definitions are those that the embedded model was trained with."""
    environment = load_environment("calculator")
    assert environment.make_task(0, 5) == environment.make_task(9, 5)
    state = environment.setup(environment.make_task(0, 5), 5)
    assert state.tools.definitions[1]["function"] == {
        "name": "subtract",
        "description": "Subtract b from a.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    }
