"""The admission queue in virtual time."""

from __future__ import annotations

import math
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.contract.errors import (
    DeadlineExceeded,
    InfeasibleDeadline,
    Overloaded,
    StreamServeError,
)
from streamserve.contract.runtime_config import AdmissionConfig
from streamserve.router.scheduler.admission import SPARE_DEADLINES, AdmissionQueue, Ticket

BOUNDS = AdmissionConfig(max_queued_requests=3, max_queued_tokens=1_000, max_queue_ms=5_000)


def queue() -> AdmissionQueue:
    return AdmissionQueue(Random(1))


def ticket(number: int, *, tokens: int = 10, at: float = 0.0, until: float = 1_000.0, priority: int = 0) -> Ticket:
    return Ticket(number=number, tokens=tokens, arrival_seconds=at, deadline_seconds=until, priority=priority)


ORDERS = {
    "first come, first served": ([ticket(1, at=0), ticket(2, at=1)], [1, 2]),
    "higher priority goes first": ([ticket(1), ticket(2, at=1, priority=5)], [2, 1]),
    "of equal priority the nearer deadline goes first": ([ticket(1), ticket(2, at=1, until=20)], [2, 1]),
    "priority comes before the deadline": ([ticket(1, until=20), ticket(2, priority=1)], [2, 1]),
}


@pytest.mark.parametrize(("tickets", "want"), ORDERS.values(), ids=ORDERS.keys())
def test_order(tickets: list[Ticket], want: list[int]) -> None:
    subject = queue()
    for each in tickets:
        subject.offer(each, each.arrival_seconds, BOUNDS)
    assert [each.number for each in subject.in_order()] == want


REFUSALS: dict[str, tuple[list[Ticket], Ticket, type[StreamServeError], str]] = {
    "a deadline that is over": ([], ticket(9, until=0.0), DeadlineExceeded, "allow more time"),
    "a fourth request where three may wait": (
        [ticket(1), ticket(2), ticket(3)],
        ticket(9),
        Overloaded,
        "3 requests wait",
    ),
    "more prompt tokens than may wait": ([ticket(1, tokens=999)], ticket(9, tokens=2), Overloaded, "999 prompt tokens"),
}


@pytest.mark.parametrize(("waiting", "late", "kind", "text"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refused(waiting: list[Ticket], late: Ticket, kind: type[StreamServeError], text: str) -> None:
    subject = queue()
    for each in waiting:
        subject.offer(each, 0.0, BOUNDS)
    with pytest.raises(kind, match=text) as raised:
        subject.offer(late, 0.0, BOUNDS)
    assert subject.requests == len(waiting)
    if kind is Overloaded:
        assert raised.value.retry_after_seconds is not None


def test_one_prompt_larger_than_the_bound_may_wait_alone() -> None:
    subject = queue()
    subject.offer(ticket(1, tokens=5_000), 0.0, BOUNDS)
    assert subject.tokens == 5_000


def test_a_retry_comes_back_whatever_the_bounds_say() -> None:
    subject = queue()
    for number in range(3):
        subject.offer(ticket(number), 0.0, BOUNDS)
    subject.offer(ticket(9), 0.0, BOUNDS, again=True)
    assert subject.requests == 4


def warmed(rate_seconds: float) -> AdmissionQueue:
    """A queue that has served one request of 10 tokens every `rate_seconds`, always with another one waiting."""
    subject = queue()
    first = ticket(10_000)
    subject.offer(first, 0.0, BOUNDS)
    for n in range(1, 201):
        following = ticket(10_000 + n)
        subject.offer(following, n * rate_seconds, BOUNDS)
        subject.dispatched(first, n * rate_seconds)
        first = following
    subject.remove(first)
    return subject


def test_retry_after_is_the_waiting_work_over_the_rate_within_twenty_percent() -> None:
    subject = warmed(0.5)
    for number in range(3):
        subject.offer(ticket(number, at=100.0), 100.0, BOUNDS)
    # Three requests at two a second.
    for _ in range(100):
        assert 1.5 * 0.8 * 0.97 <= subject.retry_after_seconds() <= 1.5 * 1.2 * 1.03


def test_a_deadline_that_the_queue_alone_will_miss_is_infeasible() -> None:
    subject = warmed(0.5)
    subject.offer(ticket(1, at=100.0), 100.0, BOUNDS)
    subject.offer(ticket(2, at=100.0), 100.0, BOUNDS)
    with pytest.raises(InfeasibleDeadline, match="nothing was started") as raised:
        subject.offer(ticket(3, at=100.0, until=100.5, priority=-1), 100.0, BOUNDS)
    assert raised.value.retry_after_seconds is not None


@pytest.mark.parametrize(("pause", "patience"), [(8 * 3_600.0, 60.0), (60.0, 0.5)], ids=["a night", "a minute"])
def test_a_time_without_work_is_not_a_slow_service(pause: float, patience: float) -> None:
    subject, now = warmed(0.05), pause
    for n in range(64):
        served = ticket(n, at=now, until=now + patience)
        subject.offer(served, now, BOUNDS)
        subject.dispatched(served, now)
        now += 0.01
    for n in (100, 101):
        subject.offer(ticket(n, at=now, until=now + patience), now, BOUNDS)
    assert subject.requests == 2


def test_what_is_served_at_once_says_nothing_of_how_fast_the_fleet_is() -> None:
    """One request every two seconds for an hour, each served at once; then two a second while others wait."""
    subject, now = queue(), 0.0
    for n in range(1_800):
        served = ticket(n, until=1e6)
        subject.offer(served, now, BOUNDS)
        subject.dispatched(served, now)
        now += 2.0
    waiting = [ticket(5_000 + n, until=1e6) for n in range(83)]
    for each in waiting[:3]:
        subject.offer(each, now, BOUNDS)
    for n, each in enumerate(waiting[:80]):
        now += 0.5
        subject.dispatched(each, now)
        subject.offer(waiting[n + 3], now, BOUNDS)
    assert 1.5 * 0.8 <= subject.retry_after_seconds() <= 1.5 * 1.2


def test_the_first_that_had_to_wait_is_not_the_measure_of_all() -> None:
    """Eight places, taken at once by prompts of every length; the first that becomes free goes to a short one."""
    subject, now, bounds = queue(), 0.0, AdmissionConfig()
    for n in range(32):
        served = ticket(n, tokens=6_000 if n % 4 == 0 else 32, until=1e6)
        subject.offer(served, now, bounds)
        subject.dispatched(served, now)
    short = ticket(100, tokens=32, until=1e6)
    waiting = [ticket(101 + n, tokens=6_000, until=1e6) for n in range(3)]
    for each in (short, *waiting):
        subject.offer(each, now, bounds)
    now += 0.8
    subject.dispatched(short, now)
    # 18,000 tokens wait, and about 12,000 were put to work that were being served until then: about a second.
    subject.offer(ticket(999, tokens=6_000, at=now, until=now + 10.0, priority=-1), now, bounds)


def test_a_fleet_that_gets_slower_while_others_wait_is_seen_to_be_slow() -> None:
    subject, now = warmed(0.05), 10.0
    waiting = [ticket(n, until=1e6) for n in range(12)]
    subject.offer(waiting[0], now, BOUNDS)
    for each, following in pairwise(waiting):
        subject.offer(following, now, BOUNDS)
        now += 5.0
        subject.dispatched(each, now)
    with pytest.raises(InfeasibleDeadline):
        subject.offer(ticket(99, at=now, until=now + 4.0, priority=-1), now, BOUNDS)


def test_deadlines_and_patience_end_in_the_queue() -> None:
    subject = queue()
    subject.offer(ticket(1, until=2.0), 0.0, BOUNDS)
    subject.offer(ticket(2), 0.0, BOUNDS)
    assert subject.next_expiry_seconds(BOUNDS) == 2.0
    assert subject.expired(1.9, BOUNDS) == []
    ((first, error),) = subject.expired(2.0, BOUNDS)
    assert (first.number, type(error)) == (1, DeadlineExceeded)
    assert subject.next_expiry_seconds(BOUNDS) == 5.0
    ((second, error),) = subject.expired(5.0, BOUNDS)
    assert (second.number, error.reason) == (2, "QUEUE_TIMEOUT")
    assert subject.next_expiry_seconds(BOUNDS) is None
    assert (subject.requests, subject.tokens) == (0, 0)


def test_a_shorter_wait_that_arrives_with_a_new_configuration_holds_at_once() -> None:
    subject = queue()
    subject.offer(ticket(1), 0.0, BOUNDS)
    assert len(subject.expired(1.0, AdmissionConfig(max_queue_ms=500))) == 1


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-3, 3), st.floats(1.0, 50.0), st.integers(1, 400)), max_size=60)
)
def test_the_counts_are_those_of_who_waits_and_the_order_holds(steps: list[tuple[int, int, float, int]]) -> None:
    subject, waiting = queue(), dict[int, Ticket]()
    for now, (action, priority, span, tokens) in enumerate(steps):
        if action == 0 or not waiting:
            new = ticket(now, tokens=tokens, at=float(now), until=now + span, priority=priority)
            try:
                subject.offer(new, float(now), BOUNDS)
                waiting[now] = new
            except (Overloaded, InfeasibleDeadline):
                pass
        elif action == 1:
            first = next(subject.in_order())
            subject.dispatched(first, float(now))
            del waiting[first.number]
        for gone, _ in subject.expired(float(now), BOUNDS):
            del waiting[gone.number]
        assert subject.requests == len(waiting) <= BOUNDS.max_queued_requests
        assert subject.tokens == sum(each.tokens for each in waiting.values())
        keys = [each.key for each in subject.in_order()]
        assert keys == sorted(keys)
        expiry = subject.next_expiry_seconds(BOUNDS)
        assert (expiry is None) == (not waiting)
        assert expiry is None or math.isfinite(expiry)


def test_deadlines_of_who_has_gone_are_not_kept_while_a_nearer_one_waits() -> None:
    """Every waiting client gives up sooner than those before it would have: nothing ever expires at the heap's top."""
    subject = queue()
    asked = [
        ticket(number, at=number / 100, until=number / 100 + (4.0 if number % 2 else 1_800.0))
        for number in range(20_000)
    ]
    for before, each in pairwise(asked):
        if before is asked[0]:
            subject.offer(before, 0.0, BOUNDS)
        subject.offer(each, each.arrival_seconds, BOUNDS)
        subject.dispatched(before, each.arrival_seconds)
    assert subject.requests == 1
    assert len(subject._deadlines) <= 2 + SPARE_DEADLINES
    assert [each.number for each, _ in subject.expired(1e6, BOUNDS)] == [asked[-1].number]
