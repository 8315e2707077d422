"""What a request costs the engine: the time in which it has any, shared equally, told once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.contract.signals import MAX_WORKLOADS
from streamserve.worker.engine_time import EngineTime, Share


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_alone_a_request_costs_all_of_its_time(clock: Clock) -> None:
    engine = EngineTime(clock)
    clock.now += 50
    share = engine.enter("chat")
    clock.now += 3
    share.end()
    clock.now += 40
    assert share.told() == pytest.approx(3.0), "neither the time before nor that after it has let go"


def test_together_each_costs_its_part_of_every_moment(clock: Clock) -> None:
    engine = EngineTime(clock)
    first = engine.enter("chat")
    clock.now += 2
    second = engine.enter("chat")
    clock.now += 4
    first.end()
    clock.now += 1
    second.end()
    assert (first.told(), second.told()) == pytest.approx((4.0, 3.0))


def test_what_did_not_end_whole_is_told_with_the_next_of_its_workload(clock: Clock) -> None:
    engine = EngineTime(clock)
    lost, other, whole = engine.enter("chat"), engine.enter("code"), engine.enter("chat")
    clock.now += 3
    lost.close()
    other.end()
    whole.end()
    assert other.told() == pytest.approx(1.0)
    assert whole.told() == pytest.approx(2.0)
    assert engine.enter("chat").told() == 0.0, "told once"


def test_what_was_told_is_not_told_again_when_its_stream_is_closed(clock: Clock) -> None:
    engine = EngineTime(clock)
    share = engine.enter("chat")
    clock.now += 3
    assert share.told() == pytest.approx(3.0)
    share.close()
    share.close()
    assert engine.enter("chat").told() == 0.0


def test_names_without_end_wait_under_one_and_are_not_lost(clock: Clock) -> None:
    engine = EngineTime(clock)
    for number in range(MAX_WORKLOADS + 36):
        share = engine.enter(f"w{number}")
        clock.now += 1
        share.close()
    assert len(engine._untold) <= MAX_WORKLOADS + 1
    assert sum(engine.enter(f"w{number}").told() for number in range(MAX_WORKLOADS)) == pytest.approx(100.0)


STEPS = st.lists(
    st.tuples(st.sampled_from(["enter", "end", "tell", "close"]), st.integers(0, 5), st.floats(0, 10, allow_nan=False)),
    max_size=60,
)


@settings(deadline=None)
@given(STEPS)
def test_all_that_is_told_is_the_time_in_which_the_engine_had_any(steps: list[tuple[str, int, float]]) -> None:
    clock = Clock()
    engine = EngineTime(clock)
    open_, ended, busy, told = [], [], 0.0, 0.0
    for what, which, seconds in steps:
        clock.now += seconds
        busy += seconds if open_ else 0.0
        if what == "enter":
            open_.append(engine.enter("chat"))
        elif what == "end" and open_:
            share: Share = open_.pop(which % len(open_))
            share.end()
            ended.append(share)
        elif ended or open_:
            share = ended.pop(which % len(ended)) if ended else open_.pop(which % len(open_))
            told += share.told() if what == "tell" else 0.0
            share.close()
    for share in (*ended, *open_):
        share.close()
    assert told + engine.enter("chat").told() == pytest.approx(busy, abs=1e-6)
