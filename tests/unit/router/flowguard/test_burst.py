"""Between two signal updates the router sees nothing but its own bookings: a burst must not herd."""

from collections import Counter
from dataclasses import replace
from random import Random

from streamserve.router.flowguard.pick import pick
from streamserve.router.flowguard.view import FleetView
from streamserve.router.signals.bookings import Ledger

from .builders import Lane, fleet, lane, prompt, settings


def burst(lanes: list[Lane], picks: int, *, output: int = 100) -> Counter[str]:
    """Picks on one frozen set of signals, each booked as the scheduler books."""
    ledgers = {worker.id: Ledger(1) for built in lanes for worker in built.build().workers}
    rng, shares, view = Random(3), Counter[str](), fleet(*lanes)
    for _ in range(picks):
        decision = pick(prompt(200, output=output), view, settings(), rng)
        for worker_id, tokens in ((decision.prefill_worker, 200), (decision.decode_worker, 300)):
            if worker_id is not None:
                ledgers[worker_id].book(tokens)
        shares[decision.lane] += 1
        view = with_bookings(view, ledgers)
    return shares


def with_bookings(view: FleetView, ledgers: dict[str, Ledger]) -> FleetView:
    def booked(workers: tuple) -> tuple:  # type: ignore[type-arg]
        return tuple(
            replace(
                worker,
                booked_requests=ledgers[worker.id].booked_requests,
                booked_tokens=ledgers[worker.id].booked_tokens,
                own_requests=ledgers[worker.id].own_requests,
            )
            for worker in workers
        )

    return replace(
        view, lanes=tuple(replace(one, prefill=booked(one.prefill), decode=booked(one.decode)) for one in view.lanes)
    )


def roomy(name: str) -> Lane:
    built = lane(name)
    for workers in (built.prefills, built.decodes):
        workers[:] = [replace(w, signals=replace(w.signals, max_running_requests=1_000)) for w in workers]  # type: ignore[type-var]
    return built


def test_200_picks_on_equal_lanes_spread_evenly() -> None:
    shares = burst([roomy(name) for name in "abcd"], 200)
    assert all(45 <= shares[name] <= 55 for name in "abcd"), shares


def test_a_lane_that_starts_behind_gets_less_until_the_others_have_caught_up() -> None:
    shares = burst([roomy("a").queued(tokens=4_000), roomy("b"), roomy("c"), roomy("d")], 200)
    assert 25 <= shares["a"] <= 45, shares
    assert max(shares[name] for name in "bcd") - min(shares[name] for name in "bcd") <= 6


def test_where_only_prefill_counts_a_worker_twice_as_fast_gets_twice_the_share() -> None:
    shares = burst([roomy("a").prefill_rate(20_000), roomy("b")], 200, output=1)
    assert 125 <= shares["a"] <= 140, shares
