"""Which pods to make, to drain and to delete now: the contract's planner of lanes, read from and written to pods.

    planned         what is done to the pods of the lane
    StartLane       pods for all its places
    RetireLane      the drain mark on every pod, with the reason that says that the whole lane goes
    StartWorker     a pod for a place that has none: a replica more, or a pod that somebody deleted
    RetireWorker    the drain mark on one pod, once a pod of its role that stays serves

    marked pod      drained, not running, or past its time → deleted with STOP_SECONDS of grace
                    (a lane's pods go together, when the last of them has finished)
    failed pod      deleted: a pod that was evicted keeps its name until somebody does
    stuck pod       still there STUCK_SECONDS after its own deadline: its node is gone, deleted without grace, once;
                    what is there after that is held by somebody's finalizer

The mark is the memory: a plan that stopped halfway is taken up from the marks, and a marked pod is never taken back,
for a worker that drains refuses work for ever. Before the first pod is marked for a new revision, the API server is
asked whether it would take the pods that are to come: one that it refuses costs no lane. As long as no lane of a new
revision has served, one lane at a time tries it, whatever maxUnavailable permits: a bad revision costs one lane.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from streamserve.contract import lanes as planner
from streamserve.contract import launch
from streamserve.contract.lane_word import READY
from streamserve.contract.lanes import (
    FAILURES_LIMIT,
    LOST_AFTER_SECONDS,
    LaneNow,
    RetireLane,
    RetireWorker,
    Slot,
    StartLane,
)
from streamserve.operator import naming
from streamserve.operator.actions import Action, Apply, Delete, Drain, Reason, Rehearse
from streamserve.operator.builders import worker_pods
from streamserve.operator.desired import Desired
from streamserve.operator.observe import Observed, Owner, Pod

STUCK_SECONDS: Final = 60.0
MIXED: Final = "mixed"
_MARGIN_SECONDS: Final = 1.0
_OF_THE_LANE: Final = frozenset({Reason.REVISION_CHANGED, Reason.SCALED_DOWN})


@dataclass(frozen=True, slots=True)
class Rollout:
    """`halted` and `needs_surge` say why it does not go on although something is left to do.

    `again_seconds`: after that long the decision may be another one although nothing else has changed.
    """

    actions: tuple[Action, ...]
    lanes: tuple[LaneNow, ...]
    halted: str = ""
    needs_surge: bool = False
    done: bool = False
    again_seconds: float | None = None


def rollout(desired: Desired, observed: Observed, now: float) -> Rollout:
    """The next step. `now` is in seconds since the epoch."""
    lanes = lanes_of(observed.pods, now)
    plan = planner.plan(desired.wanted, lanes)
    halted = plan.halted and _with_pod(plan.halted, observed.pods, desired)
    chosen = one_trial(plan.actions, desired, lanes)
    by_lane: dict[int, list[Pod]] = {}
    for pod in observed.pods:
        by_lane.setdefault(pod.lane, []).append(pod)
    actions: list[Action] = []
    drains = _drains(chosen, by_lane, desired, now)
    actions += _deletions(by_lane, observed, desired, now)
    actions += [*_rehearsals(drains, observed, desired), *drains]
    actions += _creations(chosen, by_lane, observed, desired)
    needs_surge = (
        desired.reluctant
        and desired.wanted.max_unavailable + desired.wanted.max_surge == 0
        and any(not lane.lost and lane.revision != desired.wanted.revision and not lane.retiring for lane in lanes)
    )
    return Rollout(
        actions=tuple(actions),
        lanes=lanes,
        halted=halted,
        needs_surge=needs_surge,
        done=plan.done and not actions,
        again_seconds=_again(lanes, observed, desired, now),
    )


def _again(lanes: tuple[LaneNow, ...], observed: Observed, desired: Desired, now: float) -> float | None:
    """The nearest of: a drain's end, a stuck pod's, a fenced lane that counts as lost, a start that took too long."""
    ends = [pod.deletion_seconds + STUCK_SECONDS for pod in observed.pods if pod.deletion_seconds is not None]
    drain = desired.pair.spec.update.drain_seconds
    ends += [pod.drain_since_seconds + drain for pod in observed.pods if pod.drain and pod.deletion_seconds is None]
    for lane in lanes:
        if not lane.ready and not lane.retiring:
            limit = LOST_AFTER_SECONDS if lane.was_ready else desired.wanted.ready_seconds
            ends.append(now - lane.unready_seconds + limit)
    left = [end - now for end in ends if end >= now]
    return min(left) + _MARGIN_SECONDS if left else None


def lanes_of(pods: Iterable[Pod], now: float) -> tuple[LaneNow, ...]:
    """What the planner is told. A lane takes traffic when one pod of each role does."""
    by_lane: dict[int, list[Pod]] = {}
    for pod in pods:
        by_lane.setdefault(pod.lane, []).append(pod)
    return tuple(_lane(index, found, now) for index, found in sorted(by_lane.items()))


def _lane(index: int, pods: list[Pod], now: float) -> LaneNow:
    revisions = {pod.revision for pod in pods}
    ready = {pod.slot.role for pod in pods if pod.serves} == set(naming.ROLES)
    takes_requests = {pod.slot.role for pod in pods if pod.takes_requests} == set(naming.ROLES)
    was_ready = any(pod.gate is not None for pod in pods)
    # The condition Ready of a pod that never served turned false with the pod. That of the others turns a moment after
    # the gate, or did before, where only the node fell silent and routers went on.
    waiting = [pod for pod in pods if not pod.ready] or pods
    since = max(
        max(pod.unready_since_seconds, pod.gate_since_seconds) if was_ready else pod.created_seconds for pod in waiting
    )
    stuck = any(pod.stuck for pod in pods)
    return LaneNow(
        index=index,
        revision=revisions.pop() if len(revisions) == 1 else MIXED,
        slots=frozenset(pod.slot for pod in pods),
        leaving=frozenset(pod.slot for pod in pods if pod.drain),
        ready=ready,
        was_ready=was_ready,
        retiring=any(pod.drain in _OF_THE_LANE for pod in pods),
        failures=FAILURES_LIMIT if stuck else max(pod.restarts for pod in pods),
        unready_seconds=0.0 if takes_requests else max(0.0, now - since),
        last_words=_worst(pods)[1],
    )


def _worst(pods: Iterable[Pod]) -> tuple[str, str]:
    """The pod that fails most, and what it said."""
    found = max(pods, key=lambda pod: (bool(pod.stuck), pod.restarts, bool(pod.last_words), pod.name))
    return found.name, found.stuck or found.last_words


def _with_pod(halted: str, pods: Iterable[Pod], desired: Desired) -> str:
    """Name the pod: the lane is not what somebody can look at with kubectl."""
    failing = [pod for pod in pods if pod.revision == desired.wanted.revision and (pod.restarts or pod.stuck)]
    return f"pod {_worst(failing)[0]}: {halted}" if failing else halted


def one_trial(
    actions: tuple[planner.Action, ...], desired: Desired, lanes: tuple[LaneNow, ...]
) -> tuple[planner.Action, ...]:
    """These actions, at most one of them a lane's first with a revision that has not served anywhere."""
    wanted = desired.wanted.revision
    outdated = any(lane.revision != wanted and not lane.lost for lane in lanes)
    proven = any(lane.revision == wanted and lane.was_ready for lane in lanes)
    if proven or not outdated:
        return actions
    trials = sum(lane.revision == wanted or lane.retiring for lane in lanes)
    chosen: list[planner.Action] = []
    for action in actions:
        replaces = isinstance(action, RetireLane) and action.reason is planner.Reason.REVISION_CHANGED
        if replaces or isinstance(action, StartLane):
            if trials:
                continue
            trials += 1
        chosen.append(action)
    return tuple(chosen)


def _rehearsals(drains: list[Drain], observed: Observed, desired: Desired) -> list[Rehearse]:
    """A pod of each role of a revision of which there is none yet, before any other pod is given up for it."""
    wanted = desired.wanted
    lanes = {pod.name: pod.lane for pod in observed.pods}
    given_up = [lanes[each.name] for each in drains if each.reason is Reason.REVISION_CHANGED and not each.begun]
    if not given_up or any(pod.revision == wanted.revision for pod in observed.pods):
        return []
    lane = min(given_up)
    firsts = {slot.role: slot for slot in sorted(wanted.slots, reverse=True)}
    return [Rehearse(desired.pod(lane, slot), Reason.REVISION_CHANGED, f"lane-{lane}") for slot in firsts.values()]


def _drains(
    actions: tuple[planner.Action, ...], by_lane: dict[int, list[Pod]], desired: Desired, now: float
) -> list[Drain]:
    """New marks, and those that a crash left out: a lane of which one pod is marked is marked whole."""
    marks: dict[str, tuple[Pod, Reason]] = {}
    for action in actions:
        for pod in by_lane.get(action.index if isinstance(action, RetireLane) else -1, ()):
            marks[pod.name] = (pod, Reason(action.reason.value))
        if isinstance(action, RetireWorker):
            for pod in by_lane.get(action.lane, ()):
                if pod.slot == action.slot and not _is_the_last(pod, by_lane[action.lane], desired):
                    marks[pod.name] = (pod, Reason(action.reason.value))
    for pods in by_lane.values():
        if reason := next((pod.drain for pod in pods if pod.drain in _OF_THE_LANE), ""):
            marks |= {pod.name: (pod, Reason(reason)) for pod in pods}
    since = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    seconds = desired.pair.spec.update.drain_seconds
    begun = {lane for lane, pods in by_lane.items() if any(pod.drain in _OF_THE_LANE for pod in pods)}
    return [
        Drain(pod.name, pod.uid, reason, since, seconds, begun=pod.lane in begun)
        for _, (pod, reason) in sorted(marks.items())
        if not pod.leaving
    ]


def _is_the_last(pod: Pod, lane: list[Pod], desired: Desired) -> bool:
    """A pod too many that takes requests stays until one that is to stay serves: its lane shall not stop for it."""
    staying = (other for other in lane if other.slot.role == pod.slot.role and other.slot in desired.wanted.slots)
    return pod.takes_requests and not any(other.serves for other in staying)


def _deletions(by_lane: dict[int, list[Pod]], observed: Observed, desired: Desired, now: float) -> list[Action]:
    found: list[Action] = []
    for _, pods in sorted(by_lane.items()):
        retiring = any(pod.drain in _OF_THE_LANE for pod in pods)
        finished = {pod.name: _finished(pod, observed, desired, now) for pod in pods}
        for pod in pods:
            if pod.deletion_seconds is not None:
                if now > pod.deletion_seconds + STUCK_SECONDS and not pod.forced:
                    found.append(Delete("Pod", pod.name, pod.uid, Reason.STUCK_TERMINATING, grace_seconds=0))
            elif pod.phase in ("Failed", "Succeeded"):
                found.append(Delete("Pod", pod.name, pod.uid, Reason.POD_FAILED, pod.last_words))
            elif pod.drain:
                waits_for = pods if retiring else [pod]
                reason = finished[pod.name]
                if reason is not None and all(finished[other.name] is not None for other in waits_for):
                    found.append(
                        Delete("Pod", pod.name, pod.uid, reason, pod.drain, grace_seconds=worker_pods.STOP_SECONDS)
                    )
    return found


def _finished(pod: Pod, observed: Observed, desired: Desired, now: float) -> Reason | None:
    """Why a pod that was asked to leave may be stopped; None while it works."""
    if pod.deletion_seconds is not None or not pod.running or _never_served(pod, observed):
        return Reason.NOT_RUNNING
    if not pod.drain:
        return None
    if pod.uid in observed.drained:
        return Reason.DRAINED
    if now - pod.drain_since_seconds >= desired.pair.spec.update.drain_seconds:
        return Reason.DRAIN_TIMEOUT
    return None


def _never_served(pod: Pod, observed: Observed) -> bool:
    report = observed.report(launch.lane_name(pod.lane))
    return pod.gate is None and not pod.container_ready and (report is None or report.state != READY)


def _creations(
    actions: tuple[planner.Action, ...], by_lane: dict[int, list[Pod]], observed: Observed, desired: Desired
) -> list[Action]:
    """A place is filled only when its name is free; the planner counts a pod that is going as present."""
    places: list[tuple[int, Slot, Reason]] = []
    for action in actions:
        if isinstance(action, StartLane):
            places += [(action.index, slot, Reason.MISSING) for slot in sorted(desired.wanted.slots)]
        elif isinstance(action, planner.StartWorker):
            places.append((action.lane, action.slot, Reason.MISSING))
    made = [(desired.pod(lane, slot), lane, reason) for lane, slot, reason in places]
    return [
        Apply(manifest, reason, f"lane-{lane}")
        for manifest, lane, reason in made
        if observed.others.get(naming.key_of(manifest)) not in (Owner.FOREIGN, Owner.LEFTOVER)
    ]
