"""One prefill and one decode worker with real vLLM engines, without a router and without Redis."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from processes import NAMESPACE, REVISION, Process
from tiny_pair import DRAFT, TARGET

from streamserve.contract import runtime_config, tokens
from streamserve.contract.runtime_config import ConfigId, RuntimeConfig, SpeculationConfig
from streamserve.runtime import grpc as runtime_grpc
from streamserve.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from streamserve.worker.pipeserve import compat

PAIR, UID = "tiny", "pair-uid-1"
MAX_DEPTH = 6
START_SECONDS = 240.0
ENGINE_ARGUMENTS = {
    "dtype": "float32",
    "max-model-len": "1024",
    "max-num-seqs": "8",
    "enable-prefix-caching": "false",
}
# 0.26.0 cannot hand over the KV of a draft that is shaped unlike its target, so there the target drafts for itself.
LANE_DRAFT = TARGET if compat.version() == "0.26.0" else DRAFT
Stub = worker_pb2_grpc.WorkerServiceStub
_ids = itertools.count()


class RealLane:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config_file = directory / "config" / "config.json"
        self.generation = 0
        self.configure(max_depth=MAX_DEPTH)
        self.prefill = self.worker("prefill")
        self.decode = self.worker("decode")

    def worker(self, role: str, nixl: str = "127.0.0.1:0", *, drafts: bool = True) -> Process:
        """Not started yet. `nixl`: where it hands KV over."""
        name = f"lane-0-{role}-0"
        ready = self.directory / f"{name}.ready.json"
        command = [
            *(sys.executable, "-m", "streamserve.worker", "--role", role, "--engine", "Vllm"),
            *("--id", name, "--lane", "lane-0", "--revision", REVISION),
            *("--namespace", NAMESPACE, "--pair", PAIR, "--pair-uid", UID),
            *("--grpc", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--nixl", nixl),
            *("--model", str(TARGET), "--max-depth", str(MAX_DEPTH)),
            *(("--method", "DraftModel", "--draft", str(LANE_DRAFT)) if drafts else ("--method", "None")),
            *("--engine-args", json.dumps(ENGINE_ARGUMENTS), "--config", str(self.config_file)),
            *("--ready-file", str(ready), "--die-with-parent"),
        ]
        return Process(name, command, self.directory, {}, ready)

    def start(self) -> Self:
        for process in (self.prefill, self.decode):
            process.start()
        for process in (self.prefill, self.decode):
            process.wait_ready(START_SECONDS)
        return self

    def stop(self) -> None:
        """SIGTERM to both; fails when one has to be killed, or does not end with status 0."""
        try:
            statuses = [process.terminate() for process in (self.prefill, self.decode) if process.alive]
        finally:
            for process in (self.prefill, self.decode):
                process.kill()
        assert not any(statuses), f"exit statuses {statuses}"

    def configure(self, **speculation: Any) -> int:
        """Write the next generation to the workers' file; returns it."""
        self.generation += 1
        config = RuntimeConfig(
            id=ConfigId(uid=UID, generation=self.generation), speculation=SpeculationConfig(**speculation)
        )
        self.config_file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.config_file.with_name(".config.new")
        fresh.write_bytes(runtime_config.encode(config))
        os.replace(fresh, self.config_file)
        return self.generation

    @asynccontextmanager
    async def stubs(self) -> AsyncIterator[tuple[Stub, Stub]]:
        """(prefill, decode)."""
        async with (
            runtime_grpc.channel(self.prefill.ready["grpc"]) as prefill,
            runtime_grpc.channel(self.decode.ready["grpc"]) as decode,
        ):
            yield Stub(prefill), Stub(decode)


def prefill_request(prompt: str | Iterable[int], **sampling: Any) -> worker_pb2.PrefillRequest:
    given = {"text": prompt} if isinstance(prompt, str) else {"token_ids": {"ids_le32": tokens.pack(prompt)}}
    return worker_pb2.PrefillRequest(
        request_id=f"request-{next(_ids)}",
        attempt=1,
        prompt=common_pb2.Prompt(**given),
        sampling=common_pb2.SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "max_tokens": 32, **sampling}),
    )


def decode_request(
    ask: worker_pb2.PrefillRequest, done: worker_pb2.PrefillResponse | None = None
) -> worker_pb2.DecodeRequest:
    """Without a prefill's answer the decode worker computes the prompt itself."""
    return worker_pb2.DecodeRequest(
        request_id=ask.request_id,
        attempt=ask.attempt,
        prompt=ask.prompt,
        sampling=ask.sampling,
        kv_handle=done.kv_handle if done else b"",
    )
