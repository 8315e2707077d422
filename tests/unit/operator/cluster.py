"""A cluster in a dictionary: it takes the operator's actions, and kubelets and routers that behave, crash or stall.

Server-side apply replaces what was applied before and keeps what others wrote; a pod's spec is immutable but for its
image, and a delete with another uid fails, as on the real API server. Nothing happens by itself: `tick` lets one
second of the world pass, and `random` decides how far each pod gets in it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from datetime import UTC, datetime
from random import Random
from typing import Any

from streamserve.contract import runtime_config
from streamserve.contract.goodput import GoodputMinute
from streamserve.contract.lane_word import LaneReport, LaneWord
from streamserve.contract.lanes import Slot
from streamserve.operator import naming
from streamserve.operator.actions import Action, Apply, Delete, Drain, Rehearse, SetGate
from streamserve.operator.canary.memory import Memory
from streamserve.operator.decide import Decision, decide
from streamserve.operator.observe import Echo, Observed, Pod, observe
from streamserve.operator.site import Site

Body = dict[str, Any]
Key = tuple[str, str]
BAD_IMAGE = "registry.example/bad:1"
LAST_LINE = "error: unrecognized arguments: --no-such-flag"


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class Cluster:
    def __init__(self, body: Body, site: Site, *, seed: int = 0, lazy: bool = False) -> None:
        self.body, self.site = copy.deepcopy(body), site
        self.objects: dict[Key, dict[str, Any]] = {}
        self.drained: set[str] = set()
        self.now = 1_800_000_000.0
        self.random, self.lazy = Random(seed), lazy
        self.reports: dict[str, LaneReport] | None = {}
        self.routers_settled = True
        self.config: runtime_config.RuntimeConfig | None = None
        self.decided: Memory | None = None
        self.goodput: dict[str, list[GoodputMinute]] | None = {}
        self.checks: list[Callable[[Cluster, Action], None]] = []
        self._uids = 0

    # -- the operator's side -------------------------------------------------------------------------------------

    def observe(self) -> Observed:
        metadata = self.body["metadata"]
        self._listen()
        echo = Echo(0) if self.config is None else Echo(*self.config.id.order)
        echoes = {pod.name: echo for pod in self.pods if pod.container_ready}
        return observe(
            metadata["name"],
            metadata["uid"],
            self.objects.values(),
            lanes=None if self.reports is None else LaneWord(lanes=self.reports, settled=self.routers_settled),
            echoes={**echoes, "router-1": echo},
            drained=frozenset(self.drained),
            goodput=self.goodput,
            decided=self.decided,
        )

    def _listen(self) -> None:
        """Every process takes what the ConfigMap holds, at once, and keeps what it has where it cannot."""
        live = self.objects.get(("ConfigMap", naming.config_name(self.body["metadata"]["name"])))
        with contextlib.suppress(runtime_config.ConfigError, KeyError):
            found = None if live is None else runtime_config.decode(live["data"]["config.json"])
            if found is not None and found.id.supersedes(self.config.id if self.config else None):
                self.config = found

    def decide(self) -> Decision:
        return decide(self.body, self.site, self.observe(), self.now)

    def reconcile(self, *, crash_after: int | None = None) -> int:
        """Decide and carry out, at most `crash_after` writes of it. Returns how many were made."""
        decision = self.decide()
        writes = [action for action in decision.actions if not isinstance(action, Rehearse)]
        for action in writes[:crash_after]:
            before = copy.deepcopy(self.objects.get((action.kind, action.name)))
            self.carry_out(action)
            for check in self.checks:
                check(self, action)
            assert self.objects.get((action.kind, action.name)) != before, f"{action} changed nothing"
        self.decided = None if crash_after is not None else decision.memory
        if crash_after is None and decision.status is not None:
            self.body["status"] = decision.status
        return len(writes[:crash_after])

    def carry_out(self, action: Action) -> None:
        match action:
            case Apply(manifest=manifest, seed=seed):
                self._apply(manifest, seed)
            case Drain():
                live = self._of_uid(action.kind, action.name, action.uid)
                notes = live["metadata"].setdefault("annotations", {})
                notes |= {naming.DRAIN: action.reason.value, naming.DRAIN_SINCE: action.since}
            case SetGate():
                live = self._of_uid(action.kind, action.name, action.uid)
                self._condition(live, naming.LANE_READY, action.ready)
                self._ready(live)
            case Delete():
                self.delete(action.kind, action.name, action.uid, action.grace_seconds)

    def _apply(self, manifest: dict[str, Any], seed: dict[str, Any] | None) -> None:
        key, made = naming.key_of(manifest), copy.deepcopy(manifest)
        old = self.objects.get(key)
        if old is None:
            self._uids += 1
            made["metadata"] |= {"uid": f"uid-{self._uids}", "creationTimestamp": stamp(self.now)}
            for field, value in (seed or {}).items():
                made[field] = {**value, **made.get(field, {})}
            if key[0] == "Pod":
                made["status"] = {"phase": "Pending", "conditions": [], "containerStatuses": []}
            self.objects[key] = made
            return
        if key[0] == "Pod":
            assert without_image(made["spec"]) == without_image(old["spec"]), f"the spec of {key[1]} is immutable"
        made_notes = made["metadata"].get("annotations", {})
        others = {} if key[0] == "ConfigMap" else old["metadata"].get("annotations", {})
        notes = {**others, **made_notes}
        kept = {field: old["metadata"][field] for field in ("uid", "creationTimestamp")}
        made["metadata"] |= kept | ({"annotations": notes} if notes else {})
        if "replicas" in old.get("spec", {}) and key[0] == "StreamPairScaler":
            made["spec"]["replicas"] = old["spec"]["replicas"]
        self.objects[key] = {**old, **made}

    def delete(self, kind: str, name: str, uid: str = "", grace_seconds: int | None = None) -> None:
        live = self._of_uid(kind, name, uid) if uid else self.objects[kind, name]
        if kind != "Pod" or grace_seconds == 0:
            del self.objects[kind, name]
            return
        grace = live["spec"]["terminationGracePeriodSeconds"] if grace_seconds is None else grace_seconds
        live["metadata"]["deletionTimestamp"] = stamp(self.now + grace)
        self._ready(live)

    def _of_uid(self, kind: str, name: str, uid: str) -> dict[str, Any]:
        live = self.objects[kind, name]
        assert live["metadata"]["uid"] == uid, f"{kind} {name} is another object by now"
        return live

    # -- the world's side ----------------------------------------------------------------------------------------

    def edit(self, body: Body) -> None:
        """The user's apply: a new spec is a new generation, the status stays."""
        self.body = {**copy.deepcopy(body), "status": self.body.get("status")}

    def tick(self, seconds: float = 1.0) -> bool:
        """True when something moved."""
        self.now += seconds
        before = self._state()
        for key, live in list(self.objects.items()):
            if key[0] == "Pod" and "containers" in live["spec"] and self._moves():
                self._kubelet(key, live)
            elif key[0] == "Deployment":
                live["status"] = {"readyReplicas": live["spec"]["replicas"]}
        self._router()
        return self._state() != before

    def _state(self) -> object:
        statuses = {key: copy.deepcopy(live["status"]) for key, live in self.objects.items() if "status" in live}
        return statuses, set(self.drained), self.reports

    def _moves(self) -> bool:
        return not self.lazy or self.random.random() < 0.5

    def _kubelet(self, key: Key, live: dict[str, Any]) -> None:
        metadata, status = live["metadata"], live["status"]
        if "deletionTimestamp" in metadata:
            del self.objects[key]
            return
        if naming.DRAIN in metadata.get("annotations", {}):
            self.drained.add(metadata["uid"])
        container = next(iter(status["containerStatuses"]), None)
        if container is None:
            container = {"name": "worker", "ready": False, "restartCount": 0, "state": {"running": {}}}
            status |= {"phase": "Running", "containerStatuses": [container]}
        elif live["spec"]["containers"][0]["image"] == BAD_IMAGE:
            if container["restartCount"] < 5:
                container["restartCount"] += 1
            dead = {"exitCode": 2, "message": f"starting\n{LAST_LINE}\n"}
            container |= {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": dead}}
        else:
            container |= {"ready": True, "state": {"running": {}}}
        self._ready(live)

    def _router(self) -> None:
        if self.reports is None:
            return
        self.reports = {}
        for lane in {pod.lane for pod in self.pods}:
            up = [pod for pod in self.pods if pod.lane == lane and pod.container_ready and not pod.leaving]
            roles = {pod.slot.role for pod in up}
            state = "READY" if roles == set(naming.ROLES) else "FENCED"
            self.reports[f"lane-{lane}"] = LaneReport(
                state=state, reason="" if state == "READY" else "a worker is away"
            )

    def _condition(self, live: dict[str, Any], kind: str, value: bool) -> None:
        conditions = {each["type"]: each for each in live["status"]["conditions"]}
        status = "True" if value else "False"
        if conditions.get(kind, {}).get("status") != status:
            conditions[kind] = {"type": kind, "status": status, "lastTransitionTime": stamp(self.now)}
        live["status"]["conditions"] = list(conditions.values())

    def _ready(self, live: dict[str, Any]) -> None:
        status = live["status"]
        gate = any(c["type"] == naming.LANE_READY and c["status"] == "True" for c in status["conditions"])
        up = any(container["ready"] for container in status["containerStatuses"])
        self._condition(live, "Ready", gate and up and "deletionTimestamp" not in live["metadata"])

    def kubelet_says(self, ready: bool, pods: str, *, container: bool = False) -> None:
        """Of the pods whose names begin so, of their containers too; their gates stay as they are."""
        for (kind, name), live in self.objects.items():
            if kind == "Pod" and name.startswith(pods):
                self._condition(live, "Ready", ready)
                for status in live["status"]["containerStatuses"] if container else ():
                    status["ready"] = ready

    def wreck(self) -> None:
        """Do something to the children that nobody should do; what still has an owner or labels stays known as ours."""
        key = self.random.choice(sorted(self.objects))
        live = self.objects[key]
        if key[0] != "Pod" or self.random.random() < 0.2:
            if self.random.random() < 0.5:
                self.delete(*key)
            elif live["metadata"]["labels"]:
                live["metadata"].pop("ownerReferences", None)
            return
        match self.random.randrange(6):
            case 0:
                reason = self.random.choice(["RevisionChanged", "ScaledDown", "ReplicasChanged"])
                notes = live["metadata"].setdefault("annotations", {})
                notes |= {naming.DRAIN: reason, naming.DRAIN_SINCE: stamp(self.now - self.random.randrange(40))}
            case 1:
                live["status"] |= {"phase": "Failed", "containerStatuses": []}
                self._ready(live)
            case 2:
                self._condition(live, naming.LANE_READY, False)
                self._ready(live)
            case 3 if "ownerReferences" in live["metadata"]:
                live["metadata"]["labels"] = {}
            case 4:
                waiting = {"reason": "ImagePullBackOff"}
                never = {"name": "worker", "ready": False, "restartCount": 9, "state": {"waiting": waiting}}
                live["status"] |= {"conditions": [], "containerStatuses": [never]}
            case _:
                self._clone(live)

    def _clone(self, live: dict[str, Any]) -> None:
        """A pod that nobody wants: in another lane, of another place or revision."""
        place = naming.place_of(self.body["metadata"]["name"], live["metadata"]["name"])
        assert place is not None
        lane, slot, revision = place
        slot = Slot(slot.role, self.random.randrange(8))
        name = naming.pod_name(
            self.body["metadata"]["name"],
            self.random.choice([lane, self.random.randrange(8)]),
            slot,
            self.random.choice([revision, "0123456789"]),
        )
        if ("Pod", name) not in self.objects:
            self._uids += 1
            copied = copy.deepcopy(live)
            copied["metadata"] |= {"name": name, "uid": f"uid-{self._uids}"}
            self.objects["Pod", name] = copied

    # -- looking -------------------------------------------------------------------------------------------------

    @property
    def pods(self) -> tuple[Pod, ...]:
        metadata = self.body["metadata"]
        return observe(metadata["name"], metadata["uid"], self.objects.values()).pods

    @property
    def serving(self) -> set[int]:
        """Lanes that take traffic."""
        roles: dict[int, set[str]] = {}
        for pod in self.pods:
            if pod.serves:
                roles.setdefault(pod.lane, set()).add(pod.slot.role)
        return {lane for lane, found in roles.items() if found == set(naming.ROLES)}

    def settle(self, limit: int = 200) -> None:
        """Until neither the operator nor the world has anything left to do."""
        for _ in range(limit):
            if self.reconcile() + self.tick() == 0 and not self.lazy:
                return
            self.lazy = self.lazy and self.random.random() < 0.9
        raise AssertionError(f"no fixpoint after {limit} rounds: {self.decide().actions}")

    def condition(self, kind: str) -> dict[str, Any]:
        found: dict[str, Any] = next(c for c in self.body["status"]["conditions"] if c["type"] == kind)
        return found

    def picture(self) -> dict[Key, Any]:
        """What there is, without what differs between two clusters that are the same."""
        return {key: plain(live) for key, live in sorted(self.objects.items())}


def plain(live: dict[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy({field: value for field, value in live.items() if field != "status"})
    for field in ("uid", "creationTimestamp"):
        found["metadata"].pop(field, None)
    if live["kind"] == "Pod":
        # Hot: a pod keeps the drain time that it was started with.
        found["spec"].pop("terminationGracePeriodSeconds")
        args = found["spec"]["containers"][0]["args"]
        args[args.index("--drain-seconds") + 1] = "any"
    return found


def without_image(spec: dict[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(spec)
    for container in found["containers"]:
        container.pop("image")
    return found
