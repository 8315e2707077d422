"""Decode calls that share one gRPC stream, both ends real: each ends, fails, waits and is left by itself."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from streamserve.contract.errors import DeadlineExceeded, InternalError, Overloaded, WorkerLost
from streamserve.router import decode_many as router_side
from streamserve.router.worker_client import DecodeStream, WorkerClient
from streamserve.v1 import worker_pb2
from streamserve.worker.decode_many import Deliver, ManyCalls
from streamserve.worker.pipeserve.engine import Chunk

from .fakes import FakeWorker, until

Play = Callable[[Deliver], Awaitable[None]]


class SharingWorker(FakeWorker):
    """Plays for each request id what the test says."""

    def __init__(self) -> None:
        super().__init__("lane-0-decode-0")
        self.plays: dict[str, Play] = {}
        self.streams: list[ManyCalls] = []
        self.cancelled: list[str] = []
        self.tokens_sent = 0

    async def DecodeMany(self, request_iterator: Any, context: Any) -> Any:
        self.streams.append(many := ManyCalls(self._play, self, 5.0))
        try:
            await many.serve(request_iterator, context.write)
        finally:
            self.streams.remove(many)
        return
        yield

    async def _play(self, request: worker_pb2.DecodeRequest, limit: float | None, deliver: Deliver) -> None:
        try:
            await self.plays[request.request_id](deliver)
        except asyncio.CancelledError:
            self.cancelled.append(request.request_id)
            raise

    def sent(self, tokens: int) -> None:
        self.tokens_sent += tokens

    def merged(self, chunks: int) -> None: ...

    def signals_due(self, router_id: int) -> bytes | None:
        return None


def tokens(count: int, every_seconds: float = 0.001, at_once: int = 1, text: str = "") -> Play:
    async def play(deliver: Deliver) -> None:
        for first in range(0, count, at_once):
            await asyncio.sleep(every_seconds)
            ids = list(range(first, first + at_once))
            await deliver(Chunk(first_token_index=first, token_ids=ids, text=text), None)

    return play


async def for_ever(deliver: Deliver) -> None:
    await deliver(Chunk(first_token_index=0, token_ids=[0]), None)
    await asyncio.sleep(60)


async def full(deliver: Deliver) -> None:
    raise Overloaded("the worker is full", retry_after_seconds=2.0)


@pytest.fixture
async def worker() -> AsyncIterator[SharingWorker]:
    made = SharingWorker()
    await made.start()
    yield made
    await made.die()


@pytest.fixture
async def client(worker: SharingWorker) -> AsyncIterator[WorkerClient]:
    made = WorkerClient(worker.address)
    yield made
    await made.close()


def begin(client: WorkerClient, name: str, *, timeout_seconds: float = 60.0) -> DecodeStream:
    return client.decode(worker_pb2.DecodeRequest(request_id=name, attempt=1), timeout_seconds=timeout_seconds)


async def read(stream: DecodeStream, first: int = 0) -> list[int]:
    """Every token from `first` on. Each chunk says where it belongs; on a busy machine one holds several."""
    found: list[int] = []
    async for chunk in stream:
        assert chunk.message.first_token_index == first + len(found)
        found += chunk.message.token_ids
    return found


async def test_calls_share_a_stream_and_each_gets_its_own(worker: SharingWorker, client: WorkerClient) -> None:
    worker.plays = {str(count): tokens(count) for count in range(1, 40)}
    answers = await asyncio.gather(*(read(begin(client, name)) for name in worker.plays))
    assert answers == [list(range(count)) for count in range(1, 40)]
    assert len(worker.streams) == 1
    assert worker.calls == [], "none was asked for by itself"


async def test_an_error_ends_its_call_with_type_and_delay_and_no_other(
    worker: SharingWorker, client: WorkerClient
) -> None:
    worker.plays = {"full": full, "fine": tokens(30)}
    fine = asyncio.create_task(read(begin(client, "fine")))
    with pytest.raises(Overloaded) as caught:
        await read(begin(client, "full"))
    assert caught.value.retry_after_seconds == 2.0
    assert await fine == list(range(30))


async def test_a_call_that_is_left_is_cancelled_on_the_worker_and_no_other(
    worker: SharingWorker, client: WorkerClient
) -> None:
    worker.plays = {"left": for_ever, "fine": tokens(50, 0.01)}
    fine = asyncio.create_task(read(begin(client, "fine")))
    async with begin(client, "left") as stream:
        await anext(stream)
    await until(lambda: worker.cancelled == ["left"])
    assert await fine == list(range(50))
    assert worker.cancelled == ["left"]


async def test_a_deadline_ends_the_call_here_and_on_the_worker(worker: SharingWorker, client: WorkerClient) -> None:
    worker.plays = {"late": for_ever}
    stream = begin(client, "late", timeout_seconds=0.3)
    await anext(stream)
    with pytest.raises(DeadlineExceeded):
        await anext(stream)
    await until(lambda: worker.cancelled == ["late"])


async def test_a_worker_that_dies_is_lost_to_every_call_and_found_again(
    worker: SharingWorker, client: WorkerClient
) -> None:
    worker.plays = {"a": for_ever, "b": for_ever, "again": tokens(3)}
    streams = [begin(client, name) for name in ("a", "b")]
    for stream in streams:
        await anext(stream)
    await worker.die()
    for stream in streams:
        with pytest.raises(WorkerLost):
            await anext(stream)
    await worker.start(int(worker.address.rpartition(":")[2]))

    async def again() -> list[int] | None:
        try:
            return await read(begin(client, "again"))
        except WorkerLost:
            return None

    async with asyncio.timeout(10):
        while (answer := await again()) is None:  # noqa: ASYNC110  # nothing says when a port is open
            await asyncio.sleep(0.05)
    assert answer == [0, 1, 2]


async def test_a_stream_that_the_worker_ends_loses_its_calls_and_the_next_call_begins_another(
    worker: SharingWorker, client: WorkerClient
) -> None:
    worker.plays = {"a": for_ever, "b": tokens(3)}
    stream = begin(client, "a")
    await anext(stream)
    worker.streams[0]._outbox.close()
    with pytest.raises(WorkerLost):
        await anext(stream)
    assert await read(begin(client, "b")) == [0, 1, 2]


async def test_a_worker_that_stops_ends_an_idle_stream_at_once_and_a_busy_one_with_its_last_call(
    worker: SharingWorker, client: WorkerClient
) -> None:
    worker.plays = {"busy": tokens(40, 0.01), "next": tokens(3)}
    busy = begin(client, "busy")
    first = len((await anext(busy)).message.token_ids)
    worker.streams[0].stop()
    assert await read(busy, first) == list(range(first, 40))
    # What is begun before the end has arrived is lost with it, as on any worker that stops.
    await until(lambda: client._shared is not None and not client._shared.open, seconds=2)
    assert await read(begin(client, "next")) == [0, 1, 2]
    worker.streams[0].stop()
    await until(lambda: not worker.streams, seconds=2)


async def test_a_request_that_is_too_large_for_grpc_ends_no_other(worker: SharingWorker, client: WorkerClient) -> None:
    worker.plays = {"fine": tokens(100, 0.01)}
    fine = asyncio.create_task(read(begin(client, "fine")))
    request = worker_pb2.DecodeRequest(request_id="huge", attempt=1)
    request.prompt.text = "x" * (17 << 20)
    with pytest.raises((Overloaded, WorkerLost, InternalError)):
        await read(client.decode(request, timeout_seconds=10))
    assert await fine == list(range(100))
    assert len(worker.streams) == 1


async def test_a_client_that_closes_before_its_first_call_began_leaves_nobody_waiting(worker: SharingWorker) -> None:
    client = WorkerClient(worker.address)
    closing = asyncio.create_task(client.close())
    stream = begin(client, "a")
    await closing
    with pytest.raises(WorkerLost):
        async with asyncio.timeout(5):
            await anext(stream)


async def test_a_client_that_closes_ends_its_calls_and_their_tasks_live_on(worker: SharingWorker) -> None:
    worker.plays = {"a": for_ever}
    client = WorkerClient(worker.address)
    stream = begin(client, "a")
    await anext(stream)
    reading = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(WorkerLost):
        await reading
    with pytest.raises(WorkerLost):
        begin(client, "a")
    await until(lambda: not worker.streams)


async def test_a_slow_reader_is_waited_for_and_holds_up_nobody(
    worker: SharingWorker, client: WorkerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_side, "MAX_UNREAD_BYTES", 4_096)
    worker.plays = {"slow": tokens(4_000, 0.002, 10, "x" * 50), "quick": tokens(200)}
    slow = begin(client, "slow")
    count = len((await anext(slow)).message.token_ids)
    assert await read(begin(client, "quick")) == list(range(200))
    await asyncio.sleep(1.5)  # time enough to send everything, if it were sent
    assert worker.tokens_sent < 200 + 2_000, "what is not read stays where it came from"
    assert await read(slow, count) == list(range(count, 4_000))


async def test_a_worker_without_shared_streams_is_asked_for_each_call_by_itself() -> None:
    old = FakeWorker("lane-0-decode-0")
    await old.start()
    client = WorkerClient(old.address)
    request = worker_pb2.DecodeRequest(request_id="r", attempt=1)
    request.sampling.max_tokens = 4
    try:
        answers = await asyncio.gather(*(read(client.decode(request, timeout_seconds=5)) for _ in range(3)))
        assert answers == [[0, 1, 2, 3]] * 3
        assert old.calls == ["Decode"] * 3
        assert await read(client.decode(request, timeout_seconds=5)) == [0, 1, 2, 3]
    finally:
        await client.close()
        await old.die()


async def test_a_retired_stream_ends_with_its_last_call(worker: SharingWorker, client: WorkerClient) -> None:
    """As after a renewed certificate, when new calls go over a new channel."""
    worker.plays = {"old": tokens(40, 0.01), "new": tokens(3)}
    old = begin(client, "old")
    first = len((await anext(old)).message.token_ids)
    client._shared_on = None  # another channel than the newest one
    assert await read(begin(client, "new")) == [0, 1, 2]
    assert len(worker.streams) == 2
    assert await read(old, first) == list(range(first, 40))
    await until(lambda: len(worker.streams) == 1)
