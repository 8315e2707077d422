"""Which workers serve this request: the pair with the least expected cost, in seconds.

    ways = the pairs of READY lanes that no filter objects to
           else, down the ladder: a pair across lanes (crossLane WhenNeeded) → the decode worker alone (Degrade)
    pick = one of the ways within 3 % or 2 ms of the least cost, at random

Near ties are broken at random because several routers that all see the same best lane would all send there. The
ladder is descended only when no pair is possible, never because all pairs are busy: a queue is shorter than a detour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from streamserve.contract.runtime_config import CrossLane, FailurePolicy, RoutingPolicy, RuntimeConfig
from streamserve.router.flowguard.cost import Estimator, Way, costs
from streamserve.router.flowguard.decision import Candidate, Decision, NoLane, PrefillMode, Reason, Refusal, Step
from streamserve.router.flowguard.filters import Sieve, requests_on
from streamserve.router.flowguard.request import RouteRequest
from streamserve.router.flowguard.usual import Usual
from streamserve.router.flowguard.view import FleetView, LaneState, LaneView, WorkerView

NEAR_TIE_FRACTION: Final = 0.03
NEAR_TIE_SECONDS: Final = 0.002


class Cursor:
    """Where RoundRobin stands; one for each router, owned by the caller."""

    __slots__ = ("position",)

    def __init__(self) -> None:
        self.position = 0


def pick(
    request: RouteRequest, view: FleetView, config: RuntimeConfig, rng: Random, cursor: Cursor | None = None
) -> Decision:
    """The workers to use, and why the others were not.

    Raises NoLane when every lane is filtered out; its `refused` says which filter took which lane.
    """
    routing = config.routing
    trust_seconds = routing.signal_trust_ms / 1e3
    trusts = {worker.id: view.trust(worker, trust_seconds) for lane in view.lanes for worker in lane.workers}
    usual = Usual(request, view)
    sieve = Sieve(request, view, trusts, output_tokens=usual.output_tokens)
    possible = _ways(request, view, config, sieve)
    ways = [way for way in possible if _is_free(way, sieve)]
    refused = (*sieve.all(view), *_unproven(view, sieve))
    if not ways:
        raise NoLane(refused, busy=bool(possible))
    estimator = Estimator(request, view, usual, trusts)
    candidates = costs(ways, estimator, routing.weights_percent, config.slo_of(request.workload))
    chosen = candidates[_choose(routing.policy, ways, candidates, rng, cursor)]
    return Decision(chosen=chosen, candidates=candidates, refused=refused, policy=routing.policy.value)


def _ways(request: RouteRequest, view: FleetView, config: RuntimeConfig, sieve: Sieve) -> list[Way]:
    """The first step of the ladder on which anything is possible, be it busy or not; empty where no step has any."""
    for step in _ladder(request, config):
        if ways := step(request, view, sieve.possible):
            return ways
    return []


_Test = Callable[[WorkerView], bool]
_LadderStep = Callable[[RouteRequest, FleetView, _Test], list[Way]]


def _ladder(request: RouteRequest, config: RuntimeConfig) -> list[_LadderStep]:
    limit = config.routing.local_prefill_max_tokens
    steps: list[_LadderStep] = []
    if not request.prefill_only and 0 < request.uncached_prompt_tokens <= limit:
        steps.append(_short_prompts)
    steps.append(_same_lane)
    if config.routing.cross_lane is CrossLane.WHEN_NEEDED:
        steps.append(_across_lanes)
    if config.failure_policy is FailurePolicy.DEGRADE:
        steps.append(_local_prefill)
    return steps


def _short_prompts(request: RouteRequest, view: FleetView, test: _Test) -> list[Way]:
    """So few uncached tokens that moving their KV costs more than computing them where they are needed."""
    ready = [lane for lane in view.lanes if lane.state is LaneState.READY]
    return [_alone(worker, Step.SAME_LANE) for lane in ready for worker in lane.decode if test(worker)]


def _same_lane(request: RouteRequest, view: FleetView, test: _Test) -> list[Way]:
    ways: list[Way] = []
    for lane in view.lanes:
        if lane.state is not LaneState.READY:
            continue
        prefills = [worker for worker in lane.prefill if test(worker)]
        if request.prefill_only:
            ways += [_prefill_only(worker, Step.SAME_LANE) for worker in prefills if _proven(lane, worker)]
            continue
        decodes = [worker for worker in lane.decode if test(worker)]
        ways += [
            Way(p, d, PrefillMode.REMOTE, Step.SAME_LANE)
            for p in prefills
            for d in decodes
            if (p.id, d.id) in lane.proven
        ]
    return ways


def _across_lanes(request: RouteRequest, view: FleetView, test: _Test) -> list[Way]:
    """A prefill worker of one lane with a decode worker of another: each was proven with a partner of its own."""
    prefills = [w for lane in view.lanes for w in lane.prefill if test(w) and _proven(lane, w)]
    if request.prefill_only:
        return [_prefill_only(worker, Step.CROSS_LANE) for worker in prefills]
    decodes = [w for lane in view.lanes for w in lane.decode if test(w) and _proven(lane, w)]
    return [
        Way(p, d, PrefillMode.REMOTE, Step.CROSS_LANE)
        for p in prefills
        for d in decodes
        if p.lane != d.lane and p.revision == d.revision
    ]


def _local_prefill(request: RouteRequest, view: FleetView, test: _Test) -> list[Way]:
    lanes = [lane for lane in view.lanes if lane.state is LaneState.READY or lane.degraded]
    return [_alone(worker, Step.LOCAL_PREFILL) for lane in lanes for worker in lane.decode if test(worker)]


def _alone(worker: WorkerView, step: Step) -> Way:
    return Way(None, worker, PrefillMode.LOCAL, step)


def _prefill_only(worker: WorkerView, step: Step) -> Way:
    return Way(worker, None, PrefillMode.PREFILL_ONLY, step)


def _proven(lane: LaneView, worker: WorkerView) -> bool:
    return any(worker.id in pair for pair in lane.proven)


def _is_free(way: Way, sieve: Sieve) -> bool:
    return (way.prefill is None or sieve.free(way.prefill)) and (way.decode is None or sieve.free(way.decode))


def _unproven(view: FleetView, sieve: Sieve) -> list[Refusal]:
    """Workers of ready lanes that nothing speaks against, but whose canary has not passed yet."""
    detail = "no canary transfer has passed since it started"
    found: list[Refusal] = []
    for lane in view.lanes:
        if lane.state is LaneState.READY:
            proven = {worker_id for pair in lane.proven for worker_id in pair}
            unproven = (worker for worker in lane.workers if worker.id not in proven and sieve.free(worker))
            found += [Refusal(lane.name, worker.id, Reason.NOT_PROVEN, detail) for worker in unproven]
    return found


def _choose(
    policy: RoutingPolicy, ways: Sequence[Way], candidates: Sequence[Candidate], rng: Random, cursor: Cursor | None
) -> int:
    """The index of the way to go."""
    if policy is RoutingPolicy.ROUND_ROBIN and cursor is not None:
        cursor.position += 1
        return (cursor.position - 1) % len(ways)
    if policy is RoutingPolicy.LEAST_REQUEST:
        loads = [_requests_on(way) for way in ways]
        return rng.choice([i for i, load in enumerate(loads) if load == min(loads)])
    if policy is RoutingPolicy.ROUND_ROBIN:
        return rng.randrange(len(ways))
    limit = near_tie_seconds(candidates)
    return rng.choice([i for i, candidate in enumerate(candidates) if candidate.cost_seconds <= limit])


def near_tie_seconds(candidates: Sequence[Candidate]) -> float:
    """The highest cost that is as good as the least."""
    least = min(candidate.cost_seconds for candidate in candidates)
    return least + max(NEAR_TIE_FRACTION * abs(least), NEAR_TIE_SECONDS)


def _requests_on(way: Way) -> int:
    return sum(requests_on(worker) for worker in (way.prefill, way.decode) if worker is not None)
