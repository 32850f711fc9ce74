"""Messages in OpenAI chat shape: dicts and typed objects in, one canonical form inside.

Two messages are the same when their `digest` is: None-valued keys are dropped, `content` `""` equals
absent, text parts equal the joined string, tool-call arguments are equal as JSON values, unknown keys
are kept. There is no other definition of sameness in the package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from tokentrue.errors import InvalidMessageError

ROLES = ("system", "developer", "user", "assistant", "tool")

_KNOWN_KEYS = frozenset(
    {"role", "content", "reasoning_content", "reasoning", "tool_calls", "tool_call_id", "name"}
)


@runtime_checkable
class SupportsModelDump(Protocol):
    """A typed message of some client library, such as a pydantic model."""

    def model_dump(self) -> dict[str, Any]:
        """The message as a dict in OpenAI chat shape."""
        ...


MessageLike = "Message | Mapping[str, Any] | SupportsModelDump"


def _plain(value: Any) -> Any:
    # What is plain already comes first: checks of a protocol, and of an abstract class, are slow.
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (dict, Mapping)):
        return {str(key): item if type(item) is str else _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, SupportsModelDump):
        return _plain(value.model_dump())
    return value


def _canonical_number(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: _canonical_number(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical_number(item) for item in value]
    return value


def _canonical_arguments(text: str) -> str:
    try:
        value = json.loads(text)
        return "json:" + json.dumps(_canonical_number(value), sort_keys=True, ensure_ascii=False)
    except (ValueError, RecursionError):
        # Broken, or nested deeper than Python walks: then only the very same text is the same.
        return "raw:" + text


def _without_none(value: Any) -> Any:
    """An object without its None-valued keys; what is deeper (arguments, schemas) is left as it is."""
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if item is not None}
    return value


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One tool call of an assistant message.

    `arguments` is the JSON text as it was written; it may be broken JSON when a model wrote it.
    """

    name: str
    arguments: str
    id: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InvalidMessageError(f"a tool call needs a function name, not {self.name!r}")
        if not isinstance(self.arguments, str):
            raise InvalidMessageError(
                f"arguments of the call to {self.name!r} must be JSON text, not {type(self.arguments).__name__}"
            )

    def arguments_or_text(self) -> Any:
        """The arguments as a JSON value, or the text itself when it is not JSON."""
        try:
            return json.loads(self.arguments)
        except (ValueError, RecursionError):
            return self.arguments

    def to_openai(self) -> dict[str, Any]:
        """The call in OpenAI's envelope."""
        envelope: dict[str, Any] = {"id": self.id} if self.id is not None else {}
        envelope["type"] = "function"
        envelope["function"] = {"name": self.name, "arguments": self.arguments}
        return envelope


def _tool_call_from(value: Any, where: str) -> ToolCall:
    if isinstance(value, ToolCall):
        return value
    if not isinstance(value, Mapping):
        raise InvalidMessageError(f"{where} must be an object, not {value!r}")
    value = _without_none(value)
    function = _without_none(value.get("function", value))
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidMessageError(f"{where} has no function name: {value!r}")
    arguments = function.get("arguments", "{}")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    call_id = value.get("id")
    if call_id is not None and not isinstance(call_id, str):
        raise InvalidMessageError(f"{where}.id must be a string, not {call_id!r}")
    return ToolCall(name=function["name"], arguments=arguments, id=call_id)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation, in its canonical form.

    `content` is text or None. Parts that are not text (images, audio) stay in `parts`, and rendering
    refuses them by name. Unknown keys stay in `extra` and reach the chat template.

    Raises:
        InvalidMessageError: Unknown role, or a field of the wrong type; names role and field.
    """

    role: str
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    parts: tuple[Mapping[str, Any], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    _digest: list[bytes] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidMessageError(f"role {self.role!r} is not one of {', '.join(ROLES)}")
        for name in ("content", "reasoning_content", "tool_call_id", "name"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InvalidMessageError(f"{name} of a {self.role} message must be text, not {value!r}")
        if self.content is None and self.role != "assistant" and not self.parts:
            object.__setattr__(self, "content", "")
        if self.tool_calls and self.role != "assistant":
            raise InvalidMessageError(f"a {self.role} message cannot carry tool_calls")

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> bytes:
        """16 bytes that are equal exactly when two messages are the same (module docstring)."""
        if not self._digest:
            calls = [[c.id or "", c.name, _canonical_arguments(c.arguments)] for c in self.tool_calls]
            form = [
                self.role,
                self.content or "",
                self.reasoning_content or "",
                calls,
                self.tool_call_id or "",
                self.name or "",
                list(self.parts),
                dict(self.extra),
            ]
            text = json.dumps(form, sort_keys=True, ensure_ascii=False, default=repr)
            self._digest.append(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())
        return self._digest[0]

    def to_openai(self) -> dict[str, Any]:
        """The message as a dict in OpenAI chat shape, without None values."""
        out: dict[str, Any] = {"role": self.role}
        if self.parts:
            out["content"] = [dict(part) for part in self.parts]
        elif self.content is not None:
            out["content"] = self.content
        elif self.role != "assistant":
            out["content"] = ""
        if self.reasoning_content is not None:
            out["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            out["tool_calls"] = [call.to_openai() for call in self.tool_calls]
        if self.tool_call_id is not None:
            out["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            out["name"] = self.name
        return {**out, **self.extra}

    @classmethod
    def from_any(cls, value: Message | Mapping[str, Any] | SupportsModelDump, where: str = "message") -> Message:
        """Read a dict, a typed object or a `Message`.

        Raises:
            InvalidMessageError: Names the place (`where`), the key and the value.
        """
        if isinstance(value, Message):
            return value
        plain = _without_none(_plain(value))
        if not isinstance(plain, dict):
            raise InvalidMessageError(f"{where} must be a mapping or a typed message, not {value!r}")
        if "role" not in plain:
            raise InvalidMessageError(f"{where} has no role: {plain!r}")
        content, parts = _content_from(plain.get("content"), where)
        reasoning = plain.get("reasoning_content", plain.get("reasoning"))
        calls = plain.get("tool_calls", [])
        if not isinstance(calls, list):
            raise InvalidMessageError(f"{where}.tool_calls must be a list, not {calls!r}")
        return cls(
            role=plain["role"],
            content=content,
            reasoning_content=reasoning,
            tool_calls=tuple(_tool_call_from(c, f"{where}.tool_calls[{i}]") for i, c in enumerate(calls)),
            tool_call_id=plain.get("tool_call_id"),
            name=plain.get("name"),
            parts=parts,
            extra={key: item for key, item in plain.items() if key not in _KNOWN_KEYS},
        )


def _content_from(content: Any, where: str) -> tuple[str | None, tuple[Mapping[str, Any], ...]]:
    if content is None or isinstance(content, str):
        return content, ()
    if not isinstance(content, list):
        raise InvalidMessageError(f"{where}.content must be text or a list of parts, not {content!r}")
    texts: list[str] = []
    for index, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict) or "type" not in part:
            raise InvalidMessageError(f"{where}.content[{index}] is no content part: {part!r}")
        if part["type"] != "text" or not isinstance(part.get("text"), str):
            return None, tuple(p if isinstance(p, dict) else {"type": "text", "text": p} for p in content)
        texts.append(part["text"])
    return "".join(texts), ()


def messages_from(
    values: str | Iterable[Message | Mapping[str, Any] | SupportsModelDump],
) -> tuple[Message, ...]:
    """Read a conversation; a bare string is one user message.

    Raises:
        InvalidMessageError: Names the index of the message that is wrong.
    """
    if isinstance(values, str):
        return (Message(role="user", content=values),)
    return tuple(Message.from_any(value, f"messages[{i}]") for i, value in enumerate(values))


def tools_from(values: Sequence[Mapping[str, Any] | SupportsModelDump] | None) -> tuple[dict[str, Any], ...]:
    """Read tool definitions into OpenAI's envelope `{"type": "function", "function": {...}}`.

    Raises:
        InvalidMessageError: A tool has no name.
    """
    tools: list[dict[str, Any]] = []
    for index, value in enumerate(values or ()):
        plain = _without_none(_plain(value))
        function = _without_none(plain.get("function", plain)) if isinstance(plain, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidMessageError(f"tools[{index}] has no function name: {value!r}")
        tools.append({"type": "function", "function": {k: v for k, v in function.items() if k != "type"}})
    return tuple(tools)


def tools_digest(tools: Sequence[Mapping[str, Any]]) -> bytes:
    """16 bytes that are equal when the same tools are given in the same order and spelling."""
    text = json.dumps(list(tools), ensure_ascii=False, default=repr)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
