"""From what is to what is wanted: the actions of one reconcile, in the order in which they are carried out.

    1  objects that are missing or differ, configuration before what mounts it
    2  readiness gates, drain marks, deletions of pods that have finished
    3  pods that are missing, pods whose labels or image somebody changed
    4  objects of ours that nobody wants any more

An object under one of our names that is not ours is never touched: it is in `refused`, and what `refusals.py` says is
held back. One of a former StreamPair of this name is in `leftover` until it is gone.
A fixpoint is a state for which there are no actions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

from streamserve.contract import launch
from streamserve.contract.lane_word import READY
from streamserve.operator import naming
from streamserve.operator.actions import Action, Apply, Delete, Reason, SetGate
from streamserve.operator.compare import difference, to_replace
from streamserve.operator.desired import Desired
from streamserve.operator.naming import Manifest
from streamserve.operator.observe import Observed, Owner, Pod
from streamserve.operator.refusals import holder
from streamserve.operator.rollout import Rollout, rollout

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now, and what stands in the way."""

    actions: tuple[Action, ...]
    rollout: Rollout
    refused: tuple[Key, ...] = ()
    leftover: tuple[Key, ...] = ()


def diff(desired: Desired, observed: Observed, now: float) -> Step:
    blocked = {key: observed.others[key] for key in _wanted_keys(desired) if key in observed.others}
    refused = tuple(key for key, owner in blocked.items() if owner is Owner.FOREIGN)
    leftover = tuple(key for key, owner in blocked.items() if owner is Owner.LEFTOVER)
    gates = tuple(_gates(observed))
    now_to_do = rollout(desired, _after(gates, observed, now), now)
    held_back = holder(now_to_do.actions, absent=(*refused, *leftover))
    actions = [
        *_objects(desired, observed),
        *gates,
        *(action for action in now_to_do.actions if not held_back(action, ())),
        *_repairs(desired, observed),
        *_unwanted(desired, observed),
    ]
    return Step(tuple(actions), now_to_do, refused, leftover)


def _wanted_keys(desired: Desired) -> list[Key]:
    wanted = desired.wanted
    pods = [
        ("Pod", naming.pod_name(desired.pair.metadata.name, lane, slot, wanted.revision))
        for lane in range(wanted.lanes + wanted.max_surge)
        for slot in sorted(wanted.slots)
    ]
    return [*(naming.key_of(made) for made in desired.objects), *pods]


def _objects(desired: Desired, observed: Observed) -> Iterator[Action]:
    for made in desired.objects:
        key = naming.key_of(made)
        child = observed.children.get(key)
        if observed.others.get(key) is not None:
            continue
        if child is None:
            yield Apply(made, Reason.MISSING, seed=desired.seeds.get(key))
        elif not child.leaving and (field := difference(made, child.live)):
            yield Apply(made, Reason.CHANGED, field, first=to_replace(made, child.live))


def _gates(observed: Observed) -> Iterator[SetGate]:
    """As the routers say. Without their word gates stay: a lane that serves is not fenced for Redis' silence, nor
    because the only router has just started."""
    for pod in observed.pods:
        report = observed.report(launch.lane_name(pod.lane))
        if pod.leaving or report is None:
            continue
        ready = report.state == READY and report.revision in ("", pod.reported)
        if ready != bool(pod.gate):
            reason = Reason.LANE_READY if ready else Reason.LANE_FENCED
            yield SetGate(pod.name, pod.uid, ready, reason, report.reason)


def _after(gates: tuple[SetGate, ...], observed: Observed, now: float) -> Observed:
    """The pods as the gates will make them. A lane that is closed does not count from now on; one that has just been
    opened counts when its kubelet has said Ready, as everybody else sees it: until then another lane keeps its pods."""
    opens = {gate.name: gate.ready for gate in gates}
    pods = (
        replace(pod, gate=opens[pod.name], gate_since_seconds=now, ready=opens[pod.name] and pod.ready)
        if pod.name in opens
        else pod
        for pod in observed.pods
    )
    return replace(observed, pods=tuple(pods))


def _repairs(desired: Desired, observed: Observed) -> Iterator[Action]:
    """Labels, owner and image of a pod can be edited; the rest of it cannot, and it may be of an earlier drain time."""
    for pod in observed.pods:
        if pod.leaving or pod.revision != desired.wanted.revision:
            continue
        made = desired.pod(pod.lane, pod.slot)
        image = difference(_image(made), _image(pod.live))
        if field := difference(made["metadata"], pod.live["metadata"]) or image:
            yield Apply(as_started(made, pod), Reason.CHANGED, field)


def as_started(made: Manifest, pod: Pod) -> Manifest:
    """The pod as we would render it, with the hot values that it was started with: they are immutable in it."""
    result, live = copy.deepcopy(made), pod.live["spec"]
    result["spec"]["terminationGracePeriodSeconds"] = live["terminationGracePeriodSeconds"]
    result["spec"]["containers"][0]["args"] = live["containers"][0]["args"]
    return result


def _image(manifest: Manifest) -> Manifest:
    return {"containers": [{key: c[key] for key in ("name", "image")} for c in manifest["spec"]["containers"][:1]]}


def _unwanted(desired: Desired, observed: Observed) -> Iterator[Action]:
    wanted = set(_wanted_keys(desired))
    for key, child in sorted(observed.children.items()):
        if key not in wanted and not child.leaving:
            yield Delete(*key, child.uid, Reason.NOT_WANTED)
