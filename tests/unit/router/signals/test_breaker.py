"""The breaker's table, with virtual time."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.router.flowguard.view import Health
from streamserve.router.signals.breaker import (
    MAX_OPEN_SECONDS,
    Breaker,
    Closed,
    Event,
    HalfOpen,
    Open,
    Suspect,
    after,
    health,
    probe_due,
    probing,
)

NOW = 100.0


@dataclass
class Case:
    state: Breaker
    event: Event
    want: Breaker
    last_lane: bool = False


TABLE = {
    "a success forgets every failure": Case(Closed(2, 3), Event.SUCCEEDED, Closed(0, 0)),
    "a lost connection makes suspect at once, probe due now": Case(Closed(), Event.LOST, Suspect(1, 0, NOW)),
    "two failures of a living worker are borne": Case(Closed(1), Event.FAILED, Closed(2)),
    "the third in a row opens": Case(Closed(2), Event.FAILED, Open(NOW + 1, 1)),
    "the third lost connection in a row opens too": Case(Closed(2), Event.LOST, Open(NOW + 1, 1)),
    "of the last lane failures never open": Case(Closed(2), Event.FAILED, Closed(2), last_lane=True),
    "a lost connection of the last lane is probed like any": Case(
        Closed(2), Event.LOST, Suspect(2, 0, NOW), last_lane=True
    ),
    "the streams that broke together are one incident": Case(Suspect(1, 0, NOW), Event.LOST, Suspect(1, 0, NOW)),
    "a probe that answers ends the suspicion": Case(Suspect(1, 0, NOW), Event.PROBE_ANSWERED, Closed(1)),
    "a probe that fails is repeated soon": Case(Suspect(1, 0, NOW), Event.PROBE_FAILED, Suspect(2, 0, NOW + 0.4)),
    "three without an answer open": Case(Suspect(2, 0, NOW), Event.PROBE_FAILED, Open(NOW + 1, 1)),
    "a second opening lasts twice as long": Case(Suspect(2, 1, NOW), Event.PROBE_FAILED, Open(NOW + 2, 2)),
    "the tenth opening lasts 30 s": Case(HalfOpen(9), Event.PROBE_FAILED, Open(NOW + 30, 10)),
    "the last lane is probed each second for ever": Case(
        HalfOpen(9), Event.PROBE_FAILED, Open(NOW + 1, 10), last_lane=True
    ),
    "an old success does not close an open circuit": Case(Open(NOW + 5, 1), Event.SUCCEEDED, Open(NOW + 5, 1)),
    "a probe that answers closes on trial": Case(HalfOpen(2), Event.PROBE_ANSWERED, Closed(2, 2)),
    "on trial, one failure opens again, twice as long": Case(Closed(2, 1), Event.FAILED, Open(NOW + 2, 2)),
    "on trial, one success is forgiveness": Case(Closed(2, 1), Event.SUCCEEDED, Closed()),
}


@pytest.mark.parametrize("case", TABLE.values(), ids=TABLE.keys())
def test_the_table(case: Case) -> None:
    assert after(case.state, case.event, NOW, last_lane=case.last_lane) == case.want


def test_only_a_closed_breaker_lets_work_through() -> None:
    shown = {health(state) for state in (Suspect(1, 0, NOW), Open(NOW, 1), HalfOpen(1))}
    assert health(Closed(2, 5)) is Health.OK and Health.OK not in shown


def test_an_open_circuit_gets_one_probe_when_its_time_is_over() -> None:
    state = Open(NOW + 1, 1)
    assert not probe_due(state, NOW + 0.99)
    assert probe_due(state, NOW + 1)
    assert probing(state) == HalfOpen(1)
    assert not probe_due(HalfOpen(1), NOW + 9)


@given(st.lists(st.tuples(st.sampled_from(Event), st.floats(0, 5), st.booleans()), max_size=60))
def test_whatever_happens_a_worker_is_asked_again_within_30_seconds(history: list[tuple[Event, float, bool]]) -> None:
    state: Breaker = Closed()
    now = 0.0
    for event, pause, last_lane in history:
        now += pause
        if probe_due(state, now):
            state = probing(state)
        state = after(state, event, now, last_lane=last_lane)
        if isinstance(state, Suspect | Open):
            assert probe_due(state, now + MAX_OPEN_SECONDS)


@given(st.lists(st.sampled_from(Event), max_size=30))
def test_after_a_probe_that_answers_and_a_success_any_breaker_is_closed(history: list[Event]) -> None:
    state: Breaker = Closed()
    for event in history:
        state = after(state, event, NOW)
    state = after(probing(state), Event.PROBE_ANSWERED, NOW)
    assert after(state, Event.SUCCEEDED, NOW) == Closed()
