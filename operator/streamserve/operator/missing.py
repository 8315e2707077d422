"""How many lanes a StreamPair misses: what an alert counts the minutes of.

    missing = wanted − whole − (maxUnavailable, while a rollout goes on)        at least 0

    whole    of the wanted revision: in each of its places a pod takes requests
             of another: a pod of each role does; what it is short of, its replacement will have

Conditions say what is so now. A lane that comes and goes, or never comes, leaves no other trace that lasts: its worker
has metrics only while its engine is loaded. A rollout that is halted, or waits for leave to begin, does not go on.
"""

from __future__ import annotations

from collections.abc import Collection

from streamserve.operator import naming
from streamserve.operator.desired import Desired
from streamserve.operator.observe import Observed, Pod
from streamserve.operator.rollout import Rollout


def missing_lanes(desired: Desired, observed: Observed, rollout: Rollout) -> int:
    wanted = desired.wanted
    by_lane: dict[int, list[Pod]] = {}
    for pod in observed.pods:
        by_lane.setdefault(pod.lane, []).append(pod)
    whole = sum(_is_whole(pods, desired) for pods in by_lane.values())
    outdated = any(lane.revision != wanted.revision for lane in rollout.lanes)
    stands = bool(rollout.halted) or rollout.needs_surge or desired.pair.spec.paused
    spared = wanted.max_unavailable if outdated and not stands else 0
    return max(0, wanted.lanes - whole - spared)


def _is_whole(lane: Collection[Pod], desired: Desired) -> bool:
    filled = {pod.slot for pod in lane if pod.takes_requests}
    if any(pod.revision != desired.wanted.revision for pod in lane):
        return {slot.role for slot in filled} == set(naming.ROLES)
    return filled >= desired.wanted.slots
