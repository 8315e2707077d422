"""One lane of simulator workers, and the few calls that its tests make."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from processes import NAMESPACE, REVISION, Process, RedisServer

from streamserve.contract import runtime_config, signals, tokens
from streamserve.contract.keys import Keyspace
from streamserve.contract.runtime_config import ConfigId, RuntimeConfig, SpeculationConfig
from streamserve.contract.signals import WorkerSignals
from streamserve.runtime import grpc as runtime_grpc
from streamserve.v1 import common_pb2, worker_pb2, worker_pb2_grpc

PAIR, UID = "tiny", "pair-uid-1"
ROUTER_ID = 77
_ids = itertools.count()


class Lane:
    def __init__(self, directory: Path, redis_server: RedisServer, *, redis_url: str | None = None) -> None:
        self.directory = directory
        self.redis = redis_server
        self.redis_url = redis_url or redis_server.url
        self.keys = Keyspace(NAMESPACE, PAIR)
        self.config_file = directory / "config" / "config.json"
        self.control = {role: directory / f"{role}.control.json" for role in ("prefill", "decode")}
        self.config = RuntimeConfig(id=ConfigId(uid=UID, generation=1), speculation=SpeculationConfig(max_depth=6))
        self.write_config(self.config)
        self.prefill = self.worker("prefill")
        self.decode = self.worker("decode")

    def worker(self, role: str, arguments: Sequence[str] = (), *, command: Sequence[str] = ()) -> Process:
        name = f"lane-0-{role}-0"
        ready = self.directory / f"{name}.ready.json"
        line = [
            *(command or (sys.executable, "-m", "streamserve.worker")),
            *("--role", role, "--engine", "Simulator", "--id", name, "--lane", "lane-0", "--revision", REVISION),
            *("--namespace", NAMESPACE, "--pair", PAIR, "--pair-uid", UID, "--redis", self.redis_url),
            *("--config", str(self.config_file), "--ready-file", str(ready), "--die-with-parent"),
            *("--engine-args", f'{{"simulator-control": "{self.control[role]}", "simulator-lease-seconds": "2"}}'),
            *arguments,
        ]
        return Process(name, line, self.directory, {}, ready)

    def start(self) -> Self:
        for process in (self.prefill, self.decode):
            process.start()
        for process in (self.prefill, self.decode):
            process.wait_ready()
        return self

    def stop(self) -> None:
        for process in (self.prefill, self.decode):
            process.thaw()
            process.kill()

    def write_config(self, config: RuntimeConfig) -> None:
        replace(self.config_file, runtime_config.encode(config))

    def push(self, config: RuntimeConfig) -> None:
        data = runtime_config.encode(config)
        with self.redis.client() as client:
            client.set(self.keys.config, data)
            client.publish(self.keys.config_channel, data)

    def next_config(self, **speculation: object) -> RuntimeConfig:
        following = ConfigId(uid=UID, generation=self.config.id.generation + 1)
        self.config = RuntimeConfig(id=following, speculation=SpeculationConfig(**speculation))  # type: ignore[arg-type]
        return self.config

    def fault(self, role: str, text: str) -> None:
        replace(self.control[role], text.encode())

    def signals(self, role: str) -> WorkerSignals | None:
        with self.redis.client() as client:
            data = client.get(self.keys.worker_signals(f"lane-0-{role}-0"))
        return signals.decode(data) if isinstance(data, bytes) else None


def replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(data)
    os.replace(fresh, path)


@asynccontextmanager
async def stub(process: Process) -> AsyncIterator[worker_pb2_grpc.WorkerServiceStub]:
    async with runtime_grpc.channel(process.ready["grpc"]) as channel:
        yield worker_pb2_grpc.WorkerServiceStub(channel)


def new_id() -> str:
    return f"request-{next(_ids)}"


def prefill_request(
    prompt: Iterable[int] = range(300, 340), *, request_id: str = "", max_tokens: int = 32, **fields: object
) -> worker_pb2.PrefillRequest:
    return worker_pb2.PrefillRequest(
        request_id=request_id or new_id(),
        attempt=1,
        prompt=common_pb2.Prompt(token_ids={"ids_le32": tokens.pack(prompt)}),
        sampling=common_pb2.SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        dispatch=worker_pb2.Dispatch(router_id=ROUTER_ID, sequence=1),
        **fields,  # type: ignore[arg-type]
    )


def decode_request(
    prefill: worker_pb2.PrefillRequest, done: worker_pb2.PrefillResponse | None = None
) -> worker_pb2.DecodeRequest:
    """Without a prefill's answer the decode worker computes the prompt itself."""
    return worker_pb2.DecodeRequest(
        request_id=prefill.request_id,
        attempt=prefill.attempt,
        prompt=prefill.prompt,
        sampling=prefill.sampling,
        workload=prefill.workload,
        dispatch=prefill.dispatch,
        kv_handle=done.kv_handle if done else b"",
    )
