"""Requests on a real connection: a write leaves only while the fence is up, and every failure has its type."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import kopf
import pytest

from streamserve.operator.edge.api import Api
from streamserve.operator.edge.fence import Fence, NotLeader
from streamserve.operator.edge.metrics import OperatorMetrics
from streamserve.operator.edge.outcomes import Conflict, Unauthorized, Unreachable


class Server:
    """Answers every request on a connection with `status`, once it may; keeps what it was sent."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.status, self.body = 200, json.dumps({"kind": "Pod"})
        self.address = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                text = head.decode()
                length = next((int(line[15:]) for line in text.split("\r\n") if line.startswith("Content-Length:")), 0)
                await reader.readexactly(length)
                self.requests.append(text)
                await self.may_answer.wait()
                answer = f"HTTP/1.1 {self.status} X\r\nContent-Length: {len(self.body)}\r\n\r\n{self.body}"
                writer.write(answer.encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class Bench:
    def __init__(self, server: Server) -> None:
        self.server, self.now, self.token, self.looks = server, 0.0, "one", 0
        self.stopped_at_look: int | None = None
        self.fence = Fence(self._clock)
        self.api = Api(self._login, self.fence, OperatorMetrics())

    async def under_way(self) -> asyncio.Task[dict[str, Any]]:
        """A write that the server has, and does not answer yet."""
        self.server.may_answer.clear()
        writing = asyncio.create_task(self.api.apply("/x", {}))
        async with asyncio.timeout(5):
            while not self.server.requests:  # noqa: ASYNC110 (what is waited for is the code under test)
                await asyncio.sleep(0.005)
        return writing

    def _login(self) -> Any:
        return kopf.ConnectionInfo(server=f"http://{self.server.address}", token=self.token)

    def _clock(self) -> float:
        self.looks += 1
        if self.looks == self.stopped_at_look:
            self.now += 3_600.0
        return self.now


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.address = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    made = Bench(server)
    made.api.open()
    yield made
    await made.api.close()
    listening.close()


async def test_without_the_lease_reads_go_through_and_writes_do_not(bench: Bench) -> None:
    assert await bench.api.get("/x") == {"kind": "Pod"}
    with pytest.raises(NotLeader):
        await bench.api.apply("/x", {})
    with pytest.raises(NotLeader):
        await bench.api.send("DELETE", "/x", {})
    assert [request.split(" ")[0] for request in bench.server.requests] == ["GET"]


async def test_an_apply_names_its_field_manager_and_is_forced_unless_told_otherwise(bench: Bench) -> None:
    bench.fence.raise_until(10.0)
    await bench.api.apply("/x", {})
    await bench.api.apply("/x", {}, force=False)
    assert "PATCH /x?fieldManager=streamserve-operator&force=true" in bench.server.requests[0]
    assert "force=false" in bench.server.requests[1]
    assert "application/apply-patch+yaml" in bench.server.requests[0]


@pytest.mark.parametrize("look", [1, 2, 3, 4])
@pytest.mark.parametrize("connected", [False, True])
async def test_a_process_that_was_stopped_anywhere_before_the_write_sends_nothing(
    bench: Bench, look: int, connected: bool
) -> None:
    """The clock jumps at the n-th look at it: a SIGSTOP past the lease, and SIGCONT, at that point of the request."""
    if connected:
        await bench.api.get("/warm")
    bench.server.requests.clear()
    bench.fence.raise_until(10.0)
    bench.looks, bench.stopped_at_look = 0, look
    try:
        await bench.api.apply("/x", {})
    except (NotLeader, Unreachable):
        assert bench.server.requests == []
    else:
        assert bench.looks < look, "the stop came after the write"


@pytest.mark.parametrize("connected", [False, True])
async def test_a_machine_that_was_suspended_while_a_write_waited_for_its_connection_sends_nothing(
    bench: Bench, connected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop's clock stands still meanwhile, so the limit that it keeps is not over."""
    if connected:
        await bench.api.get("/warm")
    bench.server.requests.clear()
    bench.fence.raise_until(10.0)
    as_it_is = bench.fence.while_up

    @contextlib.asynccontextmanager
    async def suspended() -> AsyncIterator[None]:
        async with as_it_is():
            bench.now += 3_600.0
            yield

    monkeypatch.setattr(bench.fence, "while_up", suspended)
    with pytest.raises(NotLeader):
        await bench.api.apply("/x", {})
    assert bench.server.requests == []


async def test_a_write_takes_its_time_while_the_lease_is_renewed(bench: Bench) -> None:
    bench.fence.raise_until(0.2)
    writing = await bench.under_way()
    bench.fence.raise_until(60.0)
    await asyncio.sleep(0.3)
    bench.server.may_answer.set()
    assert await writing == {"kind": "Pod"}


async def test_a_write_ends_when_the_lease_runs_out(bench: Bench) -> None:
    bench.fence.raise_until(0.2)
    writing = await bench.under_way()
    with pytest.raises(NotLeader):
        await asyncio.wait_for(writing, 5)


async def test_a_write_ends_at_once_when_somebody_else_is_seen_to_hold_the_lease(bench: Bench) -> None:
    bench.fence.raise_until(60.0)
    writing = await bench.under_way()
    bench.fence.lower()
    with pytest.raises(NotLeader):
        await asyncio.wait_for(writing, 5)


async def test_a_write_of_an_earlier_term_does_not_live_on_in_the_next(bench: Bench) -> None:
    bench.fence.raise_until(60.0)
    writing = await bench.under_way()
    bench.now = 61.0
    bench.fence.raise_until(120.0)
    with pytest.raises(NotLeader):
        await asyncio.wait_for(writing, 5)


async def test_a_token_that_was_replaced_is_used_after_a_401(bench: Bench) -> None:
    bench.server.status = 401
    bench.token = "two"
    with pytest.raises(Unauthorized):
        await bench.api.get("/x")
    bench.server.status = 200
    await bench.api.get("/x")
    tokens = [line for text in bench.server.requests for line in text.split("\r\n") if line.startswith("Authorization")]
    assert tokens == ["Authorization: Bearer one", "Authorization: Bearer two"]


async def test_the_servers_words_are_kept(bench: Bench) -> None:
    bench.server.status, bench.server.body = 409, json.dumps({"message": "the object has been modified"})
    with pytest.raises(Conflict, match="has been modified"):
        await bench.api.get("/x")


async def test_nobody_listening_is_unreachable(bench: Bench) -> None:
    bench.api.open()
    bench.server.address = "127.0.0.1:1"
    await bench.api.close()
    bench.api.open()
    with pytest.raises(Unreachable):
        await bench.api.get("/x")
