"""A Redis that dies at an awkward moment costs the worker nothing but its signals."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from streamserve.contract.keys import Keyspace
from streamserve.v1 import worker_pb2
from streamserve.worker.monitor.publisher import Publisher


class Dying:
    """A client whose connection was taken and dropped before its first word, as uvloop and redis-py tell it."""

    async def __aenter__(self) -> Dying:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def ping(self) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")


async def test_a_redis_that_dies_as_it_accepts_is_away_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    board: Any = None
    endpoint = worker_pb2.WorkerEndpoint(id="a")
    publisher = Publisher("redis://localhost:1", Keyspace("llm", "demo"), board, endpoint, Random(1))
    monkeypatch.setattr(publisher, "_connect", Dying)
    running = asyncio.create_task(publisher.run())
    await asyncio.wait([running], timeout=2.0)
    assert not running.done(), "its end would be the worker's end"
    assert publisher.failures >= 2
    running.cancel()
