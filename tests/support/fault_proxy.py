"""What stands between an operator and the API server, and can make everything go wrong that may.

    with FaultProxy(server) as proxy:
        proxy.url                                              # http://127.0.0.1:…, for the operator's kubeconfig
        proxy.faults.append(Fault(500, times=3))               # see Fault: what, for whom, how often
        proxy.after_write = lambda number: operator.kill()     # the server has done it, the operator does not know
        proxy.go_down()                                        # nobody answers, and who was answered is cut off;
                                                               # how many ask is counted (`refused`)
        proxy.watches = WatchFaults(rng, duplicate=0.3)        # what becomes of each event of a watch

Writes are counted as the server answers them (`writes`: method and path), those of Leases and Events left out: they
are the operator's own, and change nothing that another could see as half done. What was asked for at all is kept once
each in `answered`. Everything is on the loopback. The proxy speaks HTTP to the operator and TLS to the server, in a
thread with a loop of its own.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Final, NamedTuple, Self

import aiohttp
from aiohttp import web
from tests.support.api_server import ApiServer

WRITES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
OWN: Final = ("/leases", "/events")
HANG_SECONDS: Final = 60.0
HELD_SECONDS: Final = 0.3
START_SECONDS: Final = 30.0
_HOP: Final = frozenset({"connection", "transfer-encoding", "content-length", "content-encoding", "keep-alive", "host"})


def is_write(method: str, path: str) -> bool:
    return method in WRITES and not any(own in path for own in OWN)


class Answered(NamedTuple):
    method: str
    path: str
    watch: bool
    status: int


@dataclass(slots=True)
class Fault:
    """Happens to the next `times` requests that `where` is true of. `status` 0: no answer at all (HANG_SECONDS).

    `reaches_server`: the server does it, and only its answer is lost. Otherwise it never hears of it.
    `after_seconds`: as a webhook that hangs makes the answer wait.
    """

    status: int
    times: int = 1
    after_seconds: float = 0.0
    where: Callable[[str, str], bool] = is_write
    reaches_server: bool = False
    happened: int = 0

    def takes(self, method: str, path: str) -> bool:
        if self.times <= 0 or not self.where(method, path):
            return False
        self.times -= 1
        self.happened += 1
        return True


@dataclass(slots=True)
class WatchFaults:
    """Shares of a watch's events. `reorder`: the event comes after the next one of the same object (a swap), or once
    the watch has had nothing to say for HELD_SECONDS. `stale`: an earlier event comes again, long after its time."""

    rng: Random
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    stale: float = 0.0
    happened: int = 0
    swaps: int = 0
    _past: list[bytes] = field(default_factory=list)

    def lines(self, line: bytes, held: dict[str, bytes]) -> list[bytes]:
        """What the operator gets where the server said `line`. `held` keeps, by object, what comes later than it
        should."""
        said = json.loads(line)
        if said.get("type") not in ("ADDED", "MODIFIED", "DELETED"):
            return [line]
        name = said["object"]["metadata"]["name"]
        self._past = [*self._past[-50:], line]
        roll = self.rng.random
        now = [] if roll() < self.drop else [line]
        if roll() < self.duplicate:
            now *= 2
        if now and name not in held and roll() < self.reorder:
            held[name] = line
            self.happened += 1
            return now[1:]
        late = held.pop(name, None) if now else None
        self.swaps += late is not None
        out = [*now, *([] if late is None else [late])]
        if roll() < self.stale:
            out.append(self.rng.choice(self._past))
        self.happened += out != [line]
        return out


class FaultProxy:
    def __init__(self, server: ApiServer) -> None:
        self.faults: list[Fault] = []
        self.writes: list[str] = []
        self.answered: set[Answered] = set()
        self.before_write: Callable[[str, bytes], None] | None = None
        self.after_write: Callable[[int], None] | None = None
        self.watches: WatchFaults | None = None
        self.down = False
        self.refused = 0
        self.port = 0
        self._server = server
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="fault-proxy", daemon=True)
        self._session: aiohttp.ClientSession | None = None
        self._watched: set[asyncio.WriteTransport] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(START_SECONDS), "the proxy did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_SECONDS)
        assert not self._thread.is_alive(), "the proxy did not end"

    def go_down(self) -> None:
        assert self._loop is not None
        self.down = True
        self._loop.call_soon_threadsafe(self._cut_all)

    def undisturbed(self) -> None:
        """From now on everything passes as it is."""
        self.faults.clear()
        self.before_write, self.after_write, self.watches, self.down = None, None, None, False

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        context = ssl.create_default_context(cafile=str(self._server.directory / "certificates" / "apiserver.crt"))
        connector = aiohttp.TCPConnector(limit=0, ssl=context)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
            self._session = session
            app = web.Application(client_max_size=16 * 2**20)
            app.router.add_route("*", "/{path:.*}", self._handle)
            runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.5, access_log=None)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.port = runner.addresses[0][1]
            self._up.set()
            try:
                await self._stop.wait()
            finally:
                await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        method, path = request.method, request.path
        if self.down:
            self.refused += 1
            return self._cut(request)
        fault = next((each for each in list(self.faults) if each.takes(method, path)), None)
        if fault is not None and not fault.reaches_server:
            return await self._spoil(fault, request)
        assert self._session is not None
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _HOP}
        headers["Accept-Encoding"] = "identity"
        url = f"https://127.0.0.1:{self._server.port}{request.path_qs}"
        data = await request.read()
        if self.before_write is not None and is_write(method, path):
            self.before_write(path, data)
        async with self._session.request(method, url, data=data, headers=headers) as answer:
            watch = "watch=true" in request.query_string
            self.answered.add(Answered(method, path, watch, answer.status))
            if watch:
                return await self._watch(request, answer)
            body = await answer.read()
        if is_write(method, path) and answer.status < 400:
            self.writes.append(f"{method} {path}")
            if self.after_write is not None:
                self.after_write(len(self.writes))
        if fault is not None:
            return await self._spoil(fault, request)
        return web.Response(status=answer.status, body=body, headers=_kept(answer))

    async def _spoil(self, fault: Fault, request: web.Request) -> web.StreamResponse:
        if fault.status == 0:
            await asyncio.sleep(HANG_SECONDS)
            return self._cut(request)
        await asyncio.sleep(fault.after_seconds)
        said = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": fault.status, "message": "planted"}
        headers = {"Retry-After": "1"} if fault.status == 429 else {}
        return web.json_response(said, status=fault.status, headers=headers)

    async def _watch(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=_kept(answer))
        await response.prepare(request)
        transport = request.transport
        assert transport is not None
        self._watched.add(transport)
        held: dict[str, bytes] = {}
        buffer = b""
        try:
            while True:
                try:
                    async with asyncio.timeout(HELD_SECONDS if held else None):
                        data = await answer.content.readany()
                except TimeoutError:
                    for sent in _all(held):
                        await response.write(sent + b"\n")
                    continue
                if not data:
                    break
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    faults = self.watches
                    for sent in [line, *_all(held)] if faults is None else faults.lines(line, held):
                        await response.write(sent + b"\n")
        finally:
            self._watched.discard(transport)
        return response

    def _cut_all(self) -> None:
        for transport in list(self._watched):
            transport.abort()

    def _cut(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=503)


def _all(held: dict[str, bytes]) -> list[bytes]:
    given = list(held.values())
    held.clear()
    return given


def _kept(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {key: value for key, value in answer.headers.items() if key.lower() not in _HOP}
