"""One configuration for every client: frozen, checked at birth, readable from TOML and JSON.

Every rule of a field stands once, in `_RULES`. A bad value is a `ConfigError` that names the field, the value and
what is allowed; values that may hold a key (headers, the name of a key's variable, URLs with a password) are never
shown.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from tokentrue.errors import ConfigError

CLIENT_TYPES = ("openai_chat_completions", "openai_chat_completions_token", "renderer")
TRANSPORTS = ("vllm", "dynamo", "sglang")
DYNAMO_ROUTES = ("auto", "generate", "token_data")
BRIDGE_TOKENIZERS = ("auto", "local", "engine")
ON_REWRITE = ("extend", "splice", "rerender", "refuse")
ON_UNSUPPORTED = ("raise", "warn")
SPELLED_MARKERS = ("as_template", "escape")
FAST_TOKENIZERS = ("off", "auto", "gigatoken")

AUTHORIZATION_HEADERS = frozenset({"authorization", "proxy-authorization", "api-key", "x-api-key"})
"""Headers that authenticate, in lower case: they are replaced only where that is asked for by name."""


class NotGiven(Enum):
    """The type of `NOT_GIVEN`, which is neither None nor a default."""

    NOT_GIVEN = "not given"

    def __repr__(self) -> str:
        return "NOT_GIVEN"


NOT_GIVEN: Final = NotGiven.NOT_GIVEN


class _WrongError(Exception):
    """A rule's complaint: what is allowed, and whether the value may be shown."""

    def __init__(self, allowed: str, *, show: bool = True) -> None:
        super().__init__(allowed)
        self.show = show


Rule = Callable[[Any], Any]


def _one_of(*allowed: str) -> Rule:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise _WrongError("one of " + ", ".join(repr(each) for each in allowed))
        return value

    return check


def _transport(value: Any) -> str:
    if value is None:
        return "vllm"
    names = ", ".join(repr(each) for each in TRANSPORTS)
    if not isinstance(value, str) or value not in TRANSPORTS:
        raise _WrongError(f"one of {names}, or None for 'vllm'")
    return value


def _url(value: Any) -> str:
    allowed = "http://host[:port][/path] or https://..., without user, query or fragment"
    if not isinstance(value, str):
        raise _WrongError(allowed)
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as exc:
        raise _WrongError(allowed) from exc
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise _WrongError(allowed, show=False)
    if not usable:
        raise _WrongError(allowed)
    return value


def _variable(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        # Somebody who mistakes the field for the key itself must not find the key in a log.
        raise _WrongError("the name of an environment variable, or None for no key", show=False)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _WrongError("non-empty text")
    return value


def _maybe_text(value: Any) -> str | None:
    return None if value is None else _text(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _WrongError("true or false")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise _WrongError("a finite number of seconds above 0")
    return float(value)


def _integer(low: int) -> Rule:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise _WrongError(f"an integer >= {low}")
        return value

    return check


def _maybe(rule: Rule) -> Rule:
    return lambda value: None if value is None else rule(value)


def _headers(value: Any) -> Mapping[str, str]:
    allowed = "a mapping of non-empty header names to text without line breaks"
    if not isinstance(value, Mapping):
        raise _WrongError(allowed, show=False)
    for name, text in value.items():
        if not isinstance(name, str) or not name or not isinstance(text, str):
            raise _WrongError(f"{allowed}; {name!r} is not so", show=False)
        if any(mark in name + text for mark in "\r\n\0"):
            raise _WrongError(f"{allowed}; {name!r} is not so", show=False)
    return MappingProxyType(dict(value))


def _plain_mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _WrongError("a mapping with names as keys")
    return MappingProxyType(dict(value))


def _endpoints(value: Any) -> tuple[EndpointConfig, ...]:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise _WrongError("a list of endpoints")
    found: list[EndpointConfig] = []
    for index, each in enumerate(value):
        if isinstance(each, EndpointConfig):
            found.append(each)
        elif isinstance(each, Mapping):
            found.append(EndpointConfig.from_mapping(each, f"endpoint_configs[{index}]"))
        else:
            raise _WrongError(f"a list of endpoints; entry {index} is a {type(each).__name__}", show=False)
    return tuple(found)


_RULES: Mapping[str, Rule] = {
    "client_type": _one_of(*CLIENT_TYPES),
    "client_idx": _integer(0),
    "api_base_url": _url,
    "api_key_var": _variable,
    "renderer": _text,
    "renderer_model_name": _maybe_text,
    "renderer_transport": _transport,
    "dynamo_route": _one_of(*DYNAMO_ROUTES),
    "template_kwargs": _plain_mapping,
    "spelled_markers": _one_of(*SPELLED_MARKERS),
    "fast_tokenizer": _one_of(*FAST_TOKENIZERS),
    "tool_parser": _maybe_text,
    "reasoning_parser": _maybe_text,
    "bridge_tokenizer": _one_of(*BRIDGE_TOKENIZERS),
    "on_rewrite": _one_of(*ON_REWRITE),
    "on_unsupported": _one_of(*ON_UNSUPPORTED),
    "clip_max_tokens": _boolean,
    "measure_logprobs": _boolean,
    "cache_salt_by_version": _boolean,
    "resume_aborted": _integer(0),
    "data_parallel_rank": _maybe(_integer(0)),
    "timeout": _seconds,
    "connect_timeout": _seconds,
    "max_connections": _integer(1),
    "max_retries": _integer(0),
    "extra_headers": _headers,
    "extra_headers_from_state": _headers,
    "allow_auth_headers": _boolean,
    "endpoint_configs": _endpoints,
    "fleet": _boolean,
}

_NOT_HERE: Mapping[str, str] = {
    "renderer_pool_size": "a renderer is immutable and shared, so there is no pool; leave it out",
    "preserve_all_thinking": "sampled reasoning is always kept (law 1); leave it out",
    "preserve_thinking_between_tool_calls": "sampled reasoning is always kept (law 1); leave it out",
    "max_keepalive_connections": "every connection is kept alive; set max_connections",
}
"""Fields that other clients have, and what to do instead."""


def _check_fields(value: ClientConfig | EndpointConfig) -> None:
    owner = type(value).__name__
    for each in fields(value):
        given = getattr(value, each.name)
        if given is NOT_GIVEN:
            continue
        try:
            object.__setattr__(value, each.name, _RULES[each.name](given))
        except _WrongError as exc:
            shown = f"={given!r}" if exc.show else " (its value is not shown)"
            raise ConfigError(f"{owner}.{each.name}{shown} is wrong; allowed is {exc}") from None


def _check_names(given: Iterable[Any], allowed: tuple[str, ...], where: str) -> None:
    for name in given:
        if name in allowed:
            continue
        if name in _NOT_HERE:
            raise ConfigError(f"{where}: {name!r} is no field here: {_NOT_HERE[name]}")
        close = difflib.get_close_matches(str(name), allowed, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{where}: {name!r} is no field{hint} Allowed are {', '.join(allowed)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """One of several servers: what is given here wins over the `ClientConfig` that holds it.

    Raises:
        ConfigError: A value is wrong; names field, value and what is allowed.
    """

    client_idx: int | NotGiven = NOT_GIVEN
    api_base_url: str | NotGiven = NOT_GIVEN
    api_key_var: str | NotGiven | None = NOT_GIVEN
    data_parallel_rank: int | NotGiven | None = NOT_GIVEN
    timeout: float | NotGiven = NOT_GIVEN
    connect_timeout: float | NotGiven = NOT_GIVEN
    max_connections: int | NotGiven = NOT_GIVEN
    max_retries: int | NotGiven = NOT_GIVEN
    extra_headers: Mapping[str, str] | NotGiven = field(default=NOT_GIVEN, repr=False)

    def __post_init__(self) -> None:
        _check_fields(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "endpoint") -> EndpointConfig:
        """Read one entry of `endpoint_configs`; an empty nested list of endpoints is let pass.

        Raises:
            ConfigError: An unknown key, a nested list of endpoints, or a wrong value.
        """
        given = dict(values)
        if given.pop("endpoint_configs", None):
            raise ConfigError(f"{where}: entries of endpoint_configs cannot have endpoint_configs of their own")
        _check_names(given, tuple(each.name for each in fields(cls)), where)
        return cls(**given)

    def given(self) -> dict[str, Any]:
        """The fields that were given, whatever their values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not NOT_GIVEN}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """What `make_client` needs to know; one configuration drives every client.

    Args:
        client_type: "openai_chat_completions" (messages in), "openai_chat_completions_token" (tokens in, the
            engine parses the answer) or "renderer" (tokens in and out, everything else happens here).
        client_idx: Which of `endpoint_configs` is used, modulo their number.
        api_base_url: The server, with or without a trailing `/v1`.
        api_key_var: Name of the environment variable that holds the key; None sends no key.
        renderer: A tokenizer folder or a name in the local Hugging Face cache, "embedded" for the shipped model's,
            "none", or "auto": `renderer_model_name`, else none.
        renderer_model_name: Tokenizer folder for "auto", or a name in the local Hugging Face cache, where the
            served name is an alias or an adapter.
        renderer_transport: "vllm" (also None), "dynamo" or "sglang": whose wire is spoken.
        dynamo_route: How ids travel to a Dynamo frontend: "generate" (`/inference/v1/generate`), "token_data"
            (`nvext.token_data` on its chat route), or "auto": the renderer client asks the frontend once whether
            it serves the first; the token client takes the second, where the frontend parses.
        template_kwargs: Variables for the chat template, such as `enable_thinking`.
        spelled_markers: What becomes of message text that spells a special token: "as_template" makes it that
            token, as engines do; "escape" keeps it plain text, for the client type "renderer" only.
        fast_tokenizer: A faster library for ids, where it proves equal to `tokenizers`: "off", "gigatoken", or
            "auto", which is that where it is installed.
        tool_parser: None and "auto" derive it from the template; another name must be the derived one.
        reasoning_parser: None and "auto" derive it from the template; another value must be its opening marker.
        bridge_tokenizer: Who tokenizes a bridge for the token client: "local" (the renderer), "engine" (the route
            `/tokenize`), or "auto": local where there is a renderer.
        on_rewrite: What a turn does whose history the template would now write otherwise (old reasoning is cut,
            tools move): "extend" keeps what was sampled; "splice" removes the ids of what the template removes,
            and keeps every other one; "rerender" opens a new branch and "refuse" is an error. All but the first
            render every prompt in full to know.
        on_unsupported: What a parameter that the engine cannot take does: "raise", or "warn" and leave it out.
        clip_max_tokens: Lower `max_tokens` to the room that is left, where the engine refuses it as too large.
        measure_logprobs: Find out what the endpoint's log-probabilities mean, by a few requests for few tokens
            behind the first turn for which it matters; else such turns say "unknown".
        cache_salt_by_version: Put the policy version of each turn into its cache salt; needs a clock.
        resume_aborted: How often a turn that the engine gave up is continued from its exact ids; for "renderer".
        data_parallel_rank: Sent as `X-data-parallel-rank`; on SGLang's `/generate`, in the body.
        timeout: Seconds for one whole request.
        connect_timeout: Seconds for one TCP and TLS handshake.
        max_connections: Open at once; further requests wait.
        max_retries: Repetitions of one request that could not be sent or was told to come later.
        extra_headers: Sent with every request.
        extra_headers_from_state: Header names by the key of the rollout's state whose value they carry.
        allow_auth_headers: Let `extra_headers` and a call's own headers replace the key's authentication.
        endpoint_configs: Several servers; see `resolve`.
        fleet: Use all of `endpoint_configs` as one engine, sticky by session, and not the one of `client_idx`.

    Raises:
        ConfigError: A value is wrong; names field, value and what is allowed.
    """

    client_type: str = "openai_chat_completions"
    client_idx: int = 0
    api_base_url: str = "http://127.0.0.1:8000/v1"
    api_key_var: str | None = None
    renderer: str = "auto"
    renderer_model_name: str | None = None
    renderer_transport: str | None = "vllm"
    dynamo_route: str = "auto"
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    spelled_markers: str = "as_template"
    fast_tokenizer: str = "off"
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    bridge_tokenizer: str = "auto"
    on_rewrite: str = "extend"
    on_unsupported: str = "raise"
    clip_max_tokens: bool = False
    measure_logprobs: bool = True
    cache_salt_by_version: bool = False
    resume_aborted: int = 0
    data_parallel_rank: int | None = None
    timeout: float = 3600.0
    connect_timeout: float = 5.0
    max_connections: int = 28000
    max_retries: int = 10
    extra_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    extra_headers_from_state: Mapping[str, str] = field(default_factory=dict)
    allow_auth_headers: bool = False
    endpoint_configs: tuple[EndpointConfig, ...] = ()
    fleet: bool = False

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.spelled_markers == "escape" and self.client_type != "renderer":
            raise ConfigError(
                f"ClientConfig.spelled_markers='escape' needs client_type='renderer', not {self.client_type!r}: "
                f"there the engine renders prompts as the template does, and nothing can be kept plain text"
            )
        if self.on_rewrite != "extend" and self.client_type == "openai_chat_completions":
            raise ConfigError(
                f"ClientConfig.on_rewrite={self.on_rewrite!r} is not for client_type={self.client_type!r}: there "
                f"the engine renders every prompt anew"
            )
        if self.dynamo_route != "auto" and self.renderer_transport != "dynamo":
            raise ConfigError(
                f"ClientConfig.dynamo_route={self.dynamo_route!r} is for renderer_transport='dynamo', not "
                f"{self.renderer_transport!r}"
            )
        if self.api_key_var is not None and not self.allow_auth_headers:
            for name in self.extra_headers:
                if name.lower() in AUTHORIZATION_HEADERS:
                    raise ConfigError(
                        f"ClientConfig.extra_headers[{name!r}] would replace the authentication of api_key_var="
                        f"{self.api_key_var!r}; drop one of them, or set allow_auth_headers"
                    )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "config") -> ClientConfig:
        """Read a configuration from plain data.

        Raises:
            ConfigError: An unknown key or a wrong value; names it and what is allowed.
        """
        _check_names(values, tuple(each.name for each in fields(cls)), where)
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path) -> ClientConfig:
        """Read a `.toml` or `.json` file, whose top level is the configuration.

        Raises:
            ConfigError: The file cannot be read, or as `from_mapping`.
        """
        file = Path(path)
        if file.suffix not in (".toml", ".json"):
            raise ConfigError(f"{file}: a configuration is a .toml or .json file")
        try:
            text = file.read_text(encoding="utf-8")
            values = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
        except (OSError, ValueError) as exc:
            raise ConfigError(f"{file} cannot be read as {file.suffix[1:].upper()}: {exc}") from exc
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: the top level must be an object, not a {type(values).__name__}")
        return cls.from_mapping(values, str(file))

    def resolve(self, client_idx: int | None = None) -> ClientConfig:
        """The configuration of one endpoint: its own values where given, this one's otherwise.

        Args:
            client_idx: Taken modulo the number of endpoints; None means `self.client_idx`.
        """
        index = self.client_idx if client_idx is None else client_idx
        if not self.endpoint_configs:
            return replace(self, client_idx=index)
        endpoint = self.endpoint_configs[index % len(self.endpoint_configs)]
        return replace(self, **{"client_idx": index, **endpoint.given(), "endpoint_configs": ()})

    def resolve_all(self) -> tuple[ClientConfig, ...]:
        """The configurations of all endpoints, in order; of this one when there are none."""
        return tuple(self.resolve(index) for index in range(max(len(self.endpoint_configs), 1)))

    def api_key(self) -> str | None:
        """The key from the environment, or None when no variable is configured.

        Raises:
            ConfigError: The variable is not set, or empty.
        """
        if self.api_key_var is None:
            return None
        key = os.environ.get(self.api_key_var, "")
        if not key:
            raise ConfigError(
                f"ClientConfig.api_key_var={self.api_key_var!r}: this environment variable is not set or empty"
            )
        return key

    def headers_from_state(self, state: Mapping[str, object]) -> dict[str, str]:
        """The headers of one rollout's calls; keys that `state` lacks, or has as None, give no header."""
        wanted = {name: state.get(key) for name, key in self.extra_headers_from_state.items()}
        return {name: str(value) for name, value in wanted.items() if value is not None}
