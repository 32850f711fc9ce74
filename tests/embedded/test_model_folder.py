"""The shipped folder is a model like any other: its template certifies, and training saw what rollouts produce."""

import itertools
import random
from pathlib import Path

import pytest

from tokentrue.messages import Message
from tokentrue.rendering.bridge import Bridge
from tokentrue.rendering.renderer import Renderer, load_renderer
from tokentrue.rollouts.shipped import arithmetic, shop
from tokentrue.rollouts.tools import ToolSet
from training.conversations import Encoder, encode_conversation, play, tool_schemas
from training.oracle import AssistantTurn, ToolTurn, Turn

ATOMIC = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def renderer(model_folder: Path) -> Renderer:
    return load_renderer(model_folder)


def new_messages(turn: Turn) -> list[Message]:
    if isinstance(turn, ToolTurn):
        return [Message(role="tool", content=result) for result in turn.results]
    assert not isinstance(turn, AssistantTurn)
    return [Message(role="user", content=turn.text)]


def runs_of_sampled_ids(mask: list[int]) -> list[tuple[int, int]]:
    places = [(is_sampled, len(list(group))) for is_sampled, group in itertools.groupby(mask)]
    ends = list(itertools.accumulate(length for _, length in places))
    return [(end - length, end) for (is_sampled, length), end in zip(places, ends, strict=True) if is_sampled]


@pytest.mark.parametrize("environment", ["arithmetic", "shop"])
def test_training_conversations_are_the_ids_that_rendering_and_bridging_produce(
    model_folder: Path, renderer: Renderer, environment: str
) -> None:
    encoder = Encoder(model_folder)
    tools = tool_schemas(environment)
    header = encoder.header(tools, None)
    for seed in range(25):
        rng = random.Random(seed)
        turns = play(environment, seed, "train", rng)
        encoded = encode_conversation(encoder, turns, rng, has_header=True, rendered_again_share=0)
        ids = header + encoded.ids
        messages = new_messages(turns[0])
        prompt = renderer.render_ids(messages, tools=tools)
        for number, (start, end) in enumerate(runs_of_sampled_ids([0] * len(header) + encoded.mask)):
            assert prompt == ids[:start]
            completion = ids[start:end]
            parsed = renderer.parse_response(completion, prompt, tools=tools)
            messages = [*messages, parsed.to_message(f"call_{number}")]
            if 2 * number + 2 < len(turns):
                new = new_messages(turns[2 * number + 2])
                bridge = renderer.bridge_to_next_turn(prompt, completion, new, history=messages, tools=tools)
                assert isinstance(bridge, Bridge)
                messages += new
                prompt = bridge.prompt_ids


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_oracle_solves_every_task_with_the_real_tools(split: arithmetic.Split) -> None:
    for seed in range(200):
        for environment, room in (("arithmetic", arithmetic), ("shop", shop)):
            turns = play(environment, seed, split, random.Random(seed))
            said = [turn for turn in turns if isinstance(turn, AssistantTurn)]
            answers = [turn.content for turn in said if not turn.calls]
            assert room.score(room.make_task(seed, split), answers) == 1.0
            assert len(said) >= 3


def test_the_schemas_trained_on_are_those_of_the_shipped_tools() -> None:
    assert list(ToolSet(arithmetic.TOOLS).definitions) == tool_schemas("arithmetic")
    task = shop.make_task(0, "train")
    assert list(ToolSet(shop.make_tools(task)).definitions) == tool_schemas("shop")


def test_markers_are_single_ids_and_digits_stand_alone(model_folder: Path, renderer: Renderer) -> None:
    encoder = Encoder(model_folder)
    for text in (*SPECIAL, *ATOMIC):
        assert len(encoder.encode(text)) == 1
    assert len(encoder.encode("1234567890")) == 10
    assert renderer.vocab_size <= 1024


def test_reasoning_before_the_last_question_is_not_rendered(renderer: Renderer) -> None:
    messages = [
        Message(role="user", content="What is 1 + 2?"),
        Message(role="assistant", content="It is 3.", reasoning_content="Done, 3."),
        Message(role="user", content="And plus 4?"),
    ]
    assert "Done, 3." in renderer.render_text(messages[:2], add_generation_prompt=False)
    assert "Done, 3." not in renderer.render_text(messages)


def test_the_template_certifies(renderer: Renderer) -> None:
    assert renderer.tool_format is not None
    assert renderer.certificate is not None
