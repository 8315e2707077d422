"""The ratio of goodputs and its interval: what moves it, what must not, and that it holds however often one looks."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.operator.canary.compare import ALPHA, MAX_LOG_RATIO, compare, correlation, half_width
from streamserve.operator.canary.evidence import Cell, Minute

from .builders import WOBBLE


def cell(goodput: float, *, requests: int = 40, seconds: float = 10.0) -> Cell:
    return Cell(requests, round(goodput * seconds), seconds)


def twelve(ratio: float, **more: Cell) -> list[Minute]:
    return [
        Minute(number, {"chat": cell(1_000 * ratio * WOBBLE[number]), **more}, {"chat": cell(1_000)})
        for number in range(12)
    ]


@pytest.mark.parametrize("ratio", [0.6, 0.8, 1.0, 1.3])
def test_the_ratio_is_found_and_inside_its_interval(ratio: float) -> None:
    found = compare(twelve(ratio))
    assert found.ratio == pytest.approx(ratio, rel=0.01)
    assert found.low < ratio < found.high
    assert found.high / found.low < 1.25


def test_an_arm_with_a_hundredth_of_the_work_has_the_same_goodput() -> None:
    found = compare([Minute(n, {"chat": cell(500, seconds=0.1)}, {"chat": cell(500)}) for n in range(12)])
    assert found.ratio == pytest.approx(1.0)


def test_a_mix_that_differs_between_the_arms_does_not_look_like_a_difference() -> None:
    """Code is three times as fast as chat, and the canary gets nearly all of it."""
    mixed = [
        Minute(
            number,
            {"chat": cell(100, seconds=1.0), "code": cell(300, seconds=9.0)},
            {"chat": cell(100, seconds=9.0), "code": cell(300, seconds=1.0)},
        )
        for number in range(12)
    ]
    assert compare(mixed).ratio == pytest.approx(1.0)


def test_a_load_that_drifts_for_both_does_not_look_like_a_difference() -> None:
    drift = [
        Minute(n, {"chat": cell(100 * (1 + n), seconds=1.0 + n)}, {"chat": cell(100 * (1 + n), seconds=12.0 - n)})
        for n in range(12)
    ]
    assert compare(drift).ratio == pytest.approx(1.0)


def test_minutes_that_one_arm_has_alone_count_for_nothing() -> None:
    alone = [Minute(20 + n, {}, {"chat": cell(5_000)}) for n in range(5)]
    idle = [Minute(30 + n, {"chat": Cell(9, 0, 0.0)}, {"chat": cell(5_000)}) for n in range(5)]
    assert compare([*twelve(0.9), *alone, *idle]) == compare(twelve(0.9))


def test_minutes_with_few_requests_are_gathered_into_blocks() -> None:
    sparse = [Minute(n, {"chat": cell(100, requests=5)}, {"chat": cell(100)}) for n in range(12)]
    assert compare(sparse).blocks == 3
    assert compare(twelve(1.0)).blocks == 12


def test_no_evidence_bounds_nothing() -> None:
    for minutes in ([], twelve(1.0)[:1], twelve(1.0)[:2]):
        found = compare(minutes)
        assert (found.low, found.high, found.bounded) == (0.0, math.inf, False)


def test_a_canary_without_any_token_within_its_slo_is_as_bad_as_can_be() -> None:
    dead = [Minute(n, {"chat": Cell(40, 0, 10.0)}, {"chat": cell(100)}) for n in range(12)]
    found = compare(dead)
    assert found.ratio == pytest.approx(math.exp(-MAX_LOG_RATIO))
    assert found.high < 0.9


def test_one_wild_minute_does_not_decide() -> None:
    wild = Minute(5, {"chat": Cell(40, 1, 10.0)}, {"chat": cell(1_000)})
    steady = twelve(1.0)
    found = compare([*steady[:5], wild, *steady[6:]])
    assert found.low < 0.9 < found.high


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=60))
def test_correlation_never_makes_more_of_the_evidence_than_there_is(values: list[float]) -> None:
    assert 0.0 <= correlation(values) <= 0.8


def test_neighbours_that_are_alike_are_worth_less() -> None:
    rising = [math.sin(n / 6) for n in range(30)]
    assert correlation(rising) == pytest.approx(0.8)
    assert correlation([(-1.0) ** n for n in range(30)]) == 0.0


@given(st.floats(1.5, 500), st.floats(0.02, 1))
def test_more_evidence_never_widens_and_more_spread_always_does(count: float, deviation: float) -> None:
    assert half_width(count + 1, deviation) <= half_width(count, deviation)
    if math.isfinite(half_width(count, deviation)):
        assert half_width(count, 2 * deviation) == pytest.approx(2 * half_width(count, deviation))


def test_the_bound_is_where_the_bayes_factor_reaches_its_limit() -> None:
    """The closed form against the formula that it was solved from."""
    for count in (4, 9, 20, 200):
        t, v, r = half_width(count, 1.0) * math.sqrt(count), count - 1, 1 + 4.0 * count
        factor = r**-0.5 * ((1 + t * t / v) / (1 + t * t / (v * r))) ** (count / 2)
        assert factor == pytest.approx(1 / ALPHA)


def test_looking_after_every_value_excludes_the_truth_in_at_most_one_of_twenty() -> None:
    """2,000 series of 60 independent values: a t-interval that is looked at each time would err in about a third."""
    rng, wrong = Random(20261121), 0
    for _ in range(2_000):
        total = squares = 0.0
        for count in range(1, 61):
            value = rng.gauss(0.0, 1.0)
            total, squares = total + value, squares + value * value
            if count < 2:
                continue
            mean = total / count
            deviation = math.sqrt(max(0.0, squares - count * mean * mean) / (count - 1))
            if abs(mean) > half_width(count, deviation):
                wrong += 1
                break
    assert wrong <= 100
