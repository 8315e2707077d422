"""The worker client's errors are the contract's, whatever happens to the connection."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from streamserve.contract.errors import DeadlineExceeded, InternalError, Overloaded, WorkerLost
from streamserve.router.worker_client import DecodeChunk, WorkerClient
from streamserve.runtime.status import abort
from streamserve.v1 import worker_pb2

from .fakes import FakeWorker


@pytest.fixture
async def worker() -> AsyncIterator[FakeWorker]:
    made = FakeWorker("lane-0-decode-0")
    await made.start()
    yield made
    await made.die()


@pytest.fixture
async def client(worker: FakeWorker) -> AsyncIterator[WorkerClient]:
    made = WorkerClient(worker.address)
    yield made
    await made.close()


def request(tokens: int = 4) -> worker_pb2.DecodeRequest:
    made = worker_pb2.DecodeRequest(request_id="r", attempt=1)
    made.sampling.max_tokens = tokens
    return made


async def test_chunks_come_as_bytes_that_read_as_messages(client: WorkerClient) -> None:
    chunks = [chunk async for chunk in client.decode(request(), timeout_seconds=5)]
    assert [chunk.message.first_token_index for chunk in chunks] == [0, 1, 2, 3]
    assert all(worker_pb2.DecodeResponse.FromString(chunk.raw) == chunk.message for chunk in chunks)


async def test_a_chunk_that_cannot_be_read_is_an_internal_error() -> None:
    with pytest.raises(InternalError, match="check its version"):
        assert DecodeChunk(b"\xff\xff\xff").message


async def test_a_worker_that_dies_under_a_stream_is_lost(worker: FakeWorker, client: WorkerClient) -> None:
    async def hang(context: grpc.aio.ServicerContext) -> None:
        await asyncio.sleep(60)

    worker.fault = hang
    stream = client.decode(request(), timeout_seconds=30)
    reading = asyncio.create_task(anext(stream))
    while "Decode" not in worker.calls:  # noqa: ASYNC110  # the server has no event for it
        await asyncio.sleep(0.01)
    await worker.die()
    with pytest.raises(WorkerLost):
        await reading


async def test_nobody_at_the_address_is_a_lost_worker() -> None:
    client = WorkerClient("127.0.0.1:1")
    with pytest.raises(WorkerLost):
        await client.get_state(timeout_seconds=5)
    await client.close()


async def test_a_deadline_that_passes_is_deadline_exceeded(worker: FakeWorker, client: WorkerClient) -> None:
    async def hang(context: grpc.aio.ServicerContext) -> None:
        await asyncio.sleep(60)

    worker.fault = hang
    with pytest.raises(DeadlineExceeded):
        await client.prefill(worker_pb2.PrefillRequest(request_id="r"), timeout_seconds=0.2)


async def test_the_workers_own_error_keeps_its_type_and_retry_delay(worker: FakeWorker, client: WorkerClient) -> None:
    async def full(context: grpc.aio.ServicerContext) -> None:
        await abort(context, Overloaded("the worker is full", retry_after_seconds=2.0))

    worker.fault = full
    with pytest.raises(Overloaded) as caught:
        await client.prefill(worker_pb2.PrefillRequest(request_id="r"), timeout_seconds=5)
    assert caught.value.retry_after_seconds == 2.0


async def test_a_stream_left_early_is_cancelled_on_the_worker(worker: FakeWorker, client: WorkerClient) -> None:
    ended = asyncio.Event()

    async def hang(context: grpc.aio.ServicerContext) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    worker.fault = hang
    async with client.decode(request(), timeout_seconds=30) as stream:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await anext(stream)
    async with asyncio.timeout(5):
        await ended.wait()


async def test_a_call_on_a_closed_client_is_a_lost_worker(worker: FakeWorker) -> None:
    client = WorkerClient(worker.address)
    await client.close()
    with pytest.raises(WorkerLost):
        await client.get_state()
    with pytest.raises(WorkerLost):
        client.decode(request(), timeout_seconds=1)


async def test_calls_in_flight_when_the_client_closes_are_lost_and_their_tasks_live_on(worker: FakeWorker) -> None:
    async def hang(context: grpc.aio.ServicerContext) -> None:
        await asyncio.sleep(60)

    worker.fault = hang
    client = WorkerClient(worker.address)
    unary = asyncio.create_task(client.prefill(worker_pb2.PrefillRequest(request_id="r"), timeout_seconds=30))
    stream = asyncio.create_task(anext(client.decode(request(), timeout_seconds=30)))
    while len(worker.calls) < 2:  # noqa: ASYNC110  # the server has no event for it
        await asyncio.sleep(0.01)
    await client.close()
    for task in (unary, stream):
        with pytest.raises(WorkerLost):
            await task
