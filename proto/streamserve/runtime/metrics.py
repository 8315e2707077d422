"""/metrics, /healthz and /readyz of a process, on a port of its own.

One gauge is the same in every process and made here: how many asyncio tasks are alive. gRPC runs each call that a
server is at in a task of its own, so a call or a background task that nobody ends shows as a number that stays up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from streamserve.runtime.errors import AddressInUse
from streamserve.runtime.grpc import split_address

Check = Callable[[], str | None]
_READ_SECONDS = 5.0
_MAX_CONNECTIONS = 64


class HealthServer:
    """A small HTTP/1.1 server for GET only. A check returns None when all is well, else the reason (503)."""

    def __init__(self, address: str, *, registry: CollectorRegistry, live: Check, ready: Check) -> None:
        self.address = address
        self._registry = registry
        alive = Gauge("streamserve_process_tasks", "asyncio tasks that are alive now", registry=registry)
        alive.set_function(lambda: len(asyncio.all_tasks()))
        self._checks = {"/healthz": live, "/readyz": ready}
        self._server: asyncio.Server | None = None
        self._open = 0

    async def start(self) -> str:
        """Bind and serve. Returns the bound host:port. Raises AddressInUse."""
        host, port = split_address(self.address)
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=8_192)
        except OSError:
            raise AddressInUse(self.address) from None
        bound = self._server.sockets[0].getsockname()[1]
        self.address = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
        return self.address

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._server.wait_closed(), 2.0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= _MAX_CONNECTIONS:
                async with asyncio.timeout(_READ_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head))
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that says nothing sensible gets nothing
        finally:
            self._open -= 1
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        parts = head.split(b"\r\n", 1)[0].split(b" ")
        method, path = (parts[0], parts[1].split(b"?")[0].decode("latin-1")) if len(parts) == 3 else (b"", "")
        if method != b"GET":
            return _response(405, "text/plain", b"only GET\n")
        if path == "/metrics":
            return _response(200, CONTENT_TYPE_LATEST, generate_latest(self._registry))
        if path in self._checks:
            reason = self._checks[path]()
            return _response(200 if reason is None else 503, "text/plain", f"{reason or 'ok'}\n".encode())
        return _response(404, "text/plain", b"try /metrics, /healthz or /readyz\n")


def _response(status: int, content_type: str, body: bytes) -> bytes:
    phrase = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}[status]
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
