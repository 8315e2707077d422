"""Which of two values is newer, and what of our own work the newer one does not show yet."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.contract.signals import Ack, Role, WorkerSignals, encode
from streamserve.router.signals.bookings import Booking, Ledger
from streamserve.router.signals.store import COMEBACK_SECONDS, LatestSignals, Offer

BASE = WorkerSignals(role=Role.DECODE, boot_id=11, epoch=5, uid_fingerprint=1)
ROUTER = 77


def value(**changes: object) -> bytes:
    return encode(replace(BASE, **changes))  # type: ignore[arg-type]


def test_a_higher_epoch_of_the_same_boot_wins() -> None:
    latest = LatestSignals(Role.DECODE)
    assert latest.offer(value(), 1.0) is Offer.NEW_BOOT
    assert latest.offer(value(epoch=6, depth=3), 2.0) is Offer.FRESH
    assert latest.signals is not None and latest.signals.depth == 3
    assert latest.seen_at_seconds == 2.0


def test_an_equal_or_lower_epoch_does_not_make_the_value_younger() -> None:
    latest = LatestSignals(Role.DECODE)
    latest.offer(value(), 1.0)
    assert latest.offer(value(), 2.0) is Offer.OLD
    assert latest.offer(value(epoch=5, depth=1), 2.0) is Offer.OLD
    assert latest.offer(value(epoch=4), 2.0) is Offer.OLD
    assert latest.seen_at_seconds == 1.0


def test_a_new_boot_replaces_and_the_old_one_never_comes_back() -> None:
    latest = LatestSignals(Role.DECODE)
    latest.offer(value(epoch=900), 1.0)
    assert latest.offer(value(boot_id=12, epoch=1), 2.0) is Offer.NEW_BOOT
    assert latest.offer(value(boot_id=11, epoch=901), 3.0) is Offer.OLD
    assert latest.boot_id == 12 and latest.signals is not None and latest.signals.epoch == 1


def test_a_boot_that_was_met_before_an_older_one_is_taken_back_when_it_alone_speaks() -> None:
    """The registry names the new start, Redis still holds the old one's last words, and this router has just begun."""
    latest = LatestSignals(Role.DECODE)
    assert latest.restarted(12)
    assert latest.offer(value(epoch=900), 0.0) is Offer.NEW_BOOT
    offers = [latest.offer(value(boot_id=12, epoch=second), float(second)) for second in range(1, 8)]
    assert offers == [Offer.OLD] * int(COMEBACK_SECONDS) + [Offer.NEW_BOOT, Offer.FRESH]
    assert latest.boot_id == 12
    assert latest.offer(value(epoch=900), 9.0) is Offer.OLD, "what the old one left behind"


@pytest.mark.parametrize(
    ("boot_12_speaks_at", "epochs_of_11"),
    [
        pytest.param([1.0, 4.0, 8.0], [901, 902, 903], id="the one in force speaks"),
        pytest.param([1.0], [900, 900, 900], id="the replaced one left only its last value behind"),
        pytest.param([], [901, 902, 903], id="the one in force may still be loading"),
    ],
)
def test_a_replaced_boot_stays_away(boot_12_speaks_at: list[float], epochs_of_11: list[int]) -> None:
    latest = LatestSignals(Role.DECODE)
    latest.offer(value(epoch=900), 0.5)
    assert latest.restarted(12)
    for epoch, now in enumerate(boot_12_speaks_at, 1):
        latest.offer(value(boot_id=12, epoch=epoch), now)
    for epoch, now in zip(epochs_of_11, (9.0, 9.1, 9.2), strict=True):
        assert latest.offer(value(epoch=epoch), now) is Offer.OLD
    assert latest.boot_id == 12


def test_garbage_is_counted_and_changes_nothing() -> None:
    latest = LatestSignals(Role.DECODE)
    latest.offer(value(), 1.0)
    for raw in (b"", b"x" * 128, b"\xff" * 600, value(role=Role.PREFILL, epoch=9)):
        assert latest.offer(raw, 2.0) is Offer.GARBAGE
    assert latest.quarantined == 4 and latest.signals == BASE and latest.last_garbage


@given(st.binary(max_size=600))
def test_no_bytes_make_the_store_raise(raw: bytes) -> None:
    assert LatestSignals(Role.DECODE).offer(raw, 1.0) in set(Offer)


def booked(ledger: Ledger, tokens: int = 10, changed: Callable[[], None] = lambda: None) -> Booking:
    return Booking("w", ledger, ROUTER, tokens, changed)


def acknowledging(*acks: Ack) -> WorkerSignals:
    return replace(BASE, acks=acks)


def test_what_is_above_the_acknowledgement_is_booked() -> None:
    ledger = Ledger(ROUTER)
    for tokens in (10, 20, 30):
        booked(ledger, tokens).dispatch()
    ledger.acknowledge(acknowledging(Ack(ROUTER, 2), Ack(ROUTER + 1, 99)))
    assert (ledger.booked_requests, ledger.booked_tokens, ledger.own_requests) == (1, 30, 3)


def test_an_older_booking_whose_prompt_is_still_being_computed_outlives_the_acknowledgement_of_a_younger_one() -> None:
    ledger = Ledger(ROUTER)
    long, short = booked(ledger, 9_000), booked(ledger, 10)
    assert short.dispatch().sequence == 1
    ledger.acknowledge(acknowledging(Ack(ROUTER, 1)))
    assert (ledger.booked_requests, ledger.booked_tokens) == (1, 9_000)
    assert long.dispatch().sequence == 2
    ledger.acknowledge(acknowledging(Ack(ROUTER, 1)))
    assert (ledger.booked_requests, ledger.booked_tokens) == (1, 9_000)
    ledger.acknowledge(acknowledging(Ack(ROUTER, 2)))
    assert (ledger.booked_requests, ledger.booked_tokens, ledger.own_requests) == (0, 0, 2)


@pytest.mark.parametrize("is_sent", [False, True], ids=["never sent", "sent"])
def test_a_release_is_idempotent_and_tells_who_waits(is_sent: bool) -> None:
    told: list[str] = []
    ledger = Ledger(ROUTER)
    booking = booked(ledger, changed=lambda: told.append("changed"))
    if is_sent:
        assert (booking.dispatch().router_id, booking.dispatch().sequence) == (ROUTER, 1)
    booking.release()
    booking.release()
    assert (ledger.booked_requests, ledger.booked_tokens, ledger.own_requests) == (0, 0, 0)
    assert told == ["changed"]


def test_a_restart_forgets_what_the_old_start_was_sent_and_nothing_else() -> None:
    ledger = Ledger(ROUTER)
    first, second = booked(ledger, 10), booked(ledger, 20)
    first.dispatch()
    ledger.restarted()
    assert (ledger.booked_requests, ledger.booked_tokens, ledger.own_requests) == (1, 20, 2)
    first.release()
    assert (ledger.booked_tokens, ledger.own_requests) == (20, 1)
    assert second.dispatch().sequence == 2, "sequences go on: the same router never repeats one"


def test_a_worker_that_was_forgotten_and_comes_back_acknowledges_nothing_that_it_has_not_seen() -> None:
    numbers = count(1)
    before, after = Ledger(ROUTER, numbers), Ledger(ROUTER, numbers)
    highest = [booked(before).dispatch().sequence for _ in range(3)][-1]
    booked(after, 10).dispatch()
    after.acknowledge(acknowledging(Ack(ROUTER, highest)))
    assert (after.booked_requests, after.booked_tokens) == (1, 10)


@given(st.lists(st.sampled_from(["book", "send", "ack", "release", "restart"]), max_size=80))
def test_when_everything_is_released_nothing_is_booked(history: list[str]) -> None:
    ledger, held, sent, ack = Ledger(ROUTER), list[Booking](), list[Booking](), 0
    for event in history:
        if event == "book":
            held.append(booked(ledger, 7))
        elif event == "send" and held:
            sent.append(held[len(held) // 2])
            sent[-1].dispatch()
        elif event == "ack" and sent:
            ack = max(ack, sent[len(sent) // 2].dispatch().sequence)
            ledger.acknowledge(acknowledging(Ack(ROUTER, ack)))
        elif event == "release" and held:
            held.pop(0).release()
        elif event == "restart":
            ledger.restarted()
        assert ledger.booked_tokens == 7 * ledger.booked_requests
        assert sum(one not in sent for one in held) <= ledger.booked_requests <= ledger.own_requests == len(held)
    for booking in held:
        booking.release()
    assert (ledger.booked_requests, ledger.booked_tokens, ledger.own_requests) == (0, 0, 0)
