"""uvicorn inside our own process: our signals, our logs, our port, our TLS, a bounded stop.

With TLS a client may show a certificate of the authority; whether one did stands in the request's scope, as ASGI's TLS
extension has it. The files are looked at again every second, and new connections take the new ones.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from streamserve.router.fronts.openai.connection import Connection
from streamserve.runtime import logs
from streamserve.runtime.errors import AddressInUse, SetupError
from streamserve.runtime.grpc import split_address
from streamserve.runtime.tls import TlsFiles

_START_SECONDS = 10.0
_LOOK_SECONDS = 1.0
_log = logs.get(__name__)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process handles its signals itself."""
        yield


class HttpServer:
    """Serves `app` on one address."""

    def __init__(self, address: str, app: ASGIApp, *, tls: TlsFiles | None = None) -> None:
        self.address = address
        self._app = app
        self._tls = tls
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._renewal: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Bind and serve. Returns the bound host:port. Raises AddressInUse."""
        host, port = split_address(self.address)
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            listener.close()
            raise AddressInUse(self.address) from None
        bound = listener.getsockname()[1]
        identity = None if self._tls is None else _Identity(self._tls)
        config = uvicorn.Config(
            self._app,
            http=Connection,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=75,
            ws="none",
            ssl_context_factory=None if identity is None else lambda config, default: identity.context,
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="http")
        async with asyncio.timeout(_START_SECONDS):
            while not self._server.started:
                if self._task.done():
                    await self._task
                await asyncio.sleep(0.005)
        if identity is not None:
            self._renewal = asyncio.create_task(identity.follow(), name="http certificate")
        self.address = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
        return self.address

    async def stop(self, grace_seconds: float) -> None:
        """Close the port, let what runs end within the grace, cut the rest."""
        if self._server is None or self._task is None:
            return
        if self._renewal is not None:
            self._renewal.cancel()
        self._server.config.timeout_graceful_shutdown = max(1, int(grace_seconds))
        self._server.should_exit = True
        done, _ = await asyncio.wait({self._task}, timeout=grace_seconds + 2.0)
        if not done:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1.0)


class _Identity:
    """The context that new connections take. It is replaced as a whole: what is loaded into one adds to what is there,
    so a certificate of another kind, or an authority that is not trusted any more, would stay in it."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises SetupError."""
        self._files = files
        self._seen = files.stamp()
        self._complaint = ""
        self._current = _context(files)
        self.context = _context(files)
        self.context.sni_callback = self._choose

    async def follow(self) -> None:
        """Until cancelled: take files that were replaced; keep what works where they make no identity."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = self._files.stamp()
            if now == self._seen:
                continue
            try:
                self._current = _context(self._files)
            except SetupError as error:
                if str(error) != self._complaint:
                    _log.warning("the HTTP port keeps its certificate: %s", error)
                self._complaint = str(error)
            else:
                self._seen, self._complaint = now, ""
                _log.info("the HTTP port serves a new certificate")

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called at each ClientHello, with or without a name in it."""
        connection.context = self._current


def _context(files: TlsFiles) -> ssl.SSLContext:
    """Raises SetupError."""
    ca, _, _ = files.read()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    # A resumed session shows the certificate of its beginning, whatever is trusted by now. Without tickets TLS 1.3 has
    # none; the cache of TLS 1.2's cannot be switched off from Python.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    try:
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(cadata=ca.decode("ascii"))
    except (OSError, ValueError) as error:
        raise SetupError(f"{files.certificate}, its key and {files.ca} do not make an identity: {error}") from None
    return context
