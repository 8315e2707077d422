"""Twice the capacity, from clients of three kinds of patience: a bounded queue, honest refusals, kept deadlines.

What each assertion could find broken:

    refusals        a router that queues without bound, lets requests time out, or refuses without saying when to return
    at once         a full queue that is only noticed after waiting in it
    bounds          a queue beyond its bound here, or one moved into the engine, where nobody bounds it
    deadlines       a request that was let in and then could not be finished in time: only RESOURCE_EXHAUSTED is
                    allowed to fail, so each DEADLINE_EXCEEDED, before or after the first token, fails the test
    goodput         work that is started and thrown away: what the lane can do, it does for answers that count
    afterwards      bookings or places in the queue that a refusal leaves behind

A flood in which this process itself had to wait for a processor is let loose again, whatever came of it: deadlines are
not the router's to keep then. The last one counts.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from tests.support import calls
from tests.support.calls import Answer, generate, generate_async, request
from tests.support.processes import LocalFleet, default_config, wait_until
from tests.support.steady_load import watched_loop

from streamserve.contract import signals
from streamserve.contract.runtime_config import AdmissionConfig, SpeculationConfig
from streamserve.v1 import admin_pb2, admin_pb2_grpc

STEP_SECONDS = 0.02
TOKENS = 20
SLOTS = 4
# One lane decodes four requests at once, each 20 steps of 20 ms.
CAPACITY_PER_SECOND = SLOTS / (STEP_SECONDS * TOKENS)
SECONDS = 5.0
# The engine's slots and what may wait in the engine so that it never waits for the router (filters.py).
ROOM = SLOTS + 2
MAX_QUEUED = 6
MAX_QUEUE_SECONDS = 2.0
# An answer takes 0.45 s when nobody is in its way.
PATIENCE_SECONDS = (0.7, 1.2, 4.0)
AT_ONCE_SECONDS = 0.3
ATTEMPTS, LATE_SECONDS, PAUSE_SECONDS = 3, 0.1, 3.0
REASONS = {"QUEUE_FULL", "QUEUE_TIMEOUT", "INFEASIBLE_DEADLINE"}


@dataclass(slots=True)
class Asked:
    """One request: what its client would wait for, what came, and how long that took."""

    patience: float
    answer: Answer = field(default_factory=Answer)
    seconds: float = 0.0


@dataclass(slots=True)
class Seen:
    """The most that was ever seen at once."""

    queued: int = 0
    in_the_engine: int = 0
    looks: int = 0


@dataclass(frozen=True, slots=True)
class Flood:
    asked: list[Asked]
    seen: Seen

    @property
    def served(self) -> list[Asked]:
        return [one for one in self.asked if one.answer.error is None]

    @property
    def refused(self) -> list[Asked]:
        return [one for one in self.asked if one.answer.error is not None]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    config = default_config("pair-uid-1").model_copy(
        update={
            "speculation": SpeculationConfig(),
            "admission": AdmissionConfig(max_queued_requests=MAX_QUEUED, max_queue_ms=int(1e3 * MAX_QUEUE_SECONDS)),
        }
    )
    engine = {"max-num-seqs": str(SLOTS), "simulator-step-seconds": str(STEP_SECONDS)}
    directory: Path = tmp_path_factory.mktemp("overload")
    with LocalFleet(directory, lanes=1, config=config, worker_arguments=(), engine_arguments=engine) as running:
        yield running


@pytest.fixture(scope="module")
def flood(fleet: LocalFleet) -> Flood:
    generate(fleet.grpc, request("the first", max_tokens=TOKENS, ignore_eos=True))
    for left in reversed(range(ATTEMPTS)):
        found, late_seconds = asyncio.run(_watched_flood(fleet))
        print(f"the test's own loop was late by {1e3 * late_seconds:.0f} ms at most")
        if late_seconds < LATE_SECONDS or not left:
            break
        time.sleep(PAUSE_SECONDS)
    outcomes = Counter((one.patience, one.answer.error.reason if one.answer.error else "served") for one in found.asked)
    print(f"{CAPACITY_PER_SECOND:g} requests/s possible; {dict(sorted(outcomes.items()))}; {found.seen}")
    return found


async def _watched_flood(fleet: LocalFleet) -> tuple[Flood, float]:
    async with watched_loop() as lateness:
        found = await _flood(fleet)
    return found, lateness.seconds


async def _flood(fleet: LocalFleet) -> Flood:
    seen = Seen()
    async with grpc.aio.insecure_channel(fleet.grpc) as channel:

        async def ask(n: int) -> Asked:
            await asyncio.sleep(n / (2 * CAPACITY_PER_SECOND))
            asked = Asked(PATIENCE_SECONDS[n % len(PATIENCE_SECONDS)])
            began = time.monotonic()
            message = request(f"prompt {n}", max_tokens=TOKENS, ignore_eos=True)
            await generate_async(channel, message, timeout=asked.patience, answer=asked.answer)
            asked.seconds = time.monotonic() - began
            return asked

        watching = asyncio.create_task(_watch(channel, seen), name="watch")
        asked = await asyncio.gather(*(ask(n) for n in range(int(2 * CAPACITY_PER_SECOND * SECONDS))))
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
    return Flood(asked, seen)


async def _watch(channel: grpc.aio.Channel, seen: Seen) -> None:
    stub = admin_pb2_grpc.AdminServiceStub(channel)
    while True:
        view = await stub.GetFleet(admin_pb2.GetFleetRequest(), timeout=5)
        seen.looks += 1
        seen.queued = max(seen.queued, view.queued_requests)
        for worker in (worker for lane in view.lanes for worker in lane.workers if worker.signals):
            shown = signals.decode(worker.signals)
            seen.in_the_engine = max(seen.in_the_engine, shown.running_requests + shown.waiting_requests)
        await asyncio.sleep(0.025)


def test_what_is_refused_is_told_so_and_when_to_come_back(flood: Flood) -> None:
    assert len(flood.refused) >= 0.2 * len(flood.asked)
    for one in flood.refused:
        error = one.answer.error
        assert error is not None
        assert (error.code, error.reason in REASONS) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True), error
        assert error.retry_seconds is not None and 0.05 <= error.retry_seconds <= 5.0
        assert one.answer.token_ids == []


def test_a_full_queue_refuses_at_once_and_nobody_waits_longer_than_the_bound(flood: Flood) -> None:
    full = [one for one in flood.refused if one.answer.error and one.answer.error.reason == "QUEUE_FULL"]
    assert full, "the queue was never full"
    assert all(one.seconds < AT_ONCE_SECONDS for one in full)
    assert all(one.seconds < MAX_QUEUE_SECONDS + AT_ONCE_SECONDS for one in flood.refused)


def test_neither_the_routers_queue_nor_the_engines_grows_beyond_its_bound(flood: Flood) -> None:
    assert flood.seen.looks >= 20
    assert flood.seen.queued == MAX_QUEUED
    assert SLOTS <= flood.seen.in_the_engine <= ROOM


def test_what_is_let_in_keeps_its_deadline_however_short(flood: Flood) -> None:
    assert all(len(one.answer.token_ids) == TOKENS for one in flood.served)
    assert all(one.seconds <= one.patience for one in flood.served)
    assert {one.patience for one in flood.served} >= set(PATIENCE_SECONDS[1:]), "a kind of client got nothing"


def test_who_has_too_little_time_behind_a_busy_engine_is_told_so_at_once(flood: Flood) -> None:
    """An answer takes 0.45 s, a full engine may add 0.4 s: 0.7 s is enough only while a slot is free."""
    reasons = [(one.patience, one.answer.error.reason) for one in flood.refused if one.answer.error is not None]
    assert (PATIENCE_SECONDS[0], "INFEASIBLE_DEADLINE") in reasons
    assert (PATIENCE_SECONDS[-1], "INFEASIBLE_DEADLINE") not in reasons


def test_overload_costs_no_goodput(flood: Flood) -> None:
    assert len(flood.served) >= 0.8 * CAPACITY_PER_SECOND * SECONDS


def test_afterwards_nothing_is_left_of_it(fleet: LocalFleet, flood: Flood) -> None:
    def idle() -> bool:
        view = calls.get_fleet(fleet.grpc)
        booked = [worker.booked_requests + worker.booked_tokens for lane in view.lanes for worker in lane.workers]
        return (view.queued_requests, view.running_requests, sum(booked)) == (0, 0, 0)

    wait_until(idle, seconds=3, what="nothing waits, runs or is booked")
    assert len(flood.asked) > 0
    answer = generate(fleet.grpc, request("afterwards", max_tokens=TOKENS, ignore_eos=True), timeout=2)
    assert answer.error is None
