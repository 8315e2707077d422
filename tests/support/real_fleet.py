"""`streamserve up` with real vLLM engines, for tests: start, talk, edit, look inside, stop without a trace.

fleet = RealFleet(directory, lanes=2).start()
async with fleet.client() as client:
    answer = await client.generate("Once upon a time", max_tokens=32)
fleet.edit(speculation={"depth": {"min": 0, "max": 0}})
fleet.stop()                       # asserts that nothing is left
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import grpc
import psutil
import redis
from processes import command_line, wait_until
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from ruamel.yaml import YAML
from tiny_pair import DRAFT, TARGET

from streamserve.contract import lane_word, signals, tokens
from streamserve.contract.errors import StreamServeError
from streamserve.contract.keys import Keyspace
from streamserve.contract.lane_word import READY
from streamserve.contract.signals import WorkerSignals
from streamserve.runtime.grpc import channel
from streamserve.runtime.status import from_rpc_error
from streamserve.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    common_pb2,
    inference_pb2,
    inference_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)

START_SECONDS: Final = 400.0
STOP_SECONDS: Final = 30.0
REQUEST_SECONDS: Final = 120.0
KV_BLOCKS: Final = 96


def spec(lanes: int) -> dict[str, Any]:
    """A StreamPair of the tiny pair in float32, comparable token by token with plain vLLM."""
    return {
        "apiVersion": "streamserve.io/v1alpha1",
        "kind": "StreamPair",
        "metadata": {"name": "tiny"},
        "spec": {
            "model": {"name": str(TARGET), "servedNames": ["tiny"]},
            "engine": {
                "kind": "Vllm",
                "args": {
                    "dtype": "float32",
                    "max-model-len": "2048",
                    "max-num-seqs": "16",
                    # A block in the cache would not move, and would hide whether the rest does.
                    "enable-prefix-caching": "false",
                    # A cache that the tests fill once: memory of a block counts as soon as it is first used.
                    "num-gpu-blocks-override": str(KV_BLOCKS),
                },
            },
            "lanes": lanes,
            "speculation": {
                "method": "DraftModel",
                "draft": {"name": str(DRAFT)},
                "maxDepth": 6,
                "policy": "Goodput",
                "depth": {"min": 1, "max": 6, "fixed": 3},
            },
            "slo": {"default": {"ttftMilliseconds": 2000, "tpotMilliseconds": 100}},
            "routing": {"policy": "FlowGuard", "localPrefillMaxTokens": 0},
            "failurePolicy": "Degrade",
            "update": {"drainSeconds": 20},
        },
    }


@dataclass
class Answer:
    """One request as the client saw it; `error` is set when it did not end with a finish reason."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    usage: common_pb2.Usage = field(default_factory=common_pb2.Usage)
    route: inference_pb2.Route = field(default_factory=inference_pb2.Route)
    attempt: int = 0
    finish_reason: int = 0
    seconds: float = 0.0
    error: StreamServeError | None = None

    @property
    def depths(self) -> list[int]:
        return [depth for depth in range(17) if self.usage.depths_seen_mask >> depth & 1]


@dataclass
class Client:
    """Stubs of the router and, by id, of every worker."""

    inference: inference_pb2_grpc.InferenceServiceStub
    admin: admin_pb2_grpc.AdminServiceStub
    workers: dict[str, worker_pb2_grpc.WorkerServiceStub]

    async def generate(
        self, prompt: str, *, workload: str = "", seconds: float = REQUEST_SECONDS, **sampling: Any
    ) -> Answer:
        """Never raises for what the server says; asserts that positions come once and in order."""
        options = {"temperature": 0.0, "max_tokens": 32, "ignore_eos": True, **sampling}
        request = inference_pb2.GenerateRequest(
            prompt=common_pb2.Prompt(text=prompt), sampling=common_pb2.SamplingParams(**options), workload=workload
        )
        answer = Answer()
        began = time.monotonic()
        try:
            async for chunk in self.inference.Generate(request, timeout=seconds):
                _take(answer, chunk)
        except grpc.aio.AioRpcError as error:
            answer.error = from_rpc_error(error)
        answer.seconds = time.monotonic() - began
        return answer

    async def decode_alone(self, worker: str, number: int, *, max_tokens: int) -> None:
        """A request straight to one worker, behind the router's back, to its end."""
        request = worker_pb2.DecodeRequest(
            request_id=f"alone-{number}",
            attempt=1,
            prompt=common_pb2.Prompt(token_ids={"ids_le32": tokens.pack(range(300 + number, 340 + number))}),
            sampling=common_pb2.SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True),
        )
        async for _ in self.workers[worker].Decode(request, timeout=120):
            pass

    async def states(self) -> dict[str, worker_pb2.GetStateResponse]:
        calls = (stub.GetState(worker_pb2.GetStateRequest(), timeout=10) for stub in self.workers.values())
        return dict(zip(self.workers, await asyncio.gather(*calls), strict=True))

    async def fleet(self) -> admin_pb2.GetFleetResponse:
        return await self.admin.GetFleet(admin_pb2.GetFleetRequest(), timeout=10)

    async def idle(self, seconds: float) -> dict[str, worker_pb2.GetStateResponse]:
        """Wait until nothing runs and no KV block is used anywhere; returns the states then."""
        end = time.monotonic() + seconds
        while True:
            states = await self.states()
            used = {name: (s.running_requests, s.kv_blocks_used) for name, s in states.items()}
            if not any(map(any, used.values())):
                return states
            assert time.monotonic() < end, f"not idle within {seconds:g} s: (requests, blocks) {used}"
            await asyncio.sleep(0.1)


def _take(answer: Answer, chunk: inference_pb2.GenerateResponse) -> None:
    if chunk.token_ids:
        assert chunk.first_token_index == len(answer.token_ids), "a position came twice or not at all"
    answer.token_ids.extend(chunk.token_ids)
    answer.text += chunk.text
    answer.attempt = chunk.attempt
    if chunk.HasField("route"):
        answer.route.CopyFrom(chunk.route)
    if chunk.HasField("usage"):
        answer.usage.CopyFrom(chunk.usage)
    answer.finish_reason = chunk.finish_reason or answer.finish_reason


class RealFleet:
    """One `streamserve up` and its file."""

    def __init__(self, directory: Path, *, lanes: int = 2, environment: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.document = spec(lanes)
        self.file = directory / "streampair.yaml"
        self.ready_file = directory / "ready.json"
        self.log_file = directory / "up.log"
        self.environment = dict(environment or {})
        self.ready: dict[str, Any] = {}
        self.start_seconds = 0.0
        self._popen: subprocess.Popen[bytes] | None = None

    # ---- life ----

    def start(self) -> Self:
        self._save()
        # One that was killed leaves its own.
        self.ready_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "streamserve.cli.main", "up", "-f", str(self.file)]
        command += ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--ready-file", str(self.ready_file)]
        began = time.monotonic()
        with self.log_file.open("ab") as log:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.environment},
                start_new_session=True,
            )
        try:
            wait_until(
                lambda: self.ready_file.exists() or self._popen is None or self._popen.poll() is not None,
                seconds=START_SECONDS,
                what=f"streamserve up is ready:\n{self.log[-4000:]}",
                every_seconds=0.1,
            )
            assert self.ready_file.exists(), f"streamserve up ended:\n{self.log[-4000:]}"
        except BaseException:
            self.kill()
            raise
        self.start_seconds = time.monotonic() - began
        self.ready = json.loads(self.ready_file.read_text())
        return self

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def stop(self) -> None:
        """As Ctrl-C does. Asserts that it ends in time with status 0 and that no process and no port is left."""
        if not self.running or self._popen is None:
            return
        family = self.family()
        ports = {port for process in family for port in _listening(process)}
        assert ports, "a fleet listens somewhere"
        self._popen.send_signal(signal.SIGINT)
        try:
            status = self._popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"up did not stop within {STOP_SECONDS:g} s:\n{self.log[-2000:]}") from None
        _, left = psutil.wait_procs(family, timeout=5)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        assert status == 0, f"up ended with status {status}:\n{self.log[-2000:]}"
        assert not left, f"left running: {left}"
        assert not [port for port in ports if _is_open(port)], "a port is still open"

    def kill(self) -> None:
        """Whatever is left, at once."""
        if self._popen is None:
            return
        family = self.family() if self.running else []
        with contextlib.suppress(ProcessLookupError):
            self._popen.kill()
        self._popen.wait(10)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()

    # ---- the file ----

    def edit(self, **sections: Mapping[str, Any]) -> None:
        """Change hot settings: `edit(routing={"localPrefillMaxTokens": 9})`. Saved as an editor does, by a rename."""
        for name, values in sections.items():
            self.document["spec"][name] = {**self.document["spec"].get(name, {}), **copy.deepcopy(dict(values))}
        self._save()

    def save_text(self, text: str) -> None:
        fresh = self.file.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.file)

    def _save(self) -> None:
        fresh = self.file.with_suffix(".new")
        with fresh.open("w") as out:
            YAML(typ="safe").dump(self.document, out)
        fresh.replace(self.file)

    async def edit_and_wait(self, seconds: float = 10.0, **sections: Mapping[str, Any]) -> int:
        """Save, and wait until every worker and the router echo the new generation."""
        async with self.client() as client:
            generation = await self.generation(client) + 1
            self.edit(**sections)
            end = time.monotonic() + seconds
            while not (await self.generation(client) >= generation and self.echoed() >= generation):
                assert time.monotonic() < end, f"generation {generation} not everywhere:\n{self.log[-2000:]}"
                await asyncio.sleep(0.02)
        return generation

    async def generation(self, client: Client) -> int:
        return int((await client.admin.GetConfig(admin_pb2.GetConfigRequest(), timeout=5)).generation)

    # ---- inside ----

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        async with contextlib.AsyncExitStack() as stack:
            router = await stack.enter_async_context(channel(self.ready["grpc"]))
            workers = {}
            for name, ready in self.worker_files().items():
                connection = await stack.enter_async_context(channel(ready["grpc"]))
                workers[name] = worker_pb2_grpc.WorkerServiceStub(connection)
            yield Client(
                inference_pb2_grpc.InferenceServiceStub(router), admin_pb2_grpc.AdminServiceStub(router), workers
            )

    def worker_files(self) -> dict[str, dict[str, str]]:
        """Worker id -> its ready file (grpc, metrics)."""
        folder = Path(self.ready["run_dir"]) / "ready"
        return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("lane-*.json"))}

    @property
    def keys(self) -> Keyspace:
        return Keyspace(self.ready["namespace"], self.ready["pair"])

    def metrics(self, name: str) -> list[Sample]:
        """The samples on the page of the router or of one worker."""
        ready = json.loads((Path(self.ready["run_dir"]) / "ready" / f"{name}.json").read_text())
        with urllib.request.urlopen(f"http://{ready['metrics']}/metrics", timeout=5) as response:
            text = response.read().decode()
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def redis(self) -> redis.Redis:
        url = Path(self.ready["redis_url_file"]).read_text()
        return redis.Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=2.0)

    def signals(self) -> dict[str, WorkerSignals]:
        """Worker id -> what it says in Redis now; a worker without signals is left out."""
        names = list(self.worker_files())
        with self.redis() as connection:
            values = connection.mget([self.keys.worker_signals(name) for name in names])
        return {
            name: signals.decode(value) for name, value in zip(names, values, strict=True) if isinstance(value, bytes)
        }

    def echoed(self) -> int:
        """The generation that every worker has applied, by its signals; -1 while one says nothing."""
        seen = self.signals()
        if len(seen) < len(self.worker_files()):
            return -1
        return min(value.config_generation for value in seen.values())

    def wait_lanes_ready(self, seconds: float) -> None:
        wait_until(self.lanes_ready, seconds=seconds, what="every lane takes traffic", every_seconds=0.1)

    def lanes_ready(self) -> bool:
        try:
            with self.redis() as connection:
                for key in connection.scan_iter(match=f"{self.keys.root}/router/*/lanes"):
                    value = connection.get(key)
                    if isinstance(value, bytes):
                        states = [lane.state for lane in lane_word.decode(value).lanes.values()]
                        return len(states) == self.document["spec"]["lanes"] and set(states) == {READY}
        except redis.RedisError:
            return False
        return False

    # ---- processes ----

    def family(self) -> list[psutil.Process]:
        """`up` and everything below it."""
        assert self._popen is not None
        up = psutil.Process(self._popen.pid)
        return [up, *up.children(recursive=True)]

    def worker(self, name: str) -> psutil.Process:
        """The process of one worker; its engine core is below it."""
        for process in self.family():
            command = command_line(process)
            if "streamserve.worker" in command and name in command:
                return process
        raise AssertionError(f"no process of {name}")

    def workers(self) -> Iterable[tuple[str, psutil.Process]]:
        return ((name, self.worker(name)) for name in self.worker_files())

    def engine_core(self, name: str) -> psutil.Process:
        for child in self.worker(name).children():
            # vLLM gives this process a title, which takes the place of its command line.
            if "EngineCore" in " ".join(command_line(child)):
                return child
        raise AssertionError(f"no engine core under {name}")

    def router_process(self) -> psutil.Process:
        return next(p for p in self.family() if "streamserve.router" in command_line(p))

    def redis_process(self) -> psutil.Process:
        return next(p for p in self.family() if "redis-server" in " ".join(command_line(p)))


@dataclass
class Fleets:
    """The fleet that tests share: started when first asked for, and gone when closed."""

    directory: Path
    shared: RealFleet | None = None

    def get(self) -> RealFleet:
        if self.shared is None:
            self.shared = RealFleet(self.directory).start()
        assert self.shared.running, f"`up` ended:\n{self.shared.log[-3000:]}"
        return self.shared

    def close(self) -> None:
        if self.shared is not None:
            fleet, self.shared = self.shared, None
            fleet.stop()


def _listening(process: psutil.Process) -> set[int]:
    with contextlib.suppress(psutil.Error):
        return {c.laddr.port for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    return set()


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
