"""Arguments in nested tags (MiniMax-M3): what stands inside of objects and lists is typed by the tool's schema."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from templates.families import FAMILIES, family_renderer
from templates.spoken import texts
from tokentrue import Message, ToolCall
from tokentrue.rendering.formats.parsed import CallStatus

_ROW = {"type": "object", "properties": {"text": {"type": "string"}, "tags": {"type": "array"}}}
_ROW["properties"]["tags"]["items"] = {"type": "string"}  # type: ignore[index]
_SCHEMA = {
    "type": "object",
    "properties": {
        "words": {"type": "array", "items": {"type": "string"}},
        "numbers": {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
        "grid": {"type": "array", "items": {"type": "array", "items": {"type": "boolean"}}},
        "rows": {"anyOf": [{"type": "null"}, {"type": "array", "items": _ROW}]},
        "row": {"anyOf": [_ROW, {"type": "null"}]},
        "item": {"type": "object", "properties": {"item": {"type": "string"}}},
    },
}
TOOLS = ({"type": "function", "function": {"name": "save", "description": "d", "parameters": _SCHEMA}},)
rows = st.fixed_dictionaries({"text": texts}, optional={"tags": st.lists(texts, max_size=3)})
VALUES = {
    "words": st.lists(texts, max_size=3),
    "numbers": st.lists(st.integers(-99, 99) | st.none(), max_size=3),
    "grid": st.lists(st.lists(st.booleans(), max_size=3), max_size=3),
    "rows": st.lists(rows, max_size=3),
    "row": rows,
    "item": st.fixed_dictionaries({"item": texts}),
}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(values=st.fixed_dictionaries({}, optional=VALUES))
def test_members_and_items_are_typed_by_their_schema(values: dict[str, Any]) -> None:
    renderer = family_renderer(next(family for family in FAMILIES if family.name == "nested"))
    message = Message(role="assistant", tool_calls=(ToolCall("save", json.dumps(values), "x"),))
    ids = renderer.render_assistant(message, tools=TOOLS)
    (call,) = renderer.parse_response(ids.tolist(), tools=TOOLS).tool_calls
    assert (call.status, json.loads(call.arguments or "")) == (CallStatus.OK, values)
