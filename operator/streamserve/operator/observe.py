"""The children of one StreamPair as they are, cut down to what decisions look at, and to whom each belongs.

    OURS       our label and owner, or our labels and nobody's (an owner reference that a hand removed is put back)
    LEFTOVER   of a StreamPair of this name that was deleted: the garbage collector is on its way, we wait
    FOREIGN    anything else under one of our names: never touched

What a pod's container says is read from its status alone, the last lines of one that died included. Times are seconds
since the epoch. Beside the objects stand three facts that the API server does not know: each lane's state as routers
publish it, what workers and routers echo of their configuration, and which draining pods have nothing left to do. Of
a pair that holds a canary there are the routers' records as well.

Routers are a Deployment's pods, so none of them is made or ended here. They are looked at for what keeps them from
serving, as workers are; how many are ready is their Deployment's own count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final

from streamserve.contract.lane_word import READY, LaneReport, LaneWord
from streamserve.contract.lanes import Slot
from streamserve.contract.streampair import KIND
from streamserve.operator import naming
from streamserve.operator.builders import parts, scalers, worker_pods
from streamserve.operator.builders import router as router_pods
from streamserve.operator.canary.evidence import Records
from streamserve.operator.canary.memory import Memory, recall
from streamserve.operator.naming import Manifest

KINDS: Final = frozenset(
    {
        *("Pod", "ServiceAccount", "ConfigMap", "Service", "Deployment", "PodDisruptionBudget"),
        scalers.KIND,
    }
)
"""What we make. Controllers copy our labels onto objects of their own (EndpointSlices): those are not looked at."""
OF_ANOTHER: Final = "of-another-pair"

_BEING_MADE: Final = frozenset({"ContainerCreating", "PodInitializing"})
"""Not stuck by itself: an image of 10 GB is pulled for minutes. What hinders it, Events say (`events.py`)."""

STUCK_REASONS: Final = frozenset(
    {
        *("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"),
        *("CreateContainerConfigError", "CreateContainerError", "RunContainerError"),
    }
)


class Owner(StrEnum):
    OURS = "Ours"
    LEFTOVER = "Leftover"
    FOREIGN = "Foreign"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A worker's pod. `gate` is None until the readiness gate was first written, that is, until it first served.
    `revision` is OF_ANOTHER for one that was started for another StreamPair of this name, whose deletion orphaned it:
    routers of this one send nothing to it. `reported` is the revision that its worker tells routers. `forced`: it is to
    go without grace. `making_since_seconds`: when it came to a node whose kubelet has not made its container yet, None
    while there is nothing to wait for. `held_back`: why the kubelet does not get on with that, as its Events say."""

    name: str
    uid: str
    slot: Slot
    lane: int
    revision: str
    live: Manifest = field(repr=False, compare=False)
    reported: str = ""
    phase: str = "Pending"
    running: bool = False
    container_ready: bool = False
    ready: bool = False
    gate: bool | None = None
    gate_since_seconds: float = 0.0
    restarts: int = 0
    stuck: str = ""
    unschedulable: str = ""
    last_words: str = ""
    created_seconds: float = 0.0
    unready_since_seconds: float = 0.0
    drain: str = ""
    drain_since_seconds: float = 0.0
    deletion_seconds: float | None = None
    forced: bool = False
    node: str = ""
    making_since_seconds: float | None = None
    held_back: str = ""

    @property
    def leaving(self) -> bool:
        return bool(self.drain) or self.deletion_seconds is not None

    @property
    def has_served(self) -> bool:
        return self.gate is not None

    @property
    def takes_requests(self) -> bool:
        """Routers send to it, whether or not its kubelet has said Ready yet, or still. One whose container is not up
        takes none: its gate is open because nobody could close it."""
        return (self.ready or (bool(self.gate) and self.container_ready)) and not self.leaving

    @property
    def node_is_silent(self) -> bool:
        """It was called unready after its gate had opened, and container and gate are as they were: that is what the
        cluster does to the pods of a node that it does not hear from. A kubelet would have said why."""
        turned = 0.0 < self.gate_since_seconds < self.unready_since_seconds
        return turned and self.takes_requests and not self.ready

    @property
    def serves(self) -> bool:
        return self.ready and not self.leaving


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """A router's pod. It is ready while it knows a lane that takes traffic, so one that runs and is not ready may wait
    for workers. `running_since_seconds` is None while its container does not run. One that ended for good (evicted)
    counts as leaving: its Deployment makes another."""

    name: str
    uid: str
    ready: bool = False
    has_served: bool = False
    leaving: bool = False
    restarts: int = 0
    stuck: str = ""
    unschedulable: str = ""
    last_words: str = ""
    running_since_seconds: float | None = None
    unready_since_seconds: float = 0.0
    making_since_seconds: float | None = None
    held_back: str = ""


@dataclass(frozen=True, slots=True)
class Child:
    """Any other object, with its live form to compare with."""

    kind: str
    name: str
    uid: str
    live: Manifest = field(repr=False, compare=False)

    @property
    def leaving(self) -> bool:
        return "deletionTimestamp" in self.live["metadata"]


@dataclass(frozen=True, slots=True)
class Echo:
    """What one process has applied. `error` says why it refuses a later configuration."""

    generation: int
    step: int = 0
    error: str = ""
    speculation_fallback: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """`lanes` is None while no router's word has arrived; `echoes` are by pod name: of every router, with
    generation 0 while it has not answered, and of the workers that have. `rejected`: writes that the API server refuses
    for good, and its words. `failing`: what it keeps answering to a write that it may take later, empty while it does
    not. `asked` is False until the processes have once been asked for their echoes. `memory`: the configuration as it
    was last written, and where its canary stands. `goodput` is None while the routers' records have not been read.
    `redis_away`: why Redis has not answered for a while, empty while it does. `ready_routers` is the Deployment's own
    count; `routers_refused`: what the API server says to the pods that it would make, empty while they are taken."""

    pods: tuple[Pod, ...] = ()
    routers: tuple[Router, ...] = ()
    ready_routers: int = 0
    routers_refused: str = ""
    children: Mapping[tuple[str, str], Child] = field(default_factory=dict)
    others: Mapping[tuple[str, str], Owner] = field(default_factory=dict)
    lanes: LaneWord | None = None
    echoes: Mapping[str, Echo] = field(default_factory=dict)
    drained: frozenset[str] = frozenset()
    rejected: Mapping[tuple[str, str], str] = field(default_factory=dict)
    memory: Memory | None = None
    goodput: Records | None = None
    asked: bool = True
    failing: str = ""
    redis_away: str = ""

    def report(self, lane: str) -> LaneReport | None:
        """What routers say of a lane; None while nobody can tell."""
        return None if self.lanes is None else self.lanes.of(lane)

    @property
    def running(self) -> dict[str, int]:
        """Pods of each role in the fullest lane that stays."""
        counts: dict[tuple[str, int], int] = {}
        for pod in self.pods:
            if not pod.leaving:
                counts[pod.slot.role, pod.lane] = counts.get((pod.slot.role, pod.lane), 0) + 1
        return {
            role: max(count for (of, _), count in counts.items() if of == role)
            for role in naming.ROLES
            if any(of == role for of, _ in counts)
        }


def observe(
    pair: str,
    uid: str,
    objects: Iterable[Manifest],
    *,
    lanes: LaneWord | None = None,
    echoes: Mapping[str, Echo] | None = None,
    drained: frozenset[str] = frozenset(),
    rejected: Mapping[tuple[str, str], str] | None = None,
    goodput: Records | None = None,
    decided: Memory | None = None,
    asked: bool = True,
    failing: str = "",
    redis_away: str = "",
) -> Observed:
    """`objects`: everything in the pair's namespace that carries its label or one of its names. `decided`: what this
    process has wanted the ConfigMap to hold."""
    pods: list[Pod] = []
    routers: list[Router] = []
    children: dict[tuple[str, str], Child] = {}
    others: dict[tuple[str, str], Owner] = {}
    for live in objects:
        key = naming.key_of(live)
        if key[0] not in KINDS:
            continue
        owner = owner_of(live, pair, uid)
        pod = pod_of(pair, live, uid) if key[0] == "Pod" and owner is Owner.OURS else None
        if pod is not None:
            pods.append(pod)
        elif _is_router(live, pair):
            routers.append(router_of(live))
        elif owner is Owner.OURS and key[0] != "Pod":
            children[key] = Child(*key, live["metadata"].get("uid", ""), live)
        else:
            others[key] = owner
    ready_routers, routers_refused = _deployment(children.get(("Deployment", naming.child_name(pair, naming.ROUTER))))
    return Observed(
        pods=tuple(sorted(pods, key=lambda pod: (pod.lane, pod.slot, pod.name))),
        routers=tuple(sorted(routers, key=lambda router: router.name)),
        ready_routers=ready_routers,
        routers_refused=routers_refused,
        children=children,
        others=others,
        lanes=lanes,
        echoes=dict(echoes or {}),
        drained=drained,
        rejected=dict(rejected or {}),
        memory=_memory(children.get(("ConfigMap", naming.config_name(pair))), uid, decided),
        goodput=goodput,
        asked=asked,
        failing=failing,
        redis_away=redis_away,
    )


def _memory(config_map: Child | None, uid: str, decided: Memory | None) -> Memory | None:
    """What the ConfigMap holds; what we decided where a hand has taken that away or put other words in its place. A
    later one in the ConfigMap is another leader's."""
    stored = None
    if config_map is not None:
        data = config_map.live.get("data") or {}
        stored = recall(data.get(parts.CONFIG_FILE), config_map.live["metadata"].get("annotations") or {})
    if decided is None or decided.config.id.uid != uid:
        return stored
    if stored is None or stored.config.id.uid != uid:
        return decided
    return decided if decided.config.id.order >= stored.config.id.order else stored


def _deployment(router: Child | None) -> tuple[int, str]:
    """(ready pods, why it can make none) as its controller says."""
    status = router.live.get("status", {}) if router is not None else {}
    failures = (each for each in status.get("conditions", ()) if each["type"] == "ReplicaFailure")
    failure = next((each for each in failures if each.get("status") == "True"), None)
    said = "" if failure is None else str(failure.get("message") or failure.get("reason") or "no message")
    return int(status.get("readyReplicas") or 0), said


def owner_of(live: Manifest, pair: str, uid: str) -> Owner:
    metadata = live["metadata"]
    controller = next((ref for ref in metadata.get("ownerReferences", ()) if ref.get("controller")), None)
    if controller is None:
        labels = metadata.get("labels", {})
        ours = labels.get(naming.MANAGED_BY) == naming.MANAGER and labels.get(naming.PAIR) == pair
        return Owner.OURS if ours else Owner.FOREIGN
    if controller.get("uid") == uid:
        return Owner.OURS
    if controller.get("kind") == KIND and controller.get("name") == pair:
        return Owner.LEFTOVER
    return Owner.FOREIGN


def pod_of(pair: str, live: Manifest, uid: str = "") -> Pod | None:
    """None for a pod that is no worker's. Its place is read from its name: a label may have been edited."""
    metadata, status = live["metadata"], live.get("status", {})
    place = naming.place_of(pair, metadata["name"])
    if place is None:
        return None
    lane, slot, revision = place
    notes = metadata.get("annotations", {})
    conditions, container = _conditions(status), _container(status, worker_pods.CONTAINER)
    gate, ready = conditions.get(naming.LANE_READY), conditions.get("Ready", {})
    created = seconds_of(metadata.get("creationTimestamp"))
    deletion = metadata.get("deletionTimestamp")
    return Pod(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        slot=slot,
        lane=lane,
        revision=revision if _started_for(live) in ("", uid) else OF_ANOTHER,
        live=live,
        reported=revision,
        phase=status.get("phase", "Pending"),
        running="running" in container.get("state", {}),
        container_ready=bool(container.get("ready")),
        ready=ready.get("status") == "True",
        gate=None if gate is None else gate["status"] == "True",
        gate_since_seconds=seconds_of((gate or {}).get("lastTransitionTime")),
        restarts=int(container.get("restartCount", 0)),
        stuck=_stuck(container),
        unschedulable=_unschedulable(conditions),
        last_words=_last_words(container),
        created_seconds=created,
        unready_since_seconds=seconds_of(ready.get("lastTransitionTime")) or created,
        drain=notes.get(naming.DRAIN, ""),
        drain_since_seconds=seconds_of(notes.get(naming.DRAIN_SINCE)),
        deletion_seconds=None if deletion is None else seconds_of(deletion),
        forced=deletion is not None and metadata.get("deletionGracePeriodSeconds") == 0,
        node=str(live.get("spec", {}).get("nodeName") or ""),
        making_since_seconds=_making_since_seconds(conditions, container),
    )


def _started_for(live: Manifest) -> str:
    """The uid of the StreamPair that its worker serves; empty where its arguments do not say."""
    args = [word for container in live.get("spec", {}).get("containers", ())[:1] for word in container.get("args", ())]
    return next((after for word, after in pairwise(args) if word == "--pair-uid"), "")


def _is_router(live: Manifest, pair: str) -> bool:
    """As the pair's Service finds them, and not made by hand."""
    metadata = live["metadata"]
    labels = metadata.get("labels", {})
    if live["kind"] != "Pod" or (labels.get(naming.PAIR), labels.get(naming.ROLE)) != (pair, naming.ROUTER):
        return False
    return any(ref.get("controller") and ref.get("kind") == "ReplicaSet" for ref in metadata.get("ownerReferences", ()))


def router_of(live: Manifest) -> Router:
    metadata, status = live["metadata"], live.get("status", {})
    conditions, container = _conditions(status), _container(status, router_pods.CONTAINER)
    created, ready = seconds_of(metadata.get("creationTimestamp")), conditions.get("Ready", {})
    turned = seconds_of(ready.get("lastTransitionTime"))
    begun = seconds_of(conditions.get("Initialized", {}).get("lastTransitionTime"))
    running = container.get("state", {}).get("running")
    is_ready = ready.get("status") == "True"
    return Router(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        ready=is_ready,
        # A kubelet writes Ready for the first time when it begins with a pod: a later time is that of a change.
        has_served=is_ready or 0.0 < begun < turned,
        leaving="deletionTimestamp" in metadata or status.get("phase") in ("Failed", "Succeeded"),
        restarts=int(container.get("restartCount", 0)),
        stuck=_stuck(container),
        unschedulable=_unschedulable(conditions),
        last_words=_last_words(container),
        running_since_seconds=None if running is None else seconds_of(running.get("startedAt")),
        unready_since_seconds=turned or created,
        making_since_seconds=_making_since_seconds(conditions, container),
    )


def _conditions(status: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {condition["type"]: condition for condition in status.get("conditions", ())}


def _container(status: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next((c for c in status.get("containerStatuses", ()) if c["name"] == name), {})


def _unschedulable(conditions: Mapping[str, Mapping[str, Any]]) -> str:
    scheduled = conditions.get("PodScheduled", {})
    return str(scheduled.get("message", "")) if scheduled.get("status") == "False" else ""


def _making_since_seconds(conditions: Mapping[str, Mapping[str, Any]], container: Mapping[str, Any]) -> float | None:
    scheduled = conditions.get("PodScheduled", {})
    waiting = container.get("state", {}).get("waiting", {})
    if scheduled.get("status") != "True" or waiting.get("reason") not in _BEING_MADE:
        return None
    return seconds_of(scheduled.get("lastTransitionTime"))


def _stuck(container: Mapping[str, Any]) -> str:
    """Why the container can not even start, for as long as nobody mends it."""
    waiting = container.get("state", {}).get("waiting", {})
    if waiting.get("reason") not in STUCK_REASONS:
        return ""
    return f"{waiting['reason']}: {waiting.get('message') or 'no message'}"


def _last_words(container: Mapping[str, Any]) -> str:
    """The last line that a container wrote before it died, the present one or the one before."""
    for state in (container.get("state", {}), container.get("lastState", {})):
        if ended := state.get("terminated"):
            lines = [line.strip() for line in str(ended.get("message") or "").splitlines() if line.strip()]
            return lines[-1] if lines else f"{ended.get('reason') or 'exit'} {ended.get('exitCode', '')}".strip()
    return ""


def seconds_of(timestamp: object) -> float:
    """Of an RFC 3339 time; 0 for none."""
    return datetime.fromisoformat(timestamp).timestamp() if isinstance(timestamp, str) and timestamp else 0.0


def together(words: Sequence[LaneWord]) -> LaneWord:
    """One word from those of one or many routers: a lane is READY if one of them sends requests to it."""
    if len(words) == 1:
        return words[0]
    found: dict[str, LaneReport] = {}
    settled = False
    for word in words:
        settled = settled or word.settled
        for lane in word.lanes:
            report = word.of(lane)
            if report is not None and (lane not in found or report.state == READY):
                found[lane] = report
    return LaneWord(lanes=found, settled=settled)
