"""The edge of `up`: reads, starts, watches, carries out what the pure parts decide, tells, and stops.

Loops, each owned by one Tasks: the file's edits; the plan (at every change of a process, and five times a second);
the router's view of the fleet; the configuration kept in Redis; logs kept short; the reaper kept alive. Stop order:
loops, router (it drains), workers, Redis; within 30 s in all, at once after a second signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import grpc

from streamserve.cli import fleet_view
from streamserve.cli.errors import Refused
from streamserve.cli.up import commands, edits, hot, ports, preflight, push, watch
from streamserve.cli.up import redis as local_redis
from streamserve.cli.up.commands import Command, Site
from streamserve.cli.up.edits import Verdict
from streamserve.cli.up.lanes import STOP_SECONDS, Lanes
from streamserve.cli.up.plan import Wanted, plan
from streamserve.cli.up.push import ConfigPush
from streamserve.cli.up.revision import revision_of
from streamserve.cli.up.status import Reporter, Standing
from streamserve.cli.up.supervisor import Child, Reaper, State, rotate
from streamserve.contract.keys import Keyspace
from streamserve.contract.runtime_config import RuntimeConfig
from streamserve.contract.streampair import Problem, StreamPair, cluster_only
from streamserve.runtime import grpc as transport
from streamserve.runtime import logs, process
from streamserve.runtime.process import write_atomic
from streamserve.runtime.tasks import Tasks
from streamserve.v1 import admin_pb2, admin_pb2_grpc

READY_SECONDS: Final = {"Vllm": 600.0, "Simulator": 60.0}
ROUTER_STOP_SECONDS: Final = 10.0
REDIS_STOP_SECONDS: Final = 3.0
_TICK_SECONDS: Final = 0.2
_FLEET_SECONDS: Final = 0.25
_ROTATE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    file: Path
    grpc: str
    http: str
    redis: str | None = None
    engine: str | None = None
    lanes: int | None = None
    ready_file: Path | None = None


def serve(options: Options) -> int:
    """Until SIGINT or SIGTERM. Raises Refused before anything is started."""
    logs.configure("up", level="WARNING")
    return process.run(lambda stop: _serve(options, stop))


async def _serve(options: Options, stop: asyncio.Event) -> int:
    hurry = _listen_for_signals(stop)
    overrides = watch.Overrides(engine=options.engine, lanes=_checked_lanes(options.lanes))
    content, pair = _first_version(options, overrides)
    endpoint = None if options.redis is None else local_redis.external(options.redis)
    config = await _preflight(options, pair, endpoint)
    run_dir = Path(tempfile.mkdtemp(prefix="streamserve-up-"))
    for name in ("config", "fleet", "ready", "logs", "tmp"):
        (run_dir / name).mkdir()
    reporter = Reporter()
    app = _App(options, overrides, pair, config, run_dir, reporter)
    status = 1
    try:
        status = await app.run(endpoint, content, stop)
    finally:
        await app.stop(hurry)
        reporter.close()
        if status == 0:
            shutil.rmtree(run_dir, ignore_errors=True)
        else:
            for name in ("config", "fleet", "ready", "tmp"):
                shutil.rmtree(run_dir / name, ignore_errors=True)
            print(f"logs are kept in {run_dir / 'logs'}", flush=True)
    return status


def _listen_for_signals(stop: asyncio.Event) -> asyncio.Event:
    """The first signal asks for an orderly stop, a second one for a quick one."""
    hurry = asyncio.Event()

    def heard() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    signals = [signal.SIGINT, signal.SIGTERM]
    # A closed terminal stops everything in order too, except under nohup.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    for signum in signals:
        asyncio.get_running_loop().add_signal_handler(signum, heard)
    return hurry


def _checked_lanes(lanes: int | None) -> int | None:
    if lanes is not None and not 0 <= lanes <= 256:
        raise Refused(f"--lanes {lanes} is not between 0 and 256")
    return lanes


def _first_version(options: Options, overrides: watch.Overrides) -> tuple[bytes, StreamPair]:
    try:
        content = options.file.read_bytes()
    except OSError as error:
        raise Refused(f"{options.file} cannot be read ({error.strerror}): check the path after -f") from None
    version = watch.parse(content, options.file, overrides)
    if isinstance(version, list):
        raise Refused(*_texts(options.file, version))
    return content, version


def _texts(file: Path, problems: list[Problem]) -> list[str]:
    return [problem.format(str(file)) for problem in problems]


async def _preflight(options: Options, pair: StreamPair, endpoint: local_redis.Endpoint | None) -> RuntimeConfig:
    if options.ready_file is not None and not options.ready_file.absolute().parent.is_dir():
        raise Refused(f"--ready-file: there is no folder {options.ready_file.absolute().parent}: create it first")
    facts = await asyncio.to_thread(preflight.gather, pair, {"--grpc": options.grpc, "--http": options.http})
    if found := preflight.problems(pair, facts):
        raise Refused(*found)
    if endpoint is not None:
        await local_redis.check(endpoint)
    try:
        return hot.runtime_config(pair, str(uuid.uuid4()), generation=1)
    except hot.HotError as error:
        raise Refused(f"{options.file}: {error}") from None


class _App:
    def __init__(
        self,
        options: Options,
        overrides: watch.Overrides,
        pair: StreamPair,
        config: RuntimeConfig,
        run_dir: Path,
        reporter: Reporter,
    ) -> None:
        self._options = options
        self._overrides = overrides
        self._pair = pair
        self._revision = revision_of(pair)
        self._config = config
        self._run_dir = run_dir
        self._reporter = reporter
        self._began = time.monotonic()
        self._wake = asyncio.Event()
        self._tasks = Tasks("up")
        self._reaper = Reaper()
        self._keeper: asyncio.Task[None] | None = None
        self._rng = Random()
        self._redis: Child | None = None
        self._router: Child | None = None
        self._lanes: Lanes | None = None
        self._push: ConfigPush | None = None
        self._channel: tuple[str, grpc.aio.Channel] | None = None
        self._fleet: fleet_view.Fleet | None = None
        self._fleet_text = b""
        self._announced = False
        self._halted = ""

    # Start.

    async def run(self, endpoint: local_redis.Endpoint | None, content: bytes, stop: asyncio.Event) -> int:
        """Start everything and stay until `stop`, or until a loop of ours dies (status 1)."""
        self._forget_ready_file()
        await self._reaper.start()
        self._keeper = asyncio.create_task(self._reaper.keep(), name="up/reaper")
        endpoint = await self._start_redis() if endpoint is None else endpoint
        write_atomic(self._run_dir / "redis.url", endpoint.url.encode(), mode=0o600)
        self._endpoint = endpoint
        self._site = site = Site(
            pair=self._pair.metadata.name,
            uid=self._config.id.uid,
            run_dir=self._run_dir,
            redis_url=endpoint.url,
            environment=dict(os.environ),
            cpu_engines=preflight.cpu_engines(),
        )
        self._push = ConfigPush(Keyspace(commands.NAMESPACE, site.pair), endpoint.url, site.config_file)
        await self._push.write(self._config)
        self._lanes = Lanes(
            site, self._new_child, self._tasks, self._wake.set, self._reporter.say, lambda: ports.free_port(self._rng)
        )
        self._write_fleet()
        grpc_address, http_address = (ports.settled(a, self._rng) for a in (self._options.grpc, self._options.http))
        self._router = self._new_child(commands.router(site, grpc_address, http_address))
        self._router.start()
        self._introduce()
        for name, loop in (
            ("plan", self._keep_planning()),
            ("edits", self._follow_edits(content)),
            ("fleet", self._follow_fleet()),
            ("config", self._push.keep()),
            ("logs", self._keep_logs_short()),
        ):
            self._tasks.spawn(name, loop)
        await _first_of(stop, self._tasks.failed)
        if stop.is_set():
            self._reporter.say("stopping: router, workers, Redis (again to stop at once)")
            return 0
        self._reporter.say(f"stopping, for a part of `up` failed: {self._tasks.error!r}")
        return 1

    async def _start_redis(self) -> local_redis.Endpoint:
        endpoint, executable, config = local_redis.embedded(self._run_dir, ports.free_port(self._rng))
        self._redis = self._new_child(commands.redis(executable, config, os.getpid()))
        self._redis.start()
        await local_redis.until_up(endpoint)
        return endpoint

    def _new_child(self, command: Command) -> Child:
        return Child(
            command,
            log=self._run_dir / "logs" / f"{command.name}.log",
            environment=dict(os.environ),
            reaper=self._reaper,
            rng=self._rng,
            changed=self._wake.set,
            say=self._reporter.say,
        )

    def _introduce(self) -> None:
        spec = self._pair.spec
        lanes = f"{spec.lanes} {'lane' if spec.lanes == 1 else 'lanes'}"
        self._reporter.say(
            f"{self._pair.metadata.name}: {lanes} of {spec.prefill.replicas} prefill and {spec.decode.replicas} decode "
            f"{spec.engine.kind.value} workers, revision {self._revision}; logs in {self._run_dir / 'logs'}"
        )
        if idle := [path for path in cluster_only(self._pair) if edits.has_no_effect_here(path)]:
            self._reporter.say(f"without effect on one machine: {', '.join(idle)}")

    # Loops.

    async def _keep_planning(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _TICK_SECONDS)
            self._wake.clear()
            self._plan_once()

    def _plan_once(self) -> None:
        lanes, router = self._parts()
        if not router.up:
            self._fleet = None
        spec = self._pair.spec
        wanted = Wanted(
            revision=self._revision,
            lanes=spec.lanes,
            prefill_replicas=spec.prefill.replicas,
            decode_replicas=spec.decode.replicas,
            max_unavailable=spec.update.max_unavailable,
            max_surge=spec.update.max_surge,
            ready_seconds=READY_SECONDS[spec.engine.kind.value],
        )
        now = lanes.observe(self._fleet)
        step = plan(wanted, now)
        for action in step.actions:
            lanes.carry_out(action, self._pair, self._revision, spec.update.drain_seconds)
        self._write_fleet()
        self._tell_halt(step.halted)
        if step.done and self._fleet is not None and not self._announced:
            self._announce(router)
        self._reporter.show(
            Standing(
                lanes=spec.lanes,
                ready=sum(lane.ready for lane in now),
                generation=self._config.id.generation,
                loading=self._loading(),
                fleet=self._fleet,
                halted=step.halted,
            )
        )

    def _tell_halt(self, halted: str) -> None:
        if halted != self._halted:
            if halted:
                self._reporter.say(f"halted: {halted}. Nothing else is replaced; edit the file to go on")
            else:
                self._reporter.say("goes on")
        self._halted = halted

    def _loading(self) -> tuple[tuple[str, float], ...]:
        lanes, _ = self._parts()
        now = time.monotonic()
        return tuple(
            (child.name, now - child.started_at)
            for child in lanes.children
            if child.state is State.STARTING and now - child.started_at >= 1
        )

    def _write_fleet(self) -> None:
        if self._lanes is None:
            return
        text = json.dumps(self._lanes.fleet()).encode()
        if text != self._fleet_text:
            write_atomic(self._site.fleet_file, text)
            self._fleet_text = text

    async def _follow_fleet(self) -> None:
        _, router = self._parts()
        while True:
            await asyncio.sleep(_FLEET_SECONDS)
            if not router.up or "grpc" not in router.info:
                continue
            try:
                stub = admin_pb2_grpc.AdminServiceStub(await self._router_channel(str(router.info["grpc"])))
                seen = fleet_view.read(await stub.GetFleet(admin_pb2.GetFleetRequest(), timeout=2.0))
            except grpc.aio.AioRpcError:
                seen = None
            self._fleet = seen if router.up else None

    async def _router_channel(self, address: str) -> grpc.aio.Channel:
        if self._channel is None or self._channel[0] != address:
            if self._channel is not None:
                await self._channel[1].close(None)
            self._channel = (address, transport.channel(address))
        return self._channel[1]

    async def _keep_logs_short(self) -> None:
        while True:
            await asyncio.sleep(_ROTATE_SECONDS)
            for log in (self._run_dir / "logs").glob("*.log"):
                rotate(log)

    # Edits.

    async def _follow_edits(self, content: bytes) -> None:
        async for edited in watch.watch(self._options.file, self._overrides, content):
            if isinstance(edited.version, list):
                self._refuse(_texts(self._options.file, edited.version))
            else:
                await self._take_over(edited.version, edited.saved_at)

    def _refuse(self, problems: list[str] | tuple[str, ...]) -> None:
        self._reporter.say(f"the edit is refused, generation {self._config.id.generation} stays in force:")
        for problem in problems:
            self._reporter.say(f"  {problem}")

    async def _take_over(self, new: StreamPair, saved_at: float) -> None:
        verdict = edits.judge(self._pair, new)
        if verdict.nothing:
            self._reporter.say("the file was saved, no setting has changed")
            return
        refused = verdict.refused
        if not refused and (verdict.cold or verdict.scale):
            refused = await asyncio.to_thread(self._obstacles, new)
        if refused:
            self._refuse(refused)
            return
        try:
            config = hot.runtime_config(new, self._config.id.uid, self._config.id.generation + 1)
        except hot.HotError as error:
            self._refuse([f"{self._options.file}: {error}"])
            return
        self._pair, self._config, self._revision = new, config, revision_of(new)
        if self._push is None:
            return
        self._tell(verdict)
        await self._push.write(config)
        self._tasks.spawn(f"echo/{config.id.generation}", self._prove(config, verdict, saved_at))
        self._wake.set()

    def _obstacles(self, new: StreamPair) -> tuple[str, ...]:
        """The pre-flight of a running fleet: what runs already is counted, its ports are ours."""
        lanes, _ = self._parts()
        facts = preflight.gather(new, {})
        running = len(lanes.children)
        if trouble := preflight.memory_problem(new, facts.free_bytes, facts.cpu_engines, running_engines=running):
            return (trouble,)
        return tuple(preflight.problems(new, _without_memory(facts)))

    def _tell(self, verdict: Verdict) -> None:
        generation = f"generation {self._config.id.generation}"
        if verdict.cold:
            self._reporter.say(
                f"{generation}: cold, replaces lane after lane (revision {self._revision}): {verdict.cold}"
            )
        if verdict.scale:
            self._reporter.say(f"{generation}: scale: {verdict.scale}")
        if verdict.idle:
            self._reporter.say(f"{generation}: without effect on one machine: {verdict.idle}")

    async def _prove(self, config: RuntimeConfig, verdict: Verdict, saved_at: float) -> None:
        """Wait for the echo of everyone who stays and say how long it took. Lanes that a cold edit replaces anyway are
        not waited for."""
        lanes, router = self._parts()
        if self._push is None:
            return
        workers = lanes.addresses(revision=self._revision if verdict.cold else None)
        routers = {"router": str(router.info["grpc"])} if router.up else {}
        before = time.monotonic() - saved_at
        echo = await self._push.echo(config.id, workers, routers, push.ECHO_SECONDS)
        took = f"{(before + echo.seconds) * 1e3:.0f} ms"
        what = f": {verdict.hot}" if verdict.hot else ""
        count = f"generation {config.id.generation} on {len(echo.applied)} of {len(echo.wanted)} in {took}{what}"
        if not echo.missing:
            self._reporter.say(f"applied {count}")
            return
        if self._config.id.generation != config.id.generation:
            return
        self._reporter.say(f"NOT everywhere: applied {count}")
        for name in echo.missing:
            self._reporter.say(f"  {name}: {echo.refused.get(name, 'has not answered; it reads the file when it can')}")

    # Ready, and the end.

    def _announce(self, router: Child) -> None:
        self._announced = True
        grpc_address, http_address = str(router.info["grpc"]), str(router.info["http"])
        if self._options.ready_file is not None:
            ready = {
                "grpc": grpc_address,
                "http": http_address,
                "redis": self._endpoint.address,
                "redis_url_file": str(self._run_dir / "redis.url"),
                "pid": os.getpid(),
                "run_dir": str(self._run_dir),
                "namespace": commands.NAMESPACE,
                "pair": self._site.pair,
                "pair_uid": self._site.uid,
            }
            write_atomic(self._options.ready_file.absolute(), json.dumps(ready).encode() + b"\n")
        server = "" if grpc_address == "127.0.0.1:50051" else f" --server {grpc_address}"
        self._reporter.say(
            f"ready in {time.monotonic() - self._began:.1f} s: gRPC {grpc_address}, OpenAI http://{http_address}/v1; "
            f'try: streamserve generate{server} "Once upon a time"'
        )

    def _forget_ready_file(self) -> None:
        if self._options.ready_file is not None:
            self._options.ready_file.unlink(missing_ok=True)

    def _parts(self) -> tuple[Lanes, Child]:
        if self._lanes is None or self._router is None:
            raise AssertionError("the loops begin after the router was started")
        return self._lanes, self._router

    async def stop(self, hurry: asyncio.Event) -> None:
        """Everything, in order; safe at any point of the start."""
        self._forget_ready_file()
        await self._tasks.stop()
        if self._channel is not None:
            await self._channel[1].close(None)
        if self._router is not None:
            await self._router.stop(ROUTER_STOP_SECONDS, hurry)
        if self._lanes is not None:
            await asyncio.gather(*(child.stop(STOP_SECONDS, hurry) for child in self._lanes.children))
        if self._push is not None:
            await self._push.close()
        if self._redis is not None:
            await self._redis.stop(REDIS_STOP_SECONDS, hurry)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        await self._reaper.stop()


def _without_memory(facts: preflight.Facts) -> preflight.Facts:
    from dataclasses import replace

    return replace(facts, free_bytes=2**62)


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
