"""A Redis that dies at an awkward moment costs the worker nothing but its signals."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from random import Random
from typing import Any

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


async def test_at_a_stop_keys_that_cannot_be_deleted_are_left_to_expire() -> None:
    async with dying_redis() as url:
        await publisher_to(url).withdraw()
