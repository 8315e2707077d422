"""Every log line of a worker that concerns a request says which: also where many requests share one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from tests.support.log_lines import Lines, logged_by

from streamserve.runtime import logs
from streamserve.v1 import common_pb2, worker_pb2
from streamserve.worker.flights import Flights
from streamserve.worker.grpc_front import WorkerFront
from streamserve.worker.pipeserve.engine import Chunk, Job
from streamserve.worker.serving import Serving

IDS = ("first", "second", "third")


@pytest.fixture
def lines() -> Iterator[Lines]:
    with logged_by("worker") as found:
        yield found


class BrokenEngine:
    """Takes every request up to the same point, and then fails each in words of its own."""

    def __init__(self, requests: int) -> None:
        self._barrier = asyncio.Barrier(requests)

    async def generate(self, job: Job, **_: object) -> AsyncIterator[Chunk]:
        await self._fail(job)
        yield Chunk(first_token_index=0, token_ids=[7])

    async def prefill(self, job: Job) -> None:
        await self._fail(job)

    async def _fail(self, job: Job) -> None:
        await self._barrier.wait()
        raise RuntimeError(f"the engine dropped {job.request_id}")


def front(role: str, requests: int) -> WorkerFront:
    parts = {name: Mock() for name in Serving.__dataclass_fields__}
    parts |= {"engine": BrokenEngine(requests), "flights": Flights(), "slow_reader_seconds": 5.0}
    made = WorkerFront()
    made.attach(Serving(**(parts | {"identity": SimpleNamespace(role=role)})))
    return made


class Context:
    """What the front asks of gRPC. `abort` ends the call, as gRPC's does."""

    def time_remaining(self) -> None:
        return None

    async def write(self, message: object) -> None: ...

    async def abort_with_status(self, status: object) -> None:
        raise asyncio.CancelledError

    abort = abort_with_status


def asked(kind: type[Any], name: str) -> Any:
    return kind(
        request_id=name,
        attempt=1,
        prompt=common_pb2.Prompt(text="hello"),
        sampling=common_pb2.SamplingParams(max_tokens=4),
    )


def told(found: list[dict[str, Any]]) -> dict[str, str]:
    """Request id -> the line that was logged under it; each failed in words that name it."""
    assert len(found) == len(IDS), found
    return {line["request_id"]: line["exception"].splitlines()[-1] for line in found}


async def test_calls_on_one_stream_log_under_their_own_ids_and_the_stream_under_none(lines: Lines) -> None:
    async def asks() -> AsyncIterator[worker_pb2.DecodeManyRequest]:
        for number, name in enumerate(IDS):
            call = worker_pb2.DecodeCall(call=number, request=asked(worker_pb2.DecodeRequest, name))
            yield worker_pb2.DecodeManyRequest(start=call)
        await asyncio.sleep(0.1)
        raise ValueError("the router wrote nonsense")

    async for _ in front("decode", len(IDS)).DecodeMany(asks(), Context()):
        pass
    *calls, stream = lines()
    assert told(calls) == {name: f"RuntimeError: the engine dropped {name}#1" for name in IDS}
    assert "the stream is ended" in stream["message"]
    assert "request_id" not in stream


async def test_prefills_at_once_log_under_their_own_ids(lines: Lines) -> None:
    worker = front("prefill", len(IDS))
    calls = [worker.Prefill(asked(worker_pb2.PrefillRequest, name), Context()) for name in IDS]
    await asyncio.gather(*calls, return_exceptions=True)
    logs.get("streamserve.worker").warning("afterwards")
    *failed, afterwards = lines()
    assert told(failed) == {name: f"RuntimeError: the engine dropped {name}#1" for name in IDS}
    assert "request_id" not in afterwards
