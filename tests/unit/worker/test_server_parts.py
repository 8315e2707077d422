"""The small deciding parts of the worker's server, as tables."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from streamserve.contract.errors import Cancelled, DuplicateRequest, InvalidRequest, WorkerLost
from streamserve.contract.runtime_config import Canary, ConfigId, DepthPolicyName, RuntimeConfig, SpeculationConfig
from streamserve.contract.signals import Ack
from streamserve.v1 import common_pb2
from streamserve.worker import wire
from streamserve.worker.acks import Acks
from streamserve.worker.drain import HELD_SECONDS, Drain, DrainState, next_state
from streamserve.worker.flights import Flights
from streamserve.worker.monitor.workloads import Workloads, emitted_per_step
from streamserve.worker.outbox import merge
from streamserve.worker.pipeserve.engine import Chunk, FinishReason, Outcome
from streamserve.worker.reload import Reloader
from streamserve.worker.report_pacing import ReportPacing

# ---- acknowledgements ----

ACKS = {
    "nobody spoke": ([], ()),
    "the highest sequence stays when an older dispatch arrives late": ([(1, 5), (1, 4)], (Ack(1, 5),)),
    "routers come most recent first": ([(1, 1), (2, 1), (1, 2)], (Ack(1, 2), Ack(2, 1))),
    "the router that was silent longest is forgotten": (
        [(1, 1), (2, 1), (3, 1), (1, 2), (4, 1)],
        (Ack(4, 1), Ack(1, 2), Ack(3, 1)),
    ),
}


@pytest.mark.parametrize(("dispatches", "want"), ACKS.values(), ids=ACKS)
def test_acknowledgements(dispatches: list[tuple[int, int]], want: tuple[Ack, ...]) -> None:
    acks = Acks(limit=3)
    for router, sequence in dispatches:
        acks.admit(router, sequence)
    assert acks.latest() == want


# ---- drain ----


@dataclass(frozen=True)
class Look:
    state: DrainState
    want: DrainState
    asked: bool = True
    running: int = 0
    held: int = 0
    quiet: float = 0.0


S, D, E = DrainState.SERVING, DrainState.DRAINING, DrainState.DRAINED
LOOKS = {
    "nobody asked": Look(S, S, asked=False, running=3),
    "asked while requests run": Look(S, D, running=3),
    "asked while nothing runs": Look(S, E),
    "the last request ended": Look(D, E),
    "a prompt's KV still waits for its decode worker": Look(D, D, held=4, quiet=HELD_SECONDS - 0.1),
    "nobody came for the KV": Look(D, E, held=4, quiet=HELD_SECONDS),
    "drained is for ever": Look(E, E, running=1),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_drain_states(look: Look) -> None:
    got = next_state(
        look.state,
        asked=look.asked,
        running_requests=look.running,
        held_blocks=look.held,
        quiet_seconds=look.quiet,
    )
    assert got is look.want


async def test_a_drain_refuses_new_work_at_once_and_tells_what_it_left() -> None:
    began: list[bool] = []
    now = 0.0
    drain = Drain(running=lambda: 2, held=lambda: 0, clock=lambda: now, on_begin=lambda: began.append(True))
    drain.refuse_if_draining()
    assert await drain.wait(0.0) == 2
    assert began == [True]
    with pytest.raises(WorkerLost) as refused:
        drain.refuse_if_draining()
    assert refused.value.reason == "DRAINING"
    assert await drain.wait(0.0) == 2
    assert began == [True], "a second ask begins nothing"


async def test_calls_that_are_shorter_than_the_wait_for_held_kv_end_in_a_drained_worker_all_the_same() -> None:
    now, running = 0.0, 1
    drain = Drain(running=lambda: running, held=lambda: 4, clock=lambda: now, on_begin=lambda: None)
    assert await drain.wait(0.0) == 1
    now, running = 100.0, 0
    assert await drain.wait(0.0) == 1, "what ran at the last look may have ended only now; its KV is waited for"
    now += HELD_SECONDS - 1.0
    assert await drain.wait(0.0) == 1
    assert drain.state is DrainState.DRAINING
    now += 1.0
    assert await drain.wait(0.0) == 0
    assert drain.state is DrainState.DRAINED


# ---- flights ----


async def test_flights_tell_duplicates_attempts_and_when_all_have_landed() -> None:
    flights = Flights()
    first = flights.open("a", 1)
    with pytest.raises(DuplicateRequest):
        flights.open("a", 1)
    second = flights.open("a", 2)
    assert flights.attempts("a", 0) == [first, second]
    assert flights.attempts("a", 2) == [second]
    flights.close(first)
    flights.close(first)
    assert len(flights) == 1
    assert not flights.idle.is_set()
    flights.close(second)
    assert flights.idle.is_set()
    flights.open("a", 1)


async def test_an_answer_that_is_whole_is_open_until_it_is_read_and_in_the_engine_no_more() -> None:
    flights = Flights()
    read, unread = flights.open("a", 1), flights.open("b", 1)
    flights.leave_engine(unread)
    flights.leave_engine(unread)
    assert (len(flights), flights.in_engine) == (2, 1)
    flights.close(unread)
    flights.close(read)
    assert (len(flights), flights.in_engine) == (0, 0)


async def test_a_doomed_flight_cancels_its_work_and_raises_the_doom() -> None:
    flights = Flights()
    flight = flights.open("a", 1)
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    asyncio.get_running_loop().call_soon(flight.fail, Cancelled("no more"))
    with pytest.raises(Cancelled):
        await flight.finish(work())
    assert cancelled.is_set()


async def test_work_that_fails_of_the_doom_itself_raises_the_doom() -> None:
    """Abort tells the flight and its engine in one go: the client shall hear of the abort, not of the engine's loss."""
    flight = Flights().open("a", 1)
    told = asyncio.Event()

    async def work() -> None:
        await told.wait()
        raise WorkerLost("the engine was told to abort it")

    def abort() -> None:
        flight.fail(Cancelled("no more"))
        told.set()

    asyncio.get_running_loop().call_soon(abort)
    with pytest.raises(Cancelled):
        await flight.finish(work())


async def test_held_prompts_are_found_by_attempt_or_all_together_and_once_only() -> None:
    flights = Flights()
    for attempt in (1, 2, 3):
        flights.remember_prefill(flights.open("a", attempt))
    assert flights.forget_prefills("a", 2) == [2]
    assert sorted(flights.forget_prefills("a", 0)) == [1, 3]
    assert flights.forget_prefills("a", 0) == []


# ---- streams ----


def chunk(first: int, tokens: int, *, ends: bool = False) -> Chunk:
    outcome = Outcome(reason=FinishReason.LENGTH, prompt_tokens=1, completion_tokens=first + tokens) if ends else None
    ids = list(range(first, first + tokens))
    return Chunk(first_token_index=first, token_ids=ids, text="".join(f"<{i}>" for i in ids), outcome=outcome)


def test_neighbours_merge_and_a_gap_or_a_repeat_is_refused() -> None:
    both = merge(chunk(3, 2), chunk(5, 1, ends=True))
    assert (both.first_token_index, list(both.token_ids), both.text) == (3, [3, 4, 5], "<3><4><5>")
    assert both.outcome is not None
    for wrong in (4, 6):
        with pytest.raises(ValueError, match="does not follow"):
            merge(chunk(3, 2), chunk(wrong, 1))


def test_load_reports_are_paced_for_each_router_by_itself() -> None:
    pacing = ReportPacing(0.05)
    asked = [(1, 0.0), (1, 0.03), (2, 0.03), (1, 0.05), (2, 0.07), (1, 0.11)]
    assert [pacing.due(router, now) for router, now in asked] == [True, False, True, True, False, True]


# ---- workloads ----


def outcome(completion: int, accepted: int) -> Outcome:
    return Outcome(
        reason=FinishReason.LENGTH,
        prompt_tokens=1,
        completion_tokens=completion,
        drafted_tokens=accepted,
        accepted_tokens=accepted,
    )


EMITTED = {
    "no drafts: one token a step": (outcome(10, 0), 1.0),
    "three of four tokens were drafts": (outcome(8, 6), 4.0),
    "drafts beyond the end do not count": (outcome(4, 6), 4.0),
    "a single token": (outcome(1, 0), 1.0),
}


@pytest.mark.parametrize(("what", "want"), EMITTED.values(), ids=EMITTED)
def test_emitted_tokens_per_step_of_a_request(what: Outcome, want: float) -> None:
    assert emitted_per_step(what) == want


def test_workloads_learn_slowly_come_most_recent_first_and_are_bounded() -> None:
    workloads = Workloads(limit=2)
    workloads.observe("code", outcome(100, 0))
    workloads.observe("code", outcome(200, 0))
    workloads.observe("chat", outcome(10, 5))
    names = {w.name: w for w in workloads.latest()}
    assert list(names) == ["chat", "code"]
    assert names["code"].mean_output_tokens == pytest.approx(110)
    assert names["chat"].mean_emitted_tokens_per_step == pytest.approx(2)
    workloads.observe("sum", outcome(10, 0))
    assert [w.name for w in workloads.latest()] == ["sum", "chat"]


def test_an_answer_whose_drafts_nobody_recorded_teaches_nothing() -> None:
    workloads = Workloads()
    unknown = replace(outcome(100, 0), recorded=False)
    workloads.observe("code", unknown)
    assert workloads.latest() == ()
    workloads.observe("code", outcome(8, 6))
    known = workloads.latest()
    workloads.observe("code", unknown)
    assert workloads.latest() == known


# ---- wire ----


def test_a_prompt_needs_exactly_one_form() -> None:
    for message, field in (
        (common_pb2.Prompt(), "prompt"),
        (common_pb2.Prompt(chat=common_pb2.ChatMessages()), "prompt.chat"),
        (common_pb2.Prompt(token_ids={"ids_le32": b"123"}), "prompt.token_ids"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            wire.prompt(message)
        assert refused.value.field == field


# ---- configuration ----


@pytest.mark.parametrize(("lane", "depth"), [("lane-0", 6), ("lane-1", 3)], ids=["a canary lane", "another lane"])
async def test_a_worker_gives_its_engine_the_speculation_of_its_own_lane(lane: str, depth: int) -> None:
    given_to_engine: list[SpeculationConfig] = []

    async def configure(config_id: ConfigId, speculation: SpeculationConfig) -> SimpleNamespace:
        given_to_engine.append(speculation)
        return SimpleNamespace(id=config_id)

    def fixed(depth: int) -> SpeculationConfig:
        return SpeculationConfig(policy=DepthPolicyName.FIXED, max_depth=6, fixed_depth=depth)

    config = RuntimeConfig(
        id=ConfigId(uid="u", generation=2, step=1),
        speculation=fixed(3),
        canary=Canary(lanes=("lane-0",), speculation=fixed(6)),
    )
    engine = cast(Any, SimpleNamespace(configure=configure))
    reloader = Reloader(engine, lane, ConfigId(uid="u", generation=1), lambda: None)
    await reloader.apply(config)
    assert [speculation.fixed_depth for speculation in given_to_engine] == [depth]
    assert reloader.applied == config.id
