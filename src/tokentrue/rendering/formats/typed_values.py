"""Parameters that are written as text and typed by the tool's JSON schema (XML parameters, key/value tags).

Templates write a string as it is and every other value as JSON, or as Python writes it (`True`, `None`,
`{'k': 1}`). So the text alone does not tell `"7"` from `7`; the schema does. Where a property has no schema,
text that reads as JSON is that value. Where a schema allows a string and something else, text that reads as
the other type is that.
"""

from __future__ import annotations

import json
import math
from typing import Any

from tokentrue.rendering.formats.python_literals import whole_literal
from tokentrue.rendering.formats.schemas import NO_SCHEMA, Schema, type_of

_PYTHON_WORDS: dict[str, Any] = {"True": True, "False": False, "None": None}


def typed_value(text: str, schema: Schema = NO_SCHEMA) -> Any:
    """The value of one parameter.

    Args:
        schema: The property's.
    """
    types = schema.types
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


def _fits(value: Any, types: frozenset[str]) -> bool:
    found = type_of(value)
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
