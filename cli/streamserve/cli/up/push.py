"""The one writer of the runtime configuration in local mode, and the proof that it arrived.

Written to Redis (SET with a TTL, and PUBLISH of the same bytes) and to the configuration file at once. Applied means
that every worker's signals and every router's GetConfig echo the (generation, step), or a later one. Workers whose
signals do not show it soon are asked directly, which also tells why one has refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

from streamserve.cli.up import redis as local_redis
from streamserve.cli.up.files import KeptFile
from streamserve.contract import keys, runtime_config, signals
from streamserve.contract.runtime_config import ConfigId, RuntimeConfig
from streamserve.runtime import grpc as transport
from streamserve.runtime.redis_away import AWAY
from streamserve.runtime.tasks import Tasks
from streamserve.v1 import admin_pb2, admin_pb2_grpc, worker_pb2, worker_pb2_grpc

ECHO_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 0.01
_ASK_AFTER_SECONDS: Final = 0.25
_RPC_SECONDS: Final = 1.0


@dataclass(slots=True)
class Echo:
    """Who has applied a configuration, and how long that took. `refused` says why somebody did not."""

    wanted: frozenset[str]
    applied: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._check()

    def has(self, name: str) -> None:
        self.applied.add(name)
        self.refused.pop(name, None)
        self._check()

    def refuses(self, name: str, why: str) -> None:
        self.refused[name] = why
        self._check()

    def _check(self) -> None:
        if self.wanted <= self.applied | self.refused.keys():
            self.settled.set()

    @property
    def missing(self) -> list[str]:
        return sorted(self.wanted - self.applied)


class ConfigPush:
    """Writes configurations and waits for their echo."""

    def __init__(self, keyspace: keys.Keyspace, redis_url: str, file: Path, say: Callable[[str], None]) -> None:
        self._keys = keyspace
        self._file = KeptFile(file, say)
        self._filing = asyncio.Lock()
        self._redis = local_redis.client(redis_url)
        self._current: RuntimeConfig | None = None

    async def close(self) -> None:
        await self._redis.aclose()

    async def write(self, config: RuntimeConfig) -> None:
        """To both places. One that does not take it is no failure: both are watched, and `keep` writes again."""
        self._current = config
        await asyncio.gather(self._push(runtime_config.encode(config)), self._write_file())

    async def _write_file(self) -> None:
        """The newest: a write that was late must not undo a later one."""
        async with self._filing:
            if self._current is not None:
                await self._file.write_in_thread(runtime_config.encode(self._current))

    async def _push(self, data: bytes) -> None:
        with contextlib.suppress(*AWAY):
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(self._keys.config, data, ex=keys.CONFIG_TTL_SECONDS)
                pipe.publish(self._keys.config_channel, data)
                await pipe.execute()

    async def keep(self, interval_seconds: float = 1.0) -> None:
        """Until cancelled: write again what a restarted Redis has forgotten or the disk did not take, renew what would
        expire."""
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(interval_seconds)
            if self._current is None:
                continue
            await self._write_file()
            try:
                stored = await self._redis.get(self._keys.config)
            except AWAY:
                continue
            data = runtime_config.encode(self._current)
            if stored != data or time.monotonic() - renewed > keys.CONFIG_TTL_SECONDS / 4:
                await self._push(data)
                renewed = time.monotonic()

    async def echo(
        self, wanted: ConfigId, workers: Mapping[str, str], routers: Mapping[str, str], timeout_seconds: float
    ) -> Echo:
        """Wait until all of them (name → gRPC address) echo `wanted`, or the time is over, or all others refused."""
        began, result = time.monotonic(), Echo(frozenset((*workers, *routers)))
        async with contextlib.AsyncExitStack() as stack:
            channels: dict[str, grpc.aio.Channel] = {}
            for name, address in (*workers.items(), *routers.items()):
                channels[name] = transport.channel(address)
                stack.push_async_callback(channels[name].close, None)
            tasks = Tasks("echo")
            tasks.spawn("signals", self._from_signals(wanted, list(workers), result))
            for name in workers:
                tasks.spawn(name, _ask_worker(wanted, name, channels[name], result))
            for name in routers:
                tasks.spawn(name, _ask_router(wanted, name, channels[name], result))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await result.settled.wait()
            result.seconds = time.monotonic() - began
            await tasks.stop()
        return result

    async def _from_signals(self, wanted: ConfigId, workers: list[str], result: Echo) -> None:
        while left := [name for name in workers if name not in result.applied and name not in result.refused]:
            try:
                values = await self._redis.mget([self._keys.worker_signals(name) for name in left])
            except AWAY:
                values = []
            for name, value in zip(left, values, strict=False):
                if isinstance(value, bytes) and _shows(wanted, value):
                    result.has(name)
            await asyncio.sleep(_POLL_SECONDS)


def _shows(wanted: ConfigId, value: bytes) -> bool:
    try:
        seen = signals.decode(value)
    except signals.SignalsError:
        return False
    return seen.serves_pair(wanted.uid) and (seen.config_generation, seen.config_step) >= wanted.order


async def _ask_worker(wanted: ConfigId, name: str, channel: grpc.aio.Channel, result: Echo) -> None:
    stub = worker_pb2_grpc.WorkerServiceStub(channel)
    while True:
        await asyncio.sleep(_ASK_AFTER_SECONDS)
        if name in result.applied:
            return
        with contextlib.suppress(grpc.aio.AioRpcError):
            state = await stub.GetState(worker_pb2.GetStateRequest(), timeout=_RPC_SECONDS)
            if _settle(wanted, name, (state.config_generation, state.config_step), state.config_error, result):
                return


async def _ask_router(wanted: ConfigId, name: str, channel: grpc.aio.Channel, result: Echo) -> None:
    stub = admin_pb2_grpc.AdminServiceStub(channel)
    while True:
        with contextlib.suppress(grpc.aio.AioRpcError):
            seen = await stub.GetConfig(admin_pb2.GetConfigRequest(), timeout=_RPC_SECONDS)
            if _settle(wanted, name, (seen.generation, seen.step), seen.last_error, result):
                return
        await asyncio.sleep(2 * _POLL_SECONDS)


def _settle(wanted: ConfigId, name: str, seen: tuple[int, int], error: str, result: Echo) -> bool:
    if seen >= wanted.order:
        result.has(name)
        return True
    if error:
        result.refuses(name, error)
        return True
    return False
