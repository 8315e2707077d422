"""The embedded Redis with the rendered configuration, users and certificates: each component does its work with its
own user, through the code that it really runs, and can do nothing else."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import redis
from tests.chart.conftest import ROOT, Manifest, Render, named
from tests.support.processes import default_config, free_port, wait_until

from streamserve.contract import goodput, lane_word, runtime_config
from streamserve.contract.goodput import GoodputMinute
from streamserve.contract.keys import Keyspace
from streamserve.contract.lane_word import READY, LaneReport, LaneWord
from streamserve.contract.runtime_config import ConfigId, RuntimeConfig
from streamserve.operator.edge.fence import Fence
from streamserve.operator.edge.redis_link import RedisLink
from streamserve.operator.edge.redis_users import RedisUsers
from streamserve.router.signals.reader import SignalReader
from streamserve.runtime.config_source import ConfigSource
from streamserve.v1 import worker_pb2
from streamserve.worker.monitor.board import SignalBoard
from streamserve.worker.monitor.publisher import Publisher
from streamserve.worker.monitor.sample import ServerState, sample
from streamserve.worker.pipeserve.engine import EngineSnapshot
from streamserve.worker.wire import WorkerIdentity

UID = "5f0c7a52-0000-4000-8000-000000000001"
SPACE = Keyspace("serving", "llama")
OTHER = Keyspace("elsewhere", "llama")
WORKER = "lane-0-decode-0"
WORD = LaneWord(lanes={"lane-0": LaneReport(state=READY)})
MINUTE = GoodputMinute(minute=1, config=ConfigId(uid=UID, generation=1))


@dataclass(frozen=True, slots=True)
class Site:
    """A running Redis, and the URLs that the chart's Secrets hold, pointed at it."""

    urls: dict[str, str]
    users_file: Path

    def users(self) -> set[str]:
        return set(self.client("operator").acl_users())

    def look_after_users(self, namespaces: set[str]) -> None:
        """As the operator does, with the file that it finds mounted."""

        async def look() -> None:
            fence = Fence(time.monotonic)
            fence.raise_until(time.monotonic() + 60)
            link = RedisLink(self.urls["operator"], fence, ["serving"])
            await RedisUsers(self.users_file, lambda: namespaces, tuple, fence).look(link)
            await link.close()

        asyncio.run(look())

    def client(self, component: str) -> redis.Redis:
        return redis.from_url(self.urls[component], socket_timeout=5)


@pytest.fixture(scope="module")
def site(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, port = tmp_path_factory.mktemp("redis"), free_port()
    manifests = render("default")
    for name, data in named(manifests, "Secret", "streamserve-redis")["data"].items():
        (folder / name).write_bytes(base64.b64decode(data))
    text = named(manifests, "ConfigMap", "streamserve-redis")["data"]["redis.conf"]
    text = text.replace("/etc/streamserve/redis", str(folder)).replace("dir /tmp", f"dir {folder}")
    text = text.replace("tls-port 6379", f"tls-port {port}").replace("bind * -::*", "bind 127.0.0.1")
    (folder / "redis.conf").write_text(text)
    found = subprocess.run([str(ROOT / "hack" / "redis.sh")], check=True, capture_output=True, text=True, timeout=300)
    log = (folder / "log").open("wb")
    process = subprocess.Popen([found.stdout.strip(), str(folder / "redis.conf")], stdout=log, stderr=log)
    try:
        users = folder / "namespaces.acl"
        users.write_bytes(base64.b64decode(named(manifests, "Secret", "streamserve-redis-users")["data"]["users.acl"]))
        yield_site = Site(urls(manifests, folder, port), users)
        wait_until(lambda: answers(yield_site, process, folder), seconds=20, what="Redis answers")
        yield yield_site
    finally:
        process.terminate()
        process.wait(10)
        log.close()


def urls(manifests: list[Manifest], folder: Path, port: int) -> dict[str, str]:
    """Each with the files of its own Secret, as a pod would find them mounted."""
    found = {}
    for secret, entries in (
        ("streamserve-operator", {"operator": "redis-url"}),
        ("streamserve", {"worker": "worker-redis-url", "router": "router-redis-url"}),
    ):
        data = named(manifests, "Secret", secret)["data"]
        mounted = folder / secret
        mounted.mkdir()
        for name in ("ca.crt", "tls.crt", "tls.key"):
            (mounted / name).write_bytes(base64.b64decode(data[name]))
        for component, entry in entries.items():
            url = base64.b64decode(data[entry]).decode()
            assert "@streamserve-redis.serving.svc:6379/0?" in url
            url = url.replace("streamserve-redis.serving.svc:6379", f"127.0.0.1:{port}")
            found[component] = url.replace("/etc/streamserve/tls", str(mounted))
    return found


def answers(site: Site, process: subprocess.Popen[bytes], folder: Path) -> bool:
    assert process.poll() is None, (folder / "log").read_text()
    try:
        return bool(site.client("operator").ping())
    except redis.ConnectionError:
        return False


def board() -> SignalBoard:
    who = WorkerIdentity(
        id=WORKER,
        role="decode",
        lane="lane-0",
        revision="r1",
        namespace="serving",
        pair="llama",
        pair_uid=UID,
        boot_id=1,
        engine="simulator",
    )
    state = ServerState(applied=ConfigId(uid=UID, generation=1, step=0), max_running_requests=1)
    return SignalBoard(lambda epoch: sample(who, EngineSnapshot(alive=True), state, epoch))


async def until(condition: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.02)


async def test_the_whole_exchange_works_with_each_components_own_user(site: Site) -> None:
    endpoint = worker_pb2.WorkerEndpoint(id=WORKER, role="decode", address="10.0.0.1:50051")
    publisher = Publisher(site.urls["worker"], SPACE, board(), endpoint, Random(1))
    signals: dict[str, bytes] = {}
    registry: list[worker_pb2.WorkerEndpoint] = []
    reader = SignalReader(
        SPACE,
        site.urls["router"],
        worker_ids=lambda: [WORKER],
        on_signals=signals.__setitem__,
        on_registry=lambda found: registry.__setitem__(slice(None), found),
        clock=time.monotonic,
        rng=Random(2),
    )
    applied: dict[str, RuntimeConfig] = {}

    def follow(component: str) -> ConfigSource:
        async def apply(config: RuntimeConfig) -> None:
            applied[component] = config

        return ConfigSource(
            SPACE, UID, redis_url=site.urls[component], file=None, apply=apply, rng=Random(3), refresh_seconds=60.0
        )

    fence = Fence(time.monotonic)
    fence.raise_until(time.monotonic() + 60)
    link = RedisLink(site.urls["operator"], fence, ["serving"])
    sources = {component: follow(component) for component in ("worker", "router")}
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part.run()) for part in (publisher, reader, *sources.values())]
        await until(lambda: signals and registry, "the router has the worker's signals and address")
        reader.publish(SPACE.router_lanes("r-0"), lane_word.encode(WORD), 3_000)
        assert await link.missing([("serving", "llama")]) == [("serving", "llama")]
        for generation in (1, 2):
            config = default_config(UID).model_copy(update={"id": ConfigId(uid=UID, generation=generation, step=0)})
            await link.write({("serving", "llama"): runtime_config.encode(config)})
            await until(
                lambda: [applied[name].id.generation for name in sorted(applied)] == [generation] * 2,  # noqa: B023
                f"worker and router apply generation {generation}",
            )
        assert await link.missing([("serving", "llama")]) == []
        reader.publish(SPACE.router_lanes("r-0"), lane_word.encode(WORD), 3_000)
        end = time.monotonic() + 10
        while not (lanes := await link.lanes()):
            assert time.monotonic() < end, "the operator has the router's word"
            await asyncio.sleep(0.02)
        assert lanes["serving", "llama"] == WORD
        reader.append(SPACE.router_goodput("r-0"), goodput.encode(MINUTE), keep=9, ttl_seconds=60)
        while not (records := await link.goodput({("serving", "llama"): 9})):
            assert time.monotonic() < end, "the operator has the router's record"
            await asyncio.sleep(0.02)
        assert records == {("serving", "llama"): {"r-0": [MINUTE]}}
        assert WORKER in str(await link.signals([(("serving", "llama"), WORKER)]))
        for task in tasks:
            task.cancel()
    await publisher.withdraw()
    await link.close()
    assert site.client("operator").mget([SPACE.worker_signals(WORKER), SPACE.worker_endpoint(WORKER)]) == [None, None]


REFUSED: dict[str, tuple[str, Callable[[redis.Redis], Any]]] = {
    "a worker writes the configuration": ("worker", lambda client: client.set(SPACE.config, "x")),
    "a worker pushes a configuration": ("worker", lambda client: client.publish(SPACE.config_channel, "x")),
    "a worker reads what routers say": ("worker", lambda client: client.get(SPACE.router_lanes("r-0"))),
    "a worker writes for another namespace": ("worker", lambda client: client.set(OTHER.worker_signals("w"), "x")),
    "a worker reads what ended in a minute": ("worker", lambda client: client.lrange(SPACE.router_goodput("r"), 0, -1)),
    "a worker adds to it": ("worker", lambda client: client.rpush(SPACE.router_goodput("r"), "x")),
    "a router writes a worker's signals": ("router", lambda client: client.set(SPACE.worker_signals("w"), "x")),
    "a router writes the configuration": ("router", lambda client: client.set(SPACE.config, "x")),
    "a router reads another namespace": ("router", lambda client: client.get(OTHER.worker_signals("w"))),
    "the operator writes for a namespace that it does not serve": (
        "operator",
        lambda client: client.set(OTHER.config, "x"),
    ),
    "the operator empties Redis": ("operator", lambda client: client.flushall()),
    "a worker reads the users": ("worker", lambda client: client.acl_list()),
    "a router changes Redis's settings": ("router", lambda client: client.config_set("maxmemory", "1")),
    "a worker lists all keys": ("worker", lambda client: client.keys("*")),
}


@pytest.mark.parametrize(("component", "act"), REFUSED.values(), ids=REFUSED.keys())
def test_is_refused(site: Site, component: str, act: Callable[[redis.Redis], Any]) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        act(site.client(component))


def test_nobody_gets_in_without_a_password(site: Site) -> None:
    scheme, _, rest = site.urls["worker"].partition("://")
    with pytest.raises(redis.AuthenticationError):
        redis.from_url(f"{scheme}://{rest.partition('@')[2]}", socket_timeout=5).ping()


def test_nobody_gets_in_without_a_certificate(site: Site) -> None:
    address, _, options = site.urls["worker"].partition("?")
    with pytest.raises(redis.ConnectionError):
        redis.from_url(f"{address}?{options.partition('&')[0]}", socket_timeout=5).ping()


def test_the_users_of_a_namespace_go_with_its_last_streampair(site: Site) -> None:
    site.look_after_users(set())
    assert site.users() == {"default", "operator"}
    with pytest.raises(redis.AuthenticationError):
        site.client("worker").ping()
    site.look_after_users({"serving"})
    assert site.users() == {"default", "operator", "serving.router", "serving.worker"}
    assert site.client("worker").ping()
