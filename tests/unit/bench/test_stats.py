from random import Random

import pytest
from benchkit import stats
from hypothesis import given
from hypothesis import strategies as st

POSITIVE = st.floats(min_value=0.01, max_value=1e4, allow_nan=False)


def test_quantiles_are_linear_between_neighbours() -> None:
    assert [stats.quantile([3.0, 1.0, 2.0], share) for share in (0.0, 0.25, 0.5, 1.0)] == [1.0, 1.5, 2.0, 3.0]


def test_no_values_have_no_quantile() -> None:
    with pytest.raises(ValueError, match="no values"):
        stats.quantile([], 0.5)


@given(st.lists(POSITIVE, min_size=1))
def test_the_median_lies_between_the_quartiles_and_they_within_the_values(values: list[float]) -> None:
    summary = stats.summarize(values)
    assert min(values) <= summary.low <= summary.median <= summary.high <= max(values)


def test_pairs_are_of_the_same_repeat_and_the_same_request() -> None:
    ours = {0: {"a": 2.0, "b": 3.0}, 1: {"a": 4.0}, 2: {"a": 1.0}}
    theirs = {0: {"a": 1.0, "c": 9.0}, 1: {"a": 8.0}, 3: {"a": 1.0}}
    assert stats.paired(ours, theirs) == {0: [2.0], 1: [0.5]}


def test_an_interval_needs_a_pair() -> None:
    with pytest.raises(ValueError, match="no request in common"):
        stats.ratio_interval({0: []}, seed=1)


@given(st.dictionaries(st.integers(0, 9), st.lists(POSITIVE, min_size=1, max_size=20), min_size=1), st.integers(0, 99))
def test_an_interval_is_ordered_and_the_same_for_the_same_seed(ratios: dict[int, list[float]], seed: int) -> None:
    first, second = (stats.ratio_interval(ratios, seed=seed, resamples=50) for _ in range(2))
    assert first == second
    assert first.low <= first.high


def test_an_interval_covers_the_true_ratio_of_noisy_pairs_and_excludes_one_far_off() -> None:
    rng = Random(7)
    ratios = {repeat: [1.10 * rng.lognormvariate(0, 0.05) for _ in range(40)] for repeat in range(5)}
    interval = stats.ratio_interval(ratios, seed=1)
    assert interval.low < 1.10 < interval.high < 1.2
    assert (interval.pairs, interval.repeats) == (200, 5)


def test_repeats_that_differ_widen_the_interval_more_than_their_pairs_would_say() -> None:
    """Forty equal pairs in each of five repeats are five observations, not two hundred."""
    apart = {repeat: [1.0 + 0.1 * repeat] * 40 for repeat in range(5)}
    interval = stats.ratio_interval(apart, seed=1)
    assert interval.high - interval.low >= 0.2
