"""The operator's two other conversations for real: gRPC with workers and routers, and a Redis of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.support.processes import RedisServer

from streamserve.contract import goodput, keys, lane_word, signals
from streamserve.contract.goodput import GoodputMinute
from streamserve.contract.keys import Keyspace
from streamserve.contract.lane_word import LaneReport, LaneWord
from streamserve.contract.runtime_config import ConfigId
from streamserve.contract.signals import Flags, Role, WorkerSignals
from streamserve.operator.edge.fence import Fence, NotLeader
from streamserve.operator.edge.peers import Peers
from streamserve.operator.edge.redis_link import RedisLink
from streamserve.operator.observe import Echo
from streamserve.runtime.grpc import GrpcServer
from streamserve.runtime.redis_away import AWAY
from streamserve.v1 import admin_pb2, admin_pb2_grpc, worker_pb2, worker_pb2_grpc

UID, ID, KEY = "pair-uid", "lane-0-decode-0", ("llm", "llama")
SIGNALS = WorkerSignals(role=Role.DECODE, boot_id=1, epoch=1, uid_fingerprint=1, flags=Flags.SPECULATION_FALLBACK)


class Worker(worker_pb2_grpc.WorkerServiceServicer, admin_pb2_grpc.AdminServiceServicer):
    """Both a worker and a router, for the sake of one server."""

    def __init__(self) -> None:
        self.drains = 0

    async def GetState(self, request: Any, context: Any) -> worker_pb2.GetStateResponse:
        return worker_pb2.GetStateResponse(
            worker=worker_pb2.WorkerEndpoint(id=ID, pair_uid=UID),
            signals=signals.encode(SIGNALS),
            config_generation=7,
            config_step=1,
            config_error="too deep",
        )

    async def Drain(self, request: Any, context: Any) -> worker_pb2.DrainResponse:
        self.drains += 1
        return worker_pb2.DrainResponse(unfinished_requests=3)

    async def GetConfig(self, request: Any, context: Any) -> admin_pb2.GetConfigResponse:
        return admin_pb2.GetConfigResponse(pair_uid=UID, generation=6, step=2, last_error="")


@pytest.fixture
async def served() -> AsyncIterator[tuple[str, Worker]]:
    worker, server = Worker(), GrpcServer("127.0.0.1:0", services=())
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(worker, server.server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(worker, server.server)
    yield await server.start(), worker
    await server.stop(0.1)


async def test_a_worker_says_what_it_has_applied_and_why_not_more(served: tuple[str, Worker]) -> None:
    assert await Peers(None).worker(served[0], UID, ID) == Echo(7, 1, "too deep", speculation_fallback=True)


async def test_a_router_says_what_it_has_applied(served: tuple[str, Worker]) -> None:
    assert await Peers(None).router(served[0], UID) == Echo(6, 2)


async def test_a_drain_tells_how_many_requests_are_left(served: tuple[str, Worker]) -> None:
    assert await Peers(None).drain(served[0], UID, ID, 5.0) == 3


async def test_another_process_at_the_address_is_neither_believed_nor_drained(served: tuple[str, Worker]) -> None:
    address, worker = served
    assert await Peers(None).worker(address, UID, "lane-1-decode-0") is None
    assert await Peers(None).worker(address, "another", ID) is None
    assert await Peers(None).router(address, "another") is None
    assert await Peers(None).drain(address, UID, "lane-1-decode-0", 5.0) is None
    assert worker.drains == 0


async def test_nobody_at_the_address_is_silence() -> None:
    assert await Peers(None).worker("127.0.0.1:1", UID, ID) is None
    assert await Peers(None).router("127.0.0.1:1", UID) is None
    assert await Peers(None).drain("127.0.0.1:1", UID, ID, 1.0) is None


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.kill()


@pytest.fixture
async def link(redis_server: RedisServer) -> AsyncIterator[RedisLink]:
    with redis_server.client() as client:
        client.flushall()
    fence = Fence(lambda: 0.0)
    fence.raise_until(10.0)
    made = RedisLink(redis_server.url, fence, ())
    yield made
    await made.close()


async def test_a_configuration_is_key_and_push_and_expires(link: RedisLink, redis_server: RedisServer) -> None:
    space = Keyspace(*KEY)
    with redis_server.client() as client, client.pubsub() as channel:
        channel.subscribe(space.config_channel)
        channel.get_message(timeout=5)
        await link.write({KEY: b"config"})
        pushed = channel.get_message(timeout=5)
        assert pushed is not None
        assert (pushed["data"], client.get(space.config)) == (b"config", b"config")
        assert 0 < client.ttl(space.config) <= keys.CONFIG_TTL_SECONDS


async def test_what_redis_has_forgotten_or_will_soon_is_missing(link: RedisLink, redis_server: RedisServer) -> None:
    names = [("llm", name) for name in ("kept", "forgotten", "soon")]
    await link.write(dict.fromkeys(names, b"config"))
    assert await link.missing(names) == []
    with redis_server.client() as client:
        client.delete(Keyspace("llm", "forgotten").config)
        client.expire(Keyspace("llm", "soon").config, 60)
    assert await link.missing(names) == [("llm", "forgotten"), ("llm", "soon")]


async def test_a_process_that_does_not_lead_writes_nothing(redis_server: RedisServer) -> None:
    link = RedisLink(redis_server.url, Fence(lambda: 0.0), ())
    with pytest.raises(NotLeader):
        await link.write({("llm", "fenced"): b"config"})
    with redis_server.client() as client:
        assert client.get(Keyspace("llm", "fenced").config) is None
    await link.close()


def word(state: str) -> bytes:
    return lane_word.encode(LaneWord(lanes={"lane-0": LaneReport(state=state)}))


async def test_the_words_of_all_routers_of_all_pairs_are_read_in_one_look(
    link: RedisLink, redis_server: RedisServer
) -> None:
    with redis_server.client() as client:
        for number in range(1_200):
            client.set(Keyspace("llm", f"p{number}").router_lanes("a"), word("READY"))
        client.set(Keyspace(*KEY).router_lanes("a"), word("FENCED"))
        client.set(Keyspace(*KEY).router_lanes("b"), word("READY"))
        client.set(Keyspace(*KEY).router_lanes("broken"), b"{")
        client.set(b"ss:llm/llama/router/\xff/lanes", word("READY"))
    found = await link.lanes()
    assert len(found) == 1_201
    assert found[KEY] == LaneWord(lanes={"lane-0": LaneReport(state="READY")}), (
        "one router that sends requests there is enough"
    )


async def test_an_operator_of_some_namespaces_looks_at_those_alone(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        for namespace in ("mine", "theirs"):
            client.set(Keyspace(namespace, "llama").router_lanes("a"), word("READY"))
    link = RedisLink(redis_server.url, Fence(), ("mine",))
    assert list(await link.lanes()) == [("mine", "llama")]
    await link.close()


async def test_signals_are_those_of_the_workers_that_publish_readable_ones(
    link: RedisLink, redis_server: RedisServer
) -> None:
    space = Keyspace(*KEY)
    with redis_server.client() as client:
        client.set(space.worker_signals(ID), signals.encode(SIGNALS))
        client.set(space.worker_signals("lane-1-decode-0"), b"noise")
    asked = [(KEY, ID), (KEY, "lane-1-decode-0"), (KEY, "lane-2-decode-0")]
    assert await link.signals(asked) == {(KEY, ID): SIGNALS}


def minute(number: int) -> GoodputMinute:
    return GoodputMinute(minute=number, config=ConfigId(uid=UID, generation=1))


async def test_the_newest_records_of_each_router_are_read_in_order_and_garbage_is_left_out(
    link: RedisLink, redis_server: RedisServer
) -> None:
    space, other = Keyspace(*KEY), Keyspace("llm", "other")
    with redis_server.client() as client:
        for number in range(1, 6):
            client.rpush(space.router_goodput("a"), goodput.encode(minute(number)))
        client.rpush(space.router_goodput("a"), b"noise", goodput.encode(minute(6)))
        client.rpush(space.router_goodput("b"), goodput.encode(minute(6)))
        client.set(space.router_goodput("c"), b"no list")
        client.rpush(other.router_goodput("a"), goodput.encode(minute(7)))
        client.set(space.router_lanes("a"), b"{}")
        client.rpush(b"ss:llm/llama/router/\xff/goodput", goodput.encode(minute(7)))
    assert await link.goodput({KEY: 4}) == {KEY: {"a": [minute(4), minute(5), minute(6)], "b": [minute(6)], "c": []}}
    assert await link.goodput({("llm", "nobody"): 4}) == {}


async def test_a_redis_that_is_away_is_told_by_one_of_its_errors() -> None:
    link = RedisLink("redis://127.0.0.1:1/0", Fence(), ())
    with pytest.raises(AWAY):
        await link.lanes()
    await link.close()
