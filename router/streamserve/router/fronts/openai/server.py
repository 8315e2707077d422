"""uvicorn inside our own process: our signals, our logs, our port, a bounded stop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from streamserve.runtime.errors import AddressInUse
from streamserve.runtime.grpc import split_address
from streamserve.runtime.tls import TlsFiles

_START_SECONDS = 10.0


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
        config = uvicorn.Config(
            self._app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=75,
            ssl_certfile=str(self._tls.certificate) if self._tls else None,
            ssl_keyfile=str(self._tls.key) if self._tls else None,
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="http")
        async with asyncio.timeout(_START_SECONDS):
            while not self._server.started:
                if self._task.done():
                    await self._task
                await asyncio.sleep(0.005)
        self.address = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
        return self.address

    async def stop(self, grace_seconds: float) -> None:
        """Close the port, let what runs end within the grace, cut the rest."""
        if self._server is None or self._task is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, int(grace_seconds))
        self._server.should_exit = True
        done, _ = await asyncio.wait({self._task}, timeout=grace_seconds + 2.0)
        if not done:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1.0)
