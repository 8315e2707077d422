"""The ratio of goodputs and its bounds: what moves them, what must not, and that they hold over all ten looks."""

from __future__ import annotations

import math
from random import Random
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from streamserve.operator.canary import student
from streamserve.operator.canary.compare import (
    BOUNDARY,
    LOOKS,
    MAX_LOG_RATIO,
    Comparison,
    correlation,
    half_width,
    level,
)
from streamserve.operator.canary.compare import compare as compare_at
from streamserve.operator.canary.evidence import Cell, Minute

from .builders import WOBBLE


def compare(minutes: list[Minute]) -> Comparison:
    """At the last look."""
    return compare_at(minutes, LOOKS)


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


CELLS = st.dictionaries(
    st.sampled_from(["chat", "code"]),
    st.builds(
        Cell, st.sampled_from([0, 7, 40]), st.sampled_from([0, 1, 900]), st.sampled_from([0.0, 1e-9, 0.5, 30.0, 1e9])
    ),
)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=12), st.integers(0, LOOKS))
def test_whatever_routers_have_counted_the_ratio_lies_between_its_bounds(
    cells: list[tuple[dict[str, Cell], dict[str, Cell]]], look: int
) -> None:
    found = compare_at([Minute(number, *arms) for number, arms in enumerate(cells)], look)
    assert 0 <= found.low <= found.ratio <= found.high


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


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60))
def test_correlation_never_makes_more_of_the_evidence_than_there_is(values: list[float]) -> None:
    assert 0.0 <= correlation(values) <= 0.8


def test_neighbours_that_are_alike_are_worth_less() -> None:
    rising = [math.sin(n / 6) for n in range(30)]
    assert correlation(rising) == pytest.approx((30 * 0.8 + 20 * 0.2) / 50)
    assert correlation([(-1.0) ** n for n in range(30)]) == pytest.approx(20 * 0.2 / 50)


def test_a_request_counts_alike_in_a_workload_of_long_answers_and_in_one_of_short_ones() -> None:
    """Half of the requests are a third slower, half as fast as ever; the slow ones have a hundredth of the tokens."""
    mixed = [
        Minute(
            number,
            {"long": cell(1_000), "short": cell(10, seconds=15.0)},
            {"long": cell(1_000), "short": cell(15)},
        )
        for number in range(12)
    ]
    assert compare(mixed).ratio == pytest.approx((1 + 2 / 3) / 2, abs=0.02)


@given(st.floats(2, 300), st.floats(0.02, 1), st.integers(1, LOOKS - 1))
def test_a_bound_widens_with_the_spread_and_narrows_with_evidence_and_with_each_look(
    count: float, deviation: float, look: int
) -> None:
    width = half_width(count, count - 1, deviation, look)
    assert half_width(count + 1, count, deviation, look) < width
    assert half_width(count, count - 1, deviation, look + 1) < width
    assert half_width(count, count - 1, 2 * deviation, look) == pytest.approx(2 * width)


@pytest.mark.parametrize("look", [0, 1, LOOKS])
def test_before_the_first_look_or_with_too_little_nothing_is_bounded(look: int) -> None:
    assert compare_at(twelve(1.0), 0).bounded is False
    assert half_width(1.5, 0.5, 0.1, look) == math.inf


@given(st.floats(1, 500), st.floats(1e-9, 0.45))
def test_quantiles_of_students_t_are_those_of_scipy(freedom: float, tail: float) -> None:
    assert student.quantile(tail, freedom) == pytest.approx(float(stats.t.isf(tail, freedom)), rel=1e-6, abs=1e-9)


def test_ten_looks_at_independent_values_exclude_the_truth_in_one_series_of_twenty_on_each_side() -> None:
    """4,000 walks of ten steps. The same bound at each look, one of 5 %, would err in about a fifth of them."""
    rng, above, naive = Random(20261121), 0, 0
    for _ in range(4_000):
        total, errs = 0.0, [False, False]
        for look in range(1, LOOKS + 1):
            total += rng.gauss(0.0, 1.0)
            z = total / math.sqrt(look)
            errs[0] |= z > -NormalDist().inv_cdf(level(look))
            errs[1] |= z > -NormalDist().inv_cdf(0.05)
        above, naive = above + errs[0], naive + errs[1]
    assert 0.04 < above / 4_000 < 0.06
    assert naive / 4_000 > 0.15
    assert level(LOOKS) == pytest.approx(NormalDist().cdf(-BOUNDARY))
