"""What is learned: acceptance by position, step times by load and depth, step time over the batch."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.worker.specustream.estimator import AcceptancePosterior
from streamserve.worker.specustream.stepfit import StepFit
from streamserve.worker.specustream.steptimes import STALE, StepTimes, bucket_of


def test_before_any_draft_the_prior_speaks() -> None:
    assert AcceptancePosterior(prior_rate=0.7).rate(0) == pytest.approx(0.7)


def test_positions_behind_a_rejection_are_unobserved() -> None:
    posterior = AcceptancePosterior()
    for _ in range(100):
        posterior.observe({(4, 1): 1})
    assert posterior.rate(0) > 0.95
    assert posterior.rate(1) < 0.1
    assert posterior.rate(2) == pytest.approx(0.7)


def test_newer_drafts_outweigh_older_ones() -> None:
    posterior = AcceptancePosterior(memory=100)
    for _ in range(10_000):
        posterior.observe({(1, 1): 1})
    for _ in range(300):
        posterior.observe({(1, 0): 1})
    assert posterior.rate(0) < 0.12


def test_the_prior_is_forgotten_as_everything_else_is() -> None:
    """A floor under the acceptance of a drafter that is never right would keep the depth at 1 for good."""
    posterior = AcceptancePosterior()
    for _ in range(2_000):
        posterior.observe({(1, 0): 1})
    assert posterior.rate(0) < 1e-3


@given(st.dictionaries(st.tuples(st.integers(1, 6), st.integers(0, 6)), st.integers(1, 500), max_size=12), st.randoms())
def test_the_outcomes_of_one_step_say_the_same_in_any_order(outcomes: dict[tuple[int, int], int], rng: Random) -> None:
    """A batch larger than the memory would be ruled by those that come last."""
    shuffled = list(outcomes.items())
    rng.shuffle(shuffled)
    one, other = AcceptancePosterior(), AcceptancePosterior()
    one.observe(outcomes)
    other.observe(dict(shuffled))
    assert one.expected_emitted(6) == pytest.approx(other.expected_emitted(6))


@pytest.mark.parametrize("requests", [16, 256, 1024])
def test_a_large_batch_is_judged_by_all_of_its_requests(requests: int) -> None:
    posterior, rng = AcceptancePosterior(), Random(3)
    for _ in range(50):
        posterior.observe({(1, 1): (held := sum(rng.random() < 0.7 for _ in range(requests))), (1, 0): requests - held})
    assert posterior.rate(0) == pytest.approx(0.7, abs=0.12 if requests == 16 else 0.06)


@given(st.lists(st.tuples(st.integers(0, 16), st.integers(0, 16)), max_size=200))
def test_expected_tokens_grow_with_depth_and_stay_within_what_is_possible(drafts: list[tuple[int, int]]) -> None:
    posterior = AcceptancePosterior()
    for drafted, accepted in drafts:
        posterior.observe({(drafted, min(drafted, accepted)): 1})
    expected = posterior.expected_emitted(16)
    assert expected[0] == 1.0
    assert all(a <= b <= a + 1 for a, b in pairwise(expected))
    assert all(value <= depth + 1 + 1e-9 for depth, value in enumerate(expected))


@pytest.mark.parametrize(("requests", "bucket"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (7, 2), (8, 3), (256, 8)])
def test_load_buckets_double(requests: int, bucket: int) -> None:
    assert bucket_of(requests) == bucket


def test_a_bucket_never_measured_has_no_curve() -> None:
    assert StepTimes().curve(0, 6) == []


def test_between_two_measured_depths_time_is_linear_and_beyond_it_follows_the_slope() -> None:
    times = StepTimes()
    for _ in range(5):
        times.observe(0, 0, 0.010)
        times.observe(0, 4, 0.018)
    assert times.curve(0, 6) == pytest.approx([0.010, 0.012, 0.014, 0.016, 0.018, 0.020, 0.022])


def test_the_first_step_at_a_depth_says_nothing_of_the_next_ones() -> None:
    times = StepTimes()
    times.observe(0, 3, 5.0)
    assert times.curve(0, 3) == []
    times.observe(0, 3, 0.02)
    assert times.curve(0, 3)[3] == pytest.approx(0.02)


def test_a_few_new_steps_correct_a_depth_that_was_not_run_for_long() -> None:
    """Measured while the machine was slow, then left for another depth."""
    times = StepTimes()
    for _ in range(50):
        times.observe(0, 0, 0.024)
    for _ in range(STALE + 2):
        times.observe(0, 1, 0.022)
    for _ in range(3):
        times.observe(0, 0, 0.012)
    assert times.curve(0, 1)[0] < 0.018


def test_a_stale_time_does_not_lift_the_fresh_one_of_a_deeper_step() -> None:
    times = StepTimes()
    for _ in range(50):
        times.observe(0, 0, 0.030)
    for _ in range(STALE + 2):
        times.observe(0, 1, 0.020)
    assert times.curve(0, 1)[1] < 0.022


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 16), st.floats(1e-4, 1.0)),
        min_size=1,
        max_size=100,
    )
)
def test_a_deeper_step_is_never_predicted_to_be_faster(samples: list[tuple[int, int, float]]) -> None:
    times = StepTimes()
    for bucket, depth, seconds in samples:
        times.observe(bucket, depth, seconds)
    for bucket in range(3):
        curve = times.curve(bucket, 16)
        assert all(a <= b + 1e-12 for a, b in pairwise(curve))
        assert all(value > 0 for value in curve)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_are_no_times_are_ignored(seconds: float) -> None:
    times, fit = StepTimes(), StepFit()
    times.observe(0, 0, seconds)
    fit.observe(1, seconds)
    assert times.curve(0, 1) == []
    assert fit.line() == (0.0, 0.0)


def test_base_and_slope_are_recovered_from_a_varying_batch() -> None:
    fit = StepFit()
    for step in range(400):
        requests = 1 + step % 16
        fit.observe(requests, 0.010 + 0.002 * requests)
    base, slope = fit.line()
    assert base == pytest.approx(0.010, rel=0.02)
    assert slope == pytest.approx(0.002, rel=0.02)


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(1e-4, 1.0)), min_size=1, max_size=100))
def test_neither_base_nor_slope_is_ever_negative(samples: list[tuple[int, float]]) -> None:
    fit = StepFit()
    for requests, seconds in samples:
        fit.observe(requests, seconds)
        base, slope = fit.line()
        assert base >= -1e-12
        assert slope >= 0
