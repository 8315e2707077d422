"""The edge that drives a session: what goes to workers, what goes to the client, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.router.flowguard.builders import lane, settings
from tests.unit.router.scheduler.fakes import HANG, PREFILLED, FakeFleet, Stage, chunk, request

from streamserve.contract.errors import (
    DeadlineExceeded,
    DuplicateRequest,
    InvalidRequest,
    NoWorker,
    SlowConsumer,
    StreamServeError,
    TransferFailed,
    WorkerLost,
)
from streamserve.contract.request_id import of_client
from streamserve.contract.runtime_config import AdmissionConfig, FailurePolicy
from streamserve.contract.signals import Ack, Role, WorkerSignals
from streamserve.router.flowguard.decision import Decision
from streamserve.router.flowguard.pick import pick
from streamserve.router.flowguard.view import Health, LaneState
from streamserve.router.scheduler import dispatch, orchestrator, watchdog
from streamserve.router.scheduler.admission import JITTER, UNKNOWN_RETRY_SECONDS, Ticket
from streamserve.router.scheduler.orchestrator import ClientLeft
from streamserve.router.signals.bookings import Booking, Ledger
from streamserve.v1 import inference_pb2, worker_pb2


async def test_the_answer_is_what_the_decode_worker_sent_with_attempt_and_route() -> None:
    fleet = FakeFleet([lane("a")])
    async with Stage(fleet) as stage:
        sent = await stage.serve()
        assert [list(message.token_ids) for message in sent] == [[7], [8, 9], [5]]
        assert [message.attempt for message in sent] == [1, 1, 1]
        assert (sent[0].route.decode_worker, sent[0].route.prefill_mode) == ("a-d0", "remote")
        assert not sent[1].HasField("route")
        assert sent[-1].usage.completion_tokens == 4
        assert stage.nothing_is_left()
    assert fleet.aborted == []


async def test_decode_gets_the_ids_and_the_handle_that_prefill_gave() -> None:
    fleet = FakeFleet([lane("a")])
    async with Stage(fleet) as stage:
        await stage.serve()
    (_, prefill), (_, decode) = fleet.calls
    assert prefill.prompt.text == "hello"
    assert (decode.prompt.token_ids.ids_le32, decode.kv_handle) == (b"\1\0\0\0", b"handle")
    assert decode.cached_prompt_tokens == 1


async def test_a_load_report_is_taken_out_and_handed_on() -> None:
    fleet = FakeFleet([lane("a")], decode=lambda _: [chunk(0, 7, load=b"L"), chunk(1, 8, last=True, load=b"M")])
    async with Stage(fleet) as stage:
        sent = await stage.serve()
    assert fleet.reports == [("a-d0", b"L"), ("a-d0", b"M")]
    assert all(b"L" not in message.SerializeToString() for message in sent)


async def test_an_answer_that_is_whole_is_counted_once_with_what_its_worker_said_last() -> None:
    fleet = FakeFleet(
        [lane("a")], decode=lambda _: [chunk(0, 7, load=b"L", cost=9), chunk(1, 8, 9, last=True, load=b"M", cost=0.25)]
    )
    async with Stage(fleet) as stage:
        await stage.serve()
    (counted,) = stage.goodput.answers
    assert (counted.lane, counted.workload, counted.config) == ("a", "default", stage.config.id)
    assert (counted.signals, counted.engine_seconds, counted.tokens) == (b"M", 0.25, 3)
    assert counted.ttft_seconds is not None
    assert counted.tpot_seconds is not None


async def test_after_a_failed_attempt_the_answer_counts_for_the_lane_that_ended_it() -> None:
    def decode(worker: str) -> list[object]:
        if not failed:
            failed.append(worker)
            return [WorkerLost("gone")]
        return [chunk(0, 7, 8, 9, last=True, load=b"M", cost=0.25)]

    failed: list[str] = []
    async with Stage(FakeFleet([lane("a"), lane("b")], decode=decode)) as stage:
        await stage.serve()
    (counted,) = stage.goodput.answers
    assert counted.lane != failed[0].partition("-")[0]


async def test_neither_an_answer_of_prefill_alone_nor_one_that_failed_is_counted() -> None:
    answer = worker_pb2.PrefillResponse(answer=chunk(0, 7, last=True, load=b"M", cost=1))
    async with Stage(FakeFleet([lane("a")], prefill=lambda _: answer)) as stage:
        await stage.serve(request(max_tokens=1))
    assert stage.goodput.answers == []
    fleet = FakeFleet([lane("a")], decode=lambda _: [chunk(0, 7, load=b"M", cost=1), InvalidRequest("no")])
    async with Stage(fleet) as stage:
        with pytest.raises(StreamServeError):
            await stage.serve()
    assert stage.goodput.answers == []


async def test_one_token_never_reaches_decode() -> None:
    answer = worker_pb2.PrefillResponse(answer=chunk(0, 7, last=True))
    fleet = FakeFleet([lane("a")], prefill=lambda _: answer)
    async with Stage(fleet) as stage:
        (sent,) = await stage.serve(request(max_tokens=1))
        assert stage.nothing_is_left()
    assert (sent.route.prefill_mode, sent.route.decode_worker) == ("prefill-only", "")
    assert [worker for worker, _ in fleet.calls] == ["a-p0"]
    assert fleet.calls[0][1].final


async def test_a_lost_prefill_worker_is_left_out_of_the_second_attempt() -> None:
    failed: list[str] = []

    def prefill(worker: str) -> object:
        if not failed:
            failed.append(worker)
            return WorkerLost("gone")
        return PREFILLED

    fleet = FakeFleet([lane("a"), lane("b")], prefill=prefill)
    async with Stage(fleet) as stage:
        sent = await stage.serve()
        assert stage.nothing_is_left()
    assert [message.attempt for message in sent] == [2, 2, 2]
    assert sent[0].route.prefill_worker not in failed
    assert [worker for worker, _, _ in fleet.aborted] == failed
    assert (failed[0], "WORKER_LOST") in fleet.results


async def test_an_error_of_the_request_is_not_tried_again() -> None:
    fleet = FakeFleet([lane("a"), lane("b")], prefill=lambda _: InvalidRequest("too long", field="prompt"))
    async with Stage(fleet) as stage:
        with pytest.raises(InvalidRequest):
            await stage.serve()
        assert stage.nothing_is_left()
    assert len(fleet.calls) == 1


async def test_strict_tells_that_the_transfer_failed_when_no_other_pair_is_left() -> None:
    fleet = FakeFleet([lane("a")], decode=lambda _: [TransferFailed("no bytes")])
    async with Stage(fleet, settings(failure=FailurePolicy.STRICT)) as stage:
        with pytest.raises(TransferFailed) as raised:
            await stage.serve()
        assert stage.nothing_is_left()
    assert raised.value.retry_after_seconds is not None


async def test_a_stream_lost_after_tokens_says_how_many_there_were() -> None:
    fleet = FakeFleet([lane("a"), lane("b")], decode=lambda _: [chunk(0, 7, 8), WorkerLost("gone")])
    async with Stage(fleet) as stage:
        with pytest.raises(WorkerLost) as raised:
            await stage.serve()
        assert stage.nothing_is_left()
    assert raised.value.reason == "STREAM_LOST"
    assert raised.value.metadata["tokens_delivered"] == "2"


async def test_a_silent_worker_counts_as_lost() -> None:
    silent: list[str] = []

    def decode(worker: str) -> list[object]:
        if not silent:
            silent.append(worker)
            return [HANG]
        return [chunk(0, 7, last=True)]

    fleet = FakeFleet([lane("a"), lane("b")], decode=decode)
    async with Stage(fleet, stall_seconds=0.05) as stage:
        sent = await stage.serve()
        assert stage.nothing_is_left()
    assert sent[0].attempt == 2
    assert (silent[0], "WORKER_STALLED") in fleet.results
    assert {worker for worker, _, _ in fleet.aborted} >= {silent[0]}


async def test_who_waits_in_a_full_worker_waits_on_and_its_time_counts_from_the_last_moment_without_room() -> None:
    freed = asyncio.Event()
    fleet = FakeFleet([lane("a")], decode=lambda _: [freed, chunk(0, 7, last=True)], no_room=lambda _: time.monotonic())
    async with Stage(fleet, stall_seconds=0.05) as stage:
        asking = asyncio.create_task(stage.serve())
        await asyncio.sleep(0.3)
        assert not asking.done()
        freed.set()
        sent = await asking
        assert stage.nothing_is_left()
    assert [message.attempt for message in sent] == [1]
    assert ("a-d0", "WORKER_STALLED") not in fleet.results


async def test_a_worker_that_has_room_again_and_says_nothing_counts_as_lost() -> None:
    began = time.monotonic()
    fleet = FakeFleet([lane("a")], decode=lambda _: [HANG], no_room=lambda _: min(time.monotonic(), began + 0.3))
    async with Stage(fleet, stall_seconds=0.1) as stage:
        with pytest.raises(StreamServeError):
            await stage.serve()
    assert time.monotonic() - began > 0.35
    assert ("a-d0", "WORKER_STALLED") in fleet.results


async def test_the_end_of_an_excuse_is_seen_when_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fills a worker may be over by the next time at which a limit would have passed."""
    monkeypatch.setattr(watchdog, "LOOK_AGAIN_SECONDS", 0.02)
    began = time.monotonic()

    def no_room(_: str) -> float:
        now = time.monotonic()
        return now if now < began + 0.55 else -math.inf

    fleet = FakeFleet([lane("a")], decode=lambda _: [HANG], no_room=no_room)
    async with Stage(fleet, stall_seconds=0.3) as stage:
        with pytest.raises(StreamServeError):
            await stage.serve()
    assert time.monotonic() - began > 0.7


async def test_a_worker_that_cancels_by_itself_is_lost_and_not_the_clients_will() -> None:
    from streamserve.contract.errors import Cancelled

    fleet = FakeFleet([lane("a")], decode=lambda _: [chunk(0, 7), Cancelled("by the worker")])
    async with Stage(fleet) as stage:
        with pytest.raises(WorkerLost):
            await stage.serve()


@pytest.mark.parametrize("where", ["prefill", "decode"])
async def test_the_deadline_ends_every_wait(where: str) -> None:
    fleet = FakeFleet([lane("a")])
    if where == "prefill":
        fleet.prefill = lambda _: HANG
    else:
        fleet.decode = lambda _: [chunk(0, 7), HANG]
    async with Stage(fleet) as stage:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await stage.serve(request(seconds=0.1))
        assert time.monotonic() - began < 1.0
        assert stage.nothing_is_left()
        await asyncio.sleep(0)
    assert fleet.aborted


@pytest.mark.parametrize("where", ["queue", "prefill", "decode"])
async def test_a_client_that_leaves_frees_everything(where: str) -> None:
    fleet = FakeFleet([lane("a")], max_running=0 if where == "queue" else 32)
    if where == "prefill":
        fleet.prefill = lambda _: HANG
    if where == "decode":
        fleet.decode = lambda _: [chunk(0, 7), HANG]
    async with Stage(fleet) as stage:
        task = asyncio.create_task(stage.serve())
        await asyncio.sleep(0.05)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stage.nothing_is_left()
        assert stage.dispatcher.queue.requests == 0
        await asyncio.sleep(0)
    assert bool(fleet.aborted) == (where != "queue")


@pytest.mark.parametrize("chunks_before", [0, 1, 2])
async def test_a_client_that_leaves_under_a_write_is_no_failure_of_its_worker(chunks_before: int) -> None:
    fleet = FakeFleet([lane("a")])
    written = 0

    async def until_it_left(_: bytes) -> None:
        nonlocal written
        if written == chunks_before:
            raise ClientLeft("the client left")
        written += 1

    async with Stage(fleet) as stage:
        with pytest.raises(ClientLeft):
            await stage.orchestrator.serve(request(), until_it_left)
        assert stage.nothing_is_left()
        assert stage.outcomes() == {"CANCELLED": 1}
    assert {reason for _, reason in fleet.results} <= {"OK"}


async def test_a_stop_lets_the_aborts_of_what_it_cut_go_out() -> None:
    fleet = FakeFleet([lane("a")], decode=lambda _: [chunk(0, 7), HANG], abort_seconds=0.05)
    async with Stage(fleet) as stage:
        task = asyncio.create_task(stage.serve())
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await stage.orchestrator.stop()
        assert [worker for worker, _, _ in fleet.aborted] == ["a-d0"]


async def test_a_stop_waits_for_no_abort_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orchestrator, "ABORT_SECONDS", 0.02)
    fleet = FakeFleet([lane("a")], prefill=lambda _: HANG, abort_seconds=60.0)
    async with Stage(fleet) as stage:
        task = asyncio.create_task(stage.serve())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(5.0):
            await stage.orchestrator.stop()


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    fleet = FakeFleet([lane("a")])

    async def never(_: bytes) -> None:
        await asyncio.Event().wait()

    async with Stage(fleet, slow_consumer_seconds=0.05) as stage:
        with pytest.raises(SlowConsumer, match="read faster"):
            await stage.orchestrator.serve(request(), never)
        assert stage.nothing_is_left()
        await asyncio.sleep(0)
    assert fleet.aborted


@pytest.mark.parametrize("max_tokens", [1, 4], ids=["the only chunk, of prefill", "the last of several"])
async def test_a_client_that_does_not_read_the_last_chunk_is_cut_off_like_any_other(max_tokens: int) -> None:
    fleet = FakeFleet([lane("a")])
    if max_tokens == 1:
        fleet.prefill = lambda _: worker_pb2.PrefillResponse(answer=chunk(0, 7, last=True))

    async def all_but_the_last(data: bytes) -> None:
        if inference_pb2.GenerateResponse.FromString(data).finish_reason:
            await asyncio.Event().wait()

    async with Stage(fleet, slow_consumer_seconds=0.05) as stage:
        with pytest.raises(SlowConsumer, match="read faster"):
            await stage.orchestrator.serve(request(max_tokens=max_tokens), all_but_the_last)
        assert stage.nothing_is_left()
        assert stage.outcomes() == {"SLOW_CONSUMER": 1}
    assert not stage.goodput.answers
    assert not fleet.aborted, "the workers are done with it"


async def test_a_client_that_leaves_with_the_whole_answer_has_not_cancelled() -> None:
    fleet = FakeFleet([lane("a")], decode=lambda _: [chunk(0, 7), chunk(1, 8, last=True), HANG])
    whole = asyncio.Event()

    async def read(data: bytes) -> None:
        if inference_pb2.GenerateResponse.FromString(data).finish_reason:
            whole.set()

    async with Stage(fleet) as stage:
        task = asyncio.create_task(stage.orchestrator.serve(request(), read))
        await whole.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stage.nothing_is_left()
        assert stage.outcomes() == {"OK": 1}


async def test_a_front_that_fails_frees_everything_too() -> None:
    fleet = FakeFleet([lane("a")])

    async def broken(_: bytes) -> None:
        raise ValueError("a bug in the front")

    async with Stage(fleet) as stage:
        with pytest.raises(StreamServeError, match="report this"):
            await stage.orchestrator.serve(request(), broken)
        assert stage.nothing_is_left()


async def test_a_request_id_may_run_once_at_a_time() -> None:
    fleet = FakeFleet([lane("a")], prefill=lambda _: HANG)
    async with Stage(fleet) as stage:
        first = asyncio.create_task(stage.serve(request("same")))
        await asyncio.sleep(0.01)
        with pytest.raises(DuplicateRequest):
            await stage.serve(request("same"))
        assert stage.orchestrator.running == 1
        assert stage.outcomes() == {"DUPLICATE_REQUEST_ID": 1}
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_what_is_aborted_for_a_request_never_meets_the_next_one_of_the_same_id() -> None:
    answers = [HANG, PREFILLED]
    fleet = FakeFleet([lane("a")], prefill=lambda _: answers.pop(0))
    async with Stage(fleet) as stage:
        first = asyncio.create_task(stage.serve(request("same")))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await stage.serve(request("same"))
    begun = [message.request_id for _, message in fleet.calls]
    assert {name for _, name, _ in fleet.aborted} == {begun[0]}
    assert begun[0] not in begun[1:]
    assert [of_client(name) for name in begun] == ["same"] * 3


async def test_requests_wait_for_a_free_place_and_go_by_priority() -> None:
    gate = asyncio.Event()
    order: list[str] = []
    fleet = FakeFleet([lane("a")], max_running=1)

    async with Stage(fleet) as stage:

        async def one(name: str, priority: int) -> None:
            async def write(_: bytes) -> None:
                if name == "first":
                    await gate.wait()
                if name not in order:
                    order.append(name)

            await stage.orchestrator.serve(request(name, priority=priority), write)

        async with asyncio.TaskGroup() as group:
            group.create_task(one("first", 0))
            await asyncio.sleep(0.01)
            for name, priority in (("low", -1), ("middle", 0), ("high", 5)):
                group.create_task(one(name, priority))
            await asyncio.sleep(0.02)
            assert stage.dispatcher.queue.requests == 3
            gate.set()
        assert order == ["first", "high", "middle", "low"]
        assert stage.nothing_is_left()


async def test_a_text_that_looks_longer_than_any_worker_holds_nobody_up() -> None:
    streaming = asyncio.Event()

    def decode(_: str) -> list[object]:
        streaming.set()
        return [chunk(0, 7), HANG]

    fleet = FakeFleet([lane("a")], decode=decode)
    async with Stage(fleet) as stage:
        stream = asyncio.create_task(stage.serve(request("stream")))
        await streaming.wait()
        fleet.decode = lambda _: [chunk(0, 7, 8, 9, 5, last=True)]
        text = replace(request("big", seconds=300.0), prompt_tokens=500_000, prompt_estimated=True)
        big = asyncio.create_task(stage.serve(text))
        await asyncio.sleep(0)
        async with asyncio.timeout(1.0):
            await stage.serve(request("normal"))
            await big
        stream.cancel()
        await asyncio.gather(stream, return_exceptions=True)


async def test_what_gets_its_workers_at_once_is_no_measure_of_how_fast_they_are() -> None:
    async with Stage(FakeFleet([lane("a")])) as stage:
        for n in range(5):
            await stage.serve(request(str(n)))
        queue, now = stage.dispatcher.queue, time.monotonic()
        waiting = Ticket(number=99, tokens=2, arrival_seconds=now, deadline_seconds=now + 9.0)
        queue.offer(waiting, now, AdmissionConfig())
        assert queue.retry_after_seconds() >= (1.0 - JITTER) * UNKNOWN_RETRY_SECONDS


async def test_a_long_prompt_stays_booked_for_decode_while_a_short_one_that_came_later_is_there_already() -> None:
    answers, is_there = [HANG, PREFILLED], asyncio.Event()
    ledgers = defaultdict[str, Ledger](lambda: Ledger(1))

    def prefill(_: str) -> object:
        is_there.set()
        return answers.pop(0)

    fleet = FakeFleet([lane("a")], prefill=prefill)
    fleet.book = lambda worker, *, tokens: Booking(worker, ledgers[worker], 1, tokens, lambda: None)  # type: ignore
    async with Stage(fleet) as stage:
        long = asyncio.create_task(stage.serve(replace(request("long"), prompt_tokens=9_000)))
        await is_there.wait()
        await stage.serve(request("short"))
        (sent,) = [message for called, message in fleet.calls if called == "a-d0"]
        signals = WorkerSignals(
            role=Role.DECODE, boot_id=1, epoch=2, uid_fingerprint=1, acks=(Ack(1, sent.dispatch.sequence),)
        )
        ledgers["a-d0"].acknowledge(signals)
        assert (ledgers["a-d0"].booked_requests, ledgers["a-d0"].booked_tokens) == (1, 9_004)
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
        assert ledgers["a-d0"].booked_requests == 0


async def test_without_any_lane_a_request_is_shed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "PATIENCE_SECONDS", 0.02)
    async with Stage(FakeFleet([lane("a").fenced(degraded=False)])) as stage:
        with pytest.raises(NoWorker) as raised:
            await stage.serve()
        assert raised.value.retry_after_seconds is not None


async def test_while_no_lane_is_ready_each_arrival_is_looked_at_and_those_who_wait_are_not_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picks = 0

    def counted(*arguments: Any) -> Decision:
        nonlocal picks
        picks += 1
        return pick(*arguments)

    monkeypatch.setattr(dispatch, "pick", counted)
    down = lane("a").fenced(degraded=False)
    fleet = FakeFleet([down])
    async with Stage(fleet) as stage:
        waiting = [asyncio.create_task(stage.serve(request(f"r{number}"))) for number in range(100)]
        await asyncio.sleep(0)
        assert stage.dispatcher.queue.requests == 100
        assert picks <= 2 * 100
        down.at(LaneState.READY)
        fleet.changed.set()
        assert all([await each for each in waiting])


async def test_a_prompt_that_needs_no_prefill_worker_is_not_refused_with_those_that_do() -> None:
    config = settings(failure=FailurePolicy.STRICT, local_prefill_max_tokens=4)
    fleet = FakeFleet([lane("a").health(Health.CIRCUIT_OPEN, role=Role.PREFILL)])
    async with Stage(fleet, config) as stage:
        long = asyncio.create_task(stage.serve(replace(request("long"), prompt_tokens=5)))
        await asyncio.sleep(0)
        assert await stage.serve(replace(request("short"), prompt_tokens=4))
        assert not long.done()
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)


async def test_a_request_that_waits_too_long_is_told_when_to_come_back() -> None:
    config = settings().model_copy(update={"admission": AdmissionConfig(max_queue_ms=50)})
    async with Stage(FakeFleet([lane("a")], max_running=0), config) as stage:
        with pytest.raises(StreamServeError) as raised:
            await stage.serve()
    assert raised.value.reason == "QUEUE_TIMEOUT"
    assert raised.value.retry_after_seconds is not None
