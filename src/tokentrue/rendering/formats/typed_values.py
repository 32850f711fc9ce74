"""Parameters that are written as text and typed by the tool's JSON schema (XML parameters, key/value tags).

Templates write a string as it is and every other value as JSON, or as Python writes it (`True`, `None`,
`{'k': 1}`). So the text alone does not tell `"7"` from `7`; the schema does. Where a property has no schema,
text that reads as JSON is that value. Where a schema allows a string and something else, text that reads as
the other type is that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from tokentrue.rendering.formats.python_literals import whole_literal

_PYTHON_WORDS: dict[str, Any] = {"True": True, "False": False, "None": None}


def typed_value(text: str, schema: Mapping[str, Any] | None) -> Any:
    """The value of one parameter.

    Args:
        schema: The property's JSON schema; None when it has none.
    """
    types = types_of(schema)
    if types == {"string"}:
        return text
    try:
        value = _literal(text)
    except ValueError:
        return text
    if isinstance(value, str):
        # Only quoted text reads as a string, and no template quotes a string here.
        return text
    return value if not types or _fits(value, types) or "string" not in types else text


def property_schema(parameters: Mapping[str, Any] | None, key: str) -> Mapping[str, Any] | None:
    """The schema of one property; None when the tool or the property is unknown."""
    for option in _options(parameters):
        properties = option.get("properties")
        found = properties.get(key) if isinstance(properties, Mapping) else None
        if isinstance(found, Mapping):
            return found
    return None


def item_schema(schema: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The schema of a list's items; None when it has none."""
    found = (option.get("items") for option in _options(schema))
    return next((items for items in found if isinstance(items, Mapping)), None)


def _options(schema: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """A schema and the ones that it is put together from."""
    if schema is None:
        return
    yield schema
    for key in ("anyOf", "oneOf", "allOf"):
        for option in schema.get(key) or ():
            if isinstance(option, Mapping):
                yield from _options(option)


def types_of(schema: Mapping[str, Any] | None) -> frozenset[str]:
    """The JSON types that a schema allows; empty where it names none."""
    types: set[str] = set()
    enums: list[Any] = []
    for option in _options(schema):
        named = option.get("type")
        types |= {named} if isinstance(named, str) else {t for t in named or () if isinstance(t, str)}
        enums += option["enum"] if isinstance(option.get("enum"), list) else []
    return frozenset(types or {_type_of(value) for value in enums})


def _type_of(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, (int, float)):
        return "integer" if isinstance(value, int) else "number"
    if isinstance(value, str):
        return "string"
    return "object" if isinstance(value, dict) else "array"


def _fits(value: Any, types: frozenset[str]) -> bool:
    found = _type_of(value)
    return found in types or (found == "integer" and "number" in types)


def _literal(text: str) -> Any:
    stripped = text.strip()
    if stripped in _PYTHON_WORDS:
        return _PYTHON_WORDS[stripped]
    try:
        return json.loads(stripped, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        if stripped[:1] not in ("{", "["):
            raise ValueError(text) from None
    return whole_literal(stripped)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is more than a float holds, and infinity is no JSON value")
    return value


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON value; {math.nan!r} cannot be sent")
