"""The gate's table and the facts it stands on, with virtual time."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.contract.signals import Flags, Role
from streamserve.router.flowguard.view import FleetView, Health, LaneState, LaneView
from streamserve.router.lanes import (
    PATIENCE_SECONDS,
    Gate,
    LaneFacts,
    Outcome,
    PairKey,
    Trial,
    facts_of,
    failed,
    have_judged,
    opened,
    step,
)

from .flowguard.builders import NOW, UID, Lane, lane

W, P, R, F = LaneState.WAITING, LaneState.PROBING, LaneState.READY, LaneState.FENCED
DUE, RUNNING, FAILED, PASSED = Outcome.DUE, Outcome.RUNNING, Outcome.FAILED, Outcome.PASSED

TABLE = [
    # from, outcomes of the pairs, to
    (W, (), W),
    (W, (DUE,), P),
    (W, (RUNNING,), P),
    (W, (FAILED,), F),
    (W, (PASSED,), R),
    (P, (), F),
    (P, (DUE,), P),
    (P, (RUNNING, FAILED), P),
    (P, (FAILED, FAILED), F),
    (P, (PASSED, RUNNING), R),
    (R, (), F),
    (R, (DUE,), F),
    (R, (RUNNING,), F),
    (R, (FAILED,), F),
    (R, (PASSED, DUE), R),
    (F, (), F),
    (F, (DUE,), P),
    (F, (RUNNING,), P),
    (F, (FAILED,), F),
    (F, (PASSED,), R),
]


def facts(outcomes: tuple[Outcome, ...]) -> LaneFacts:
    return LaneFacts({PairKey("p", i, "d", 1): outcome for i, outcome in enumerate(outcomes)}, "because")


@pytest.mark.parametrize(
    ("state", "outcomes", "want"), TABLE, ids=[f"{a}-{'+'.join(o) or 'none'}-{b}" for a, o, b in TABLE]
)
def test_the_table(state: LaneState, outcomes: tuple[Outcome, ...], want: LaneState) -> None:
    gate = step(Gate(state, "", NOW), facts(outcomes), NOW + 1)
    assert gate.state is want
    assert gate.reason or want is R


def test_a_lane_whose_other_half_never_comes_is_fenced_after_a_while() -> None:
    gate = opened(NOW)
    assert step(gate, facts(()), NOW + PATIENCE_SECONDS - 0.1).state is W
    assert step(gate, facts(()), NOW + PATIENCE_SECONDS).state is F


def test_a_lane_may_degrade_once_it_had_its_chance_and_until_it_is_ready() -> None:
    gate = opened(NOW)
    seen = []
    for outcomes in ((DUE,), (RUNNING,), (FAILED,), (RUNNING,), (PASSED,), (DUE,), (RUNNING,)):
        gate = step(gate, facts(outcomes), NOW)
        seen.append((gate.state, gate.degraded))
    assert seen == [(P, False), (P, False), (F, True), (P, True), (R, False), (F, True), (P, True)]


@given(st.lists(st.lists(st.sampled_from(Outcome), max_size=4), max_size=40))
def test_a_lane_is_ready_if_and_only_if_a_pair_has_passed(history: list[list[Outcome]]) -> None:
    gate = opened(NOW)
    for outcomes in history:
        gate = step(gate, facts(tuple(outcomes)), NOW)
        assert (gate.state is R) == (PASSED in outcomes)


@dataclass
class Facts:
    lane: Lane
    want: set[tuple[str, str, Outcome]]
    trials: dict[PairKey, Trial] = field(default_factory=dict)
    says: str = ""


def key(prefill: str = "a-p0", decode: str = "a-d0", *, boot: int = 1) -> PairKey:
    return PairKey(prefill, boot, decode, 1)


FACTS = {
    "two workers that report make a pair that is due": Facts(lane("a"), {("a-p0", "a-d0", DUE)}),
    "every prefill worker pairs with every decode worker": Facts(
        lane("a", prefills=2, decodes=2),
        {(p, d, DUE) for p in ("a-p0", "a-p1") for d in ("a-d0", "a-d1")},
    ),
    "a pass of an earlier start is worth nothing": Facts(
        lane("a"), {("a-p0", "a-d0", DUE)}, trials={key(boot=99): Trial(PASSED)}
    ),
    "a pair that passed stays passed when Redis falls silent": Facts(
        lane("a").last_seen(seconds=60), {("a-p0", "a-d0", PASSED)}, trials={key(): Trial(PASSED)}
    ),
    "a pair that has not passed needs fresh signals": Facts(
        lane("a").last_seen(seconds=60), set(), says="have not both reported"
    ),
    "a worker that never reported is in no pair": Facts(
        lane("a").silent_since_start(), set(), says="has not reported since it started"
    ),
    "a draining worker is in no pair, passed or not": Facts(
        lane("a").flagged(Flags.DRAINING), set(), trials={key(): Trial(PASSED)}, says="a-d0 drains"
    ),
    "a dead engine is in no pair": Facts(
        lane("a").flagged(Flags.ENGINE_DEAD, role=Role.PREFILL), set(), says="engine of a-p0 has died"
    ),
    "a worker that does not answer is in no pair": Facts(
        lane("a").health(Health.CIRCUIT_OPEN, role=Role.PREFILL), set(), says="a-p0: it did not answer"
    ),
    "a suspicion alone takes no pair away": Facts(
        lane("a").health(Health.SUSPECT, role=Role.PREFILL), {("a-p0", "a-d0", PASSED)}, trials={key(): Trial(PASSED)}
    ),
    "another StreamPair's workers are in no pair": Facts(
        lane("a").of_pair("uid-2"), set(), says="serves another StreamPair"
    ),
    "two revisions never pair": Facts(
        Lane("a", lane("a").prefills, lane("a").revision("r2").decodes), set(), says="one revision"
    ),
    "a lane without a decode worker says so": Facts(lane("a", decodes=0), set(), says="no decode worker is known"),
    "a failed canary is due again when its time has come": Facts(
        lane("a"), {("a-p0", "a-d0", DUE)}, trials={key(): failed(Trial(), "no bytes", NOW)}
    ),
    "and not before": Facts(
        lane("a"),
        {("a-p0", "a-d0", FAILED)},
        trials={key(): failed(Trial(), "no bytes", NOW + 1)},
        says="the canary transfer failed: no bytes",
    ),
}


@pytest.mark.parametrize("case", FACTS.values(), ids=FACTS.keys())
def test_the_facts(case: Facts) -> None:
    found = facts_of(case.lane.build().workers, case.trials, FleetView(now_seconds=NOW, pair_uid=UID))
    assert {(*pair.ids, outcome) for pair, outcome in found.pairs.items()} == case.want
    assert case.says in found.detail


JUDGED = {
    "nothing yet, in its first seconds": ((R,), 9.9, False),
    "all of them, when each had its time": ((R, F), 10.0, True),
    "none is there": ((), 10.0, True),
    "not all, while a first canary runs": ((R, P), 10.0, False),
    "all, when first canaries take too long": ((R, P), 60.0, True),
}


@pytest.mark.parametrize(("states", "seconds", "want"), JUDGED.values(), ids=JUDGED)
def test_a_router_has_judged(states: tuple[LaneState, ...], seconds: float, want: bool) -> None:
    lanes = [LaneView(name=f"lane-{n}", state=state) for n, state in enumerate(states)]
    assert have_judged(lanes, seconds) is want


def test_a_canary_that_is_not_a_lanes_first_is_no_reason_to_wait() -> None:
    assert have_judged([LaneView(name="lane-0", state=P, degraded=True)], 10.0)


def test_failures_are_counted_for_the_backoff() -> None:
    trial = failed(failed(Trial(), "a", 1.0), "b", 2.0)
    assert (trial.failures, trial.at(1.9), trial.at(2.0)) == (2, FAILED, DUE)
    assert replace(trial, outcome=PASSED).at(9.0) is PASSED
