"""Which prompts were computed together and how long that took, from the ends of their calls."""

import pytest

from streamserve.worker.pipeserve.prompt_steps import PromptSteps

Call = tuple[int, float, float]
CASES: dict[str, tuple[list[Call], list[tuple[int, float]]]] = {
    "one alone": ([(100, 1.0, 1.03)], [(100, 0.03)]),
    "two, one after the other had ended": ([(100, 1.0, 1.03), (50, 2.0, 2.02)], [(100, 0.03), (50, 0.02)]),
    "two that came and ended together": ([(100, 1.0, 1.05), (50, 1.001, 1.0505)], [(150, 0.0505)]),
    "two that came while the first was computed": (
        [(100, 1.0, 1.03), (40, 1.01, 1.07), (60, 1.02, 1.0704)],
        [(100, 0.03), (100, 0.0404)],
    ),
    "two whose ends a busy machine told one after the other": (
        [(100, 1.0, 1.040), (50, 1.0, 1.048), (90, 1.01, 1.1)],
        [(150, 0.048), (90, 0.052)],
    ),
    "a queue that is worked off": (
        [(10, 1.0, 1.1), (10, 1.0, 1.2), (10, 1.0, 1.3)],
        [(10, 0.1), (10, 0.1), (10, 0.1)],
    ),
    "one that waited for none and ended with one that did": (
        [(10, 1.0, 1.1), (20, 1.05, 1.2), (30, 1.15, 1.201)],
        [(10, 0.1), (50, 0.101)],
    ),
}


@pytest.mark.parametrize(("calls", "steps"), CASES.values(), ids=CASES)
def test_steps_told_from_the_ends_of_calls(calls: list[Call], steps: list[tuple[int, float]]) -> None:
    found: list[tuple[int, float]] = []
    told = PromptSteps(lambda tokens, seconds: found.append((tokens, seconds)))
    for call in calls:
        told.ended(*call)
    told.close()
    told.close()
    assert found == [(tokens, pytest.approx(seconds)) for tokens, seconds in steps]


def test_of_a_step_with_one_that_was_cancelled_or_cached_nothing_is_told() -> None:
    found: list[tuple[int, float]] = []
    told = PromptSteps(lambda tokens, seconds: found.append((tokens, seconds)))
    told.ended(40, 0.0, 0.1)
    told.ended(100, 1.0, 1.1)
    told.unclear(1.1)  # cached, and ends with it; the step before is told of
    told.ended(50, 2.0, 2.1)
    told.unclear(3.05)  # cancelled before the step ended that it was in
    told.ended(70, 3.0, 3.1)
    told.ended(80, 3.05, 3.3)
    told.close()
    assert found == [(40, pytest.approx(0.1)), (50, pytest.approx(0.1)), (80, pytest.approx(0.2))]
