"""The signal reader against a real redis-server: reads, publishes, survives its death and its freezing."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from streamserve.contract.signals import decode
from streamserve.router.signals.reader import QUIET_INTERVAL_SECONDS, SignalReader
from streamserve.runtime.redis_wire import RedisConnection, RedisDown, parse_url
from streamserve.v1 import worker_pb2

from .fakes import KEYS, FakeWorker, Redis, redis_server, until


class Heard:
    def __init__(self) -> None:
        self.reads = 0
        self.signals: dict[str, bytes] = {}
        self.endpoints: dict[str, worker_pb2.WorkerEndpoint] = {}

    def on_signals(self, worker_id: str, raw: bytes) -> None:
        self.reads += 1
        self.signals[worker_id] = raw

    def on_registry(self, endpoints: list[worker_pb2.WorkerEndpoint]) -> None:
        self.endpoints = {endpoint.id: endpoint for endpoint in endpoints}


@asynccontextmanager
async def reading(url: str, quiet: Callable[[], bool] = lambda: False) -> AsyncIterator[tuple[SignalReader, Heard]]:
    heard = Heard()
    reader = SignalReader(
        KEYS,
        url,
        worker_ids=lambda: list(heard.endpoints),
        on_signals=heard.on_signals,
        on_registry=heard.on_registry,
        clock=time.monotonic,
        rng=Random(1),
        quiet=quiet,
    )
    task = asyncio.create_task(reader.run())
    try:
        yield reader, heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_it_finds_workers_and_reads_their_newest_signals(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        async with reading(redis.url) as (reader, heard):
            await until(lambda: reader.connected)
            worker = FakeWorker("lane-0-decode-0")
            await worker.publish(redis, running_requests=3)
            await until(lambda: heard.signals.get(worker.id) is not None)
            assert heard.endpoints[worker.id] == worker.endpoint
            await worker.publish(redis, running_requests=4)
            newest = worker.signals.epoch
            started = time.monotonic()
            await until(lambda: decode(heard.signals[worker.id]).epoch == newest)
            assert time.monotonic() - started < 0.5


async def test_while_nobody_waits_for_what_it_reads_it_reads_half_as_often(tmp_path: Path) -> None:
    placing = False
    with redis_server(tmp_path) as redis:
        async with reading(redis.url, quiet=lambda: not placing) as (reader, heard):
            await until(lambda: reader.connected)
            worker = FakeWorker("lane-0-decode-0")
            await worker.publish(redis)
            await until(lambda: heard.reads > 0)

            async def reads_in_a_second() -> int:
                await worker.publish(redis)
                before = heard.reads
                await asyncio.sleep(1.0)
                return heard.reads - before

            assert await reads_in_a_second() <= 1.0 / QUIET_INTERVAL_SECONDS + 1
            placing = True
            # A busy machine reads less often for a while.
            assert max([await reads_in_a_second() for _ in range(3)]) > 1.0 / QUIET_INTERVAL_SECONDS + 1


async def test_values_over_a_unix_socket_with_a_password_arrive_too(tmp_path: Path) -> None:
    with redis_server(tmp_path, password="se:cr@t") as redis:
        url = f"unix://:se%3Acr%40t@{redis.socket}"
        redis.url = f"redis://:se%3Acr%40t@127.0.0.1:{redis.port}"
        async with reading(url) as (reader, heard):
            await until(lambda: reader.connected)
            await FakeWorker("lane-0-decode-0").publish(redis)
            await until(lambda: "lane-0-decode-0" in heard.signals)


async def test_a_wrong_password_is_said_and_not_fatal(tmp_path: Path) -> None:
    with redis_server(tmp_path, password="right") as redis:
        async with reading(f"redis://:wrong@127.0.0.1:{redis.port}") as (reader, _):
            await until(lambda: "refused" in reader.last_error)
            assert not reader.connected


async def test_garbage_in_the_registry_is_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        await answers(redis)
        for worker_id, value in {
            "a": b"\xff\xfe",
            "b": "[1, 2]",
            "c": '{"id": "other"}',
            "d": '{"version": 1, "id": "d", "boot_id": "x"}',
            "e": '{"version": 2, "id": "e"}',
        }.items():
            await redis.command("ZADD", KEYS.worker_index, 1, worker_id)
            await redis.command("SET", KEYS.worker_endpoint(worker_id), value)
        await FakeWorker("lane-0-decode-0").publish(redis)
        async with reading(redis.url) as (reader, heard):
            await until(lambda: "lane-0-decode-0" in heard.signals)
            assert set(heard.endpoints) == {"lane-0-decode-0"} and reader.quarantined >= 5


async def test_a_key_of_the_wrong_type_drops_the_connection_and_not_the_process(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        await answers(redis)
        await redis.command("SET", KEYS.worker_index, "not a sorted set")
        async with reading(redis.url) as (reader, _):
            await until(lambda: "refused" in reader.last_error)
            await redis.command("DEL", KEYS.worker_index)
            await until(lambda: reader.connected)


@pytest.mark.parametrize("frozen", [False, True], ids=["killed", "frozen"])
async def test_when_redis_is_gone_it_says_so_and_returns_with_it(tmp_path: Path, frozen: bool) -> None:
    with redis_server(tmp_path) as redis:
        async with reading(redis.url) as (reader, heard):
            await until(lambda: reader.connected)
            if frozen:
                redis.freeze()
            else:
                redis.kill()
            await until(lambda: not reader.connected)
            assert reader.last_error
            if frozen:
                redis.thaw()
            else:
                redis.start()
            await until(lambda: reader.connected)
            await FakeWorker("lane-0-decode-0").publish(redis)
            await until(lambda: "lane-0-decode-0" in heard.signals)


async def test_what_the_router_publishes_is_there_and_expires(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        async with reading(redis.url) as (reader, _):
            await until(lambda: reader.connected)
            reader.publish("ss:x", b"old", 3_000)
            reader.publish("ss:x", b"new", 3_000)
            for _ in range(100):
                if await redis.command("GET", "ss:x") == b"new":
                    break
                await asyncio.sleep(0.01)
            assert await redis.command("GET", "ss:x") == b"new"
            assert 0 < await redis.command("PTTL", "ss:x") <= 3_000


async def test_records_are_appended_in_order_the_newest_stay_and_redis_away_loses_none(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        async with reading(redis.url) as (reader, _):
            await until(lambda: reader.connected)
            redis.kill()
            await until(lambda: not reader.connected)
            for number in range(5):
                reader.append("ss:x", b"%d" % number, keep=3, ttl_seconds=60)
            redis.start()
            await until(lambda: reader.connected)
            await until(lambda: not reader._records)
            assert await redis.command("LRANGE", "ss:x", 0, -1) == [b"2", b"3", b"4"]
            assert 0 < await redis.command("TTL", "ss:x") <= 60


async def test_nobody_listening_is_redis_down(tmp_path: Path) -> None:
    with pytest.raises(RedisDown, match="cannot connect"):
        await RedisConnection.open(parse_url("redis://127.0.0.1:1"), timeout_seconds=1.0)


async def answers(redis: Redis) -> None:
    """Wait until the server takes commands."""
    for _ in range(200):
        try:
            await redis.command("PING")
            return
        except RedisDown:
            await asyncio.sleep(0.02)
    raise AssertionError("redis-server did not start")
