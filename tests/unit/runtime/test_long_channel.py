"""A channel whose certificate is replaced while it is in use: new calls show the new one, running ones go on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.support.leaves import Mounted, Pem, Signer

from streamserve.runtime.grpc import GrpcServer
from streamserve.runtime.long_channel import LOOK_SECONDS, LongChannel

NOW = datetime.now(UTC)
SIGNER = Signer(begins=NOW - timedelta(hours=2), ends=NOW + timedelta(hours=2))
SERVER, FIRST, SECOND = (SIGNER.leaf(begins=NOW - timedelta(hours=1), life=timedelta(hours=2)) for _ in range(3))
SHOWN = "/test.Test/Shown"
COUNT = "/test.Test/Count"


class Methods:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.shown = channel.unary_unary(SHOWN)
        self.count = channel.unary_stream(COUNT)


class Bench:
    """A server, and a channel to it whose clock stands still."""

    def __init__(self, folder: Path) -> None:
        self.now = 100.0
        self.go_on = asyncio.Semaphore(0)
        self.mounted = Mounted(folder / "client", SIGNER, FIRST)
        self.server = GrpcServer("127.0.0.1:0", services=(), tls=Mounted(folder / "server", SIGNER, SERVER).files)
        methods = {
            "Shown": grpc.unary_unary_rpc_method_handler(self._shown),
            "Count": grpc.unary_stream_rpc_method_handler(self._count),
        }
        self.server.server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Test", methods)])
        self.channel: LongChannel[Methods]

    async def start(self) -> None:
        address = await self.server.start()
        self.channel = LongChannel(address, self.mounted.files, Methods, clock=lambda: self.now)

    async def shown(self) -> bytes:
        """The certificate that the server is shown by a new call."""
        answer: bytes = await self.channel.start(lambda methods: methods.shown(b"", timeout=10))
        return answer

    def count(self) -> Any:
        """A stream of numbers; the server sends the next one when it is let."""
        return self.channel.start(lambda methods: methods.count(b"", timeout=60))

    async def _shown(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        found: bytes = context.auth_context()["x509_pem_cert"][0]
        return found

    async def _count(self, request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        for number in range(256):
            await self.go_on.acquire()
            yield bytes([number])


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    await made.start()
    yield made
    await made.channel.close()
    await made.server.stop(0)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (what is waited for is a private matter)
            await asyncio.sleep(0.01)


async def test_files_that_stay_keep_their_channel(bench: Bench) -> None:
    first = bench.channel._line
    for _ in range(3):
        bench.now += LOOK_SECONDS
        assert await bench.shown() == FIRST[0]
    assert bench.channel._line is first
    assert first.running == 0


async def test_new_calls_show_the_new_certificate_and_a_running_stream_goes_on_over_the_old_connection(
    bench: Bench,
) -> None:
    stream, old = bench.count(), bench.channel._line.channel
    bench.go_on.release()
    assert await stream.read() == b"\x00"
    bench.mounted.replace(SECOND)
    bench.now += LOOK_SECONDS
    assert await bench.shown() == SECOND[0]
    for number in (1, 2, 3):
        bench.go_on.release()
        assert await stream.read() == bytes([number])
    assert not is_closed(old)
    stream.cancel()
    await until(lambda: is_closed(old))
    assert await bench.shown() == SECOND[0]


async def test_an_old_channel_without_calls_is_closed_at_once(bench: Bench) -> None:
    assert await bench.shown() == FIRST[0]
    old = bench.channel._line.channel
    bench.mounted.replace(SECOND)
    bench.now += LOOK_SECONDS
    assert await bench.shown() == SECOND[0]
    assert is_closed(old)


async def test_an_old_channel_is_closed_with_the_last_of_its_calls_not_the_first(bench: Bench) -> None:
    streams, old = [bench.count() for _ in range(3)], bench.channel._line.channel
    bench.mounted.replace(SECOND)
    bench.now += LOOK_SECONDS
    assert await bench.shown() == SECOND[0]
    for stream in streams:
        assert not is_closed(old)
        stream.cancel()
        await asyncio.sleep(0.05)
    await until(lambda: is_closed(old))


async def test_it_looks_once_a_second_at_most(bench: Bench) -> None:
    bench.mounted.replace(SECOND)
    bench.now += 0.99 * LOOK_SECONDS
    assert await bench.shown() == FIRST[0]
    bench.now += 0.02 * LOOK_SECONDS
    assert await bench.shown() == SECOND[0]


def half_written(mounted: Mounted, pem: Pem) -> None:
    """Files that are written one after another: so far only the certificate."""
    link = mounted.files.certificate
    link.unlink()
    link.write_bytes(pem[0])


SPOILED: dict[str, Callable[[Mounted], object]] = {
    "the certificate is there and its key is not yet": lambda mounted: half_written(mounted, SECOND),
    "a file is missing": lambda mounted: mounted.files.key.unlink(),
    "a file is empty": lambda mounted: os.truncate(mounted.files.certificate, 0),
    "the authority is nonsense": lambda mounted: mounted.files.ca.write_bytes(b"nonsense"),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
async def test_files_that_do_not_fit_together_are_not_taken_and_better_ones_are(
    bench: Bench, spoil: Callable[[Mounted], object]
) -> None:
    spoil(bench.mounted)
    bench.now += LOOK_SECONDS
    assert await bench.shown() == FIRST[0]
    for name, content in (("ca.crt", SIGNER.pem[0]), ("tls.crt", SECOND[0]), ("tls.key", SECOND[1])):
        fresh = bench.mounted.files.ca.parent / f"new-{name}"
        fresh.write_bytes(content)
        fresh.replace(bench.mounted.files.ca.parent / name)
    bench.now += LOOK_SECONDS
    assert await bench.shown() == SECOND[0]


async def test_closing_ends_the_calls_of_every_channel_and_none_is_made_any_more(bench: Bench) -> None:
    streams = [bench.count()]
    bench.mounted.replace(SECOND)
    bench.now += LOOK_SECONDS
    streams.append(bench.count())
    reads = [asyncio.ensure_future(ends(stream.read())) for stream in streams]
    await asyncio.sleep(0.1)
    async with asyncio.timeout(10):
        await bench.channel.close()
        assert await asyncio.gather(*reads) == ["cancelled", "cancelled"]
    last = bench.channel._line
    bench.mounted.replace(FIRST)
    bench.now += LOOK_SECONDS
    with pytest.raises(grpc.aio.UsageError):
        bench.count()
    assert bench.channel._line is last


async def test_without_tls_there_is_one_channel_for_ever(bench: Bench) -> None:
    plain = LongChannel("127.0.0.1:1", None, Methods, clock=lambda: bench.now)
    first = plain._line
    bench.now += 10 * LOOK_SECONDS
    with pytest.raises(grpc.aio.AioRpcError):
        await plain.start(lambda methods: methods.shown(b"", timeout=5))
    assert plain._line is first
    await plain.close()


async def ends(reading: Awaitable[bytes]) -> str:
    try:
        await reading
    except asyncio.CancelledError:
        return "cancelled"
    return "read"


def is_closed(channel: grpc.aio.Channel) -> bool:
    return channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
