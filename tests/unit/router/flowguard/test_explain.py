"""What ExplainRoute shows adds up, and shows who was left out."""

import math
from dataclasses import dataclass
from random import Random

import pytest

from streamserve.contract.runtime_config import RoutingPolicy, RoutingWeights, RuntimeConfig
from streamserve.contract.signals import Flags
from streamserve.router.flowguard.decision import Decision, NoLane
from streamserve.router.flowguard.explain import explained
from streamserve.router.flowguard.pick import Cursor, pick

from .builders import Lane, fleet, lane, prompt, settings


def decided() -> Decision:
    view = fleet(
        lane("a").queued(tokens=3_000).running(4).last_seen(seconds=0.9),
        lane("b").running(2).emitting(1.5).kv_used(1_000),
        lane("c").flagged(Flags.DRAINING),
    )
    return pick(prompt(200, workload="code"), view, settings(), Random(1))


COST = ("prefill", "transfer", "decode_wait", "decode_step", "kv_pressure", "slo")


def test_the_weighted_terms_add_up_to_the_cost() -> None:
    for candidate in explained(decided()).candidates:
        terms = {term.name: term.value for term in candidate.terms}
        assert math.isclose(sum(terms[name] for name in COST), candidate.cost_seconds)
        ttft = terms["prefill"] + terms["transfer"] + terms["decode_wait"]
        assert math.isclose(ttft, terms["predicted_ttft"])


def test_a_term_that_counts_more_or_less_than_it_takes_is_shown_as_it_counts() -> None:
    view = fleet(lane("a").queued(tokens=3_000), lane("b").queued(tokens=4_000))
    weights = RoutingWeights(prefill_queue=300, transfer=0)
    for candidate in explained(pick(prompt(200), view, settings(weights_percent=weights), Random(1))).candidates:
        terms = {term.name: term.value for term in candidate.terms}
        assert terms["weighted_prefill"] == pytest.approx(3 * terms["prefill"])
        assert (terms["transfer"] > 0, terms["weighted_transfer"]) == (True, 0)
        assert [name for name in terms if name.startswith("weighted_")] == ["weighted_prefill", "weighted_transfer"]
        counted = [terms.get(f"weighted_{name}", terms[name]) for name in COST]
        assert math.isclose(sum(counted), candidate.cost_seconds)


def test_the_inputs_are_shown_with_their_units_and_ages() -> None:
    answer = explained(decided())
    (first,) = (candidate for candidate in answer.candidates if candidate.lane == "a")
    terms = {term.name: (term.value, term.unit) for term in first.terms}
    assert terms["queued_prompt_tokens"] == (3_000, "tokens")
    assert terms["uncached_prompt_tokens"] == (200, "tokens")
    assert terms["prefill_rate"] == (10_000, "tokens/s")
    assert terms["batch"] == (5, "requests")
    assert terms["emitted_per_step"] == (2.0, "tokens")
    assert terms["prefill_trust"][0] == pytest.approx(math.exp(-0.15))
    assert (first.prefill_signal_age_ms, first.decode_signal_age_ms) == (900, 900)


SETTINGS = settings()


@dataclass(frozen=True, kw_only=True)
class Case:
    """Two lanes, and what is said of the one that is taken and of the other."""

    a: Lane
    b: Lane
    config: RuntimeConfig = SETTINGS
    taken: str = "the least cost"
    other: str


REASONS = {
    "drafts that are refused make the tokens dear": Case(
        a=lane("a").emitting(1.1).accepting((100, 5), (10, 0)),
        b=lane("b").emitting(3.0).accepting((100, 90), (90, 60)),
        other="0.633 s dearer, most of it decode_step (+0.633 s): predicted_tpot 10 ms against 3.67 ms, "
        "emitted_per_step 1.1 tokens against 3 tokens, acceptance 5% against 79%",
    ),
    "a queue before prefill": Case(
        a=lane("a").queued(tokens=3_000),
        b=lane("b").booked(tokens=500),
        other="0.25 s dearer, most of it prefill (+0.25 s): prompt tokens ahead 3000 against 500",
    ),
    "blocks are scarce": Case(
        a=lane("a").kv_used(9_000),
        b=lane("b"),
        other="1.37 s dearer, most of it kv_pressure (+1.37 s): kv_used 90% against 0%",
    ),
    "a term with weight 0 decides nothing": Case(
        a=lane("a").queued(tokens=3_000).running(4),
        b=lane("b"),
        config=settings(weights_percent=RoutingWeights(prefill_queue=0, slo=0)),
        other="0.2 s dearer, most of it decode_step (+0.2 s): predicted_tpot 7.5 ms against 5.5 ms, batch 5 against 1",
    ),
    "a near tie": Case(
        a=lane("a"),
        b=lane("b"),
        taken="by chance among 2 near the least cost",
        other="as good as the one taken, which chance decided",
    ),
    "RoundRobin looks at nothing": Case(
        a=lane("a"),
        b=lane("b").running(9),
        config=settings(policy=RoutingPolicy.ROUND_ROBIN),
        taken="its turn",
        other="not its turn",
    ),
    "LeastRequest counts": Case(
        a=lane("a").running(9),
        b=lane("b").emitting(1.0),
        config=settings(policy=RoutingPolicy.LEAST_REQUEST),
        taken="no other has fewer requests",
        other="no fewer requests than the one taken",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_of_each_candidate(name: str) -> None:
    case = REASONS[name]
    decision = pick(prompt(), fleet(case.a, case.b), case.config, Random(1), Cursor())
    answer = explained(decision)
    assert [candidate.reason for candidate in answer.candidates] == [case.taken, case.other]


def test_acceptance_is_shown_beside_what_it_explains() -> None:
    decision = pick(prompt(), fleet(lane("a").accepting((80, 60), (60, 10))), settings(), Random(1))
    terms = {term.name: (term.value, term.unit) for term in explained(decision).candidates[0].terms}
    assert terms["acceptance"] == (0.5, "fraction")


def test_the_chosen_candidate_comes_first_and_the_refused_are_named() -> None:
    answer = explained(decided())
    assert answer.chosen == answer.candidates[0].lane == "b" and answer.policy == "FlowGuard"
    assert [(refusal.lane, refusal.reason.split(": ")[:2]) for refusal in answer.refused] == [
        ("c", ["c-d0", "Draining"])
    ]


def test_where_nobody_serves_the_reasons_are_the_answer() -> None:
    with pytest.raises(NoLane) as caught:
        pick(prompt(), fleet(lane("a").fenced("lane-0-prefill-0 restarted", degraded=False)), settings(), Random(1))
    answer = explained(caught.value)
    assert not answer.chosen
    assert [(refusal.lane, refusal.reason) for refusal in answer.refused] == [
        ("a", "a: LaneNotReady: FENCED: lane-0-prefill-0 restarted")
    ]
