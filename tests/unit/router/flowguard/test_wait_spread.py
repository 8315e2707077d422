"""How far the wait for a free slot may be from its mean: what a promise to keep a deadline has to allow for."""

from __future__ import annotations

import statistics
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.router.flowguard.cost import wait_spread_seconds


@pytest.mark.parametrize(("ahead", "slots"), [(1, 1), (1, 4), (2, 4), (4, 4), (1, 64), (7, 8)])
def test_it_is_what_answers_that_end_at_any_moment_show(ahead: int, slots: int) -> None:
    rng = Random(1)
    waits = [sorted(rng.random() for _ in range(slots))[ahead - 1] for _ in range(20_000 // slots)]
    assert wait_spread_seconds(ahead, slots, 1.0) == pytest.approx(statistics.stdev(waits), rel=0.1)


@given(ahead=st.integers(0, 500), slots=st.integers(1, 256), answer=st.floats(0, 600))
def test_it_is_never_more_than_half_of_an_answer_and_nothing_when_a_slot_is_free(
    ahead: int, slots: int, answer: float
) -> None:
    spread = wait_spread_seconds(ahead, slots, answer)
    assert 0 <= spread <= answer / 2
    assert (spread == 0) == (ahead == 0 or answer == 0) or answer < 1e-300


@given(slots=st.integers(2, 256))
def test_many_slots_make_the_next_free_one_certain(slots: int) -> None:
    assert wait_spread_seconds(1, slots, 1.0) < 1 / slots
