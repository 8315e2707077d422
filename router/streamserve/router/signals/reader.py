"""Reads every worker's signals from Redis: one MGET each 50 ms, who exists each second, on one connection.

A worker publishes at most each 50 ms. While this router places no requests it reads each 100 ms: nothing is decided on
what it would read sooner, and a wake-up costs more than the read does.

When Redis does not answer within a second the connection is dropped and tried again with backoff (50 ms to 2 s);
what was read last stays known, and `connected` says how it is. Nothing here decides anything: values are handed on.
What this router publishes goes out on the same connection, with the next read.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from streamserve.contract import endpoint as records
from streamserve.contract.keys import Keyspace
from streamserve.runtime import logs
from streamserve.runtime.backoff import Backoff
from streamserve.runtime.redis_wire import (
    Command,
    RedisConnection,
    RedisDown,
    as_bytes_list,
    parse_url,
)
from streamserve.v1 import worker_pb2

READ_INTERVAL_SECONDS: Final = 0.05
QUIET_INTERVAL_SECONDS: Final = 0.1
REGISTRY_INTERVAL_SECONDS: Final = 1.0
TIMEOUT_SECONDS: Final = 1.0
MAX_WORKERS: Final = 2_000
MAX_WAITING_RECORDS: Final = 60
_log = logs.get(__name__)


class SignalReader:
    """`worker_ids` says whom to read, `quiet` whether nobody waits for what is read; `on_signals(worker id, bytes)` and
    `on_registry(endpoints)` take what came."""

    def __init__(
        self,
        keyspace: Keyspace,
        redis_url: str,
        *,
        worker_ids: Callable[[], Sequence[str]],
        on_signals: Callable[[str, bytes], None],
        on_registry: Callable[[list[worker_pb2.WorkerEndpoint]], None],
        clock: Callable[[], float],
        rng: Random,
        quiet: Callable[[], bool] = lambda: False,
    ) -> None:
        self.connected = False
        self.last_error = "not tried yet"
        self.quarantined = 0
        self._keys = keyspace
        self._url = parse_url(redis_url)
        self._worker_ids = worker_ids
        self._on_signals = on_signals
        self._on_registry = on_registry
        self._quiet = quiet
        self._clock = clock
        self._backoff = Backoff(0.05, 2.0, rng)
        self._outbox: dict[str, tuple[bytes, int]] = {}
        self._records: deque[tuple[Command, ...]] = deque(maxlen=MAX_WAITING_RECORDS)

    def publish(self, key: str, value: bytes, ttl_ms: int) -> None:
        """Set `key` with the next read; a newer value for the same key replaces one that waits."""
        self._outbox[key] = (value, ttl_ms)

    def append(self, key: str, value: bytes, *, keep: int, ttl_seconds: int) -> None:
        """Add to the list `key`, of which the newest `keep` stay, with the next read. What Redis has not confirmed
        is sent again, so it may arrive twice; of what waits while Redis is away the oldest is given up."""
        self._records.append(
            (("RPUSH", key, value), ("LTRIM", key, -keep, -1), ("EXPIRE", key, ttl_seconds)),
        )

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            try:
                connection = await RedisConnection.open(self._url, timeout_seconds=TIMEOUT_SECONDS)
            except RedisDown as error:
                self._lost(str(error))
            else:
                try:
                    await self._read(connection)
                except RedisDown as error:
                    self._lost(str(error))
                finally:
                    self.connected = False
                    await connection.close()
            await asyncio.sleep(self._backoff.next())

    def _lost(self, why: str) -> None:
        if why != self.last_error:
            _log.warning("Redis: %s; serving on what is known and on the workers' own word", why)
        self.connected, self.last_error = False, why

    async def _read(self, connection: RedisConnection) -> None:
        registry_due = self._clock()
        while True:
            started = self._clock()
            if started >= registry_due:
                await self._read_registry(connection)
                registry_due = started + REGISTRY_INTERVAL_SECONDS
                if not self.connected:
                    _log.info("Redis: connected to %s", self._url.shown)
                    self.connected, self.last_error = True, ""
                    self._backoff.reset()
            await self._read_signals(connection)
            interval = QUIET_INTERVAL_SECONDS if self._quiet() else READ_INTERVAL_SECONDS
            await asyncio.sleep(max(0.0, interval - (self._clock() - started)))

    async def _read_signals(self, connection: RedisConnection) -> None:
        ids = list(self._worker_ids())[:MAX_WORKERS]
        outbox, self._outbox = self._outbox, {}
        commands: list[Command] = [("SET", key, value, "PX", ttl_ms) for key, (value, ttl_ms) in outbox.items()]
        records = list(self._records)
        commands += itertools.chain.from_iterable(records)
        if ids:
            commands.append(("MGET", *(self._keys.worker_signals(worker_id) for worker_id in ids)))
        if not commands:
            return
        replies: list[Any] = await connection.pipeline(commands, timeout_seconds=TIMEOUT_SECONDS)
        for record in records:
            if self._records and self._records[0] is record:
                self._records.popleft()
        if ids:
            for worker_id, raw in zip(ids, as_bytes_list(replies[-1]), strict=True):
                if raw is not None:
                    self._on_signals(worker_id, raw)

    async def _read_registry(self, connection: RedisConnection) -> None:
        range_command = ("ZRANGE", self._keys.worker_index, 0, MAX_WORKERS - 1)
        index = (await connection.pipeline([range_command], timeout_seconds=TIMEOUT_SECONDS))[0]
        ids = [raw.decode(errors="replace") for raw in as_bytes_list(index) if raw is not None]
        endpoints: list[worker_pb2.WorkerEndpoint] = []
        if ids:
            mget: Command = ("MGET", *(self._keys.worker_endpoint(worker_id) for worker_id in ids))
            found = (await connection.pipeline([mget], timeout_seconds=TIMEOUT_SECONDS))[0]
            for worker_id, raw in zip(ids, as_bytes_list(found), strict=True):
                endpoint = None if raw is None else self._endpoint(worker_id, raw)
                if endpoint is not None:
                    endpoints.append(endpoint)
        self._on_registry(endpoints)

    def _endpoint(self, worker_id: str, raw: bytes) -> worker_pb2.WorkerEndpoint | None:
        try:
            endpoint = records.decode(raw)
        except records.EndpointError as error:
            self._refuse(worker_id, str(error))
            return None
        if endpoint.id != worker_id:
            self._refuse(worker_id, f"it names worker {endpoint.id!r}")
            return None
        return endpoint

    def _refuse(self, worker_id: str, why: str) -> None:
        self.quarantined += 1
        if self.quarantined == 1 or self.quarantined % 1_000 == 0:
            _log.warning("the endpoint of %s in Redis cannot be read: %s", worker_id, why)
