"""Typed Python functions as tools: the JSON schema comes from the signature, the arguments go back into it.

Whatever a model can do wrong in a call becomes a text that tells the model what was wrong; only what the
author of a tool did wrong (no annotation, a type without a JSON form) is an error.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar, get_type_hints

import msgspec

from tokentrue.errors import ConfigError
from tokentrue.messages import ToolCall

F = TypeVar("F", bound=Callable[..., Any])

_THREAD_MARK = "__tokentrue_in_thread__"
_ARGS_SECTION = re.compile(r"^\s*(Args|Arguments|Parameters):\s*$")
_OTHER_SECTION = re.compile(r"^\s*(Returns?|Yields?|Raises|Examples?|Notes?):\s*$")
_ARG_LINE = re.compile(r"^\s*\**(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")
_JSON_TYPES: dict[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}


def in_thread(function: F) -> F:
    """Mark a plain function that computes or blocks for long: it runs in a worker thread.

    A plain function without the mark runs on the event loop, because a thread costs more than most tools do.
    A timeout does not stop a thread: it ends the wait for it.
    """
    setattr(function, _THREAD_MARK, True)
    return function


class CallStatus(Enum):
    """How a call went."""

    OK = "ok"
    UNKNOWN_TOOL = "unknown_tool"
    BAD_ARGUMENTS = "bad_arguments"
    RAISED = "raised"


@dataclass(frozen=True, slots=True)
class CallResult:
    """What one call gave: the text for the model, and what kind of text that is."""

    status: CallStatus
    text: str


@dataclass(frozen=True, slots=True)
class Tool:
    """One function as a tool.

    Raises:
        ConfigError: At `from_function`, when the signature cannot be described; names function and parameter.
    """

    name: str
    definition: dict[str, Any]
    function: Callable[..., Any]
    arguments_type: type[msgspec.Struct]
    is_in_thread: bool

    @classmethod
    def from_function(cls, function: Callable[..., Any]) -> Tool:
        """Describe a function by its name, docstring and annotated parameters."""
        name = getattr(function, "__name__", "")
        if not name.isidentifier():
            raise ConfigError(f"a tool must be a named function, not {function!r}")
        parameters = _parameters(name, function)
        arguments_type = _arguments_type(name, parameters)
        description, of_parameter = _read_docstring(inspect.getdoc(function) or "")
        return cls(
            name=name,
            definition=_definition(name, description, _schema(arguments_type, parameters, of_parameter)),
            function=function,
            arguments_type=arguments_type,
            is_in_thread=getattr(function, _THREAD_MARK, False) is True,
        )

    async def call(self, arguments: str) -> CallResult:
        """Run the function on arguments given as JSON text; never raises an `Exception`."""
        try:
            read = msgspec.json.decode(arguments or "{}", type=self.arguments_type)
        except (msgspec.DecodeError, UnicodeEncodeError) as exc:
            takes = ", ".join(self.definition["function"]["parameters"]["properties"]) or "nothing"
            return CallResult(
                CallStatus.BAD_ARGUMENTS, f"error: wrong arguments for {self.name}: {exc}; it takes: {takes}"
            )
        given = {
            name: value
            for name in self.arguments_type.__struct_fields__
            if (value := getattr(read, name)) is not msgspec.UNSET
        }
        try:
            return CallResult(CallStatus.OK, _result_text(await self._run(given)))
        except Exception as exc:  # noqa: BLE001  a tool may raise anything, and the model is to be told
            first_line = str(exc).strip().splitlines()[:1]
            return CallResult(CallStatus.RAISED, ": ".join(["error", type(exc).__name__, *first_line]))

    async def _run(self, given: dict[str, Any]) -> Any:
        if self.is_in_thread:
            return await asyncio.to_thread(self.function, **given)
        value = self.function(**given)
        return await value if inspect.isawaitable(value) else value


class ToolSet:
    """The tools of one episode, in the order in which they were given.

    Raises:
        ConfigError: Two tools have one name, or a function cannot be described.
    """

    __slots__ = ("_tools",)

    def __init__(self, functions: Iterable[Callable[..., Any]] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for function in functions:
            tool = Tool.from_function(function)
            if tool.name in self._tools:
                raise ConfigError(f"two tools are named {tool.name!r}")
            self._tools[tool.name] = tool

    @property
    def definitions(self) -> tuple[dict[str, Any], ...]:
        """The tools in OpenAI's envelope, for the model."""
        return tuple(tool.definition for tool in self._tools.values())

    async def call(self, call: ToolCall) -> CallResult:
        """Answer one call; an unknown name is an answer that lists the known ones."""
        tool = self._tools.get(call.name)
        if tool is None:
            known = ", ".join(self._tools) or "none"
            return CallResult(
                CallStatus.UNKNOWN_TOOL, f"error: there is no tool {call.name!r}; the tools are: {known}"
            )
        return await tool.call(call.arguments)

    def __len__(self) -> int:
        return len(self._tools)


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    annotation: Any
    default: Any

    @property
    def is_required(self) -> bool:
        return self.default is inspect.Parameter.empty


def _parameters(name: str, function: Callable[..., Any]) -> list[_Parameter]:
    try:
        hints = get_type_hints(function)
        signature = inspect.signature(function)
    except (NameError, TypeError, ValueError) as exc:
        raise ConfigError(f"the signature of tool {name!r} cannot be read: {exc}") from exc
    parameters: list[_Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            raise ConfigError(f"tool {name!r}: a model can only name its arguments, so {parameter} has no meaning")
        if parameter.name not in hints:
            raise ConfigError(f"tool {name!r}: the parameter {parameter.name!r} needs a type annotation")
        parameters.append(_Parameter(parameter.name, hints[parameter.name], parameter.default))
    return parameters


def _arguments_type(name: str, parameters: list[_Parameter]) -> type[msgspec.Struct]:
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [
        (p.name, p.annotation) if p.is_required else (p.name, p.annotation | msgspec.UnsetType, msgspec.UNSET)
        for p in parameters
    ]
    try:
        built = msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)
        msgspec.json.schema(built)
        msgspec.json.Decoder(built)
    except TypeError as exc:
        raise ConfigError(f"tool {name!r}: a parameter's type has no JSON form: {exc}") from exc
    return built


def _definition(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    function: dict[str, Any] = {"name": name}
    if description:
        function["description"] = description
    return {"type": "function", "function": function | {"parameters": schema}}


def _schema(
    arguments_type: type[msgspec.Struct], parameters: list[_Parameter], descriptions: Mapping[str, str]
) -> dict[str, Any]:
    (whole,), components = msgspec.json.schema_components([arguments_type], ref_template="{name}")
    own = components[whole["$ref"]]["properties"] if "$ref" in whole else whole["properties"]
    properties: dict[str, Any] = {}
    for parameter in parameters:
        schema = _inlined(own[parameter.name], components, ())
        schema.pop("default", None)
        if parameter.name in descriptions:
            schema["description"] = descriptions[parameter.name]
        if not parameter.is_required and parameter.default is not None:
            schema["default"] = msgspec.to_builtins(parameter.default)
        properties[parameter.name] = schema
    required = [parameter.name for parameter in parameters if parameter.is_required]
    return {"type": "object", "properties": properties} | ({"required": required} if required else {})


def _inlined(schema: Any, components: Mapping[str, Any], inside: tuple[str, ...]) -> Any:
    """The schema without references and titles: chat templates print it as it stands."""
    if isinstance(schema, list):
        return [_inlined(item, components, inside) for item in schema]
    if not isinstance(schema, dict):
        return schema
    reference = schema.get("$ref")
    if isinstance(reference, str):
        if reference in inside:
            raise ConfigError(f"the type {reference!r} contains itself, which a tool's schema cannot say")
        return _inlined(components[reference], components, (*inside, reference))
    out: dict[str, Any] = {}
    types = {type(member) for member in schema.get("enum", ())}
    if len(types) == 1 and (only := types.pop()) in _JSON_TYPES:
        out["type"] = _JSON_TYPES[only]
    for key, value in schema.items():
        if key == "title":
            continue
        if key == "properties":
            out[key] = {name: _inlined(part, components, inside) for name, part in value.items()}
        else:
            out[key] = value if key in ("enum", "default") else _inlined(value, components, inside)
    return out


def _read_docstring(doc: str) -> tuple[str, dict[str, str]]:
    """The description (what stands before the first section) and the text of each documented parameter."""
    description: list[str] = []
    of_parameter: dict[str, str] = {}
    section = "description"
    current = ""
    for line in doc.splitlines():
        if _ARGS_SECTION.match(line):
            section = "args"
        elif _OTHER_SECTION.match(line):
            section = "other"
        elif section == "description":
            description.append(line.strip())
        elif section == "args" and line.strip():
            found = _ARG_LINE.match(line)
            if found:
                current = found[1]
                of_parameter[current] = found[2].strip()
            elif current:
                of_parameter[current] = f"{of_parameter[current]} {line.strip()}".strip()
    return " ".join(part for part in description if part), of_parameter


def _result_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()
