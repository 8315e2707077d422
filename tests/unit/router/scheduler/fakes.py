"""A fleet whose workers do what a test says, in this process: no socket, no Redis."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Self

from tests.unit.router.flowguard import builders

from streamserve.contract.errors import StreamServeError
from streamserve.contract.runtime_config import RuntimeConfig
from streamserve.contract.sampling import Sampling
from streamserve.router.flowguard.view import FleetView
from streamserve.router.goodput import Ended, GoodputMeter
from streamserve.router.metrics import RouterMetrics
from streamserve.router.scheduler.dispatch import Dispatcher
from streamserve.router.scheduler.orchestrator import Limits, Orchestrator
from streamserve.router.scheduler.request import GenerationRequest
from streamserve.router.worker_client import DecodeChunk
from streamserve.runtime.tasks import Tasks
from streamserve.v1 import common_pb2, inference_pb2, worker_pb2

HANG = object()
ROUTER_ID = 0xABC
Script = Callable[[Any], list[Any]]


def chunk(first: int, *ids: int, last: bool = False, load: bytes = b"", cost: float = 0.0) -> worker_pb2.DecodeResponse:
    message = worker_pb2.DecodeResponse(first_token_index=first, token_ids=ids, text="." * len(ids))
    if last:
        message.finish_reason = common_pb2.FINISH_REASON_LENGTH
        message.usage.completion_tokens = first + len(ids)
    if load:
        message.load.signals = load
        message.load.engine_seconds = cost
    return message


def request(name: str = "r", *, max_tokens: int = 4, seconds: float = 30.0, priority: int = 0) -> GenerationRequest:
    now = time.monotonic()
    return GenerationRequest(
        id=name,
        prompt=common_pb2.Prompt(text="hello"),
        prompt_tokens=2,
        sampling=Sampling(max_tokens=max_tokens),
        sampling_message=common_pb2.SamplingParams(max_tokens=max_tokens),
        max_tokens=max_tokens,
        priority=priority,
        arrival_seconds=now,
        deadline_seconds=now + seconds,
    )


class FakeBooking:
    def __init__(self, fleet: FakeFleet, worker_id: str) -> None:
        self.worker_id = worker_id
        self._fleet = fleet
        fleet.booked[worker_id] += 1
        self._open = True

    def dispatch(self) -> worker_pb2.Dispatch:
        return worker_pb2.Dispatch(router_id=1, sequence=1)

    def release(self) -> None:
        if self._open:
            self._open = False
            self._fleet.booked[self.worker_id] -= 1
            self._fleet.changed.set()


class FakeStream:
    def __init__(self, steps: list[Any]) -> None:
        self._steps = self._run(steps)

    async def _run(self, steps: list[Any]) -> AsyncIterator[DecodeChunk]:
        for step in steps:
            if step is HANG:
                await asyncio.Event().wait()
            elif isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, StreamServeError):
                raise step
            else:
                await asyncio.sleep(0)
                yield DecodeChunk(step.SerializeToString())

    def __aiter__(self) -> AsyncIterator[DecodeChunk]:
        return self._steps

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._steps.aclose()  # type: ignore[attr-defined]


@dataclass
class FakeClient:
    fleet: FakeFleet
    worker_id: str

    async def prefill(
        self, message: worker_pb2.PrefillRequest, *, timeout_seconds: float
    ) -> worker_pb2.PrefillResponse:
        self.fleet.calls.append((self.worker_id, message))
        answer = self.fleet.prefill(self.worker_id)
        if answer is HANG:
            await asyncio.Event().wait()
        if isinstance(answer, StreamServeError):
            raise answer
        return answer  # type: ignore[no-any-return]

    def decode(self, message: worker_pb2.DecodeRequest, *, timeout_seconds: float) -> FakeStream:
        self.fleet.calls.append((self.worker_id, message))
        return FakeStream(self.fleet.decode(self.worker_id))

    async def abort(self, request_id: str, attempt: int = 0, *, timeout_seconds: float = 1.0) -> bool:
        await asyncio.sleep(self.fleet.abort_seconds)
        self.fleet.aborted.append((self.worker_id, request_id, attempt))
        return True


PREFILLED = worker_pb2.PrefillResponse(
    prompt_token_ids=common_pb2.TokenIds(ids_le32=b"\1\0\0\0"), kv_handle=b"handle", cached_prompt_tokens=1
)


@dataclass
class FakeFleet:
    """`prefill` and `decode` say what a worker answers; workers are a-p0, a-d0, b-p0, …"""

    lanes: list[builders.Lane]
    prefill: Callable[[str], Any] = lambda worker: PREFILLED
    decode: Callable[[str], list[Any]] = lambda worker: [chunk(0, 7), chunk(1, 8, 9), chunk(3, 5, last=True)]
    max_running: int = 32
    booked: Counter[str] = field(default_factory=Counter)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    aborted: list[tuple[str, str, int]] = field(default_factory=list)
    abort_seconds: float = 0.0
    reports: list[tuple[str, bytes]] = field(default_factory=list)
    results: list[tuple[str, str]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    no_room: Callable[[str], float] = lambda worker: -math.inf

    def no_room_until(self, worker_id: str, tokens: int, *, begun: bool, streamed_at: Callable[[], float]) -> float:
        return self.no_room(worker_id)

    def view(self) -> FleetView:
        lanes = []
        for lane in self.lanes:
            built = lane.build()
            lanes.append(replace(built, prefill=self._with_books(built.prefill), decode=self._with_books(built.decode)))
        return FleetView(now_seconds=builders.NOW, pair_uid=builders.UID, lanes=tuple(lanes))

    def _with_books(self, workers: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            replace(
                worker,
                booked_requests=self.booked[worker.id],
                own_requests=self.booked[worker.id],
                # Full is full here: the pick's look-ahead is not these tests' matter.
                signals=replace(
                    worker.signals, running_requests=1_000 if self.booked[worker.id] >= self.max_running else 0
                ),
            )
            for worker in workers
        )

    def book(self, worker_id: str, *, tokens: int) -> FakeBooking:
        return FakeBooking(self, worker_id)

    def client(self, worker_id: str) -> FakeClient:
        return FakeClient(self, worker_id)

    def on_load_report(self, worker_id: str, signals: bytes) -> None:
        self.reports.append((worker_id, signals))

    def on_result(self, worker_id: str, error: StreamServeError | None) -> None:
        self.results.append((worker_id, error.reason if error else "OK"))

    async def wait_change(self, timeout_seconds: float) -> bool:
        self.changed.clear()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.changed.wait()
        except TimeoutError:
            return False
        return True


class Counted(GoodputMeter):
    """Keeps what it was told of."""

    def __init__(self, config: RuntimeConfig) -> None:
        super().__init__(config, clock=time.time)
        self.answers: list[Ended] = []

    def ended(self, answer: Ended) -> None:
        self.answers.append(answer)


class Stage:
    """An orchestrator on a fake fleet, with its dispatcher running."""

    def __init__(self, fleet: FakeFleet, config: RuntimeConfig | None = None, **limits: float) -> None:
        self.fleet = fleet
        self.config = config or builders.settings()
        self.tasks = Tasks("test")
        self.goodput = Counted(self.config)
        any_fleet: Any = fleet
        self.dispatcher = Dispatcher(any_fleet, config=lambda: self.config, clock=time.monotonic, rng=Random(1))
        self.orchestrator = Orchestrator(
            any_fleet,
            self.dispatcher,
            config=lambda: self.config,
            clock=time.monotonic,
            metrics=RouterMetrics(),
            goodput=self.goodput,
            router_id=ROUTER_ID,
            limits=Limits(**limits),
        )

    async def __aenter__(self) -> Self:
        self.tasks.spawn("dispatch", self.dispatcher.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.orchestrator.stop()
        await self.tasks.stop(1.0)

    async def serve(self, asked: GenerationRequest | None = None) -> list[inference_pb2.GenerateResponse]:
        sent: list[inference_pb2.GenerateResponse] = []

        async def write(data: bytes) -> None:
            sent.append(inference_pb2.GenerateResponse.FromString(data))

        await self.orchestrator.serve(asked or request(), write)
        return sent

    def outcomes(self) -> dict[str, float]:
        """How many requests ended, by outcome."""
        families = self.orchestrator.metrics.registry.collect()
        samples = [sample for family in families for sample in family.samples]
        return {
            each.labels["outcome"]: each.value for each in samples if each.name == "streamserve_router_requests_total"
        }

    def nothing_is_left(self) -> bool:
        return not any(self.fleet.booked.values()) and not self.orchestrator.running
