"""One HTTP connection: which certificate its client showed, and how long it may be held for nothing.

uvicorn bounds how long a connection rests after a response. Not bounded by it, and bounded here:

    a request whose head does not come    HEAD_SECONDS from the connection's or the request's begin
    a last answer that nobody reads       FLUSH_SECONDS without a byte going out, once the connection is to close
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS: Final = 30.0
FLUSH_SECONDS: Final = 10.0


class Connection(HttpToolsProtocol):
    """uvicorn's, with those two bounds. The certificate stands in the request's scope, as ASGI's TLS extension has
    it."""

    _head: asyncio.TimerHandle | None = None
    _end: _BoundedEnd | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._end = _BoundedEnd(transport, self.loop)
        # What asks for the end, uvicorn's own parts too, asks this.
        self.transport = self._end  # type: ignore[assignment]
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        if self._end is not None:
            self._end.came()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()
        tls = self.transport.get_extra_info("ssl_object")
        if tls is not None:
            shown = tls.getpeercert(binary_form=True)
            chain = [ssl.DER_cert_to_PEM_cert(shown)] if shown else []
            self.scope["extensions"] = {"tls": {"client_cert_chain": chain}}

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head_came()
        self._head = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _head_came(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


class _BoundedEnd:
    """A transport whose `close` waits for its reader no longer than that reads."""

    __slots__ = ("_loop", "_over", "_timer", "_transport", "_unread")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._unread = 0
        self._over = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._transport.close()
        if self._timer is None and not self._over:
            self._watch()

    def came(self) -> None:
        """The connection has ended."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self) -> None:
        self._unread = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(FLUSH_SECONDS, self._look)

    def _look(self) -> None:
        if self._transport.get_write_buffer_size() < self._unread:
            self._watch()
        else:
            self._transport.abort()
