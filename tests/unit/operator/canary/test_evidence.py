"""Which records count, and how they become two arms of the same minutes."""

from __future__ import annotations

from streamserve.operator.canary.evidence import Cell, minutes

from .builders import UID, record, row

SINCE = (2, 0)


def test_lanes_become_arms_and_workloads_stay_apart() -> None:
    rows = (
        row("lane-0", 10.0, requests=3),
        row("lane-0", 20.0, requests=4, workload="code"),
        row("lane-1", 10.0, requests=5),
        row("lane-2", 30.0, requests=6),
    )
    (found,) = minutes({"router-0": [record(7, *rows)]}, UID, SINCE, ["lane-0"])
    assert found.number == 7
    assert found.canary == {"chat": Cell(3, 100, 10.0), "code": Cell(4, 200, 10.0)}
    assert found.control == {"chat": Cell(11, 400, 20.0)}


def test_routers_add_up_and_one_that_delivers_a_minute_twice_is_counted_once() -> None:
    one = record(7, row("lane-0", 10.0, requests=3))
    records = {"router-0": [one, one], "router-1": [record(7, row("lane-1", 10.0, requests=2)), record(6)]}
    found = minutes(records, UID, SINCE, ["lane-0"])
    assert [minute.number for minute in found] == [6, 7]
    assert found[1].canary["chat"].requests == 3
    assert found[1].control["chat"].requests == 2


def test_what_was_before_the_hold_or_of_another_pair_does_not_count_and_a_later_generation_does() -> None:
    records = {
        "router-0": [
            record(1, row("lane-0", 10.0), generation=1, step=9),
            record(2, row("lane-0", 10.0), generation=2),
            record(3, row("lane-0", 10.0), generation=3),
            record(4, row("lane-0", 10.0), uid="another"),
        ]
    }
    assert [minute.number for minute in minutes(records, UID, SINCE, ["lane-0"])] == [2, 3]
