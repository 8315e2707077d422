"""What a write that the API server refuses holds back until it succeeds: what would be made by halves, or given up for
something that cannot come.

    refused                      held back
    what pods mount              every new pod, and drains for a new revision
    a pod                        the other new pods of its lane
    the rehearsal of a pod       drains for a new revision
    anything else                nothing: a lost pod comes back although a PodDisruptionBudget exceeds a quota
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Final

from streamserve.operator import naming
from streamserve.operator.actions import Action, Apply, Drain, Reason, Rehearse

MOUNTED_BY_PODS: Final = frozenset({"ConfigMap", "ServiceAccount"})
Name = tuple[str, str]


def holder(actions: Iterable[Action]) -> Callable[[Action, Collection[Name]], bool]:
    """A function that says whether one of these actions waits for a write that was refused."""
    lane_of, rehearsed = {}, set()
    for each in actions:
        if isinstance(each, Apply) and each.kind == "Pod":
            lane_of[each.name] = _lane(each)
        elif isinstance(each, Rehearse):
            rehearsed.add((each.kind, each.name))

    def held_back(action: Action, refused: Collection[Name]) -> bool:
        no_pods = any(kind in MOUNTED_BY_PODS for kind, _ in refused)
        match action:
            case Apply(kind="Pod"):
                lanes = {lane_of[name] for kind, name in refused if kind == "Pod" and name in lane_of}
                return no_pods or _lane(action) in lanes
            case Drain(reason=Reason.REVISION_CHANGED):
                return no_pods or not rehearsed.isdisjoint(refused)
            case _:
                return False

    return held_back


def _lane(action: Apply) -> str:
    return str(action.manifest["metadata"]["labels"][naming.LANE])
