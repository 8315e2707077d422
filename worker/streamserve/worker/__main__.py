"""`streamserve-worker`: one engine behind WorkerService, from its start to its end.

Start: ports first (so that a taken one is refused at once), then the engine, then the configuration, then Redis, and
at last the ready file. End: SIGTERM drains; the engine's death ends every stream with WorkerLost and the process with
status 1, so that whoever started it starts it anew; a parent's death (with --die-with-parent) ends it without a drain.
"""

from __future__ import annotations

import streamserve.runtime.early_stop  # noqa: F401 (before anything that takes long)

# isort: split
import asyncio
import contextlib
import json
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from random import Random
from typing import Final

from prometheus_client import CollectorRegistry

from streamserve.contract import runtime_config
from streamserve.contract.errors import WorkerLost
from streamserve.contract.runtime_config import ConfigError, RuntimeConfig
from streamserve.contract.signals import WorkerSignals
from streamserve.runtime import logs, process
from streamserve.runtime.config_source import ConfigSource
from streamserve.runtime.errors import SetupError
from streamserve.runtime.grpc import GrpcServer
from streamserve.runtime.metrics import HealthServer
from streamserve.runtime.tasks import Tasks
from streamserve.worker import grpc_front, options, wire
from streamserve.worker.acks import Acks
from streamserve.worker.drain import Drain
from streamserve.worker.engine_time import EngineTime
from streamserve.worker.flights import Flights
from streamserve.worker.grpc_front import WorkerFront
from streamserve.worker.monitor.board import SignalBoard
from streamserve.worker.monitor.metrics import Gauges, Metrics
from streamserve.worker.monitor.publisher import Publisher
from streamserve.worker.monitor.sample import ServerState, sample
from streamserve.worker.monitor.workloads import Workloads
from streamserve.worker.options import Options
from streamserve.worker.pipeserve.engine import Engine
from streamserve.worker.pipeserve.recorder import Recorder
from streamserve.worker.reload import Reloader
from streamserve.worker.serving import Serving
from streamserve.worker.wire import WorkerIdentity

_log = logs.get(__name__)
_LOOK_SECONDS: Final = 0.1
_STOP_SECONDS: Final = 8.0
_ORPHAN_STOP_SECONDS: Final = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        chosen = options.parse(arguments)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if chosen.die_with_parent:
        process.die_with_parent()
    logs.configure("worker", level=chosen.log_level)
    parent = os.getppid()
    return process.run(lambda stop: Worker(chosen, parent).run(stop))


class Worker:
    """The process, assembled."""

    def __init__(self, chosen: Options, parent: int) -> None:
        self._options = chosen
        self._parent = parent
        self._identity = WorkerIdentity(
            id=chosen.id,
            role=chosen.role,
            lane=chosen.lane,
            revision=chosen.revision,
            namespace=chosen.keyspace.namespace,
            pair=chosen.keyspace.pair,
            pair_uid=chosen.pair_uid,
            boot_id=secrets.randbits(64),
            engine=chosen.engine,
        )
        self._rng = Random(self._identity.boot_id)
        self._registry = CollectorRegistry()
        self._metrics = Metrics(self._registry)
        self._flights = Flights()
        self._acks = Acks()
        self._workloads = Workloads()
        self._tasks = Tasks(f"worker {chosen.id}")
        self._front = WorkerFront()
        self._not_ready: str | None = "the engine is loading"
        self._dead: str | None = None
        self._run_dir = Path(os.devnull)

    async def run(self, stop: asyncio.Event) -> int:
        """Until `stop` is set or the engine dies. Returns the exit status."""
        chosen = self._options
        initial = _initial_config(chosen)
        health = HealthServer(
            chosen.metrics, registry=self._registry, live=lambda: self._dead, ready=lambda: self._not_ready
        )
        server = GrpcServer(chosen.grpc, services=[grpc_front.SERVICE], tls=chosen.tls)
        grpc_front.add_to(server.server, self._front)
        run_dir = self._run_dir = Path(tempfile.mkdtemp(prefix="streamserve-worker-"))
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(shutil.rmtree, run_dir, ignore_errors=True)
            metrics_address = await health.start()
            stack.push_async_callback(health.stop)
            grpc_address = await server.start()
            stack.push_async_callback(server.stop, 1.0)
            engine = await self._unless_stopped(_create(chosen, initial.for_lane(chosen.lane), run_dir), stop)
            if engine is None:
                return 0
            stack.push_async_callback(_stop_engine, engine)
            serving, publisher = self._assemble(engine, initial, grpc_address)
            stack.push_async_callback(self._tasks.stop)
            stack.push_async_callback(self._front.stop)
            self._tasks.spawn("config", serving.config.run())
            if publisher is not None:
                self._tasks.spawn("signals", publisher.run())
            await server.set_serving(True)
            self._not_ready = None
            if chosen.ready_file is not None:
                ready = json.dumps({"grpc": grpc_address, "metrics": metrics_address}).encode()
                process.write_atomic(chosen.ready_file, ready)
            _log.info("worker serves", extra={"grpc": grpc_address, "metrics": metrics_address, "id": chosen.id})
            status = await self._serve(serving, server, stop)
            self._arm_watchdog(_STOP_SECONDS, status)
            if publisher is not None and status == 0:
                await publisher.withdraw()
            return status
        raise AssertionError("the exit stack swallowed an error")

    async def _unless_stopped(self, loading: Coroutine[None, None, Engine], stop: asyncio.Event) -> Engine | None:
        """The engine, or None when the process was told to stop while it loaded."""
        task = asyncio.create_task(loading, name="load")
        waiting = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            # A model that is being loaded in a thread can not be interrupted: the watchdog ends it.
            self._arm_watchdog(_ORPHAN_STOP_SECONDS if self._orphaned else _STOP_SECONDS, 0)
            task.cancel()
            await asyncio.wait((task,), timeout=_STOP_SECONDS / 2)
            return None
        finally:
            waiting.cancel()

    @property
    def _orphaned(self) -> bool:
        return self._options.die_with_parent and os.getppid() != self._parent

    def _assemble(self, engine: Engine, initial: RuntimeConfig, bound: str) -> tuple[Serving, Publisher | None]:
        chosen, identity = self._options, self._identity
        board = SignalBoard(lambda epoch: self._sample(serving, epoch))
        drain = Drain(
            running=lambda: len(self._flights),
            held=lambda: engine.snapshot().kv_blocks_used if chosen.role == "prefill" else 0,
            clock=time.monotonic,
            on_begin=board.touch,
        )
        reloader = Reloader(engine, chosen.lane, initial.id, board.touch)
        source = ConfigSource(
            chosen.keyspace,
            chosen.pair_uid,
            redis_url=chosen.redis_url,
            file=chosen.config,
            apply=reloader.apply,
            rng=self._rng,
        )
        # The engine was built with it, so no step has ever used another.
        source.applied = initial
        serving = Serving(
            engine=engine,
            identity=identity,
            endpoint=wire.endpoint(identity, chosen.advertise or bound, engine.info.version),
            flights=self._flights,
            acks=self._acks,
            drain=drain,
            board=board,
            engine_time=EngineTime(time.monotonic),
            workloads=self._workloads,
            metrics=self._metrics,
            reloader=reloader,
            config=source,
            slow_reader_seconds=chosen.slow_reader_seconds,
        )
        self._front.attach(serving)
        publisher = None
        if chosen.redis_url is not None:
            publisher = Publisher(chosen.redis_url, chosen.keyspace, board, serving.endpoint, self._rng)
        self._metrics.watch(lambda: self._gauges(serving, publisher))
        return serving, publisher

    async def _serve(self, serving: Serving, server: GrpcServer, stop: asyncio.Event) -> int:
        """Watch over the engine, the drain and the background tasks until the end. Returns the exit status."""
        told_serving, fallback = True, ""
        while not stop.is_set():
            snapshot = serving.engine.snapshot()
            fallback = tell_fallback(fallback, snapshot.speculation_fallback)
            if not snapshot.alive:
                return await self._engine_died(serving, server, snapshot.death)
            if self._tasks.failed.is_set():
                return await self._engine_died(serving, server, f"a background task died: {self._tasks.error}")
            if serving.drain.draining and told_serving:
                told_serving = False
                self._not_ready = "draining"
                await server.set_serving(False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await stop.wait()
        self._not_ready = "draining"
        await server.set_serving(False)
        if self._orphaned:
            self._arm_watchdog(_ORPHAN_STOP_SECONDS, 1)
            return 1
        left = await serving.drain.wait(self._options.drain_seconds)
        if left:
            _log.warning("stopping with requests unfinished", extra={"unfinished_requests": left})
            self._flights.fail_all(WorkerLost("this worker stops; use another", reason="DRAINING"))
            await asyncio.sleep(_LOOK_SECONDS)
        return 0

    async def _engine_died(self, serving: Serving, server: GrpcServer, reason: str) -> int:
        self._dead = self._not_ready = f"the engine is dead: {reason}"
        _log.error("%s", self._dead)
        self._arm_watchdog(_STOP_SECONDS, 1)
        serving.drain.begin()
        await server.set_serving(False)
        self._flights.fail_all(WorkerLost(self._dead, reason="ENGINE_DEAD"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._flights.idle.wait()
        # Let the last signals, which say so, reach Redis.
        await asyncio.sleep(2 * _LOOK_SECONDS)
        return 1

    def _arm_watchdog(self, seconds: float, status: int) -> None:
        """A thread of the engine that hangs must not keep the process alive, nor its folder."""

        def end() -> None:
            shutil.rmtree(self._run_dir, ignore_errors=True)
            os._exit(status)

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()

    def _sample(self, serving: Serving, epoch: int) -> WorkerSignals:
        state = ServerState(
            applied=serving.reloader.applied,
            max_running_requests=serving.engine.info.max_running_requests,
            requests_in_engine=self._flights.in_engine,
            draining=serving.drain.draining,
            config_rejected=bool(serving.config.last_error),
            acks=self._acks.latest(),
            workloads=self._workloads.latest(),
        )
        return sample(self._identity, serving.engine.snapshot(), state, epoch)

    def _gauges(self, serving: Serving, publisher: Publisher | None) -> Gauges:
        identity = self._identity
        return Gauges(
            engine=serving.engine.snapshot(),
            applied=serving.reloader.applied,
            config_rejected=bool(serving.config.last_error),
            draining=serving.drain.draining,
            open_requests=len(self._flights),
            redis_connected=publisher is not None and publisher.connected,
            signals_published=publisher.published if publisher is not None else 0,
            labels=(
                ("id", identity.id),
                ("role", identity.role),
                ("lane", identity.lane),
                ("revision", identity.revision),
                ("engine", identity.engine),
                ("engine_version", serving.engine.info.version),
            ),
        )


def tell_fallback(before: str, now: str) -> str:
    """Log why the law of depth failed, once; the signals only say that it did."""
    if now and now != before:
        _log.warning("the law of depth failed, the depth stays constant until the next configuration: %s", now)
    return now


def _initial_config(chosen: Options) -> RuntimeConfig:
    """The file's configuration: a worker without one does not start."""
    try:
        config = runtime_config.decode(chosen.config.read_bytes())
    except OSError as error:
        raise SetupError(f"cannot read --config {chosen.config}: {error.strerror}") from None
    except ConfigError as error:
        raise SetupError(f"--config {chosen.config}: {error}") from None
    if config.id.uid != chosen.pair_uid:
        raise SetupError(f"--config {chosen.config} is of uid {config.id.uid}, this worker is of {chosen.pair_uid}")
    return config


async def _create(chosen: Options, initial: RuntimeConfig, run_dir: Path) -> Engine:
    engine: Engine
    if chosen.engine == "Simulator":
        from streamserve.worker.pipeserve import simulator

        engine = await simulator.create(
            role=chosen.role,
            model=chosen.model,
            draft=chosen.draft,
            method=chosen.method,
            max_depth=chosen.max_depth,
            engine_args=chosen.engine_args,
            initial=initial,
            worker_id=chosen.id,
            nixl_address=chosen.nixl,
            run_dir=run_dir,
            calibration=chosen.calibration,
        )
    else:
        try:
            from streamserve.worker.pipeserve import vllm_engine
        except ImportError as error:
            raise SetupError(
                f"vLLM is not installed ({error.name}): install streamserve[worker], or use --engine Simulator"
            ) from None
        engine = await vllm_engine.create(
            role=chosen.role,
            model=chosen.model,
            draft=chosen.draft,
            method=chosen.method,
            max_depth=chosen.max_depth,
            engine_args=chosen.engine_args,
            initial=initial,
            worker_id=chosen.id,
            nixl_address=chosen.nixl,
            run_dir=run_dir,
        )
    if chosen.record is not None:
        recorder = Recorder(engine, chosen.record)
        recorder.start()
        return recorder
    return engine


async def _stop_engine(engine: Engine) -> None:
    try:
        async with asyncio.timeout(_STOP_SECONDS - 1.0):
            await engine.stop()
    except TimeoutError:
        _log.error("the engine did not stop in time")


if __name__ == "__main__":
    sys.exit(main())
