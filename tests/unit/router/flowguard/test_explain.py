"""What ExplainRoute shows adds up, and shows who was left out."""

import math
from random import Random

import pytest

from streamserve.contract.signals import Flags
from streamserve.router.flowguard.decision import Decision, NoLane
from streamserve.router.flowguard.explain import explained
from streamserve.router.flowguard.pick import pick

from .builders import fleet, lane, prompt, settings


def decided() -> Decision:
    view = fleet(
        lane("a").queued(tokens=3_000).running(4).last_seen(seconds=0.9),
        lane("b").running(2).emitting(1.5).kv_used(1_000),
        lane("c").flagged(Flags.DRAINING),
    )
    return pick(prompt(200, workload="code"), view, settings(), Random(1))


def test_the_weighted_terms_add_up_to_the_cost() -> None:
    for candidate in explained(decided()).candidates:
        terms = {term.name: term.value for term in candidate.terms}
        cost = ("prefill", "transfer", "decode_wait", "decode_step", "kv_pressure", "slo")
        assert math.isclose(sum(terms[name] for name in cost), candidate.cost_seconds)
        ttft = terms["prefill"] + terms["transfer"] + terms["decode_wait"]
        assert math.isclose(ttft, terms["predicted_ttft"])


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
