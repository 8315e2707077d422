"""Which lane serves: table cases, one sentence each."""

from dataclasses import dataclass, field
from random import Random

import pytest

from streamserve.contract.runtime_config import (
    CrossLane,
    FailurePolicy,
    RoutingPolicy,
    RoutingWeights,
    RuntimeConfig,
    Slo,
)
from streamserve.contract.signals import Flags, Role
from streamserve.router.flowguard.decision import Decision, NoLane, PrefillMode, Reason, Step
from streamserve.router.flowguard.pick import Cursor, pick
from streamserve.router.flowguard.request import RouteRequest
from streamserve.router.flowguard.view import Health, LaneState

from .builders import Lane, fleet, lane, prompt, settings


@dataclass
class Case:
    lanes: list[Lane]
    want: str
    request: RouteRequest = field(default_factory=prompt)
    config: RuntimeConfig = field(default_factory=settings)
    refused: dict[str, Reason] = field(default_factory=dict)
    mode: PrefillMode = PrefillMode.REMOTE
    step: Step = Step.SAME_LANE


SLOW_CODE = settings(weights_percent=RoutingWeights(slo=1_000)).model_copy(
    update={"workload_slos": {"code": Slo(ttft_ms=50, tpot_ms=50)}}
)

CHOSEN = {
    "a lane with prompts queued loses to an idle one": Case(
        [lane("a").queued(tokens=2_000), lane("b").idle()], want="b"
    ),
    "a queue behind a fast prefill worker is shorter than one behind a slow": Case(
        [lane("a").queued(tokens=4_000).prefill_rate(20_000), lane("b").queued(tokens=2_000).prefill_rate(4_000)],
        want="a",
    ),
    "a lane that stopped reporting loses to a fresh one that is a little busy": Case(
        [
            lane("a").idle().last_seen(seconds=9),
            lane("b").queued(tokens=500),
            lane("c").queued(tokens=4_000),
            lane("d").queued(tokens=4_000),
        ],
        want="b",
    ),
    "a lane that was full when it fell silent is given another chance": Case(
        [lane("a").running(32).waiting(20).last_seen(seconds=30), lane("b").waiting(36)],
        want="a",
        refused={"b-d0": Reason.AT_CAPACITY},
    ),
    "a lane whose drafts are accepted wins over an equally loaded one": Case(
        [lane("a").running(8).emitting(1.2), lane("b").running(8).emitting(3.0)], want="b"
    ),
    "acceptance of the request's own workload counts, not the mean over all": Case(
        [
            lane("a").emitting(3.0).workload("code", emitted=1.1),
            lane("b").emitting(1.2).workload("code", emitted=3.5),
        ],
        request=prompt(workload="code"),
        want="b",
    ),
    "our own bookings count at once, before any signal shows them": Case(
        [lane("a").booked(tokens=5_000), lane("b").queued(tokens=1_000)], want="b"
    ),
    "a nearly full KV cache repels": Case([lane("a").kv_used(9_700), lane("b").kv_used(1_000)], want="b"),
    "a slow path between prefill and decode repels long prompts": Case(
        [lane("a").bandwidth(1e6), lane("b").queued(tokens=200)], request=prompt(4_000), want="b"
    ),
    "a decode queue repels": Case([lane("a").running(32).waiting(3), lane("b").running(31)], want="b"),
    "with a heavy weight on the objective the lane that keeps it wins": Case(
        [lane("a").queued(tokens=900), lane("b").queued(tokens=100).emitting(1.9)],
        request=prompt(workload="code"),
        config=SLOW_CODE,
        want="b",
    ),
    "a draining lane takes nothing new": Case(
        [lane("a").flagged(Flags.DRAINING), lane("b").queued(tokens=9_000)],
        want="b",
        refused={"a-d0": Reason.DRAINING},
    ),
    "a lane whose engine died is out": Case(
        [lane("a").flagged(Flags.ENGINE_DEAD, role=Role.PREFILL), lane("b").queued(tokens=9_000)],
        want="b",
        refused={"a-p0": Reason.ENGINE_DEAD},
    ),
    "a fenced lane is out": Case(
        [lane("a").fenced(), lane("b").queued(tokens=9_000)], want="b", refused={"a": Reason.LANE_NOT_READY}
    ),
    "workers of another StreamPair are out": Case(
        [lane("a").of_pair("uid-2"), lane("b").queued(tokens=9_000)],
        want="b",
        refused={"a-p0": Reason.OTHER_PAIR, "a-d0": Reason.OTHER_PAIR},
    ),
    "a worker that failed this request before is out": Case(
        [lane("a"), lane("b").queued(tokens=9_000)],
        request=prompt(excluded_workers=frozenset({"a-p0"})),
        want="b",
        refused={"a-p0": Reason.EXCLUDED},
    ),
    "a worker with an open circuit is out": Case(
        [lane("a").health(Health.CIRCUIT_OPEN, role=Role.DECODE), lane("b").queued(tokens=9_000)],
        want="b",
        refused={"a-d0": Reason.CIRCUIT_OPEN},
    ),
    "a worker without room for the prompt's KV is out": Case(
        [lane("a").kv_used(9_999).running(3), lane("b").queued(tokens=9_000)],
        want="b",
        refused={"a-d0": Reason.KV_FULL},
    ),
    "an idle worker takes what fits it at all, whatever its prefix cache holds": Case(
        [lane("a").kv_used(9_999)], want="a"
    ),
    "a lane whose model is too short for the request is out": Case(
        [lane("a").model_length(150), lane("b").queued(tokens=9_000)],
        want="b",
        refused={"a-p0": Reason.TOO_LONG, "a-d0": Reason.TOO_LONG},
    ),
    "an estimated length refuses nobody": Case(
        [lane("a").model_length(150), lane("b").queued(tokens=9_000)],
        request=prompt(prompt_estimated=True),
        want="a",
    ),
    "an estimate of more than the model's length does not wait for room, the worker will refuse it": Case(
        [lane("a").kv_used(5_000).running(3)], request=prompt(120_000, prompt_estimated=True), want="a"
    ),
    "nor does one of more KV blocks than there are": Case(
        [lane("a").model_length(0).kv_used(5_000).running(3)],
        request=prompt(160_001, prompt_estimated=True),
        want="a",
    ),
    "a one-token request needs no decode worker": Case(
        [lane("a").running(33).waiting(20), lane("b").queued(tokens=2_000)],
        request=prompt(output=1),
        want="a",
        mode=PrefillMode.PREFILL_ONLY,
    ),
    "a prompt with few uncached tokens skips the remote prefill": Case(
        [lane("a").running(10), lane("b")],
        request=prompt(1_000, cached_prompt_tokens=960),
        config=settings(local_prefill_max_tokens=64),
        want="b",
        mode=PrefillMode.LOCAL,
    ),
    "a prompt just over the limit does not": Case(
        [lane("a")], request=prompt(65), config=settings(local_prefill_max_tokens=64), want="a"
    ),
    "with no pair left in any lane, a pair across lanes serves": Case(
        [
            lane("a").health(Health.CIRCUIT_OPEN, role=Role.PREFILL).fenced(),
            lane("b").health(Health.CIRCUIT_OPEN, role=Role.DECODE).fenced(),
        ],
        want="a",
        step=Step.CROSS_LANE,
    ),
    "across revisions nothing is paired; Degrade lets the decode worker compute the prompt": Case(
        [
            lane("a").health(Health.CIRCUIT_OPEN, role=Role.PREFILL).fenced(),
            lane("b").health(Health.CIRCUIT_OPEN, role=Role.DECODE).fenced().revision("r2"),
        ],
        want="a",
        mode=PrefillMode.LOCAL,
        step=Step.LOCAL_PREFILL,
    ),
    "with crossLane Never the ladder goes on to the local prefill": Case(
        [
            lane("a").health(Health.CIRCUIT_OPEN, role=Role.PREFILL).fenced(),
            lane("b").health(Health.CIRCUIT_OPEN, role=Role.DECODE).fenced(),
        ],
        config=settings(cross_lane=CrossLane.NEVER),
        want="a",
        mode=PrefillMode.LOCAL,
        step=Step.LOCAL_PREFILL,
    ),
    "a lane whose canaries fail serves by local prefill under Degrade": Case(
        [lane("a").fenced("the canary transfer failed").without_proof("a-p0")],
        want="a",
        mode=PrefillMode.LOCAL,
        step=Step.LOCAL_PREFILL,
    ),
    "a pair whose canary has not passed is not picked, its neighbours are": Case(
        [lane("a", prefills=2).without_proof("a-p1")], want="a", refused={"a-p1": Reason.NOT_PROVEN}
    ),
    "with nothing known but priors a lane is chosen all the same": Case(
        [lane("a").prefill_rate(0.0).emitting(0.0).bandwidth(0.0)], want="a"
    ),
    "RoundRobin does not look at load": Case(
        [lane("a").queued(tokens=90_000), lane("b")],
        config=settings(policy=RoutingPolicy.ROUND_ROBIN),
        want="a",
    ),
    "LeastRequest counts requests and nothing else": Case(
        [lane("a").running(3), lane("b").queued(tokens=90_000).running(2)],
        config=settings(policy=RoutingPolicy.LEAST_REQUEST),
        want="b",
    ),
}


@pytest.mark.parametrize("case", CHOSEN.values(), ids=CHOSEN.keys())
def test_the_lane_chosen(case: Case) -> None:
    decision = decide(case)
    assert decision.lane == case.want
    assert (decision.mode, decision.step) == (case.mode, case.step)
    refused = {refusal.worker or refusal.lane: refusal.reason for refusal in decision.refused}
    assert case.refused.items() <= refused.items()


def decide(case: Case) -> Decision:
    return pick(case.request, fleet(*case.lanes), case.config, Random(1), Cursor())


@dataclass
class Nobody:
    lanes: list[Lane]
    request: RouteRequest = field(default_factory=prompt)
    config: RuntimeConfig = field(default_factory=settings)
    reason: Reason | None = None
    busy: bool = False
    too_long: bool = False


STRICT = settings(failure=FailurePolicy.STRICT)

NOBODY = {
    "an empty fleet": Nobody([]),
    "lanes that only start": Nobody([lane("a").at(LaneState.WAITING)], reason=Reason.LANE_NOT_READY),
    "workers that never reported": Nobody([lane("a").silent_since_start()], reason=Reason.NO_SIGNALS),
    "a full fleet is busy: the request waits, it does not go down the ladder": Nobody(
        [lane("a").running(32).waiting(4), lane("b").running(36)], reason=Reason.AT_CAPACITY, busy=True
    ),
    "an estimate that may be true waits for room": Nobody(
        [lane("a").kv_used(5_000).running(3)],
        request=prompt(99_000, prompt_estimated=True),
        reason=Reason.KV_FULL,
        busy=True,
    ),
    "a prefill worker under suspicion is waited for, not bypassed": Nobody(
        [lane("a").health(Health.SUSPECT, role=Role.PREFILL)], reason=Reason.SUSPECT, busy=True
    ),
    "Strict has no local prefill": Nobody(
        [lane("a").health(Health.CIRCUIT_OPEN, role=Role.PREFILL).fenced()],
        config=STRICT,
        reason=Reason.CIRCUIT_OPEN,
    ),
    "a full decode worker without a prefill worker is no load that passes": Nobody(
        [lane("a").running(36).health(Health.CIRCUIT_OPEN, role=Role.PREFILL).fenced()],
        config=STRICT,
        reason=Reason.AT_CAPACITY,
    ),
    "a full lane beside one that cannot serve is waited for": Nobody(
        [lane("a").running(36), lane("b").running(36).health(Health.CIRCUIT_OPEN, role=Role.PREFILL).fenced()],
        config=STRICT,
        reason=Reason.CIRCUIT_OPEN,
        busy=True,
    ),
    "a request that no worker could ever hold": Nobody(
        [lane("a"), lane("b")], request=prompt(200_000), reason=Reason.TOO_LONG, too_long=True
    ),
    "a request of more KV blocks than there are": Nobody(
        [lane("a").model_length(0)], request=prompt(160_001), reason=Reason.TOO_LONG, too_long=True
    ),
}


@pytest.mark.parametrize("case", NOBODY.values(), ids=NOBODY.keys())
def test_nobody_can_serve(case: Nobody) -> None:
    with pytest.raises(NoLane) as caught:
        pick(case.request, fleet(*case.lanes), case.config, Random(1))
    error = caught.value
    assert (error.busy, error.too_long) == (case.busy, case.too_long)
    assert case.reason is None or case.reason in {refusal.reason for refusal in error.refused}
    assert error.code == "UNAVAILABLE" and error.retry_after_seconds is not None


def test_round_robin_visits_every_lane_in_turn() -> None:
    cursor, view = Cursor(), fleet(lane("a"), lane("b"), lane("c"))
    config = settings(policy=RoutingPolicy.ROUND_ROBIN)
    visited = [pick(prompt(), view, config, Random(1), cursor).lane for _ in range(6)]
    assert visited == ["a", "b", "c", "a", "b", "c"]


def test_near_ties_are_broken_at_random() -> None:
    view, rng = fleet(lane("a"), lane("b").queued(tokens=5)), Random(7)
    visited = [pick(prompt(), view, settings(), rng).lane for _ in range(200)]
    assert 60 <= visited.count("a") <= 140


def test_more_than_a_near_tie_is_not() -> None:
    view, rng = fleet(lane("a"), lane("b").queued(tokens=400)), Random(7)
    assert {pick(prompt(), view, settings(), rng).lane for _ in range(100)} == {"a"}
