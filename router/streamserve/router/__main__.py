"""streamserve-router: puts the parts together in the order in which they need each other, and takes them apart."""

from __future__ import annotations

import streamserve.runtime.early_stop  # noqa: F401 (before anything that takes long)

# isort: split
import asyncio
import json
import sys
import time
from random import SystemRandom

from starlette.types import ASGIApp

from streamserve.contract.runtime_config import ConfigId, RuntimeConfig
from streamserve.router import config as settings_module
from streamserve.router.config import RouterSettings
from streamserve.router.fronts.checks import Checks, limits_of
from streamserve.router.fronts.grpc import admin, server
from streamserve.router.fronts.grpc.gate import TokenGate
from streamserve.router.fronts.openai import app
from streamserve.router.fronts.openai.access import OnlyKnownClients
from streamserve.router.fronts.openai.server import HttpServer
from streamserve.router.fronts.tokens import Tokens
from streamserve.router.goodput import GoodputMeter
from streamserve.router.metrics import RouterMetrics
from streamserve.router.scheduler.dispatch import Dispatcher
from streamserve.router.scheduler.orchestrator import Limits, Orchestrator
from streamserve.router.signals.fleet import Fleet, FleetSettings
from streamserve.runtime import logs, process
from streamserve.runtime.config_source import ConfigSource
from streamserve.runtime.errors import SetupError
from streamserve.runtime.grpc import GrpcServer
from streamserve.runtime.metrics import HealthServer
from streamserve.runtime.tasks import Tasks
from streamserve.v1 import admin_pb2_grpc

_SERVICES = (server.SERVICE, admin.SERVICE)
_READINESS_SECONDS = 0.25
_GOODPUT_SECONDS = 0.5
_CUT_SECONDS = 2.0
_log = logs.get("streamserve.router")


class Router:
    """One router process."""

    def __init__(self, settings: RouterSettings) -> None:
        rng = SystemRandom()
        self._settings = settings
        self._accepting = True
        self._tasks = Tasks("router")
        self._metrics = RouterMetrics()
        self._config = RuntimeConfig(id=ConfigId(uid=settings.pair_uid, generation=0))
        self._goodput = GoodputMeter(self._config, clock=time.time)
        self._source = ConfigSource(
            settings.keyspace,
            settings.pair_uid,
            redis_url=settings.redis_url,
            file=settings.config_file,
            apply=self._apply,
            rng=rng,
        )
        router_id = rng.getrandbits(32)
        self._fleet = Fleet(
            FleetSettings(
                keyspace=settings.keyspace,
                pair_uid=settings.pair_uid,
                router_id=router_id,
                redis_url=settings.redis_url,
                fleet_file=settings.fleet_file,
                tls=settings.tls,
            ),
            rng=rng,
        )
        self._dispatcher = Dispatcher(self._fleet, config=self.config, clock=time.monotonic, rng=rng)
        self._orchestrator = Orchestrator(
            self._fleet,
            self._dispatcher,
            config=self.config,
            clock=time.monotonic,
            metrics=self._metrics,
            goodput=self._goodput,
            router_id=router_id,
            limits=Limits(stall_seconds=settings.stall_seconds, slow_consumer_seconds=settings.slow_consumer_seconds),
        )
        checks = Checks(config=self.config, limits=lambda: limits_of(self._fleet.view()), clock=time.monotonic)
        tokens = None if settings.tokens is None else Tokens(settings.tokens, clock=time.monotonic)
        self._grpc = {"grpc": GrpcServer(settings.grpc, services=_SERVICES, tls=settings.tls)}
        if settings.token_grpc is not None and tokens is not None:
            gate = TokenGate(tokens, refused=lambda: self._metrics.turned_away("grpc"))
            self._grpc["token_grpc"] = GrpcServer(settings.token_grpc, services=_SERVICES, tls=settings.tls, gate=gate)
        for each in self._grpc.values():
            server.InferenceServicer(self._orchestrator, checks, self.accepting).add_to(each.server)
            admin_pb2_grpc.add_AdminServiceServicer_to_server(
                admin.AdminServicer(
                    self._orchestrator, checks, config=self.config, config_error=lambda: self._source.last_error
                ),
                each.server,
            )
        self._http: HttpServer | None = None
        if settings.http is not None:
            front: ASGIApp = app.build(
                self._orchestrator,
                checks,
                config=self.config,
                accepting=self.accepting,
                wall_clock=time.time,
            )
            if settings.tls is not None:
                front = OnlyKnownClients(front, tokens=tokens, refused=lambda: self._metrics.turned_away("http"))
            self._http = HttpServer(settings.http, front, tls=settings.tls)
        self._health = HealthServer(
            settings.metrics, registry=self._metrics.registry, live=self._live, ready=self._ready
        )
        self._gauges()

    def config(self) -> RuntimeConfig:
        return self._config

    def accepting(self) -> bool:
        return self._accepting

    async def run(self, stop: asyncio.Event) -> int:
        """Serve until `stop`. Returns the exit status."""
        if not await self._source.load_file():
            _log.warning("no configuration yet: %s", self._source.last_error)
        try:
            await self._start()
            failed = await self._until(stop)
        finally:
            await self._stop()
        return 1 if failed else 0

    async def _start(self) -> None:
        addresses = {name: await each.start() for name, each in self._grpc.items()}
        addresses["metrics"] = await self._health.start()
        if self._http is not None:
            addresses["http"] = await self._http.start()
        await self._fleet.start()
        self._tasks.spawn("config", self._source.run())
        self._tasks.spawn("dispatch", self._dispatcher.run())
        self._tasks.spawn("readiness", self._follow_readiness())
        self._tasks.spawn("goodput", self._publish_goodput())
        if self._settings.ready_file is not None:
            process.write_atomic(self._settings.ready_file, json.dumps(addresses).encode())
        _log.info("router is up", extra=addresses)

    async def _until(self, stop: asyncio.Event) -> bool:
        """Wait for the signal to stop, or for a part that died. True when one died."""
        failures = (self._tasks.failed, self._fleet.failed)
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, *failures)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return any(event.is_set() for event in failures)

    async def _stop(self) -> None:
        """Refuse what is new, let what runs end within the drain time, cut the rest, close."""
        self._accepting = False
        await self._set_serving(False)
        try:
            async with asyncio.timeout(self._settings.drain_seconds):
                await self._orchestrator.idle.wait()
        except TimeoutError:
            _log.warning("%d requests did not end in time and are cut", self._orchestrator.running)
        closing = [self._health.stop(), *(each.stop(_CUT_SECONDS) for each in self._grpc.values())]
        if self._http is not None:
            closing.append(self._http.stop(_CUT_SECONDS))
        await asyncio.gather(*closing)
        # Aborts of what was cut go out before the connections to the workers close.
        await self._orchestrator.stop()
        await self._tasks.stop(_CUT_SECONDS)
        await self._fleet.stop()
        if self._settings.ready_file is not None:
            self._settings.ready_file.unlink(missing_ok=True)

    async def _apply(self, config: RuntimeConfig) -> None:
        self._config = config
        self._goodput.applied(config)
        self._dispatcher.pump()

    async def _publish_goodput(self) -> None:
        while True:
            await asyncio.sleep(_GOODPUT_SECONDS)
            for minute in self._goodput.take():
                self._fleet.record(minute)

    async def _follow_readiness(self) -> None:
        serving = False
        while True:
            now = self._ready() is None
            if now != serving:
                serving = now
                await self._set_serving(serving)
            await asyncio.sleep(_READINESS_SECONDS)

    async def _set_serving(self, serving: bool) -> None:
        for each in self._grpc.values():
            await each.set_serving(serving)

    def _live(self) -> str | None:
        return "a background task has died; see the log" if self._tasks.failed.is_set() else None

    def _ready(self) -> str | None:
        if not self._accepting:
            return "stopping"
        if self._source.applied is None:
            return f"no configuration: {self._source.last_error or 'none has arrived'}"
        return None if self._fleet.ready_lanes() else "no lane takes traffic yet"

    def _gauges(self) -> None:
        observe, queue = self._metrics.observe, self._dispatcher.queue
        observe("queued_requests", "Requests that wait for workers.", lambda: queue.requests)
        observe("queued_tokens", "Their prompt tokens, estimated for text.", lambda: queue.tokens)
        observe("open_requests", "Requests that are not answered yet.", lambda: self._orchestrator.running)
        observe("ready_lanes", "Lanes that take traffic.", self._fleet.ready_lanes)
        observe("redis_connected", "1 while Redis answers.", lambda: float(self._fleet.view().redis_connected))
        observe("config_generation", "Generation of the configuration in force.", lambda: self._config.id.generation)
        observe("config_step", "Step within that generation.", lambda: self._config.id.step)


def main() -> int:
    """The console script."""
    try:
        settings = settings_module.parse(sys.argv[1:])
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if settings.die_with_parent:
        process.die_with_parent()
    logs.configure("router", level=settings.log_level)

    async def body(stop: asyncio.Event) -> int:
        return await Router(settings).run(stop)

    return process.run(body)


if __name__ == "__main__":
    sys.exit(main())
