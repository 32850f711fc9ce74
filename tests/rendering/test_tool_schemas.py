"""What a tool's schema says of a parameter written as text is found wherever JSON Schema lets it stand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from templates.families import FAMILIES, family_renderer
from tokentrue import Message, Renderer, ToolCall
from tokentrue.rendering.formats.parsed import CallStatus

TEXT_TYPED = ("coder", "invoke", "key_value", "nested")
"""Families whose grammars write a string and a number alike."""

ROOT = {
    "$defs": {
        "Size": {"enum": ["7", "true"], "type": "string"},
        "a/b c": {"type": "string"},
        "Row": {
            "type": "object",
            "properties": {"size": {"$ref": "#/$defs/Size"}, "next": {"anyOf": [{"$ref": "#/$defs/Row"}]}},
        },
        "Loop": {"anyOf": [{"$ref": "#/$defs/Loop"}, {"type": "null"}, {"$ref": "#/$defs/Size"}]},
    }
}
STRINGS: tuple[dict[str, Any], ...] = (
    {"$ref": "#/$defs/Size"},
    {"anyOf": [{"$ref": "#/$defs/Size"}, {"$ref": "#/$defs/Size"}]},
    {"$ref": "#/$defs/a~1b%20c"},
    {"$ref": "#/$defs/Loop"},
    {"const": "7"},
    {"allOf": [{"$ref": "#/$defs/Size"}], "description": "d"},
)


def family(name: str) -> Renderer:
    return family_renderer(next(family for family in FAMILIES if family.name == name))


def tools(properties: dict[str, Any], **more: Any) -> tuple[dict[str, Any], ...]:
    parameters = {"type": "object", **ROOT, "properties": properties, **more}
    return ({"type": "function", "function": {"name": "save", "description": "d", "parameters": parameters}},)


def read_back(renderer: Renderer, values: Any, offered: tuple[dict[str, Any], ...]) -> Any:
    message = Message(role="assistant", tool_calls=(ToolCall("save", json.dumps(values), "x"),))
    ids = renderer.render_assistant(message, tools=offered)
    (call,) = renderer.parse_response(ids.tolist(), tools=offered).tool_calls
    assert call.status is CallStatus.OK
    return json.loads(call.arguments or "")


@pytest.mark.parametrize("name", TEXT_TYPED)
@pytest.mark.parametrize("schema", STRINGS, ids=json.dumps)
def test_a_text_that_looks_like_a_number_stays_text_behind_a_reference(name: str, schema: dict[str, Any]) -> None:
    assert read_back(family(name), {"s": "7"}, tools({"s": schema})) == {"s": "7"}


@pytest.mark.parametrize("name", TEXT_TYPED)
def test_a_reference_to_numbers_gives_numbers(name: str) -> None:
    schema = {"$ref": "#/properties/n"}
    values = {"n": 7, "m": 7}
    assert read_back(family(name), values, tools({"n": {"type": "integer"}, "m": schema})) == values


@pytest.mark.parametrize("name", TEXT_TYPED)
def test_members_without_a_name_have_the_type_of_additional_properties(name: str) -> None:
    offered = tools({"n": {"type": "integer"}}, additionalProperties={"type": "string"})
    assert read_back(family(name), {"n": 7, "x": "7"}, offered) == {"n": 7, "x": "7"}


def test_nested_tags_are_typed_down_through_references_dictionaries_and_rows() -> None:
    offered = tools(
        {
            "row": {"$ref": "#/$defs/Row"},
            "rows": {"type": "array", "items": {"$ref": "#/$defs/Row"}},
            "texts": {"type": "object", "additionalProperties": {"type": "string"}},
            "pair": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}]},
        }
    )
    row = {"size": "7", "next": {"size": "true"}}
    values = {"row": row, "rows": [row, {"size": "7"}], "texts": {"a": "7", "b": "true"}, "pair": ["7", 7]}
    assert read_back(family("nested"), values, offered) == values


BROKEN: tuple[dict[str, Any], ...] = (
    {"type": 7},
    {"type": True},
    {"type": {"a": 1}},
    {"anyOf": 5},
    {"anyOf": [None, 7, {"type": ["null", 3]}]},
    {"oneOf": {"type": "string"}},
    {"enum": 5},
    {"$ref": 7},
    {"$ref": "#/$defs/Nowhere"},
    {"$ref": "#/$defs/Size/enum/0"},
    {"$ref": "https://example.org/schema"},
    {"items": 5, "properties": 7, "additionalProperties": True},
)


@pytest.mark.parametrize("name", TEXT_TYPED)
@pytest.mark.parametrize("schema", BROKEN, ids=json.dumps)
def test_a_schema_that_is_none_says_nothing_and_raises_nothing(name: str, schema: dict[str, Any]) -> None:
    offered = tools({"s": schema}, required=7, allOf=7)
    assert read_back(family(name), {"s": "a", "n": [1, {"k": "a"}]}, offered) == {"s": "a", "n": [1, {"k": "a"}]}


@pytest.mark.parametrize("name", ["hermes", "lines", "bare"])
def test_a_number_of_more_digits_than_python_writes_is_read_beside_keys_that_are_looked_for(name: str) -> None:
    renderer = family(name)
    message = Message(role="assistant", tool_calls=(ToolCall("save", '{"name": 8, "arguments": 9}', "x"),))
    digits = "9" * 5000
    ids = renderer.render_assistant(message)
    text = renderer.text_of(ids[:-1])
    assert text.count("8") == 1
    (call,) = renderer.parse_response(renderer.tokenizer.encode(text.replace("8", digits))).tool_calls
    assert digits in (call.arguments or "")
