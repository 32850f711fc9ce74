"""Every exception that aiohttp's client can raise has one translation."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import client_exceptions

from tokentrue.engines.http import error_from
from tokentrue.errors import (
    ConfigError,
    ConnectionFailedError,
    ConnectionLostError,
    EngineTimeoutError,
    MalformedReplyError,
)

EXPECTED = {
    "ClientError": ConnectionLostError,
    "ClientConnectionError": ConnectionLostError,
    "ClientConnectionResetError": ConnectionLostError,
    "ClientOSError": ConnectionLostError,
    "ClientPayloadError": ConnectionLostError,
    "UploadAbortedError": ConnectionLostError,
    "ServerConnectionError": ConnectionLostError,
    "ServerDisconnectedError": ConnectionLostError,
    "ClientConnectorError": ConnectionFailedError,
    "ClientConnectorDNSError": ConnectionFailedError,
    "ClientProxyConnectionError": ConnectionFailedError,
    "ClientSSLError": ConnectionFailedError,
    "ClientConnectorSSLError": ConnectionFailedError,
    "ClientConnectorCertificateError": ConnectionFailedError,
    "ServerFingerprintMismatch": ConnectionFailedError,
    "ServerTimeoutError": EngineTimeoutError,
    "ConnectionTimeoutError": EngineTimeoutError,
    "SocketTimeoutError": EngineTimeoutError,
    "ClientResponseError": MalformedReplyError,
    "ClientHttpProxyError": MalformedReplyError,
    "WSServerHandshakeError": MalformedReplyError,
    "ContentTypeError": MalformedReplyError,
    "InvalidURL": ConfigError,
    "InvalidUrlClientError": ConfigError,
    "NonHttpUrlClientError": ConfigError,
    "RedirectClientError": ConfigError,
    "InvalidUrlRedirectClientError": ConfigError,
    "NonHttpUrlRedirectClientError": ConfigError,
}


def client_exception_names() -> list[str]:
    """Every client exception of the installed aiohttp, those of later releases included."""
    classes = [getattr(client_exceptions, name) for name in client_exceptions.__all__]
    classes += [item for item in vars(aiohttp).values() if isinstance(item, type)]
    return sorted({item.__name__ for item in classes if issubclass(item, aiohttp.ClientError)})


@pytest.mark.parametrize("name", client_exception_names())
def test_each_class_is_mapped(name) -> None:
    known = {
        **EXPECTED,
        "TooManyRedirects": MalformedReplyError,
        "UnixClientConnectorError": ConnectionFailedError,
    }
    assert name in known, f"aiohttp has a client exception {name} that nobody has looked at"
    kind = getattr(client_exceptions, name, None) or getattr(aiohttp, name)
    error = error_from(kind.__new__(kind), "POST http://h/")
    assert type(error) is known[name]
    assert "POST http://h/" in str(error)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (TimeoutError(), EngineTimeoutError),
        (ConnectionResetError(104, "reset"), ConnectionLostError),
        (OSError(24, "too many open files"), ConnectionLostError),
    ],
)
def test_what_sockets_raise_is_mapped(raised, expected) -> None:
    assert type(error_from(raised, "GET http://h/")) is expected
