"""Renderings that others wrote down: huggingface.js's chat templates, and OpenAI's goldens for harmony."""

from __future__ import annotations

import json
import lzma
import tarfile
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

import pytest

from real_tokenizers import SHARED
from templates.at_hand import own_renderer
from tokentrue import Renderer
from tokentrue.errors import InvalidMessageError, TemplateRenderError
from tokentrue.messages import messages_from
from tokentrue.rendering.chat_template import ChatTemplate
from tokentrue.rendering.reader import ParsedResponse, response_of
from tokentrue.rendering.template_messages import probe_message_form

ORACLES = SHARED / "oracles"
pytestmark = pytest.mark.skipif(
    not ORACLES.is_dir(), reason=f"{ORACLES} is absent: no reference renderings at hand"
)


def hugging_face_cases() -> dict[str, dict[str, Any]]:
    if not ORACLES.is_dir():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(
        lzma.decompress((ORACLES / "chat_render_hfjs.json.xz").read_bytes())
    )["custom"]
    return found


CASES = hugging_face_cases()
NOT_AS_MESSAGES = {
    "fireworks-ai/firefunction-v1": "role 'functions'",
    "meta-llama/Llama-3.2-11B-Vision-Instruct": "parts that are not text",
}
"""Cases whose messages this package does not take: a role that OpenAI's chat shape lacks, and an image."""
EMPTY_IS_SAID = "meetkai/functionary-medium-v2.2"
"""It writes a message of its own for text beside a call. The case has `content: null`; this package hands "" over,
as engines do, and the template writes that empty message. With the data as they are, the text is equal."""


def rendered(case: dict[str, Any], *, as_messages: bool) -> str:
    data = dict(case["data"])
    messages, tools = data.pop("messages"), data.pop("tools", None) or ()
    ask = data.pop("add_generation_prompt", False)
    template = ChatTemplate(case["chat_template"], kwargs=data, now=datetime(2025, 7, 10))
    if as_messages:
        messages = probe_message_form(template).to_templates(messages_from(messages))
    return template.render_text(messages, tools, add_generation_prompt=ask)


@pytest.mark.parametrize("name", CASES)
def test_templates_write_what_huggingface_js_expects(name: str) -> None:
    assert rendered(CASES[name], as_messages=False) == CASES[name]["target"]


@pytest.mark.parametrize("name", CASES)
def test_they_write_it_from_canonical_messages_too(name: str) -> None:
    if name in NOT_AS_MESSAGES:
        with pytest.raises((InvalidMessageError, TemplateRenderError), match=NOT_AS_MESSAGES[name]):
            rendered(CASES[name], as_messages=True)
        return
    text, target = rendered(CASES[name], as_messages=True), CASES[name]["target"]
    if name == EMPTY_IS_SAID:
        text = text.replace(
            "<|from|>assistant\n<|recipient|>all\n<|content|>\n<|from|>assistant", "<|from|>assistant"
        )
    assert text == target


@cache
def golden(name: str) -> str:
    with tarfile.open(ORACLES / "harmony_test_data.tar.xz") as archive:
        data = archive.extractfile(f"harmony/{name}.txt")
        assert data is not None
        return data.read().decode()


DAY = datetime(2025, 6, 28)
DATED = ("Knowledge cutoff: 2024-06\n\n", "Knowledge cutoff: 2024-06\nCurrent date: 2025-06-28\n\n")
"""The golden leaves the date out; the template always writes it."""
INSTRUCTED = ("robot.<|end|>", "robot.\n\n<|end|>")
"""The template writes an empty line behind instructions, also where no tools follow."""
ROBOT = {"role": "developer", "content": "Answer the user's questions like a robot."}
CAPITAL = {"role": "user", "content": "What is the capital of the largest country in the world?"}
SUM = {"role": "user", "content": "What is 2 + 2?"}


def tool(name: str, description: str, **properties: Any) -> dict[str, Any]:
    required = [key for key, schema in properties.items() if "default" not in schema and "enum" not in schema]
    parameters = {"type": "object", "properties": properties, "required": required}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


LOOK_UP = tool(
    "lookup_weather",
    "Use this tool to lookup the weather in a given location. Call it with the parameter 'location', can be any "
    "textual description of a location.",
    location={"type": "string"},
)
FORMAT = {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"}
WEATHER = (
    tool("get_location", "Gets the location of the user."),
    tool(
        "get_current_weather",
        "Gets the current weather in the provided location.",
        location={"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
        format=FORMAT,
    ),
    tool(
        "get_multiple_weathers",
        "Gets the current weather in the provided list of locations.",
        locations={
            "type": "array",
            "items": {"type": "string"},
            "description": 'List of city and state, e.g. ["San Francisco, CA", "New York, NY"]',
        },
        format=FORMAT,
    ),
)


@dataclass(frozen=True)
class Golden:
    """A golden that the template of gpt-oss can be asked for.

    Args:
        edits: (golden's text, template's text): where the template differs from openai-harmony, on purpose.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    edits: tuple[tuple[str, str], ...] = ()


def asked(effort: str, *messages: dict[str, Any]) -> Golden:
    return Golden(messages, kwargs={"reasoning_effort": effort}, edits=(DATED, INSTRUCTED))


GOLDENS = {
    "test_simple_convo": asked("medium", SUM),
    "test_simple_convo_low_effort": asked("low", ROBOT, CAPITAL),
    "test_simple_convo_medium_effort": asked("medium", ROBOT, CAPITAL),
    "test_simple_convo_high_effort": asked("high", ROBOT, CAPITAL),
    "test_simple_convo_low_effort_no_instruction": asked("low", CAPITAL),
    "test_simple_convo_medium_effort_no_instruction": asked("medium", CAPITAL),
    "test_simple_convo_high_effort_no_instruction": asked("high", CAPITAL),
    "test_render_functions_with_parameters": Golden(
        (
            {"role": "developer", "content": "Always respond in riddles"},
            {"role": "user", "content": "What is the weather like in SF?"},
        ),
        WEATHER,
        {"reasoning_effort": "high"},
        # harmony's comma stands in front of the comment, the template's behind a default's comment too
        edits=(("// default: celsius\n", "// default: celsius,\n"),),
    ),
    # These three have no message at all; behind them, any user message is the same in both.
    "test_no_tools": Golden((SUM,)),
    "test_browser_tool_only": Golden((SUM,), kwargs={"builtin_tools": ["browser"]}),
    "test_browser_and_python_tool": Golden((SUM,), kwargs={"builtin_tools": ["browser", "python"]}),
    "test_browser_and_function_tool": Golden((SUM,), (LOOK_UP,), {"builtin_tools": ["browser"]}),
    "test_dropping_cot_by_default": Golden(
        (
            SUM,
            {
                "role": "assistant",
                "reasoning_content": 'User asks a simple question: "What is 2 + 2?" The answer: 4.',
                "content": "2 + 2 equals 4.",
            },
            {"role": "user", "content": "What about 9 / 2?"},
        ),
    ),
    "test_does_not_drop_if_ongoing_analysis": Golden(
        (
            {"role": "user", "content": "What is the weather in SF?"},
            {
                "role": "assistant",
                "reasoning_content": "User asks: “What is the weather in SF?” We need to use lookup_weather tool.",
                "tool_calls": [
                    {
                        "id": "1",
                        "type": "function",
                        "function": {"name": "lookup_weather", "arguments": '{"location": "San Francisco"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": '{"temperature": 20, "description": "sunny"}'},
        ),
        edits=(
            ("commentary <|constrain|>json", "commentary json"),
            (
                "functions.lookup_weather<|message|>",
                "functions.lookup_weather to=assistant<|channel|>commentary<|message|>",
            ),
            (
                '{"temperature": 20, "description": "sunny"}',
                '"{\\"temperature\\": 20, \\"description\\": \\"sunny\\"}"',
            ),
        ),
    ),
}
NO_MESSAGES = (
    "test_no_tools",
    "test_browser_tool_only",
    "test_browser_and_python_tool",
    "test_browser_and_function_tool",
)
KITCHEN_SINK = "// A function with various complex schemas."
"""From here to the end of the namespace the golden has titles, examples and a `oneOf` with defaults, which the
template has no words for."""
READ = {"test_streamable_parser", "test_simple_reasoning_response", "test_simple_tool_call"}
"""Completions: they are read, below."""
NOT_ASKED = {
    "test_reasoning_system_message": "offers two channels only; the template always offers three",
    "test_reasoning_system_message_no_instruction": "the same",
    "test_reasoning_system_message_with_dates": "the same, and another knowledge cutoff, which the template fixes",
    "test_preserve_cot": "a setting of openai-harmony that keeps old analysis; the template has none",
    "test_keep_analysis_between_finals": "a history that ends with the assistant, which the template "
    "ends with <|return|>",
    "test_tool_response_parsing": "a tool's message; no model samples it",
}


def test_every_golden_is_compared_read_or_excluded_with_a_reason() -> None:
    with tarfile.open(ORACLES / "harmony_test_data.tar.xz") as archive:
        names = {name.removeprefix("harmony/").removesuffix(".txt") for name in archive.getnames()} - {"harmony"}
    assert names == GOLDENS.keys() | READ | NOT_ASKED.keys()


@pytest.fixture(scope="module")
def gpt_oss() -> Renderer:
    return own_renderer("gpt-oss")


@pytest.mark.parametrize("name", GOLDENS)
def test_the_template_writes_openais_goldens(gpt_oss: Renderer, name: str) -> None:
    case, expected = GOLDENS[name], golden(name).rstrip("\n")
    source = gpt_oss.template.default
    template = ChatTemplate(source, gpt_oss.template.special_tokens, kwargs=case.kwargs, now=DAY)
    text = template.render_text(
        gpt_oss.form.to_templates(messages_from(case.messages)), case.tools, add_generation_prompt=True
    )
    for theirs, ours in case.edits:
        expected = expected.replace(theirs, ours)
    if KITCHEN_SINK in expected:
        before, _, behind = expected.partition(KITCHEN_SINK)
        expected = before + behind[behind.index("} // namespace functions") :]
    if not expected.startswith("<|start|>system"):
        text = text.partition("<|end|>")[2]  # the golden has no system message
    if name in NO_MESSAGES:
        expected = expected.removesuffix("<|start|>assistant")
        assert text.startswith(expected + "<|start|>user")
    else:
        assert text == expected
    assert gpt_oss.tokenizer.decode(gpt_oss.tokenizer.encode(text)) == text


def read(renderer: Renderer, ids: list[int]) -> ParsedResponse:
    """The response; fed one by one, the ids say the same."""
    prompt = renderer.render_ids([SUM])
    reader = renderer.start_reading(prompt_ids=prompt)
    deltas = [delta for token_id in ids for delta in reader.feed([token_id])]
    whole = renderer.parse_response(ids, prompt_ids=prompt)
    assert response_of([*deltas, *reader.finish()], reader) == whole
    return whole


def test_goldens_of_completions_are_read(gpt_oss: Renderer) -> None:
    text = golden("test_streamable_parser").partition("<|start|>browser.search")[0]
    parsed = read(gpt_oss, gpt_oss.tokenizer.encode(text))
    assert parsed.reasoning_content == text.partition("<|message|>")[2].partition("<|end|>")[0]
    (call,) = parsed.tool_calls
    assert (call.name, json.loads(call.arguments or "")["topn"]) == ("browser.search", 10)
    assert parsed.content == ""

    ids = [int(word) for word in golden("test_simple_reasoning_response").split()]
    parsed = read(gpt_oss, ids)
    assert parsed.content == "2 + 2 = 4."
    assert parsed.reasoning_content == 'User asks: "What is 2 + 2?" Simple arithmetic. Provide answer.'
    assert gpt_oss.tokenizer.encode(gpt_oss.tokenizer.decode(ids)) == ids

    ids = [int(word) for word in golden("test_simple_tool_call").split()]
    parsed = read(gpt_oss, ids)
    (call,) = parsed.tool_calls
    assert (call.name, call.arguments) == ("lookup_weather", '{"location": "Tokyo"}')
    assert (
        parsed.reasoning_content
        == 'User asks: "What is the weather in Tokyo?" We need to use lookup_weather tool.'
    )
    assert gpt_oss.tokenizer.encode(gpt_oss.tokenizer.decode(ids)) == ids
