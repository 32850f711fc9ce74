"""What a tool's JSON schema says of the types of its parameters, references followed.

Schemas are a caller's: where one is none (a type that is a number, a reference to nowhere), it says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote


@dataclass(frozen=True, slots=True)
class Schema:
    """One schema, and the whole one that it is a part of.

    Args:
        here: The schema itself.
        root: Where its references (`#/$defs/Colour`) lead to.
    """

    here: Mapping[str, Any]
    root: Mapping[str, Any]

    @classmethod
    def of(cls, parameters: object) -> Schema:
        """The schema of a tool's parameters; what is no object says nothing."""
        whole = parameters if isinstance(parameters, Mapping) else {}
        return cls(whole, whole)

    @property
    def types(self) -> frozenset[str]:
        """The JSON types that are allowed; empty where none is named."""
        types: set[str] = set()
        values: list[Any] = []
        for option in self._options():
            named = option.get("type")
            listed = named if isinstance(named, list) else [named]
            types.update(kind for kind in listed if isinstance(kind, str))
            values += _list(option.get("enum")) + ([option["const"]] if "const" in option else [])
        return frozenset(types or {type_of(value) for value in values})

    @property
    def required(self) -> frozenset[str]:
        """The keys that an object must have."""
        return frozenset(key for key in _list(self.here.get("required")) if isinstance(key, str))

    def property(self, key: str) -> Schema:
        """The schema of one member of an object."""
        others: Any = None
        for option in self._options():
            properties = option.get("properties")
            found = properties.get(key) if isinstance(properties, Mapping) else None
            if isinstance(found, Mapping):
                return Schema(found, self.root)
            others = option.get("additionalProperties") if others is None else others
        return Schema(others, self.root) if isinstance(others, Mapping) else NO_SCHEMA

    def item(self, index: int) -> Schema:
        """The schema of one item of a list."""
        for option in self._options():
            items = option.get("items")
            placed = [*_list(option.get("prefixItems")), *_list(items)]
            found = placed[index] if index < len(placed) else items
            if isinstance(found, Mapping):
                return Schema(found, self.root)
        return NO_SCHEMA

    def _options(self) -> Iterator[Mapping[str, Any]]:
        """This schema and the ones that it is put together from, each once."""
        waiting: list[Any] = [self.here]
        seen: set[int] = set()
        while waiting:
            option = waiting.pop()
            if not isinstance(option, Mapping) or id(option) in seen:
                continue
            seen.add(id(option))
            yield option
            further = [found for key in ("anyOf", "oneOf", "allOf") for found in _list(option.get(key))]
            if isinstance(reference := option.get("$ref"), str):
                further.insert(0, self._referred(reference))
            waiting += reversed(further)

    def _referred(self, reference: str) -> Any:
        """What a reference into the whole schema leads to; None where that is nothing, or elsewhere."""
        if not reference.startswith("#"):
            return None
        found: Any = self.root
        for step in unquote(reference[1:]).split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) else None
        return found


NO_SCHEMA = Schema({}, {})
"""Says nothing."""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def type_of(value: Any) -> str:
    """The JSON type of a value."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, (int, float)):
        return "integer" if isinstance(value, int) else "number"
    if isinstance(value, str):
        return "string"
    return "object" if isinstance(value, dict) else "array"
