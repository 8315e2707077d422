"""The work queue: every key that was asked for is worked on, one worker at a time, at a bounded rate."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.operator.edge.queue import KeyedQueue

FAR = 1_000_000.0


def queue(**settings: float) -> KeyedQueue[str]:
    return KeyedQueue(Random(1), **settings)  # type: ignore[arg-type]


def test_a_key_that_is_asked_for_many_times_is_worked_on_once() -> None:
    found = queue()
    for _ in range(200):
        found.add("a", 0.0)
    assert (found.depth(0.0), found.take(0.0), found.take(0.0)) == (1, "a", None)


def test_a_key_that_is_asked_for_while_it_is_worked_on_runs_once_more_afterwards() -> None:
    found = queue()
    found.add("a", 0.0)
    assert found.take(0.0) == "a"
    for _ in range(5):
        found.add("a", 1.0)
    assert found.take(1.0) is None
    found.done("a", 2.0)
    assert (found.take(2.0), found.take(2.0)) == ("a", None)
    found.done("a", 3.0)
    assert found.take(FAR) is None


def test_keys_are_taken_in_the_order_in_which_they_were_due() -> None:
    found = queue()
    found.add("late", 0.0, after_seconds=2.0)
    found.add("early", 0.5)
    assert [found.take(3.0), found.take(3.0)] == ["early", "late"]


def test_a_timer_makes_a_key_due_and_an_earlier_ask_takes_its_place() -> None:
    found = queue()
    found.add("a", 0.0)
    assert found.take(0.0) == "a"
    found.done("a", 0.0, again_seconds=30.0)
    assert found.take(29.0) is None
    assert found.next_due_seconds(29.0) == pytest.approx(1.0)
    found.add("a", 29.0)
    assert found.take(29.0) == "a"
    found.done("a", 29.0)
    assert found.take(FAR) is None, "the timer was used up"


def test_what_waited_while_nobody_could_take_it_waits_from_now_on() -> None:
    found = queue()
    found.add("a", 0.0)
    found.add("later", 0.0, after_seconds=FAR)
    assert found.oldest_age_seconds(500.0) == 500.0
    found.restart(500.0)
    assert found.oldest_age_seconds(501.0) == 1.0
    assert (found.take(501.0), found.take(501.0)) == ("a", None)
    assert found.next_due_seconds(501.0) == FAR - 501.0


def test_failures_in_a_row_wait_ever_longer_up_to_the_cap() -> None:
    found, now, waits = queue(cap_seconds=8.0), 0.0, []
    found.add("a", now)
    for _ in range(10):
        assert found.take(now) == "a"
        waits.append(found.failed("a", now))
        now += waits[-1]
    assert waits[0] <= 0.25 < waits[3] < waits[9] <= 8.0


def test_an_event_does_not_cut_a_backoff_short_but_a_new_spec_does() -> None:
    found = queue(base_seconds=10.0)
    found.add("a", 0.0)
    found.take(0.0)
    wait = found.failed("a", 0.0)
    found.add("a", 0.1)
    assert found.take(wait - 0.1) is None
    found.fresh("a", 0.2)
    assert found.take(0.2) == "a"


def test_a_server_that_says_when_is_believed() -> None:
    found = queue()
    found.add("a", 0.0)
    found.take(0.0)
    assert found.failed("a", 0.0, at_least_seconds=7.0) == pytest.approx(7.0)


def test_a_success_ends_a_row_of_failures() -> None:
    found, now = queue(base_seconds=1.0), 0.0
    found.add("a", now)
    for _ in range(5):
        found.take(now)
        now += found.failed("a", now)
    found.take(now)
    found.done("a", now)
    found.add("a", now)
    found.take(now)
    assert found.failed("a", now) <= 1.0


def test_a_key_that_everything_asks_for_all_the_time_runs_at_the_rate_of_its_budget() -> None:
    found, runs = queue(burst=5, refill_seconds=1.0), 0
    for step in range(1_000):
        now = step * 0.01
        found.add("busy", now)
        while (key := found.take(now)) is not None:
            runs += 1
            found.done(key, now)
    assert 5 + 9 <= runs <= 5 + 10
    found.add("quiet", 10.0)
    assert "quiet" in {found.take(10.0), found.take(10.0)}, "one key's budget is not another's"


def test_the_age_is_that_of_the_key_that_has_been_due_longest() -> None:
    found = queue()
    found.add("a", 1.0)
    found.add("b", 3.0)
    assert found.oldest_age_seconds(5.0) == pytest.approx(4.0)
    found.take(5.0)
    assert found.oldest_age_seconds(5.0) == pytest.approx(2.0)
    found.take(5.0)
    assert found.oldest_age_seconds(9.0) == 0.0


def test_a_key_that_is_forgotten_never_comes_back_by_itself() -> None:
    found = queue()
    found.add("waits", 0.0, after_seconds=1.0)
    found.add("runs", 0.0)
    assert found.take(0.0) == "runs"
    for key in ("waits", "runs"):
        found.forget(key)
    found.done("runs", 0.0, again_seconds=1.0)
    found.failed("runs", 0.0)
    assert (found.take(FAR), len(found)) == (None, 0)


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "later", "fresh", "take", "done", "failed"]), st.sampled_from("abc")),
    max_size=200,
)


@given(steps=STEPS, seed=st.integers(0, 100))
def test_no_key_is_worked_on_twice_at_once_and_none_that_was_asked_for_is_lost(
    steps: list[tuple[str, str]], seed: int
) -> None:
    found: KeyedQueue[str] = KeyedQueue(Random(seed), burst=3, refill_seconds=1.0)
    now, running, owed = 0.0, set[str](), set[str]()
    for what, key in steps:
        now += 0.1
        if what in ("add", "later", "fresh"):
            found.fresh(key, now) if what == "fresh" else found.add(key, now, after_seconds=float(what == "later"))
            owed.add(key)
        elif what == "take":
            taken = found.take(now)
            if taken is not None:
                assert taken not in running
                running.add(taken)
                owed.discard(taken)
        elif key in running:
            running.discard(key)
            if what == "failed":
                owed.add(key)
                found.failed(key, now)
            else:
                found.done(key, now)
    for key in list(running):
        found.done(key, now)
    while (wait := found.next_due_seconds(now)) is not None:
        now += wait
        taken = found.take(now)
        assert taken is not None
        owed.discard(taken)
        found.done(taken, now)
    assert not owed
