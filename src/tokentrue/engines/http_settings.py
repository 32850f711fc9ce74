"""What a caller sets for an `HttpEngine`, checked: the server's address and the headers. No network."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from tokentrue.config import AUTHORIZATION_HEADERS
from tokentrue.errors import ConfigError


def root_of(base_url: str) -> str:
    """The server's root: `base_url` without a trailing slash and without a trailing `/v1`.

    Raises:
        ConfigError: It is no http(s) URL, or carries a user, a password, a query or a fragment.
    """
    url = base_url.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port != 0
    except ValueError as exc:
        raise ConfigError(f"base_url is no URL: {exc}") from exc
    if "@" in parts.netloc:
        raise ConfigError("base_url carries a user or a password; give the key as api_key")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid:
        raise ConfigError(f"base_url must be http://host[:port][/path] or https://..., not {base_url!r}")
    if parts.query or parts.fragment:
        raise ConfigError(f"base_url must have no query and no fragment: {base_url!r}")
    return url.removesuffix("/v1").rstrip("/")


def checked_headers(headers: Mapping[str, str], what: str) -> dict[str, str]:
    """The headers as a new dict.

    Args:
        what: Their name, for the error.

    Raises:
        ConfigError: A name or value is no text, or has a line break.
    """
    checked: dict[str, str] = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not name or not isinstance(value, str):
            raise ConfigError(f"{what} must map non-empty names to text: {name!r} does not")
        if any(mark in name + value for mark in "\r\n\0"):
            raise ConfigError(f"{what}[{name!r}] holds a line break")
        checked[name] = value
    return checked


def secrets_in(headers: Mapping[str, str]) -> list[bytes]:
    """The keys that these headers carry."""
    values = (text for name, text in headers.items() if name.lower() in AUTHORIZATION_HEADERS)
    return [secret.encode() for text in values if (secret := text.removeprefix("Bearer "))]
