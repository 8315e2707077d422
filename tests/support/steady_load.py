"""Requests at a steady rate through a router, and load that goes to a worker behind the router's back.

    async with SteadyLoad(fleet.grpc, per_second=40) as load:      # open loop: a slow answer delays no request
        async with behind_the_back(fleet["lane-0-decode-0"], requests=24) as accepted_at: ...
    load.requests                                                  # each with when it was sent and its answer

Everything runs on the test's own event loop; times are time.monotonic().
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from tests.support.calls import Answer, generate_async, request
from tests.support.processes import Process

from streamserve.contract import signals, tokens
from streamserve.runtime import grpc as transport
from streamserve.v1 import common_pb2, worker_pb2, worker_pb2_grpc

STRANGER = 77
_numbers = itertools.count()


@dataclass(slots=True)
class Sent:
    """One request, when it was sent and, once it is over, how long it took."""

    at: float
    answer: Answer = field(default_factory=Answer)
    seconds: float | None = None

    @property
    def lane(self) -> str:
        return self.answer.route.lane


class SteadyLoad:
    """`per_second` requests each second from entry to exit; exit waits for the last answer."""

    def __init__(
        self, address: str, *, per_second: float, max_tokens: int = 16, workload: str = "steady", timeout: float = 20.0
    ) -> None:
        self.requests: list[Sent] = []
        self._address = address
        self._interval = 1.0 / per_second
        self._max_tokens = max_tokens
        self._workload = workload
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        self._channel = transport.channel(self._address)
        self._sender = asyncio.create_task(self._send(), name="steady load")
        self._answers: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sender.cancel()
        with suppress(asyncio.CancelledError):
            await self._sender
        try:
            await asyncio.gather(*self._answers)
        finally:
            await self._channel.close()

    async def _send(self) -> None:
        due = time.monotonic()
        while True:
            task = asyncio.create_task(self._ask())
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)
            due += self._interval
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _ask(self) -> None:
        sent = Sent(time.monotonic())
        self.requests.append(sent)
        message = request(
            f"prompt {next(_numbers)}", max_tokens=self._max_tokens, workload=self._workload, ignore_eos=True
        )
        await generate_async(self._channel, message, timeout=self._timeout, answer=sent.answer)
        sent.seconds = time.monotonic() - sent.at

    def between(self, start: float, end: float) -> list[Sent]:
        """Requests sent in that time."""
        return [sent for sent in self.requests if start <= sent.at < end]


def errors(requests: Sequence[Sent]) -> list[object]:
    return [sent.answer.error for sent in requests if sent.answer.error is not None]


def share(lane: str, requests: Sequence[Sent]) -> float:
    """The part of them that was served by `lane`; every one must have been answered."""
    assert requests and errors(requests) == []
    return sum(sent.lane == lane for sent in requests) / len(requests)


@dataclass(slots=True)
class Lateness:
    """By how much the event loop was late at most: what a test on a busy machine cannot blame on the product."""

    seconds: float = 0.0


@asynccontextmanager
async def watched_loop() -> AsyncIterator[Lateness]:
    lateness = Lateness()

    async def watch() -> None:
        while True:
            due = time.monotonic() + 0.01
            await asyncio.sleep(0.01)
            lateness.seconds = max(lateness.seconds, time.monotonic() - due)

    watching = asyncio.create_task(watch(), name="watch the loop")
    try:
        yield lateness
    finally:
        watching.cancel()


@asynccontextmanager
async def behind_the_back(worker: Process, *, requests: int, prompt_tokens: int = 32) -> AsyncIterator[float]:
    """Keep `requests` long requests on one worker by WorkerService, past every router, until the block ends.

    Yields a time at which at most a moment was missing until the worker had them all: when the question was sent whose
    answer counted every one of them.
    """
    role = "prefill" if "prefill" in worker.name else "decode"
    async with transport.channel(worker.ready["grpc"]) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        calls = [asyncio.create_task(_occupy(stub, role, prompt_tokens)) for _ in range(requests)]
        try:
            yield await _all_accepted(stub, requests)
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)


def exercise(worker: Process, *, max_tokens: int) -> None:
    """One request straight to a decode worker, so that its measured rates are those of now."""
    with grpc.insecure_channel(worker.ready["grpc"]) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        for _ in stub.Decode(worker_pb2.DecodeRequest(**_foreign(32, max_tokens)), timeout=60):
            pass


async def _occupy(stub: worker_pb2_grpc.WorkerServiceStub, role: str, prompt_tokens: int) -> None:
    fields = _foreign(prompt_tokens, max_tokens=4_000)
    if role == "prefill":
        await stub.Prefill(worker_pb2.PrefillRequest(**fields), timeout=60)
        return
    async for _ in stub.Decode(worker_pb2.DecodeRequest(**fields), timeout=60):
        pass


def _foreign(prompt_tokens: int, max_tokens: int) -> dict[str, Any]:
    """The fields that PrefillRequest and DecodeRequest share, of a request that no router here knows."""
    number = next(_numbers)
    prompt = tokens.pack([300 + (number + n) % 500 for n in range(prompt_tokens)])
    return {
        "request_id": f"stranger-{number}",
        "attempt": 1,
        "prompt": common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids_le32=prompt)),
        "sampling": common_pb2.SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        "dispatch": worker_pb2.Dispatch(router_id=STRANGER, sequence=number + 1),
    }


async def _all_accepted(stub: worker_pb2_grpc.WorkerServiceStub, requests: int) -> float:
    end = time.monotonic() + 20
    while True:
        asked_at = time.monotonic()
        state = await stub.GetState(worker_pb2.GetStateRequest(), timeout=10)
        seen = signals.decode(state.signals)
        if seen.running_requests + seen.waiting_requests >= requests:
            return asked_at
        assert asked_at < end, f"the worker has {seen.running_requests} + {seen.waiting_requests} of {requests}"
        await asyncio.sleep(0.005)
