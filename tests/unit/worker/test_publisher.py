"""A Redis that dies at an awkward moment costs the worker nothing but its signals."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import hiredis

from streamserve.contract.keys import Keyspace
from streamserve.v1 import worker_pb2
from streamserve.worker.monitor.publisher import Publisher


@contextlib.asynccontextmanager
async def dying_redis() -> AsyncIterator[str]:
    """Takes each connection and drops it before its first word."""

    async def drop(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with await asyncio.start_server(drop, "127.0.0.1", 0) as server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@contextlib.asynccontextmanager
async def redis_that_takes_no_write() -> AsyncIterator[str]:
    """As one does that is full, or that is a replica."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = hiredis.Reader()
        while data := await reader.read(65_536):
            asked.feed(data)
            while command := asked.gets():
                reads = {b"PING": b"+PONG\r\n", b"TIME": b"*2\r\n$1\r\n1\r\n$1\r\n1\r\n"}
                writer.write(reads.get(command[0], b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def publisher_to(url: str) -> Publisher:
    board: Any = None
    return Publisher(url, Keyspace("llm", "demo"), board, worker_pb2.WorkerEndpoint(id="a"), Random(1))


async def test_a_redis_that_dies_as_it_accepts_is_away_and_tried_again() -> None:
    async with dying_redis() as url:
        publisher = publisher_to(url)
        running = asyncio.create_task(publisher.run())
        await asyncio.wait([running], timeout=2.0)
        assert not running.done(), "its end would be the worker's end"
        assert publisher.failures >= 2
        running.cancel()


async def test_a_redis_that_takes_no_write_is_away_and_tried_less_and_less_often() -> None:
    async with redis_that_takes_no_write() as url:
        publisher = publisher_to(url)
        running = asyncio.create_task(publisher.run())
        seen = [publisher.connected for _ in range(60) if not await asyncio.sleep(0.05)]
        assert not any(seen), "signals that Redis does not take do not reach it"
        assert 2 <= publisher.failures <= 10, "26 in this time without a backoff"
        running.cancel()


async def test_at_a_stop_keys_that_cannot_be_deleted_are_left_to_expire() -> None:
    async with dying_redis() as url:
        await publisher_to(url).withdraw()
