"""What is assumed of a worker that has not measured something yet, and that a new lane is therefore tried."""

from dataclasses import dataclass, replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.contract.signals import Role
from streamserve.router.flowguard.decision import Candidate
from streamserve.router.flowguard.explain import terms
from streamserve.router.flowguard.pick import NEAR_TIE_FRACTION, NEAR_TIE_SECONDS, pick
from streamserve.router.flowguard.request import RouteRequest
from streamserve.router.flowguard.usual import (
    PAUSE_SECONDS,
    PRIOR_EMITTED_TOKENS_PER_STEP,
    PRIOR_PREFILL_TOKENS_PER_SECOND,
    PRIOR_STEP_BASE_SECONDS,
    PRIOR_STEP_PER_REQUEST_SECONDS,
    freshness,
)

from .builders import NOW, Lane, fleet, lane, prompt, settings

PREFILL_RATES = ("prefill_tokens_per_second",)
DECODE_RATES = (
    "step_base_seconds",
    "step_per_request_seconds",
    "mean_emitted_tokens_per_step",
    "transfer_bytes_per_second",
)


def fresh(name: str) -> Lane:
    """A lane that has never served: every rate is unknown."""
    built = lane(name)._signals(Role.PREFILL, **dict.fromkeys(PREFILL_RATES, 0.0))
    return built._signals(Role.DECODE, **dict.fromkeys(DECODE_RATES, 0.0))


def steps(built: Lane, seconds: float) -> Lane:
    return built._signals(Role.DECODE, step_base_seconds=seconds, step_per_request_seconds=0.0)


@dataclass
class Case:
    lanes: list[Lane]
    want: dict[str, float]
    """Terms of lane "new" as ExplainRoute shows them."""
    request: RouteRequest = None  # type: ignore[assignment]


CASES = {
    "what one lane knows holds for a lane that knows nothing": Case(
        [lane("a").emitting(3.0).prefill_rate(7_000), fresh("new")],
        {"emitted_per_step": 3.0, "prefill_rate": 7_000.0, "predicted_tpot": 0.011 / 3.0},
    ),
    "of several known values the median is taken": Case(
        [steps(lane("a"), 0.01), steps(lane("b"), 0.03), steps(lane("c"), 0.02), fresh("new")],
        {"predicted_tpot": 0.01, "emitted_per_step": 2.0},
    ),
    "another revision does not count where the own one knows": Case(
        [lane("a").emitting(4.0), lane("old").revision("r0").emitting(1.0), fresh("new")],
        {"emitted_per_step": 4.0},
    ),
    "the first lane of a revision is assumed to do as the others": Case(
        [lane("a").emitting(3.0), fresh("new").revision("r2")], {"emitted_per_step": 3.0, "prefill_rate": 10_000.0}
    ),
    "what a decode worker computes of prompts says nothing about prefill workers": Case(
        [lane("a")._signals(Role.DECODE, prefill_tokens_per_second=500.0), fresh("new")], {"prefill_rate": 10_000.0}
    ),
    "of a workload, those who know it are asked": Case(
        [lane("a").workload("code", emitted=3.5), lane("new").emitting(1.5)],
        {"emitted_per_step": 3.5},
        prompt(workload="code"),
    ),
    "a workload whose name signals had to cut is known by what is left of it": Case(
        [lane("a").workload("é" * 16, emitted=3.5), lane("new").emitting(1.5)],
        {"emitted_per_step": 3.5},
        prompt(workload="é" * 17),
    ),
    "of a workload that nobody knows, a lane's own mean counts": Case(
        [lane("a").emitting(3.0), lane("new").emitting(1.5)], {"emitted_per_step": 1.5}, prompt(workload="code")
    ),
    "when nobody knows anything the constants hold": Case(
        [fresh("a"), fresh("new")],
        {
            "emitted_per_step": PRIOR_EMITTED_TOKENS_PER_STEP,
            "prefill_rate": PRIOR_PREFILL_TOKENS_PER_SECOND,
            "predicted_tpot": PRIOR_STEP_BASE_SECONDS + PRIOR_STEP_PER_REQUEST_SECONDS,
        },
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_is_assumed(case: Case) -> None:
    shown = {name: value for name, value, _ in terms(candidates(case.request or prompt(), *case.lanes)["new"])}
    assert {name: shown[name] for name in case.want} == pytest.approx(case.want)


def candidates(request: RouteRequest, *lanes: Lane) -> dict[str, Candidate]:
    decision = pick(request, fleet(*lanes), settings(), Random(1))
    return {candidate.lane: candidate for candidate in decision.candidates}


RATES = st.fixed_dictionaries(
    {
        "prefill_tokens_per_second": st.floats(1.0, 1e6),
        "step_base_seconds": st.floats(1e-4, 1.0),
        "step_per_request_seconds": st.floats(0.0, 0.1),
        "mean_emitted_tokens_per_step": st.floats(1.0, 7.0),
        "transfer_bytes_per_second": st.floats(1e3, 1e11),
    }
)


def measured(built: Lane, rates: dict[str, float]) -> Lane:
    built._signals(Role.PREFILL, **{name: rates[name] for name in PREFILL_RATES})
    return built._signals(Role.DECODE, **{name: rates[name] for name in DECODE_RATES})


@given(
    rates=RATES,
    known=st.integers(1, 4),
    unknown=st.sets(st.sampled_from(["prefill_tokens_per_second", "steps", *DECODE_RATES[2:]]), min_size=1),
    revision=st.sampled_from(["r1", "r2"]),
    tokens=st.integers(1, 20_000),
    output=st.integers(1, 5_000),
)
def test_an_idle_lane_with_unknown_rates_is_never_beyond_a_near_tie_of_idle_lanes_that_know_them(
    rates: dict[str, float], known: int, unknown: set[str], revision: str, tokens: int, output: int
) -> None:
    names = unknown | (set(DECODE_RATES[:2]) if "steps" in unknown else set())
    rest = {name: 0.0 if name in names else value for name, value in rates.items()}
    lanes = [measured(lane(f"known-{n}"), rates) for n in range(known)]
    costs = candidates(
        RouteRequest(prompt_tokens=tokens, max_tokens=output), *lanes, measured(lane("new"), rest).revision(revision)
    )
    least = min(candidate.cost_seconds for candidate in costs.values())
    assert costs["new"].cost_seconds <= least + max(NEAR_TIE_FRACTION * abs(least), NEAR_TIE_SECONDS)


@given(st.lists(RATES, min_size=1, max_size=5))
def test_a_rate_that_is_assumed_lies_between_the_known_ones(known: list[dict[str, float]]) -> None:
    lanes = [measured(lane(f"known-{n}"), rates) for n, rates in enumerate(known)]
    new = candidates(prompt(), *lanes, fresh("new"))["new"]
    assert new.prefill is not None and new.decode is not None
    for name, value in (
        ("prefill_tokens_per_second", new.prefill.tokens_per_second),
        ("mean_emitted_tokens_per_step", new.decode.emitted_tokens_per_step),
    ):
        values = [rates[name] for rates in known]
        assert min(values) * (1 - 1e-9) <= value <= max(values) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_24_requests_one_after_another_on_a_new_fleet_of_2_lanes_use_both(seed: int, noise: float) -> None:
    """Each lane measures its own rates when it first serves, with whatever noise."""
    rng, lanes, visited = Random(seed), {name: fresh(name) for name in "ab"}, set()
    truth = {
        "prefill_tokens_per_second": 9_000.0,
        "step_base_seconds": 0.008,
        "step_per_request_seconds": 0.0004,
        "mean_emitted_tokens_per_step": 3.1,
        "transfer_bytes_per_second": 2e9,
    }
    for _ in range(24):
        chosen = pick(prompt(300, output=128), fleet(*lanes.values()), settings(), rng).lane
        if chosen not in visited:
            rates = {name: value * (1 + noise * rng.uniform(-1, 1)) for name, value in truth.items()}
            lanes[chosen] = measured(lane(chosen), rates)
            visited.add(chosen)
    assert visited == {"a", "b"}


def test_an_unknown_lane_is_still_left_out_when_it_is_loaded() -> None:
    loaded = fresh("new").running(20).waiting(4)
    assert candidates(prompt(), lane("a"), loaded)["new"].cost_seconds > 0.01
    assert pick(prompt(), fleet(lane("a"), loaded), settings(), Random(1)).lane == "a"


def test_a_worker_that_never_reported_is_asked_for_nothing() -> None:
    silent = lane("silent").silent_since_start()
    view = fleet(lane("a"), replace(silent))
    assert pick(prompt(), view, settings(), Random(1)).lane == "a"


def idle_for(built: Lane, seconds: float) -> Lane:
    return built._every(worked_until_seconds=NOW - seconds)


def shares(lanes: list[Lane], count: int = 200) -> dict[str, float]:
    view, rng = fleet(*lanes), Random(1)
    picked = [pick(prompt(), view, settings(), rng).lane for _ in range(count)]
    return {built.name: picked.count(built.name) / count for built in lanes}


def test_a_lane_with_one_bad_measurement_is_tried_again_once_it_was_idle_for_a_while() -> None:
    """The first, cold prefill of an engine must not keep its lane away for good."""
    good = lane("good").prefill_rate(2_000)
    assert shares([good, lane("cold").prefill_rate(50)])["cold"] == 0.0
    assert shares([good, idle_for(lane("cold").prefill_rate(50), 60)])["cold"] > 0.3


def test_a_lane_that_is_slow_while_it_works_is_believed() -> None:
    assert shares([lane("good"), steps(lane("slow"), 0.05)])["slow"] == 0.0


def test_nobody_else_to_ask_leaves_the_own_value_standing_however_old() -> None:
    (only,) = pick(prompt(), fleet(idle_for(lane("only").prefill_rate(50), 3_600)), settings(), Random(1)).candidates
    assert only.prefill is not None
    assert only.prefill.tokens_per_second == 50


@given(st.floats(0, 1_000), st.floats(0, 1_000))
def test_a_rate_is_worth_less_the_longer_a_worker_was_idle(one: float, other: float) -> None:
    earlier, later = sorted((one, other))
    assert 0.0 <= freshness(later) <= freshness(earlier) <= 1.0
    assert freshness(PAUSE_SECONDS) == 1.0
