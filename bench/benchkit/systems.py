"""The systems under test, each started whole and ended without a trace: (a) Plain, (b) VllmPair, (c) StreamServe.

    async with prepared(arms, plan, directory) as system:
        await system.start()
        await system.measure(share, send)       # send(generate) sends the load

Every engine gets the same arguments and the same environment; what differs is only what the arm is about.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Final, Protocol

import psutil

from benchkit.clients import GrpcClient, HttpClient
from benchkit.fleet import ENGINE_START_SECONDS, Fleet, Process, engine_arguments
from benchkit.load import Generate, Sample
from benchkit.plan import Arm, Plan, Share
from benchkit.results import ROOT, BenchError, say
from streamserve.contract.runtime_config import DepthPolicyName, SpeculationConfig
from streamserve.runtime import ports

HERE: Final = Path(__file__).parent
MODEL: Final = "tiny"
PLAIN_SECONDS: Final = 900.0

# Sends one share's load.
Send = Callable[[Generate], Awaitable[list[Sample]]]


class System(Protocol):
    async def start(self) -> None: ...

    async def measure(self, share: Share, send: Send) -> list[Sample]: ...


@asynccontextmanager
async def prepared(arms: Sequence[Arm], plan: Plan, directory: Path) -> AsyncIterator[System]:
    """What serves these arms of one group, to be started; all of its processes end at the end."""
    arm = arms[0]
    match arm.system:
        case "Plain":
            yield PlainEngine(plan, directory)
        case "VllmPair":
            pair = VllmPair(arm, plan, directory)
            try:
                yield pair
            finally:
                pair.stop()
        case "StreamServe":
            served = StreamServe(arm.drafts, plan, directory)
            try:
                yield served
            finally:
                await asyncio.to_thread(served.fleet.stop)


def flags(engine_args: dict[str, str]) -> list[str]:
    """vLLM's own command line for our engine arguments."""
    line = []
    for name, value in engine_args.items():
        if value in ("true", "false"):
            line.append(f"--{name}" if value == "true" else f"--no-{name}")
        else:
            line += [f"--{name}", value]
    return line


def speculative_config(arm: Arm, plan: Plan) -> dict[str, Any] | None:
    """vLLM's own fixed depth."""
    if not isinstance(arm.depth, int):
        return None
    return {"method": "draft_model", "model": str(ROOT / plan.draft), "num_speculative_tokens": arm.depth}


class PlainEngine:
    """(a): AsyncLLM and the load in one process, no network and no hand-over: what the engine alone can do."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self._plan = plan
        self._directory = directory
        self._found: dict[int, list[Sample]] = {}

    async def start(self) -> None:
        pass

    async def measure(self, share: Share, send: Send) -> list[Sample]:
        """The load runs in the engine's own process, whole at the first call: `send` is not used."""
        if not self._found:
            self._found = await self._measure(share.arm)
        return self._found[share.concurrency]

    async def _measure(self, arm: Arm) -> dict[int, list[Sample]]:
        plan, out = self._plan, self._directory / f"{arm.name}.json"
        task = {
            "model": str(ROOT / plan.model),
            "flags": flags(plan.engine_args),
            "speculative_config": speculative_config(arm, plan),
            "requests": plan.requests,
            "warmup": plan.warmup_requests,
            "tokens": plan.output_tokens,
            "prompts_per_workload": plan.prompts_per_workload,
            "out": str(out),
        }
        command = [sys.executable, "-m", "benchkit.plain_engine", json.dumps(task)]
        process = Process(arm.name, command, self._directory, {**plan.environment, **path_environment()})
        process.start()
        try:
            await wait_for(out.exists, process, PLAIN_SECONDS, "the plain engine's result")
        finally:
            process.kill()
        found = json.loads(out.read_text())
        return {int(key): [Sample(*row) for row in rows] for key, rows in found.items()}


class VllmPair:
    """(b): vLLM's API server twice, and a minimal proxy."""

    def __init__(self, arm: Arm, plan: Plan, directory: Path) -> None:
        self._arm, self._plan, self._directory = arm, plan, directory
        self._ports = {"prefill": free_port(), "decode": free_port()}
        self._processes: list[Process] = []
        self._address = ""

    async def start(self) -> None:
        for role, port in self._ports.items():
            self._processes.append(self._server(role, port).start())
        for process, port in zip(self._processes, self._ports.values(), strict=True):
            await wait_for(lambda port=port: healthy(port), process, ENGINE_START_SECONDS, "vLLM's /health")
        ready = self._directory / "proxy.ready.json"
        command = [sys.executable, str(HERE / "http_proxy.py"), "--ready-file", str(ready)]
        for role, port in self._ports.items():
            command += [f"--{role}", f"127.0.0.1:{port}"]
        proxy = Process("proxy", command, self._directory, {}, ready)
        self._processes.append(proxy.start())
        await wait_for(ready.exists, proxy, 30.0, "the proxy")
        self._address = json.loads(ready.read_text())["http"]

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.signal(signal.SIGTERM)
        for process in reversed(self._processes):
            end_tree(process)

    async def measure(self, share: Share, send: Send) -> list[Sample]:
        client = HttpClient(self._address, MODEL)
        try:
            return await send(client.generate)
        finally:
            await client.close()

    def _server(self, role: str, port: int) -> Process:
        plan = self._plan
        transfer = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}
        command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(ROOT / plan.model), "--served-model-name", MODEL),
            *("--host", "127.0.0.1", "--port", str(port), "--uvicorn-log-level", "warning"),
            *flags(plan.engine_args),
            *("--kv-transfer-config", json.dumps(transfer)),
        ]
        if config := speculative_config(self._arm, plan):
            command += ["--speculative-config", json.dumps(config)]
        environment = {
            **plan.environment,
            # The proxy's kept connections outlive the pauses between two requests.
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
            "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port()),
        }
        if not self._arm.as_shipped:
            # What treats NIXL and the readers of steps in our workers does so in any vLLM that loads it.
            command += ["--worker-extension-cls", "streamserve.worker.pipeserve.nixl.Worker"]
            command += ["--scheduler-cls", "benchkit.plain_scheduler.scheduler"]
            environment |= {"STREAMSERVE_NIXL_THREAD_DELAY_US": str(plan.thread_delay_us), **path_environment()}
        return Process(f"vllm-{role}", command, self._directory, environment)


class StreamServe:
    """(c): one lane and the router. Depth is hot, so one fleet with a drafter serves every depth in turn."""

    def __init__(self, drafts: bool, plan: Plan, directory: Path) -> None:
        self._plan = plan
        self._drafts = drafts
        common = ["--model", str(ROOT / plan.model), *engine_arguments(plan.engine_args)]
        if drafts:
            common += ["--method", "DraftModel", "--draft", str(ROOT / plan.draft), "--max-depth", str(plan.max_depth)]
        self.fleet = Fleet(
            directory,
            engine="Vllm",
            role_arguments={"prefill": common, "decode": common},
            speculation=self._speculation("None" if not drafts else "Goodput"),
            environment={**plan.environment, "STREAMSERVE_NIXL_THREAD_DELAY_US": str(plan.thread_delay_us)},
        )

    def _speculation(self, depth: object) -> SpeculationConfig:
        if depth == "None":
            return SpeculationConfig(policy=DepthPolicyName.OFF)
        if depth == "Goodput":
            return SpeculationConfig(policy=DepthPolicyName.GOODPUT, min_depth=0, max_depth=self._plan.max_depth)
        assert isinstance(depth, int)
        return SpeculationConfig(
            policy=DepthPolicyName.FIXED, min_depth=0, max_depth=self._plan.max_depth, fixed_depth=depth
        )

    async def start(self) -> None:
        await asyncio.to_thread(self.fleet.start)

    async def measure(self, share: Share, send: Send) -> list[Sample]:
        arm = share.arm
        if self._drafts:
            await asyncio.to_thread(self.fleet.speculate, **self._speculation(arm.depth).model_dump())
        client = GrpcClient(self.fleet.grpc) if arm.front == "Grpc" else HttpClient(self.fleet.http, MODEL)
        try:
            return await send(client.generate)
        finally:
            await client.close()


def free_port() -> int:
    return ports.free_port(Random())


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def path_environment() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH", ""))))}


def end_tree(process: Process, wait_seconds: float = 8.0) -> None:
    """End a server and what it started, also what left its process group."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    if process.popen is not None:
        try:
            process.popen.wait(wait_seconds)
        except subprocess.TimeoutExpired:
            say(f"{process.name} did not end within {wait_seconds:g} s; killing it")
    process.kill()
    _, left = psutil.wait_procs(children, timeout=2.0)
    for child in left:
        child.kill()


async def wait_for(condition: Callable[[], bool], process: Process, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        if not process.alive:
            raise BenchError(f"{process.name} ended with status {process.exit_status}:\n{process.log[-3000:]}")
        if time.monotonic() > end:
            raise BenchError(f"{what} did not come within {seconds:g} s:\n{process.log[-3000:]}")
        await asyncio.sleep(0.25)
