"""What a write that the API server refuses holds back until it succeeds: what would be made by halves, or given up for
something that cannot come.

    refused                                held back
    what workers mount and is not there    every new pod, rehearsals, drains that begin for a new revision
    a pod                                  the other new pods of its lane
    the rehearsal of a pod                 the other rehearsals, drains that begin for a new revision
    such a drain                           rehearsals: nothing is given up now
    anything else                          nothing: a lost pod comes back although a PodDisruptionBudget exceeds a quota

An object that turns up at the API server and that the decision knew nothing of holds back all that makes a pod or gives
one up, until it is decided anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Final

from streamserve.operator import naming
from streamserve.operator.actions import Action, Apply, Drain, Reason, Rehearse

_MOUNTED: Final = frozenset({"ConfigMap", "ServiceAccount"})
Name = tuple[str, str]
Write = tuple[str, str, str]
"""The verb, which is the action's type, the kind and the name: one refused write to a pod says nothing of another."""


def write_of(action: Action) -> Write:
    return type(action).__name__, action.kind, action.name


def mounted_by_workers(name: Name) -> bool:
    """A pair has one ConfigMap, and an account for its workers beside that for its routers."""
    return name[0] in _MOUNTED and not name[1].endswith(f"-{naming.ROUTER}")


def holder(actions: Iterable[Action], absent: Iterable[Name] = ()) -> Callable[[Action, Collection[Write]], bool]:
    """A function that says whether one of these actions waits, given the writes that were refused.

    `absent`: objects that cannot be made as long as somebody else's have their names.
    """
    lane_of, rehearsals, beginnings, missing = {}, set(), set(), set()
    for each in actions:
        match each:
            case Apply(kind="Pod"):
                lane_of[write_of(each)] = _lane(each)
            case Apply(reason=Reason.MISSING):
                missing.add(write_of(each))
            case Rehearse():
                rehearsals.add(write_of(each))
            case Drain() if _begins_a_replacement(each):
                beginnings.add(write_of(each))
    without = any(map(mounted_by_workers, absent))

    def held_back(action: Action, refused: Collection[Write]) -> bool:
        no_pods = without or any(mounted_by_workers(write[1:]) for write in missing.intersection(refused))
        match action:
            case Apply(kind="Pod"):
                return no_pods or _lane(action) in {lane_of[write] for write in refused if write in lane_of}
            case Rehearse():
                return no_pods or not (rehearsals | beginnings).isdisjoint(refused)
            case Drain() if _begins_a_replacement(action):
                return no_pods or not rehearsals.isdisjoint(refused)
            case _:
                return False

    return held_back


def makes_or_gives_up_a_pod(action: Action) -> bool:
    match action:
        case Apply(kind="Pod") | Rehearse() | Drain(reason=Reason.REVISION_CHANGED):
            return True
        case _:
            return False


def _begins_a_replacement(action: Drain) -> bool:
    return action.reason is Reason.REVISION_CHANGED and not action.begun


def _lane(action: Apply) -> str:
    return str(action.manifest["metadata"]["labels"][naming.LANE])
