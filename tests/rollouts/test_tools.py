"""Typed functions as tools: what the model is told, and what happens to what it answers."""

from __future__ import annotations

import asyncio
import enum
import json
import threading
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokentrue.errors import ConfigError
from tokentrue.messages import ToolCall
from tokentrue.rollouts.tools import CallStatus, Tool, ToolSet, in_thread


class Unit(enum.Enum):
    KELVIN = "kelvin"
    CELSIUS = "celsius"


@dataclass
class Place:
    name: str
    height_m: float = 0.0


def schema_of(function):
    return Tool.from_function(function).definition["function"]


def call(function, arguments: str):
    return asyncio.run(Tool.from_function(function).call(arguments))


def test_a_function_is_described_by_name_docstring_and_signature():
    """The whole definition, in the order in which chat templates print it."""

    def forecast(
        city: str,
        days: int = 3,
        unit: Literal["kelvin", "celsius"] = "celsius",
        note: str | None = None,
        tags: list[str] = (),  # type: ignore[assignment]
    ) -> str:
        """Weather of the days to come.

        For one city.

        Args:
            city: Its English name,
                without the country.
            days (int): How many.

        Returns:
            A sentence.
        """
        return city

    definition = Tool.from_function(forecast).definition
    assert json.dumps(definition) == json.dumps(
        {
            "type": "function",
            "function": {
                "name": "forecast",
                "description": "Weather of the days to come. For one city.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "city": {"type": "string", "description": "Its English name, without the country."},
                        "days": {"type": "integer", "description": "How many.", "default": 3},
                        "unit": {"type": "string", "enum": ["celsius", "kelvin"], "default": "celsius"},
                        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                        "tags": {"type": "array", "items": {"type": "string"}, "default": []},
                    },
                    "required": ["city"],
                },
            },
        }
    )


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (str, {"type": "string"}),
        (bool, {"type": "boolean"}),
        (Any, {}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),
        (Literal[1, 2], {"type": "integer", "enum": [1, 2]}),
        (Unit, {"type": "string", "enum": ["celsius", "kelvin"]}),
        (
            Place,
            {
                "type": "object",
                "properties": {"name": {"type": "string"}, "height_m": {"type": "number", "default": 0.0}},
                "required": ["name"],
            },
        ),
    ],
)
def test_every_type_has_its_schema_without_references(annotation, expected):
    """Chat templates print the schema as it stands, so nothing in it may point elsewhere."""

    def tool(value):
        return ""

    tool.__annotations__ = {"value": annotation}
    assert schema_of(tool)["parameters"]["properties"]["value"] == expected


def test_arguments_arrive_as_the_annotated_types():
    """Enums and dataclasses are built, defaults stay the function's own."""
    seen = []

    def tool(unit: Unit, place: Place, factor: float, more: list[int] | None = None) -> str:
        seen.append((unit, place, factor, more))
        return "ok"

    result = call(tool, '{"unit": "kelvin", "place": {"name": "Ulm"}, "factor": 2}')
    assert result.status is CallStatus.OK
    assert seen == [(Unit.KELVIN, Place("Ulm"), 2.0, None)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ('{"a": 1}', "missing required field `b`"),
        ('{"a": 1, "b": "2"}', "Expected `int`, got `str` - at `$.b`"),
        ('{"a": 1, "b": 2, "c": 3}', "unknown field `c`"),
        ('{"a": 1,', "truncated"),
        ("[1, 2]", "got `array`"),
        ('{"a": "\ud800", "b": 1}', "surrogates"),
    ],
)
def test_wrong_arguments_are_told_and_not_raised(arguments, told):
    """The answer says what was wrong and what the tool takes."""

    def add(a: int, b: int) -> str:
        return str(a + b)

    result = call(add, arguments)
    assert result.status is CallStatus.BAD_ARGUMENTS
    assert told in result.text
    assert result.text.endswith("it takes: a, b")


def test_an_exception_in_a_tool_is_told_by_type_and_first_line():
    """The model needs no traceback."""

    def divide(a: int, b: int) -> str:
        return str(a / b)

    assert call(divide, '{"a": 1, "b": 0}').text == "error: ZeroDivisionError: division by zero"


def test_results_that_are_no_text_become_json():
    """A dataclass or a list is as good a result as a string."""

    def find() -> list[Place]:
        return [Place("Ulm", 478.0)]

    assert call(find, "").text == '[{"name":"Ulm","height_m":478.0}]'


def test_a_plain_function_runs_on_the_loop_and_a_marked_one_in_a_thread():
    """What does not wait is not worth a thread; what computes long says so."""
    threads = []

    def quick() -> str:
        threads.append(threading.current_thread())
        return ""

    @in_thread
    def slow() -> str:
        threads.append(threading.current_thread())
        return ""

    async def waiting() -> str:
        await asyncio.sleep(0)
        threads.append(threading.current_thread())
        return ""

    for function in (quick, slow, waiting):
        assert call(function, "{}").status is CallStatus.OK
    main = threading.main_thread()
    assert [thread is main for thread in threads] == [True, False, True]


def test_an_unknown_tool_is_answered_with_the_known_names():
    """A model that invents a name can try again."""

    def price() -> str:
        return "1"

    result = asyncio.run(ToolSet([price]).call(ToolCall("prize", "{}")))
    assert (result.status, result.text) == (
        CallStatus.UNKNOWN_TOOL,
        "error: there is no tool 'prize'; the tools are: price",
    )


def _unannotated(a):
    return ""


def _starred(*a: int) -> str:
    return ""


def _odd_type(a: threading.Lock) -> str:  # type: ignore[valid-type]
    return ""


@pytest.mark.parametrize("function", [_unannotated, _starred, _odd_type, lambda: ""])
def test_what_an_author_does_wrong_is_a_config_error(function):
    """It would hit every call, so it is told when the tools are made."""
    with pytest.raises(ConfigError):
        ToolSet([function])


def test_two_tools_of_one_name_are_refused():
    """A call could not say which one it means."""

    def twin() -> str:
        return ""

    with pytest.raises(ConfigError, match="two tools are named 'twin'"):
        ToolSet([twin, twin])


_VALUES = st.fixed_dictionaries(
    {"a": st.integers(-(2**62), 2**62), "b": st.text(max_size=20), "c": st.lists(st.booleans(), max_size=4)},
    optional={"d": st.none() | st.floats(allow_nan=False, allow_infinity=False)},
)


@settings(max_examples=60, deadline=None)
@given(_VALUES)
def test_arguments_that_fit_the_schema_reach_the_function_unchanged(values):
    """call(json(values)) passes exactly `values`."""
    seen = {}

    def tool(a: int, b: str, c: list[bool], d: float | None = 0.5) -> str:
        seen.update(a=a, b=b, c=c, d=d)
        return ""

    assert call(tool, json.dumps(values)).status is CallStatus.OK
    assert seen == {"d": 0.5, **values}
