"""Signals and the worker's address into Redis, without ever disturbing the serving.

    signals    SET … PX 1500: when they changed, at most every 50 ms; unchanged, every 500 ms
    endpoint   SET … PX 5000 each second: who and where
    index      ZADD with Redis's own time each second, entries older than its TTL pruned

A Redis that is away, or refuses what is written, costs a reconnect with backoff and nothing else. On a graceful stop
the keys are deleted, so that routers need not wait for them to expire. The connection is the plain one of `redis_wire`:
under load twenty writes a second are at stake, beside an engine that wants the core.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from random import Random
from typing import Final

from streamserve.contract import endpoint as records
from streamserve.contract import keys
from streamserve.contract.keys import Keyspace
from streamserve.contract.signals import WorkerSignals
from streamserve.runtime import logs
from streamserve.runtime.backoff import Backoff
from streamserve.runtime.redis_wire import Command, RedisConnection, RedisDown, parse_url
from streamserve.v1 import worker_pb2
from streamserve.worker.monitor.board import SignalBoard

_log = logs.get(__name__)
_TIMEOUT_SECONDS: Final = 2.0
_IDLE_LOOK_SECONDS: Final = 0.25


class Publisher:
    """Runs until cancelled."""

    def __init__(
        self,
        url: str,
        keyspace: Keyspace,
        board: SignalBoard,
        endpoint: worker_pb2.WorkerEndpoint,
        rng: Random,
    ) -> None:
        self._url = parse_url(url)
        self._keys = keyspace
        self._id = endpoint.id
        self._board = board
        self._endpoint = records.encode(endpoint)
        self._backoff = Backoff(0.1, 2.0, rng)
        self.connected = False
        self.published = 0
        self.failures = 0

    async def run(self) -> None:
        while True:
            try:
                async with self._connected() as connection:
                    await self._publish(connection)
            except RedisDown as error:
                if self.connected or not self.failures:
                    _log.warning("redis is away, serving goes on without it: %s", error)
                self.failures += 1
            finally:
                self.connected = False
            await asyncio.sleep(self._backoff.next())

    async def withdraw(self) -> None:
        """Delete this worker's keys. Quietly gives up on a Redis that is away."""
        commands: list[Command] = [
            ("DEL", self._keys.worker_signals(self._id), self._keys.worker_endpoint(self._id)),
            ("ZREM", self._keys.worker_index, self._id),
        ]
        with contextlib.suppress(RedisDown):
            async with self._connected() as connection:
                await connection.pipeline(commands, timeout_seconds=_TIMEOUT_SECONDS)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[RedisConnection]:
        connection = await RedisConnection.open(self._url, timeout_seconds=_TIMEOUT_SECONDS)
        try:
            yield connection
        finally:
            await connection.close()

    async def _publish(self, connection: RedisConnection) -> None:
        hello_at = signals_at = -1e9
        shown: WorkerSignals | None = None
        key = self._keys.worker_signals(self._id)
        while True:
            now = time.monotonic()
            if now - hello_at >= keys.ENDPOINT_INTERVAL_SECONDS:
                await self._say_hello(connection)
                hello_at = now
            self._board.changed.clear()
            if now - signals_at >= keys.SIGNALS_HEARTBEAT_SECONDS or self._board.differs_from(shown):
                packed = self._board.fresh()
                shown = self._board.shown
                await connection.pipeline(
                    [("SET", key, packed, "PX", keys.SIGNALS_TTL_MS)], timeout_seconds=_TIMEOUT_SECONDS
                )
                signals_at = now
                self._written()
            await self._pause(shown, signals_at)

    def _written(self) -> None:
        """Only a write that was taken shows a Redis to be there: one that is full, or a replica, answers all else."""
        self.published += 1
        if not self.connected:
            _log.info("redis is connected")
            self.connected = True
            self._backoff.reset()

    async def _pause(self, shown: WorkerSignals | None, signals_at: float) -> None:
        """Never sooner than the shortest interval; then when something happened, or soon if something runs."""
        await asyncio.sleep(max(0.0, signals_at + keys.SIGNALS_MIN_INTERVAL_SECONDS - time.monotonic()))
        busy = shown is not None and (shown.running_requests or shown.waiting_requests)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(keys.SIGNALS_MIN_INTERVAL_SECONDS if busy else _IDLE_LOOK_SECONDS):
                await self._board.changed.wait()

    async def _say_hello(self, connection: RedisConnection) -> None:
        ((seconds, microseconds),) = await connection.pipeline([("TIME",)], timeout_seconds=_TIMEOUT_SECONDS)
        now_ms = int(seconds) * 1_000 + int(microseconds) // 1_000
        index = self._keys.worker_index
        commands: list[Command] = [
            ("SET", self._keys.worker_endpoint(self._id), self._endpoint, "PX", keys.ENDPOINT_TTL_MS),
            ("ZADD", index, now_ms, self._id),
            ("ZREMRANGEBYSCORE", index, "-inf", now_ms - keys.INDEX_TTL_MS),
            ("PEXPIRE", index, keys.INDEX_TTL_MS),
        ]
        await connection.pipeline(commands, timeout_seconds=_TIMEOUT_SECONDS)
