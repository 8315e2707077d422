"""A channel that outlives its certificate, for a peer that is talked to for as long as the process runs.

A gRPC channel keeps the files that it was made with: when it has to connect anew, it would show a certificate that has
expired meanwhile. So `start` looks whether the files were replaced, at most once every LOOK_SECONDS (three `stat`s;
between two looks it costs a comparison). If they were, new calls go over a new channel. The old one gets no more and
is closed when its last call has ended, so streams go on as if nothing had happened. (gRPC's own graceful close would
do, but cannot be hastened when the peer is gone.)

Files that are just being written, or do not fit together, are left for the next look: what works stays in use.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import grpc

from streamserve.runtime import grpc as transport
from streamserve.runtime.errors import SetupError
from streamserve.runtime.tasks import Tasks
from streamserve.runtime.tls import TlsFiles

LOOK_SECONDS: Final = 1.0
Methods = TypeVar("Methods")
Running = TypeVar("Running", bound=grpc.aio.Call)


class _Line(Generic[Methods]):
    """One channel, and how many calls run on it."""

    def __init__(self, channel: grpc.aio.Channel, methods: Methods) -> None:
        self.channel = channel
        self.methods = methods
        self.running = 0


class LongChannel(Generic[Methods]):
    """`make` gives the methods that are called on a channel; it is asked once for each channel."""

    def __init__(
        self,
        address: str,
        tls: TlsFiles | None,
        make: Callable[[grpc.aio.Channel], Methods],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises SetupError for files that cannot be read."""
        self._address = address
        self._tls = tls
        self._make = make
        self._clock = clock
        # Before the files are read: what is replaced in between is seen at the next look.
        self._stamp = () if tls is None else tls.stamp()
        self._looked_at = clock()
        self._line = self._dial()
        self._retired: set[_Line[Methods]] = set()
        self._tasks = Tasks(f"channel {address}")
        self._closed = False

    def start(self, begin: Callable[[Methods], Running]) -> Running:
        """The call that `begin` starts on the newest channel. It needs a deadline: until it ends, the channel stays.
        Raises grpc.aio.UsageError after `close`."""
        self.newest()
        line = self._line
        call = begin(line.methods)
        line.running += 1
        call.add_done_callback(lambda _: self._ended(line))
        return call

    def newest(self) -> Methods:
        """The methods on the newest channel, for a call that lasts: when they are others than those that it was begun
        with, it stands on an old channel, and holds it until it ends."""
        if self._tls is not None and self._clock() - self._looked_at >= LOOK_SECONDS and not self._closed:
            self._looked_at = self._clock()
            self._look(self._tls)
        return self._line.methods

    async def close(self) -> None:
        """Calls in flight are cancelled, on every channel."""
        self._closed = True
        await self._tasks.stop()
        for line in (*self._retired, self._line):
            await line.channel.close()

    def _look(self, tls: TlsFiles) -> None:
        stamp = tls.stamp()
        if not stamp or stamp == self._stamp or not _fit(tls):
            return
        try:
            fresh = self._dial()
        except SetupError:
            return
        old, self._line, self._stamp = self._line, fresh, stamp
        self._retired.add(old)
        self._close_unless_used(old)

    def _dial(self) -> _Line[Methods]:
        channel = transport.channel(self._address, self._tls)
        return _Line(channel, self._make(channel))

    def _ended(self, line: _Line[Methods]) -> None:
        line.running -= 1
        if line in self._retired:
            self._close_unless_used(line)

    def _close_unless_used(self, line: _Line[Methods]) -> None:
        if line.running == 0 and not self._closed:
            self._retired.discard(line)
            self._tasks.spawn("close", line.channel.close())


def _fit(tls: TlsFiles) -> bool:
    """A certificate with another's key would fail at every handshake, and gRPC does not say so before."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_cert_chain(tls.certificate, tls.key, password="")
        context.load_verify_locations(tls.ca)
    except (OSError, ssl.SSLError, ValueError):
        return False
    return True
