"""What one `up` has running: started in order, planned five times a second, told, and stopped in order.

Loops, each owned by one Tasks: the file's edits (taking.py); the plan (at every change of a process, and five times a
second); the router's view of the fleet; the configuration kept in Redis; the run's folder kept ours and its logs
short; the reaper kept alive. Stop order: loops, router (it drains), workers, Redis; within 30 s in all, at once after
a second signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

from streamserve.cli.errors import Refused
from streamserve.cli.up import commands, edits, engine_check, ports, preflight, run_folder, watch
from streamserve.cli.up import redis as local_redis
from streamserve.cli.up.commands import Command, Site
from streamserve.cli.up.files import KeptFile
from streamserve.cli.up.lanes import STOP_SECONDS, Lanes
from streamserve.cli.up.metrics import UpMetrics
from streamserve.cli.up.push import ConfigPush
from streamserve.cli.up.status import Reporter, Standing
from streamserve.cli.up.supervisor import Child, Reaper, State, rotate
from streamserve.cli.up.taking import Current, EditTaker
from streamserve.cli.up.view import RouterView
from streamserve.contract.keys import Keyspace
from streamserve.contract.lanes import Wanted, plan
from streamserve.contract.runtime_config import RuntimeConfig
from streamserve.contract.streampair import StreamPair, cluster_only
from streamserve.runtime.metrics import HealthServer
from streamserve.runtime.process import write_atomic
from streamserve.runtime.tasks import Tasks

READY_SECONDS: Final = {"Vllm": 600.0, "Simulator": 60.0}
# After its drain a router cuts what is left, two seconds for calls and two for what they began.
ROUTER_STOP_SECONDS: Final = commands.ROUTER_DRAIN_SECONDS + 5.0
REDIS_STOP_SECONDS: Final = 3.0
_TICK_SECONDS: Final = 0.2
_ROTATE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    file: Path
    grpc: str
    http: str
    metrics: str = "127.0.0.1:0"
    redis: str | None = None
    engine: str | None = None
    lanes: int | None = None
    ready_file: Path | None = None


class Running:
    """Everything that one `up` has started. `run`, then `stop`, which is safe at any point of the start."""

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
        self._current = Current.first(pair, config)
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
        self._view: RouterView | None = None
        self._fleet_file: KeptFile | None = None
        self._ready_file = None if options.ready_file is None else KeptFile(options.ready_file.absolute(), reporter.say)
        self._announced = False
        self._halted = ""
        self._refused = asyncio.Event()
        self._standing = Standing(lanes=pair.spec.lanes, ready=0, generation=config.id.generation)
        self._metrics = UpMetrics(lambda: (child.state for child in self._children()))
        self._health = HealthServer(
            options.metrics, registry=self._metrics.registry, live=self._failed, ready=self._not_ready
        )

    # Start.

    async def run(self, endpoint: local_redis.Endpoint | None, content: bytes, stop: asyncio.Event) -> int:
        """Start everything and stay until `stop`, or until a loop of ours dies (status 1).

        Raises Refused when an engine does not take its arguments before all lanes have been ready once: starting it
        again would end the same way.
        """
        self._forget_ready_file()
        await self._health.start()
        await self._reaper.start()
        self._keeper = asyncio.create_task(self._reaper.keep(), name="up/reaper")
        endpoint = await self._start_redis() if endpoint is None else endpoint
        write_atomic(self._run_dir / "redis.url", endpoint.url.encode(), mode=0o600)
        self._endpoint = endpoint
        self._site = site = Site(
            pair=self._current.pair.metadata.name,
            uid=self._current.config.id.uid,
            run_dir=self._run_dir,
            redis_url=endpoint.url,
            environment=dict(os.environ),
            cpu_engines=preflight.cpu_engines(),
        )
        self._push = ConfigPush(
            Keyspace(commands.NAMESPACE, site.pair), endpoint.url, site.config_file, self._reporter.say
        )
        await self._push.write(self._current.config)
        self._lanes = Lanes(site, self._new_child, self._tasks, self._wake.set, self._reporter.say)
        self._fleet_file = KeptFile(site.fleet_file, self._reporter.say)
        self._write_fleet()
        grpc_address, http_address = ports.settled((self._options.grpc, self._options.http), self._rng)
        self._router = self._new_child(commands.router(site, grpc_address, http_address))
        self._view = RouterView(self._router)
        self._router.start()
        taker = EditTaker(
            self._options.file,
            self._overrides,
            self._current,
            lanes=self._lanes,
            router=self._router,
            push=self._push,
            ask_engine=partial(engine_check.ask, site, self._reaper),
            tasks=self._tasks,
            changed=self._wake.set,
            echoed=self._metrics.echoed,
            say=self._reporter.say,
        )
        self._introduce()
        for name, loop in (
            ("plan", self._keep_planning()),
            ("edits", taker.follow(content)),
            ("fleet", self._view.follow()),
            ("config", self._push.keep()),
            ("folder", self._keep_folder()),
        ):
            self._tasks.spawn(name, loop)
        await _first_of(stop, self._tasks.failed, self._refused)
        if stop.is_set():
            self._reporter.say("stopping: router, workers, Redis (again to stop at once)")
            return 0
        if self._refused.is_set():
            self._reporter.say("stopping: the engines do not take their arguments")
            raise Refused(*self._refusals())
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
            restarted=self._metrics.restarted,
        )

    def _introduce(self) -> None:
        spec = self._current.pair.spec
        lanes = f"{spec.lanes} {'lane' if spec.lanes == 1 else 'lanes'}"
        self._reporter.say(
            f"{self._site.pair}: {lanes} of {spec.prefill.replicas} prefill and {spec.decode.replicas} decode "
            f"{spec.engine.kind.value} workers, revision {self._current.revision}; logs in {self._run_dir / 'logs'}"
        )
        if idle := [path for path in cluster_only(self._current.pair) if edits.has_no_effect_here(path)]:
            self._reporter.say(f"without effect on one machine: {', '.join(idle)}")

    # Loops.

    async def _keep_planning(self) -> None:
        while True:
            # Not wait_for: in Python 3.11 it loses a cancellation that comes with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            self._plan_once()

    def _plan_once(self) -> None:
        lanes, router, view = self._parts()
        fleet = view.fleet
        spec = self._current.pair.spec
        wanted = Wanted(
            revision=self._current.revision,
            lanes=spec.lanes,
            prefill_replicas=spec.prefill.replicas,
            decode_replicas=spec.decode.replicas,
            max_unavailable=spec.update.unavailable_lanes,
            max_surge=spec.update.max_surge,
            ready_seconds=READY_SECONDS[spec.engine.kind.value],
        )
        now = lanes.observe(fleet)
        step = plan(wanted, now)
        for action in step.actions:
            lanes.carry_out(action, self._current.pair, self._current.revision, spec.update.drain_seconds)
        self._write_fleet()
        self._tell_halt(step.halted)
        if not self._announced and self._refusals():
            self._refused.set()
        if step.done and fleet is not None and not self._announced:
            self._announce(router)
        self._standing = standing = Standing(
            lanes=spec.lanes,
            ready=sum(lane.ready for lane in now),
            generation=self._current.config.id.generation,
            loading=self._loading(),
            fleet=fleet,
            halted=step.halted,
        )
        self._metrics.stands(
            wanted=standing.lanes, ready=standing.ready, halted=bool(step.halted), generation=standing.generation
        )
        self._reporter.show(standing)

    def _refusals(self) -> list[str]:
        lanes, _, _ = self._parts()
        wanted = (lane for lane in lanes.lanes.values() if lane.revision == self._current.revision)
        said = (child.refusal for lane in wanted for child in lane.children.values() if child.refusal)
        return [f"{self._options.file}: spec.engine.args: {text}" for text in dict.fromkeys(said)]

    def _tell_halt(self, halted: str) -> None:
        if halted != self._halted:
            if halted:
                self._reporter.say(f"halted: {halted}. Nothing else is replaced; edit the file to go on")
            else:
                self._reporter.say("goes on")
        self._halted = halted

    def _loading(self) -> tuple[tuple[str, float], ...]:
        lanes, _, _ = self._parts()
        now = time.monotonic()
        return tuple(
            (child.name, now - child.started_at)
            for child in lanes.children
            if child.state is State.STARTING and now - child.started_at >= 1
        )

    def _write_fleet(self) -> None:
        if self._lanes is not None and self._fleet_file is not None:
            self._fleet_file.write(json.dumps(self._lanes.fleet()).encode())

    async def _keep_folder(self) -> None:
        while True:
            await asyncio.sleep(_ROTATE_SECONDS)
            run_folder.touch(self._run_dir)
            with contextlib.suppress(OSError):  # too many open files: the next time
                for log in (self._run_dir / "logs").glob("*.log"):
                    rotate(log)

    # Ready, and the end.

    def _announce(self, router: Child) -> None:
        """Once; a ready file that cannot be written is waited for, as whoever reads it waits too."""
        grpc_address, http_address = str(router.info["grpc"]), str(router.info["http"])
        if self._ready_file is not None:
            ready = {
                "grpc": grpc_address,
                "http": http_address,
                "metrics": self._health.address,
                "redis": self._endpoint.address,
                "redis_url_file": str(self._run_dir / "redis.url"),
                "pid": os.getpid(),
                "run_dir": str(self._run_dir),
                "namespace": commands.NAMESPACE,
                "pair": self._site.pair,
                "pair_uid": self._site.uid,
            }
            if not self._ready_file.write(json.dumps(ready).encode() + b"\n"):
                return
        self._announced = True
        server = "" if grpc_address == "127.0.0.1:50051" else f" --server {grpc_address}"
        self._reporter.say(
            f"ready in {time.monotonic() - self._began:.1f} s: gRPC {grpc_address}, OpenAI http://{http_address}/v1; "
            f'try: streamserve generate{server} "Once upon a time"'
        )

    def _forget_ready_file(self) -> None:
        if self._options.ready_file is not None:
            self._options.ready_file.unlink(missing_ok=True)

    # What the health port answers.

    def _children(self) -> list[Child]:
        workers = self._lanes.children if self._lanes is not None else []
        return [child for child in (self._redis, self._router) if child is not None] + workers

    def _failed(self) -> str | None:
        return f"a part of `up` failed: {self._tasks.error!r}" if self._tasks.failed.is_set() else None

    def _not_ready(self) -> str | None:
        seen = self._standing
        if self._announced and seen.ready >= seen.lanes:
            return None
        return f"{seen.ready} of {seen.lanes} lanes take traffic"

    def _parts(self) -> tuple[Lanes, Child, RouterView]:
        if self._lanes is None or self._router is None or self._view is None:
            raise AssertionError("the loops begin after the router was started")
        return self._lanes, self._router, self._view

    async def stop(self, hurry: asyncio.Event) -> None:
        """Everything, in order; safe at any point of the start."""
        with contextlib.suppress(OSError):  # whatever became of its folder, the rest has to end
            self._forget_ready_file()
        await self._tasks.stop()
        if self._view is not None:
            await self._view.close()
        if self._router is not None:
            await self._router.stop(ROUTER_STOP_SECONDS, hurry)
        if self._lanes is not None:
            await asyncio.gather(*(child.stop(STOP_SECONDS, hurry) for child in self._lanes.children))
        if self._push is not None:
            await self._push.close()
        if self._redis is not None:
            await self._redis.stop(REDIS_STOP_SECONDS, hurry)
        await self._health.stop()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        await self._reaper.stop()


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
