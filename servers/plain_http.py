"""One HTTP exchange without a connection pool, for tests that look at a server's bare reply."""

from __future__ import annotations

import urllib.error
import urllib.request

from tokentrue.transports.transport import HttpCall, HttpReply


def exchange(root_url: str, call: HttpCall, timeout_s: float = 60.0) -> HttpReply:
    """Make `call` and read the whole reply, whatever its status."""
    sent = urllib.request.Request(root_url + call.path, call.body or None, dict(call.headers), method=call.method)
    try:
        with urllib.request.urlopen(sent, timeout=timeout_s) as answer:
            return HttpReply(answer.status, {}, answer.read())
    except urllib.error.HTTPError as refused:
        with refused:
            return HttpReply(refused.code, {}, refused.read())
