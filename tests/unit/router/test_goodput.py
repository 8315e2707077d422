"""What a router records of a minute while a canary is held, and what it leaves out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.contract import goodput, signals
from streamserve.contract.goodput import GoodputMinute
from streamserve.contract.runtime_config import Canary, ConfigId, RuntimeConfig, Slo, SpeculationConfig
from streamserve.contract.signals import Role, WorkerSignals
from streamserve.router.goodput import MAX_WAITING, MAX_WORKLOADS, Ended, GoodputMeter, within

START = 6_030.0
"""In the middle of minute 100."""
ID = ConfigId(uid="u", generation=2, step=1)
HELD = RuntimeConfig(
    id=ID,
    canary=Canary(lanes=("lane-0",), speculation=SpeculationConfig(max_depth=4)),
    slo=Slo(ttft_ms=1_000, tpot_ms=50),
    workload_slos={"code": Slo(ttft_ms=100, tpot_ms=50)},
)
SETTLED = HELD.model_copy(update={"canary": None})


def said(generation: int = 2, step: int = 1) -> bytes:
    return signals.encode(
        WorkerSignals(
            role=Role.DECODE, boot_id=1, epoch=1, uid_fingerprint=1, config_generation=generation, config_step=step
        )
    )


def answer(**changes: Any) -> Ended:
    made = Ended(
        lane="lane-0",
        workload="chat",
        config=ID,
        signals=said(),
        engine_seconds=0.5,
        tokens=20,
        ttft_seconds=0.2,
        tpot_seconds=0.02,
    )
    return replace(made, **changes)


class Bench:
    def __init__(self, config: RuntimeConfig = HELD) -> None:
        self.now = START
        self.meter = GoodputMeter(RuntimeConfig(id=ConfigId(uid="u", generation=0)), clock=lambda: self.now)
        self.meter.applied(config)

    def to_minute(self, number: int, seconds: float = 0.0) -> None:
        self.now = 60.0 * number + seconds

    def minute(self, *answers: Ended, number: int = 101) -> list[GoodputMinute]:
        """The records after these have ended in a whole minute."""
        self.to_minute(number)
        assert self.meter.take() == []
        for each in answers:
            self.meter.ended(each)
        self.to_minute(number + 1)
        return self.meter.take()


def test_answers_are_added_up_by_lane_and_workload() -> None:
    (record,) = Bench().minute(answer(), answer(tokens=5), answer(lane="lane-1"), answer(workload="code"))
    assert (record.minute, record.config) == (101, ID)
    found = {(row.lane, row.workload): row for row in record.rows}
    assert set(found) == {("lane-0", "chat"), ("lane-1", "chat"), ("lane-0", "code")}
    row = found["lane-0", "chat"]
    assert (row.requests, row.requests_within_slo, row.tokens_within_slo, row.engine_seconds) == (2, 2, 25, 1.0)
    late = found["lane-0", "code"]
    assert (late.requests, late.requests_within_slo, late.tokens_within_slo, late.engine_seconds) == (1, 0, 0, 0.5)
    assert goodput.decode(goodput.encode(record)) == record


LEFT_OUT = {
    "placed under another configuration": answer(config=ID.model_copy(update={"step": 0})),
    "ended by a worker that obeys an earlier one": answer(signals=said(step=0)),
    "ended by a worker that is ahead": answer(signals=said(generation=3, step=0)),
    "ended with signals that cannot be read": answer(signals=b"noise"),
    "ended without signals": answer(signals=b""),
    "ended with a time that is no number": answer(engine_seconds=float("nan")),
    "ended with a time below zero": answer(engine_seconds=-1.0),
    "ended with a time that nobody believes": answer(engine_seconds=float("inf")),
}


@pytest.mark.parametrize("odd", LEFT_OUT.values(), ids=LEFT_OUT)
def test_an_answer_is_left_out_that_was(odd: Ended) -> None:
    (record,) = Bench().minute(answer(), odd)
    assert [row.requests for row in record.rows] == [1]


WITHIN = {
    "both are kept to the millisecond": (1.0, 0.05, True),
    "one token has no time between tokens": (1.0, None, True),
    "the first token came late": (1.001, 0.01, False),
    "the others came slowly": (0.1, 0.0501, False),
    "no token came at all": (None, None, False),
}


@pytest.mark.parametrize(("ttft", "tpot", "kept"), WITHIN.values(), ids=WITHIN)
def test_an_answer_is_within_its_slo_when(ttft: float | None, tpot: float | None, kept: bool) -> None:
    assert within(HELD.slo, ttft, tpot) is kept


def test_without_a_canary_nothing_is_recorded() -> None:
    assert Bench(SETTLED).minute(answer()) == []


def test_the_minute_in_which_the_configuration_came_is_not_recorded() -> None:
    bench = Bench()
    bench.meter.ended(answer())
    bench.to_minute(101)
    assert bench.meter.take() == []


def test_a_minute_that_was_whole_is_recorded_under_its_own_configuration_when_the_next_comes() -> None:
    bench = Bench()
    bench.to_minute(101)
    bench.meter.take()
    bench.meter.ended(answer())
    bench.to_minute(102, 0.1)
    bench.meter.applied(SETTLED.model_copy(update={"id": ID.model_copy(update={"step": 2})}))
    (record,) = bench.meter.take()
    assert (record.minute, record.config) == (101, ID)
    bench.meter.ended(answer())
    bench.to_minute(104)
    assert bench.meter.take() == []


def test_a_minute_without_answers_is_no_record_and_does_not_spoil_the_next() -> None:
    bench = Bench()
    assert bench.minute(number=101) == []
    assert len(bench.minute(answer(), number=105)) == 1


def test_a_clock_that_is_set_back_does_not_make_a_minute_of_two_halves() -> None:
    bench = Bench()
    bench.to_minute(101)
    bench.meter.ended(answer())
    bench.to_minute(100, 30)
    bench.meter.ended(answer())
    bench.to_minute(101)
    assert [record.minute for record in bench.meter.take()] == [101], "the first half, and then nothing of minute 100"
    bench.meter.ended(answer(tokens=7))
    bench.to_minute(102)
    (again,) = bench.meter.take()
    assert again.rows[0].tokens_within_slo == 7


def test_names_without_end_become_default_and_those_with_targets_stay() -> None:
    many = [answer(workload=f"w{number}") for number in range(2 * MAX_WORKLOADS)]
    (record,) = Bench().minute(*many, answer(workload="code"))
    names = {row.workload for row in record.rows}
    assert len(names) <= MAX_WORKLOADS
    assert {"default", "code"} <= names
    assert sum(row.requests for row in record.rows) == 2 * MAX_WORKLOADS + 1


def test_records_that_nobody_takes_are_bounded() -> None:
    bench = Bench()
    for number in range(101, 101 + 2 * MAX_WAITING):
        bench.to_minute(number)
        bench.meter.ended(answer())
    assert len(bench.meter.take()) == MAX_WAITING


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            answer,
            lane=st.sampled_from(["lane-0", "lane-1"]),
            workload=st.sampled_from(["chat", "code", "default"]),
            engine_seconds=st.floats(),
            tokens=st.integers(1, 10_000),
            ttft_seconds=st.none() | st.floats(0, 10),
            tpot_seconds=st.none() | st.floats(0, 1),
            signals=st.sampled_from([said(), said(step=9), b""]) | st.binary(max_size=40),
        ),
        max_size=20,
    )
)
def test_whatever_ends_the_record_can_be_read_and_never_counts_more_than_ended(answers: list[Ended]) -> None:
    for record in Bench().minute(*answers):
        assert goodput.decode(goodput.encode(record)) == record
        assert sum(row.requests for row in record.rows) <= len(answers)
        assert sum(row.tokens_within_slo for row in record.rows) <= sum(each.tokens for each in answers)
