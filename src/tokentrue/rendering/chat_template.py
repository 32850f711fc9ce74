"""A Hugging Face chat template, rendered as transformers renders it. The only door to jinja2.

Templates are untrusted code, so they run in a sandbox and see plain JSON data only. What transformers
5.23 adds to Jinja is added here too: `tojson` that keeps unicode and HTML, `strftime_now`,
`raise_exception`, loop controls, the `generation` tag, plain `dict` and `namespace`; None-valued
message keys are dropped and reasoning is visible under its three names (`chat_template_utils.py`,
`tokenization_utils_base.py`). The clock is an argument, so that history does not change at midnight.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from types import BuiltinMethodType
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
import msgspec

from tokentrue.errors import TemplateRenderError, UnsupportedParameterError

_RENDER_FAILURES = (
    jinja2.exceptions.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What a template can raise: its own complaints, and Python's about what it does with the messages."""

_OF_EVERY_DICT = frozenset(dir(dict))
_DECISIONS_KEPT = 1024
"""Templates name a few dozen attributes; one that makes up names of its own fills no memory."""

_RENDERINGS_KEPT = 16384
"""Of probes, about a kilobyte each; full, the memory is emptied. No template at hand is asked for more."""

_ARGUMENTS = ("messages", "tools", "add_generation_prompt")
"""The variables of a template that each rendering sets."""

_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks assistant text for training; here it only renders it."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace, refusing underscore names as transformers does."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        values = dict(*rest, **kwargs)
        for name in values:
            _check_namespace_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_namespace_name(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


class _Dict:
    """`dict(...)` for templates, without the attributes of the real type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _check_namespace_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace attribute must not start with '_': {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _constants(nodes: Sequence[jinja2.nodes.Node]) -> list[str]:
    return [node.value for node in nodes if isinstance(node, jinja2.nodes.Const) and isinstance(node.value, str)]


_PLAIN = frozenset({dict, list, str})
_DECIDED_BY_TYPE = _PLAIN | {_Namespace, jinja2.runtime.LoopContext}


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, without what it asks anew of plain data for each attribute, key and call.

    Law: every answer is that of `ImmutableSandboxedEnvironment`. A dict has the attributes of its type and no
    others; and whether an attribute is safe, Jinja decides by the type and the name, so for the types of messages
    it is decided once. Everything else is asked of Jinja. Half of a rendering's time was spent there.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._safe: dict[tuple[type, str], bool] = {}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        kind = type(obj), attr
        found = self._safe.get(kind)
        if found is None:
            found = super().is_safe_attribute(obj, attr, value)
            if kind[0] in _DECIDED_BY_TYPE and len(self._safe) < _DECISIONS_KEPT:
                self._safe[kind] = found
        return found

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute not in _OF_EVERY_DICT:
            try:
                return obj[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if type(obj) is dict and type(argument) is str and argument not in _OF_EVERY_DICT:
            try:
                return obj[argument]
            except KeyError:
                return self.undefined(obj=obj, name=argument)
        return super().getitem(obj, argument)

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        # A method of plain data takes no context, and nobody can have marked it as unsafe. `str.format` is none of
        # them: since Jinja 3.1.5 `getattr` gives the sandbox's own in its place.
        if type(__obj) is BuiltinMethodType and type(__obj.__self__) in _PLAIN:
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return __obj(*args, **kwargs)
        return super().call(__context, __obj, *args, **kwargs)


def _value(node: jinja2.nodes.Node) -> Any:
    """What an expression without variables is; None for the others."""
    try:
        return node.as_const() if isinstance(node, jinja2.nodes.Expr) else None
    except (jinja2.nodes.Impossible, *_RENDER_FAILURES):
        return None


def _compared_sides(tree: jinja2.nodes.Template) -> Iterator[jinja2.nodes.Node]:
    """What stands on either side of a comparison, and the value of a variable that stands there."""
    sides = [
        side
        for found in tree.find_all(jinja2.nodes.Compare)
        for side in (found.expr, *(operand.expr for operand in found.ops))
    ]
    yield from sides
    names = {side.name for side in sides if isinstance(side, jinja2.nodes.Name)}
    for found in tree.find_all(jinja2.nodes.Assign):
        if isinstance(found.target, jinja2.nodes.Name) and found.target.name in names:
            yield found.node


def _compared_texts(tree: jinja2.nodes.Template) -> Iterator[str]:
    for side in _compared_sides(tree):
        value = _value(side)
        yield from (
            each for each in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(each, str)
        )
    for call in tree.find_all(jinja2.nodes.Call):
        if isinstance(call.node, jinja2.nodes.Getattr):
            yield from _constants(call.args)


def _compared_numbers(tree: jinja2.nodes.Template) -> Iterator[int]:
    remainders = (found.right for found in tree.find_all(jinja2.nodes.Mod))
    for side in (*_compared_sides(tree), *remainders):
        for value in (_value(side), *(part.value for part in side.find_all(jinja2.nodes.Const))):
            if isinstance(value, int) and not isinstance(value, bool):
                yield value


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    env = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols])
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    env.globals["dict"] = _Dict()
    env.globals["namespace"] = _Namespace
    return env


_ENVIRONMENT = _environment()


@lru_cache(maxsize=64)
def _compiled(source: str) -> jinja2.Template:
    """The compiled source: what differs between templates of one source are only variables."""
    return _ENVIRONMENT.from_string(source)


@dataclass(frozen=True, slots=True)
class LookedAt:
    """What a template looks at, as far as its source tells; each sorted.

    Args:
        literals: The texts that it compares something with, or calls a method with.
        numbers: The whole numbers that it compares something with, or divides it by.
        keys: The keys that it reads of anything: of messages, of calls, of its own variables.
    """

    literals: tuple[str, ...]
    numbers: tuple[int, ...]
    keys: tuple[str, ...]


@lru_cache(maxsize=64)
def _looked_at(*sources: str) -> LookedAt:
    trees = [_ENVIRONMENT.parse(source) for source in sources]
    literals = {text for tree in trees for text in _compared_texts(tree) if text.strip()}
    numbers = {number for tree in trees for number in _compared_numbers(tree)}
    keys = {node.attr for tree in trees for node in tree.find_all(jinja2.nodes.Getattr)}
    for tree in trees:
        keys.update(_constants([node.arg for node in tree.find_all(jinja2.nodes.Getitem)]))
    return LookedAt(tuple(sorted(literals)), tuple(sorted(numbers)), tuple(sorted(keys)))


@lru_cache(maxsize=64)
def _time_formats(source: str) -> tuple[str, ...] | None:
    """The formats that `strftime_now` is called with; None when one of them is not a constant."""
    tree = _ENVIRONMENT.parse(source)
    told = [name for name in tree.find_all(jinja2.nodes.Name) if name.name == "strftime_now"]
    asked = [test.node for test in tree.find_all(jinja2.nodes.Test) if test.name == "defined"]
    formats: list[str] = []
    for call in tree.find_all(jinja2.nodes.Call):
        if call.node in told and len(call.args) == 1 and not call.kwargs:
            formats += _constants(call.args)
    known = len(formats) + sum(any(name is node for name in told) for node in asked)
    return tuple(sorted(set(formats))) if known == len(told) else None


def _message_data(message: Mapping[str, Any]) -> dict[str, Any]:
    # A null `content` stays: DeepSeek's template asks `content is none` before it writes tool calls, and
    # MessageForm puts one there only for a template that needs it.
    data = {key: value for key, value in message.items() if value is not None or key == "content"}
    reasoning = next((data[key] for key in _REASONING_KEYS if key in data), None)
    if reasoning is not None:
        data = {"thinking": reasoning, **data, "reasoning_content": reasoning}
    return data


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A compiled chat template.

    Args:
        default: Jinja source used without tools (and with tools, when `tool_use` is None).
        tool_use: Jinja source used when tools are given, from a named template set.
        special_tokens: `bos_token`, `eos_token`, … as the template may print them.
        kwargs: Further template variables, such as `enable_thinking`; part of the renderer's identity.
        now: What `strftime_now` tells.

    Raises:
        TemplateRenderError: The source is not valid Jinja.
        UnsupportedParameterError: `kwargs` has one of the variables that are arguments of `render_text`.
    """

    default: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    tool_use: str | None = None
    now: datetime = field(default_factory=lambda: datetime(2024, 7, 26))
    _compiled: list[jinja2.Template] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in _ARGUMENTS:
            if name in self.kwargs:
                raise UnsupportedParameterError(name, "template_kwargs", "each rendering sets it by itself")
        for source in (self.default, self.tool_use):
            try:
                self._compiled.append(_compiled(source if source is not None else self.default))
            except jinja2.exceptions.TemplateError as error:
                raise TemplateRenderError(f"the chat template is not valid Jinja: {error}") from error

    @property
    def looked_at(self) -> LookedAt:
        """What the source compares message text, counts and keys with."""
        return _looked_at(self.default, self.tool_use or "")

    @property
    def content_hash(self) -> str:
        """SHA-256 of sources and kwargs, in hex: what a certificate is valid for."""
        text = json.dumps(
            [self.default, self.tool_use, dict(self.special_tokens), dict(self.kwargs)],
            sort_keys=True,
            default=repr,
        )
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def tells_the_time(self) -> bool:
        """Whether what the template writes depends on `now`."""
        return "strftime_now" in self.default or "strftime_now" in (self.tool_use or "")

    @property
    def told_time(self) -> str:
        """All that `now` can make a rendering differ by: a date, mostly; "" when it makes none.

        Two templates that differ only in `now` write the same whenever this is the same.
        """
        told: list[str] = []
        for source in (self.default, self.tool_use or ""):
            formats = _time_formats(source) if "strftime_now" in source else ()
            if formats is None:
                return self.now.isoformat()
            told += [self.now.strftime(each) for each in formats]
        return "\n".join(told)

    def render_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """The conversation as the template writes it.

        Raises:
            TemplateRenderError: The template raised; the message is the template's own.
        """
        template = self._compiled[1 if tools else 0]
        try:
            return template.render(
                {
                    "strftime_now": self.now.strftime,
                    "documents": None,
                    **self.special_tokens,
                    **self.kwargs,
                    "messages": [_message_data(message) for message in messages],
                    "tools": list(tools) or None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except _RENDER_FAILURES as error:
            raise TemplateRenderError(f"the chat template refuses these messages: {error}") from error


@dataclass(frozen=True, slots=True)
class RememberingTemplate(ChatTemplate):
    """A template that is asked for the same renderings over and over, as probing does: each is written once.

    Law: `RememberingTemplate.of(t).render_text(...) == t.render_text(...)`, refusals included. It keeps what it
    wrote, so it is for the time of a proof and for plain JSON, never for conversations.
    """

    _written: dict[bytes, str | TemplateRenderError] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, template: ChatTemplate) -> RememberingTemplate:
        """`template`, with an empty memory."""
        return cls(template.default, template.special_tokens, template.kwargs, template.tool_use, template.now)

    def render_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """As `ChatTemplate.render_text`."""
        key = msgspec.json.encode((messages, tools, add_generation_prompt))
        found = self._written.get(key)
        if found is None:
            try:
                found = ChatTemplate.render_text(
                    self, messages, tools, add_generation_prompt=add_generation_prompt
                )
            except TemplateRenderError as error:
                found = error
            if len(self._written) >= _RENDERINGS_KEPT:
                self._written.clear()
            self._written[key] = found
        if isinstance(found, str):
            return found
        raise TemplateRenderError(str(found)) from found
