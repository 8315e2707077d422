"""What a watch that the API server ends, refuses or cuts off is followed by: kopf's real watch, on a server that says
what a case wants."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import kopf
import pytest
from aiohttp import web

from streamserve.operator.edge.resources import BY_KIND, PAIR, Resource
from streamserve.operator.edge.store import Change, Store, slim
from streamserve.operator.edge.watch import SERVER_TIMEOUT_SECONDS, UP_SECONDS, Health, Watch

Body = dict[str, Any]
KEY: Final = ("llm", "llama")
PATIENCE_SECONDS: Final = 10.0


def pod(version: int, name: str = "w") -> Body:
    metadata = {"name": name, "namespace": "llm", "uid": name, "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}, "status": {"phase": str(version)}}


def pair(version: int, **spec: Any) -> Body:
    metadata = {"name": "llama", "namespace": "llm", "uid": "u", "generation": version, "resourceVersion": str(version)}
    return {"apiVersion": PAIR.api_version, "kind": PAIR.kind, "metadata": metadata, "spec": spec}


@dataclass
class ApiServer:
    """Answers the first listings with the statuses of `unlisted`. Lists `objects`, and once it was watched
    `objects_then`. The first `refused` watches are answered with `status`,
    0: cut off. The next ones are answered with `events` in turn and then ended; the last one says `last` and stays."""

    objects: list[Body] = field(default_factory=list)
    events: list[list[Body]] = field(default_factory=list)
    objects_then: list[Body] = field(default_factory=list)
    unlisted: list[int] = field(default_factory=list)
    refused: int = 0
    status: int = 0
    last: list[Body] = field(default_factory=list)
    is_refused: Callable[[], None] = lambda: None
    told: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    stays: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query and self.unlisted:
            status = self.unlisted.pop(0)
            return web.json_response({"kind": "Status", "code": status}, status=status)
        if "watch" not in request.query:
            objects = self.objects_then if len(self.asked) > 1 else self.objects
            self.asked.append("list")
            return web.json_response({"metadata": {"resourceVersion": "5"}, "items": objects})
        self.asked.append(f"watch from {request.query['resourceVersion']}")
        if self.refused:
            self.refused -= 1
            self.is_refused()
            if self.status == 0 and request.transport is not None:
                request.transport.abort()
            return web.json_response({"kind": "Status", "code": self.status}, status=self.status or 503)
        response = web.StreamResponse()
        await response.prepare(request)
        for event in self.events[0] if self.events else self.last:
            await response.write(json.dumps(event).encode() + b"\n")
        if self.events:
            self.events.pop(0)
        else:
            self.stays.set()
            await asyncio.sleep(PATIENCE_SECONDS)
        return response


class Clock:
    """Each reading is `step` seconds after the one before."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Hurried(Random):
    """Waits a hundredth of the least that it may, and keeps the most that it might have."""

    def __init__(self) -> None:
        super().__init__(1)
        self.waits: list[float] = []

    def uniform(self, a: float, b: float) -> float:
        if a < 0.8:  # the other one is the relisting's
            self.waits.append(b)
        return a / 100


@dataclass
class Watching:
    health: Health
    changes: list[Change]
    rng: Hurried
    news: list[tuple[bool, bool]]


@contextlib.asynccontextmanager
async def watching(server: ApiServer, resource: Resource, store: Store, step: float) -> AsyncIterator[Watching]:
    application = web.Application()
    application.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    changes: list[Change] = []
    rng, news = Hurried(), list[tuple[bool, bool]]()
    watch = Watch(
        resource,
        "llm",
        login=lambda: kopf.ConnectionInfo(server=f"http://{host}:{port}"),
        store=store,
        on_change=changes.append,
        clock=Clock(step),
        rng=rng,
        on_news=lambda: news.append((watch.health.listed, watch.health.refused)),
    )
    server.is_refused = lambda: server.told.append(watch.health.trouble)
    task = asyncio.create_task(watch.run())
    try:
        await asyncio.wait_for(server.stays.wait(), PATIENCE_SECONDS)
        yield Watching(watch.health, changes, rng, news)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await runner.cleanup()


async def test_a_field_that_a_watch_of_before_the_upgrade_left_out_comes_with_the_listing_that_follows_it() -> None:
    """As seen on a real API server: the edited object at its new version, by the old schema, and the end."""
    edited = pair(6, lanes=2, added=True)
    without = {"type": "MODIFIED", "object": pair(6, lanes=2)}
    server, store = ApiServer([pair(4, lanes=1)], [[without]], objects_then=[edited]), Store()
    async with watching(server, PAIR, store, step=0.001) as seen:
        kept = store.get((PAIR.kind, *KEY))
        assert kept is not None
        assert kept["spec"] == edited["spec"]
        assert [change.key for change in seen.changes] == [KEY] * 3, "first listed, edited, and the field"
        assert server.asked == ["list", "watch from 5", "list", "watch from 5"]


async def test_a_custom_resources_watch_that_has_lived_its_time_goes_on_where_it_ended() -> None:
    server = ApiServer([pair(4, lanes=1)], [[{"type": "MODIFIED", "object": pair(6, lanes=2)}]])
    async with watching(server, PAIR, Store(), step=SERVER_TIMEOUT_SECONDS):
        assert server.asked == ["list", "watch from 5", "watch from 6"]


async def test_a_watch_of_a_kind_without_a_crd_goes_on_where_it_ended_however_early() -> None:
    server = ApiServer([], [[{"type": "ADDED", "object": pod(version)}] for version in (6, 7)])
    async with watching(server, BY_KIND["Pod"], Store(), step=0.001) as seen:
        assert server.asked == ["list", "watch from 5", "watch from 6", "watch from 7"]
        assert seen.rng.waits == []


async def test_a_watch_that_had_nothing_to_show_goes_on_where_it_ended() -> None:
    server = ApiServer([], [[], []])
    async with watching(server, BY_KIND["Pod"], Store(), step=UP_SECONDS) as seen:
        assert server.asked == ["list", "watch from 5", "watch from 5", "watch from 5"]
        assert seen.rng.waits == []


@pytest.mark.parametrize("status", [0, 403, 429, 500], ids=["cut off", "no right to watch", "throttled", "failing"])
@pytest.mark.parametrize("kind", ["Pod", PAIR.kind])
async def test_a_watch_that_the_server_refuses_is_tried_ever_more_seldom_and_told(kind: str, status: int) -> None:
    """One try is a listing and a watch: two, where the client sends a request again that was cut off."""
    event = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}
    server = ApiServer(refused=10, status=status, last=[event])
    async with watching(server, BY_KIND[kind], Store(), step=0.001) as seen:
        lists = server.asked.count("list")
        assert len(server.asked) - lists <= 2 * lists
        assert lists - 1 == len(seen.rng.waits)
        assert seen.rng.waits == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0, 15.0, 15.0][: len(seen.rng.waits)]
        assert len(seen.rng.waits) >= 5
        assert server.told[0] == ""
        assert all(server.told[5:]), "listed each time, and never well for that"
        async with asyncio.timeout(PATIENCE_SECONDS):
            while seen.health.trouble:  # noqa: ASYNC110 (what is waited for is the code under test)
                await asyncio.sleep(0.002)


async def test_one_watch_that_is_refused_is_no_trouble_once_it_is_listed_again() -> None:
    server = ApiServer(refused=1, status=429)
    async with watching(server, BY_KIND["Pod"], Store(), step=0.001) as seen:
        assert server.asked == ["list", "watch from 5", "list", "watch from 5"]
        assert seen.health.trouble == ""


async def test_a_listing_is_refused_by_403_alone_and_by_none_that_follows() -> None:
    server = ApiServer(unlisted=[500, 403, 404, 403])
    async with watching(server, BY_KIND["Pod"], Store(), step=0.001) as seen:
        assert seen.news == [(False, False), (False, True), (False, False), (False, True), (True, False)]


async def test_a_listing_of_an_etcd_that_was_restored_from_a_backup_is_taken() -> None:
    server, store = ApiServer([pod(9), pod(8, "new")], objects_then=[pod(3)], refused=1, status=429), Store()
    async with watching(server, BY_KIND["Pod"], store, step=0.001):
        assert server.asked == ["list", "watch from 5", "list", "watch from 5"]
        assert [store.get(("Pod", "llm", name)) for name in ("w", "new")] == [slim(pod(3)), None]
