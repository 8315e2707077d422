"""streamserve-operator: puts the parts together in the order in which they need each other, and takes them apart."""

from __future__ import annotations

import streamserve.runtime.early_stop  # noqa: F401 (before anything that takes long)

# isort: split
import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from random import SystemRandom

from streamserve.operator.edge import settings as settings_module
from streamserve.operator.edge import watch
from streamserve.operator.edge.api import Api
from streamserve.operator.edge.apply import Applier
from streamserve.operator.edge.controller import Controller
from streamserve.operator.edge.fence import Fence
from streamserve.operator.edge.fleet import ProcessFleet
from streamserve.operator.edge.health import Health
from streamserve.operator.edge.knowledge import Knowledge
from streamserve.operator.edge.lease import Elector
from streamserve.operator.edge.login import REFRESH_SECONDS, login
from streamserve.operator.edge.metrics import OperatorMetrics
from streamserve.operator.edge.pod_events import PodEvents
from streamserve.operator.edge.reconcile import Reconciler
from streamserve.operator.edge.renewal import Renewal
from streamserve.operator.edge.resources import WATCHED
from streamserve.operator.edge.settings import OperatorSettings
from streamserve.operator.edge.status_writer import StatusWriter
from streamserve.operator.edge.store import Store
from streamserve.operator.edge.watch import Watch
from streamserve.runtime import logs, process
from streamserve.runtime.errors import SetupError
from streamserve.runtime.metrics import HealthServer
from streamserve.runtime.tasks import Tasks

_STOP_SECONDS = 10.0
_log = logs.get("streamserve.operator")


class Operator:
    """One operator process, leading or standing by."""

    def __init__(self, settings: OperatorSettings) -> None:
        rng, clock = SystemRandom(), time.monotonic
        self._settings = settings
        self._tasks = Tasks("operator")
        self._metrics = metrics = OperatorMetrics()
        self._store = store = Store()
        self._fence = fence = Fence()
        self._api = api = Api(login, fence, metrics)
        self._fleet = ProcessFleet(
            settings.redis_url,
            settings.namespaces,
            settings.tls,
            fence,
            store,
            ask=lambda key: self._controller.ask(key),  # noqa: PLW0108 (made below)
            metrics=metrics,
            rng=rng,
            redis_users=settings.redis_users,
            unknown=lambda: self._knowledge.unknown(),  # noqa: PLW0108 (made below)
        )
        self._pod_events = PodEvents(
            api,
            fence,
            ask=lambda key: self._controller.ask(key),  # noqa: PLW0108 (made below)
            now=time.time,
        )
        reconciler = Reconciler(
            store,
            Applier(api, store, metrics, _utc_now),
            StatusWriter(api, store, metrics, _utc_now),
            self._fleet,
            self._pod_events,
            settings.site,
            metrics=metrics,
            clock=clock,
            utc_now=_utc_now,
            term=lambda: fence.term,
            knows=lambda namespace: self._knowledge.knows(namespace),  # noqa: PLW0108 (made below)
        )
        self._elector = Elector(api, fence, settings.lease, healthy=self._working, rng=rng)
        self._renewal: Renewal | None = None
        if settings.renewal is not None:
            self._renewal = Renewal(
                api, settings.renewal, metrics, leads=self._elector.leads, rng=rng, utc_now=_utc_now
            )
        self._controller = Controller(
            reconciler.reconcile,
            store,
            self._elector.leads,
            metrics=metrics,
            clock=clock,
            rng=rng,
            term=lambda: fence.term,
        )
        self._watches = [
            Watch(
                resource,
                namespace,
                login=login,
                store=store,
                on_change=self._controller.changed,
                clock=clock,
                rng=rng,
                relist_seconds=settings.relist_seconds,
                on_news=lambda: self._knowledge.news(),  # noqa: PLW0108 (made below)
            )
            for resource in WATCHED
            for namespace in (settings.namespaces or (None,))
        ]
        watched = [each.health for each in self._watches]
        self._knowledge = Knowledge(watched, on_known=self._look_at)
        self._health = Health(watched, self._controller, self._elector, fence, clock=clock)
        metrics.follow(metrics.objects, lambda: len(store))
        metrics.follow(metrics.pairs, lambda: len(store.pairs()))
        metrics.follow(metrics.leads, lambda: float(fence.is_up))
        metrics.follow(metrics.unknown_namespaces, lambda: len(self._knowledge.unknown()))
        metrics.follow(metrics.watch_silence, self._health.silence_seconds)

    async def run(self, stop: asyncio.Event) -> int:
        """Serve until `stop`, or until a part fails. Returns the exit status."""
        health = HealthServer(
            self._settings.metrics, registry=self._metrics.registry, live=self._health.live, ready=self._health.ready
        )
        bound = await health.start()
        try:
            watch.check()
            self._api.open()
            return await self._serve(stop, bound)
        finally:
            await self._tasks.stop(_STOP_SECONDS)
            await self._controller.stop(_STOP_SECONDS)
            await self._elector.release()
            await self._fleet.close()
            await self._api.close()
            await health.stop()

    async def _serve(self, stop: asyncio.Event, bound: str) -> int:
        for each in self._watches:
            self._tasks.spawn(f"watch {each.health.what}", each.run())
        self._tasks.spawn("credentials", self._refresh())
        self._tasks.spawn("fleet", self._fleet.run())
        self._tasks.spawn("work", self._work())
        if self._settings.ready_file is not None:
            process.write_atomic(self._settings.ready_file, json.dumps({"metrics": bound}).encode())
        where = ", ".join(self._settings.namespaces) or "every namespace"
        _log.info("operator of %s, metrics on %s", where, bound)
        ended = asyncio.create_task(stop.wait())
        failed = asyncio.create_task(self._tasks.failed.wait())
        await asyncio.wait((ended, failed), return_when=asyncio.FIRST_COMPLETED)
        for waiter in (ended, failed):
            waiter.cancel()
        return 1 if self._tasks.failed.is_set() else 0

    async def _work(self) -> None:
        """Nothing is decided, and no lease is taken, before what exists is known: see `knowledge.py`."""
        await self._knowledge.enough()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._elector.run(), name="lease")
            group.create_task(self._controller.run(), name="controller")
            group.create_task(self._pod_events.run(), name="events of pods")
            if self._renewal is not None:
                group.create_task(self._renewal.run(), name="renewal")

    def _look_at(self, namespace: str | None) -> None:
        for key in self._store.pairs():
            if namespace in (None, key[0]):
                self._controller.ask(key)

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            self._api.refresh()

    def _working(self) -> str | None:
        return self._controller.trouble()


def _utc_now() -> datetime:
    return datetime.now(UTC)


def main() -> int:
    try:
        settings = settings_module.parse()
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    if settings.die_with_parent:
        process.die_with_parent()
    logs.configure("operator", level=settings.log_level)

    async def body(stop: asyncio.Event) -> int:
        return await Operator(settings).run(stop)

    return process.run(body)


if __name__ == "__main__":
    sys.exit(main())
