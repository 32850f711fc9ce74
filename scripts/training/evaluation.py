"""Play held-out tasks with the embedded engine itself and count what happens.

    python scripts/training/evaluation.py [--tasks 300] [--folder …]     (with src and scripts on PYTHONPATH)

The loop here is the plainest possible: ids in, ids out, nothing rendered again. What a turn attempted is read from
the decoded text with the strictest reading: a call that is not exactly one JSON object in its tags ends the task.
"""

import argparse
import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokentrue.engines.embedded.engine import MODEL_FOLDER, MODEL_NAME, EmbeddedEngine
from tokentrue.generation import FinishReason, GenerateRequest
from tokentrue.rollouts.shipped import arithmetic, shop
from tokentrue.sampling import SamplingParams
from tokentrue.tokens import TokenIds
from training.conversations import GENERATION_PROMPT, Encoder, tool_schemas, user_text
from training.oracle import ToolTurn, UserTurn

MOST_TURNS = 14
_CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one task went: `verdict` is "solved", "wrong answer" or the kind of malformed output."""

    verdict: str
    turns: int
    respelled_turns: int
    transcript: str


class BadCallError(Exception):
    """The model attempted a call that cannot be carried out as written."""


async def play_task(
    engine: EmbeddedEngine,
    encoder: Encoder,
    task: arithmetic.Task | shop.Task,
    seed: int,
    temperature: float = 1.0,
) -> Outcome:
    """Play one task to its end.

    `Outcome.respelled_turns` counts the turns whose text encodes to other ids than were sampled.
    """
    is_shop = isinstance(task, shop.Task)
    tools = {tool.__name__: tool for tool in (shop.make_tools(task) if is_shop else arithmetic.TOOLS)}
    ids = encoder.header(tool_schemas("shop" if is_shop else "arithmetic"), None)
    turns, respelled, answers = 0, 0, list[str]()
    questions = iter(task.questions)
    pending = "\n" + user_text(UserTurn(next(questions).text))
    verdict = "too many turns"
    while turns < MOST_TURNS:
        ids = ids + encoder.encode(pending + GENERATION_PROMPT)
        sampling = SamplingParams(temperature=temperature, seed=seed * 100 + turns, max_tokens=160)
        generation = await engine.generate(GenerateRequest(MODEL_NAME, TokenIds(ids), sampling))
        sampled = generation.tokens.completion_ids.tolist()
        ids += sampled
        turns += 1
        text = encoder.decode(sampled).removesuffix("<|im_end|>")
        respelled += encoder.encode(text) != sampled[:-1]
        if generation.finish_reason is not FinishReason.STOP:
            verdict = "not finished"
            break
        body = text.split("</think>")[-1]
        try:
            results = tuple(call_tool(tools, call) for call in _CALL.findall(body))
        except BadCallError as error:
            verdict = str(error)
            break
        if not results:
            answers.append(body)
            question = next(questions, None)
            if question is None:
                score = (
                    shop.score(task, answers) if isinstance(task, shop.Task) else arithmetic.score(task, answers)
                )
                verdict = "solved" if score == 1.0 else "wrong answer"
                break
        pending = "\n" + user_text(ToolTurn(results) if results else UserTurn(question.text if question else ""))
    return Outcome(verdict, turns, respelled, encoder.decode(ids))


def call_tool(tools: dict[str, Callable[..., str]], text: str) -> str:
    """Carry out one call, written as JSON."""
    try:
        call = json.loads(text)
    except ValueError as error:
        raise BadCallError("invalid JSON") from error
    if call.get("name") not in tools:
        raise BadCallError("unknown tool")
    try:
        return tools[call["name"]](**call["arguments"])
    except (TypeError, KeyError) as error:
        raise BadCallError("wrong arguments") from error


async def evaluate(folder: Path, tasks: int, temperature: float, *, shows_failures: bool = False) -> None:
    """Print, per environment, what became of `tasks` held-out tasks."""
    encoder = Encoder(folder)
    async with EmbeddedEngine(folder) as engine:
        for make_task in (arithmetic.make_task, shop.make_task):
            gate = asyncio.Semaphore(16)

            async def play(
                seed: int, make_task: Callable[..., arithmetic.Task | shop.Task] = make_task
            ) -> Outcome:
                async with gate:  # noqa: B023  (awaited inside this iteration)
                    return await play_task(engine, encoder, make_task(seed, "heldout"), seed, temperature)

            outcomes = await asyncio.gather(*(play(seed) for seed in range(tasks)))
            turns = sum(outcome.turns for outcome in outcomes)
            solved = sum(outcome.verdict == "solved" for outcome in outcomes)
            solved_long = sum(outcome.verdict == "solved" and outcome.turns >= 3 for outcome in outcomes)
            print(f"{make_task.__module__.split('.')[-1]}: solved {solved / tasks:.1%} of {tasks}", end="; ")
            print(f"solved in 3 turns or more {solved_long / tasks:.1%}; respelled turns", end=" ")
            print(f"{sum(outcome.respelled_turns for outcome in outcomes) / turns:.1%}")
            print("  verdicts", dict(Counter(outcome.verdict for outcome in outcomes).most_common()))
            print("  turns", dict(sorted(Counter(outcome.turns for outcome in outcomes).items())))
            if shows_failures:
                failed = [outcome.transcript for outcome in outcomes if outcome.verdict != "solved"]
                print("\n=====\n".join(text.split("</tools>")[-1] for text in failed[:6]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=MODEL_FOLDER)
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--show-failures", action="store_true")
    options = parser.parse_args()
    asyncio.run(evaluate(options.folder, options.tasks, options.temperature, shows_failures=options.show_failures))


if __name__ == "__main__":
    main()
