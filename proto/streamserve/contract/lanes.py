"""Which lanes to start and which to retire, one step at a time, and why: the planner of `up` and of the operator.

A lane is the unit: all its workers have one revision, and a lane of another revision is replaced whole, drained first.
With `ready` lanes that take traffic and are not retiring, a lane that takes traffic may be retired only when

    ready - 1 ≥ lanes - maxUnavailable

A lane that is fenced for a moment may go while ready ≥ lanes - maxUnavailable holds without it, and one that is lost
costs nothing. With `maxSurge`, extra lanes of the new revision run while an outdated one is left. The first lane of a
new revision is the test of it: as long as a lane of the wanted revision fails (died FAILURES_LIMIT times without ever
being ready, or not ready within `ready_seconds`), nothing is replaced or added, and `halted` says why. The planner is
level-triggered: it looks at what is, never at what it did before.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

FAILURES_LIMIT: Final = 3
# A lane that took traffic and is fenced for a moment (a worker restarted) is not given up as lost.
LOST_AFTER_SECONDS: Final = 10.0


class Reason(StrEnum):
    MISSING = "Missing"
    REVISION_CHANGED = "RevisionChanged"
    SCALED_DOWN = "ScaledDown"
    REPLICAS_CHANGED = "ReplicasChanged"


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """One worker's place in a lane."""

    role: str
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The spec, as far as workers go. Seconds bound how long a lane may take until it serves."""

    revision: str
    lanes: int
    prefill_replicas: int = 1
    decode_replicas: int = 1
    max_unavailable: int = 1
    max_surge: int = 0
    ready_seconds: float = 600.0

    @property
    def slots(self) -> frozenset[Slot]:
        return frozenset(
            [Slot("prefill", i) for i in range(self.prefill_replicas)]
            + [Slot("decode", i) for i in range(self.decode_replicas)]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneNow:
    """One lane as it is. `slots` are the places that are taken, `leaving` those of them whose worker was told to go.

    `failures` counts deaths of its workers since it was last ready.
    """

    index: int
    revision: str
    slots: frozenset[Slot]
    leaving: frozenset[Slot] = frozenset()
    ready: bool = False
    was_ready: bool = False
    retiring: bool = False
    failures: int = 0
    unready_seconds: float = 0.0
    last_words: str = ""

    @property
    def lost(self) -> bool:
        """Takes no traffic and will not soon."""
        return not self.ready and (not self.was_ready or self.unready_seconds > LOST_AFTER_SECONDS)


@dataclass(frozen=True, slots=True)
class StartLane:
    index: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class RetireLane:
    """Drain, then stop."""

    index: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class StartWorker:
    lane: int
    slot: Slot
    reason: Reason = Reason.REPLICAS_CHANGED


@dataclass(frozen=True, slots=True)
class RetireWorker:
    lane: int
    slot: Slot
    reason: Reason = Reason.REPLICAS_CHANGED


Action = StartLane | RetireLane | StartWorker | RetireWorker


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now. `halted` says why a rollout does not go on; `done` that nothing is left to do or to wait for."""

    actions: tuple[Action, ...]
    halted: str = ""
    done: bool = False


def plan(wanted: Wanted, lanes: tuple[LaneNow, ...]) -> Plan:
    """The next step from `lanes` towards `wanted`. Repeating it until `done` gets there."""
    outdated = [lane for lane in lanes if lane.revision != wanted.revision and lane.index < wanted.lanes]
    target = wanted.lanes + (wanted.max_surge if outdated else 0)
    halted = _halted(wanted, lanes)
    actions: list[Action] = []
    if not halted:
        present = {lane.index for lane in lanes}
        actions += [StartLane(index, Reason.MISSING) for index in range(target) if index not in present]
    actions += _retirements(wanted, target, lanes, halted=bool(halted))
    actions += _replicas(wanted, target, lanes)
    done = (
        not actions
        and not halted
        and len(lanes) == wanted.lanes
        and all(lane.ready and not lane.retiring and not lane.leaving for lane in lanes)
    )
    return Plan(tuple(actions), halted, done)


def _halted(wanted: Wanted, lanes: tuple[LaneNow, ...]) -> str:
    for lane in sorted(lanes, key=lambda lane: lane.index):
        if lane.revision != wanted.revision or lane.ready or lane.was_ready or lane.retiring:
            continue
        said = f"; its last words: {lane.last_words}" if lane.last_words else ""
        if lane.failures >= FAILURES_LIMIT:
            return f"lane-{lane.index} of revision {wanted.revision} died {FAILURES_LIMIT} times or more{said}"
        if lane.unready_seconds > wanted.ready_seconds:
            return (
                f"lane-{lane.index} of revision {wanted.revision} is not ready after {wanted.ready_seconds:.0f} s{said}"
            )
    return ""


def _retirements(wanted: Wanted, target: int, lanes: tuple[LaneNow, ...], *, halted: bool) -> list[Action]:
    """Outdated lanes and surplus ones, as many as the budget lets go; those that serve nobody first."""
    ready = sum(lane.ready and not lane.retiring for lane in lanes)
    spare = ready - max(0, wanted.lanes - wanted.max_unavailable)
    actions: list[Action] = []
    for lane in sorted(lanes, key=lambda lane: (lane.ready, not lane.lost, _order(lane, target))):
        surplus = lane.index >= target
        if lane.retiring or not (surplus or lane.revision != wanted.revision):
            continue
        if halted and not surplus:
            continue  # an outdated lane is what still serves, or what its restarts may bring back
        if not lane.lost:
            if spare < (1 if lane.ready else 0):
                continue
            spare -= lane.ready
        actions.append(RetireLane(lane.index, Reason.SCALED_DOWN if surplus else Reason.REVISION_CHANGED))
    return actions


def _order(lane: LaneNow, target: int) -> tuple[int, int]:
    """Surplus lanes go from the highest down, outdated ones from the lowest up."""
    return (0, -lane.index) if lane.index >= target else (1, lane.index)


def _replicas(wanted: Wanted, target: int, lanes: tuple[LaneNow, ...]) -> list[Action]:
    """A place is free when its worker is gone: one that leaves and is wanted again is not taken back, but followed."""
    actions: list[Action] = []
    for lane in lanes:
        if lane.retiring or lane.revision != wanted.revision or lane.index >= target:
            continue
        going = lane.slots - wanted.slots - lane.leaving
        actions += [StartWorker(lane.index, slot) for slot in sorted(wanted.slots - lane.slots)]
        actions += [RetireWorker(lane.index, slot) for slot in sorted(going, reverse=True)]
    return actions
