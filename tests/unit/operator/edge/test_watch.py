"""What a watch that the API server ends is followed by: kopf's real watch, on a server that says what a case wants."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import kopf
from aiohttp import web

from streamserve.operator.edge.resources import BY_KIND, PAIR, Resource
from streamserve.operator.edge.store import Change, Store
from streamserve.operator.edge.watch import SERVER_TIMEOUT_SECONDS, Watch

Body = dict[str, Any]
KEY: Final = ("llm", "llama")
PATIENCE_SECONDS: Final = 10.0


def pair(version: int, **spec: Any) -> Body:
    metadata = {"name": "llama", "namespace": "llm", "uid": "u", "generation": version, "resourceVersion": str(version)}
    return {"apiVersion": PAIR.api_version, "kind": PAIR.kind, "metadata": metadata, "spec": spec}


@dataclass
class ApiServer:
    """Lists `objects`, and once it was watched `objects_then`. Watches are answered with `events` in turn and then
    ended; the last one stays open, silent."""

    objects: list[Body] = field(default_factory=list)
    events: list[list[Body]] = field(default_factory=list)
    objects_then: list[Body] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    stays: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            objects = self.objects_then if len(self.asked) > 1 else self.objects
            self.asked.append("list")
            return web.json_response({"metadata": {"resourceVersion": "5"}, "items": objects})
        self.asked.append(f"watch from {request.query['resourceVersion']}")
        response = web.StreamResponse()
        await response.prepare(request)
        for event in self.events[0] if self.events else []:
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


@contextlib.asynccontextmanager
async def watching(server: ApiServer, resource: Resource, store: Store, step: float) -> AsyncIterator[list[Change]]:
    application = web.Application()
    application.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    changes: list[Change] = []
    watch = Watch(
        resource,
        "llm",
        login=lambda: kopf.ConnectionInfo(server=f"http://{host}:{port}"),
        store=store,
        on_change=changes.append,
        clock=Clock(step),
        rng=Random(1),
    )
    task = asyncio.create_task(watch.run())
    try:
        await asyncio.wait_for(server.stays.wait(), PATIENCE_SECONDS)
        yield changes
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await runner.cleanup()


async def test_a_field_that_a_watch_of_before_the_upgrade_left_out_comes_with_the_listing_that_follows_it() -> None:
    """As seen on a real API server: the edited object at its new version, by the old schema, and the end."""
    edited = pair(6, lanes=2, added=True)
    without = {"type": "MODIFIED", "object": pair(6, lanes=2)}
    server, store = ApiServer([pair(4, lanes=1)], [[without]], objects_then=[edited]), Store()
    async with watching(server, PAIR, store, step=0.001) as changes:
        kept = store.get((PAIR.kind, *KEY))
        assert kept is not None
        assert kept["spec"] == edited["spec"]
        assert [change.key for change in changes] == [KEY] * 3, "first listed, edited, and the field"
        assert server.asked == ["list", "watch from 5", "list", "watch from 5"]


async def test_a_custom_resources_watch_that_has_lived_its_time_goes_on_where_it_ended() -> None:
    server = ApiServer([pair(4, lanes=1)], [[{"type": "MODIFIED", "object": pair(6, lanes=2)}]])
    async with watching(server, PAIR, Store(), step=SERVER_TIMEOUT_SECONDS):
        assert server.asked == ["list", "watch from 5", "watch from 6"]


async def test_a_watch_of_a_kind_without_a_crd_goes_on_where_it_ended_however_early() -> None:
    server = ApiServer([], [[], []])
    async with watching(server, BY_KIND["Pod"], Store(), step=0.001):
        assert server.asked == ["list", "watch from 5", "watch from 5", "watch from 5"]
