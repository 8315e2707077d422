"""What is read out of live objects: a pod's place, health and last words; whose an object is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from streamserve.contract.lane_word import LaneReport, LaneWord
from streamserve.contract.lanes import Slot
from streamserve.operator import naming
from streamserve.operator.observe import Owner, Router, observe, owner_of, pod_of, router_of, seconds_of, together

OURS = {naming.MANAGED_BY: naming.MANAGER, naming.PAIR: "tiny"}


def owned_by(uid: str, kind: str = "StreamPair", name: str = "tiny") -> list[dict[str, Any]]:
    return [{"apiVersion": "x", "kind": kind, "name": name, "uid": uid, "controller": True}]


OWNERS: dict[str, tuple[dict[str, Any], Owner]] = {
    "what carries our owner reference is ours": ({"ownerReferences": owned_by("u")}, Owner.OURS),
    "what lost its owner reference is ours by its labels": ({"labels": OURS}, Owner.OURS),
    "labels of another pair make it foreign": ({"labels": OURS | {naming.PAIR: "other"}}, Owner.FOREIGN),
    "nobody's labels make it foreign": ({}, Owner.FOREIGN),
    "a former pair of this name left it": ({"ownerReferences": owned_by("old"), "labels": OURS}, Owner.LEFTOVER),
    "another pair's object is foreign": ({"ownerReferences": owned_by("x", name="other")}, Owner.FOREIGN),
    "a controller's copy of our labels is foreign": (
        {"ownerReferences": owned_by("u2", "ReplicaSet", "tiny-router-1"), "labels": OURS},
        Owner.FOREIGN,
    ),
    "an owner that does not control is no owner": (
        {"ownerReferences": [{"kind": "StreamPair", "name": "tiny", "uid": "u", "controller": False}]},
        Owner.FOREIGN,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OWNERS)
def test_owner(name: str) -> None:
    metadata, want = OWNERS[name]
    assert owner_of({"metadata": {"name": "n", **metadata}}, "tiny", "u") is want


PLACES = {
    "tiny-prefill-0-0-0123456789": (0, Slot("prefill", 0), "0123456789"),
    "tiny-decode-255-7-abcdef0123": (255, Slot("decode", 7), "abcdef0123"),
    "tiny-router-0-0-0123456789": None,
    "tiny-two-prefill-0-0-0123456789": None,
    "other-prefill-0-0-0123456789": None,
    "tiny-prefill-0-0-nothexades": None,
}


@pytest.mark.parametrize("name", PLACES)
def test_a_place_is_read_from_a_pods_name(name: str) -> None:
    assert naming.place_of("tiny", name) == PLACES[name]


def test_names_of_the_longest_pair_have_63_characters() -> None:
    assert len(naming.pod_name("p" * 38, 255, Slot("prefill", 7), "0123456789")) == naming.MAX_NAME_LENGTH


@dataclass(frozen=True)
class Case:
    status: dict[str, Any]
    want: dict[str, Any]
    metadata: dict[str, Any] | None = None


def container(**fields: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "worker", "ready": False, "restartCount": 0, **fields}]}


CASES = {
    "a pod that was just made": Case({}, {"running": False, "ready": False, "gate": None, "phase": "Pending"}),
    "a pod that serves": Case(
        {
            **container(ready=True, state={"running": {}}),
            "phase": "Running",
            "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-21T12:00:00Z"},
                {"type": naming.LANE_READY, "status": "True"},
            ],
        },
        {"running": True, "container_ready": True, "ready": True, "gate": True, "serves": True},
    ),
    "a pod that was fenced has been ready once": Case(
        {"conditions": [{"type": naming.LANE_READY, "status": "False"}]}, {"gate": False}
    ),
    "an image that can not be pulled": Case(
        container(state={"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}}),
        {"stuck": "ImagePullBackOff: no such tag"},
    ),
    "a container that is being made is not stuck, and has been in the making since it came to its node": Case(
        {
            **container(state={"waiting": {"reason": "ContainerCreating"}}),
            "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-21T12:00:00Z"}],
        },
        {"stuck": "", "making_since_seconds": seconds_of("2026-11-21T12:00:00Z")},
    ),
    "a container whose image can not be pulled says so itself": Case(
        {
            **container(state={"waiting": {"reason": "ErrImagePull"}}),
            "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-21T12:00:00Z"}],
        },
        {"stuck": "ErrImagePull: no message", "making_since_seconds": None},
    ),
    "a volume claim that is missing keeps a pod from its node": Case(
        {"conditions": [{"type": "PodScheduled", "status": "False", "message": 'persistentvolumeclaim "w" not found'}]},
        {"unschedulable": 'persistentvolumeclaim "w" not found', "making_since_seconds": None},
    ),
    "a crash loop and its last line": Case(
        container(
            restartCount=4,
            state={"waiting": {"reason": "CrashLoopBackOff"}},
            lastState={"terminated": {"exitCode": 2, "message": "loading\nerror: no such flag\n\n"}},
        ),
        {"restarts": 4, "last_words": "error: no such flag", "stuck": ""},
    ),
    "a container that died without a word": Case(
        container(restartCount=1, lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
        {"last_words": "OOMKilled 137"},
    ),
    "no node has room": Case(
        {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes: no gpu"}]},
        {"unschedulable": "0/2 nodes: no gpu"},
    ),
    "a pod that drains": Case(
        {},
        {"drain": "ScaledDown", "drain_since_seconds": seconds_of("2026-11-21T12:00:00Z"), "leaving": True},
        {"annotations": {naming.DRAIN: "ScaledDown", naming.DRAIN_SINCE: "2026-11-21T12:00:00Z"}},
    ),
    "a pod that is being deleted": Case({}, {"leaving": True}, {"deletionTimestamp": "2026-11-21T12:00:00Z"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_pod(name: str) -> None:
    case = CASES[name]
    metadata = {"name": "tiny-prefill-1-0-0123456789", "uid": "p", **(case.metadata or {})}
    pod = pod_of("tiny", {"kind": "Pod", "metadata": metadata, "status": case.status})
    assert pod is not None
    assert {field: getattr(pod, field) for field in case.want} == case.want


BEGUN, CHANGED = "2026-11-21T12:00:00Z", "2026-11-21T12:05:00Z"


def router_pod(ready: bool, turned: str = BEGUN, phase: str = "Running", **fields: Any) -> dict[str, Any]:
    """As the Deployment's ReplicaSet makes it, with what its kubelet says."""
    return {
        "kind": "Pod",
        "metadata": {
            "name": "tiny-router-5d8-x7k2p",
            "uid": "r",
            "labels": OURS | {naming.ROLE: naming.ROUTER},
            "ownerReferences": owned_by("rs", "ReplicaSet", "tiny-router-5d8"),
            "creationTimestamp": BEGUN,
        },
        "status": {
            "phase": phase,
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": BEGUN},
                {"type": "Initialized", "status": "True", "lastTransitionTime": BEGUN},
                {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": turned},
            ],
            "containerStatuses": [{"name": "router", "restartCount": 0, **fields}],
        },
    }


ROUTERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "serves": (
        router_pod(True, CHANGED, state={"running": {"startedAt": BEGUN}}),
        {"ready": True, "has_served": True, "leaving": False, "running_since_seconds": seconds_of(BEGUN)},
    ),
    "has never been ready": (
        router_pod(False, restartCount=2, state={"waiting": {"reason": "CrashLoopBackOff"}}),
        {"ready": False, "has_served": False, "restarts": 2, "running_since_seconds": None, "stuck": ""},
    ),
    "was ready once": (router_pod(False, CHANGED), {"has_served": True, "unready_since_seconds": seconds_of(CHANGED)}),
    "can not pull its image": (
        router_pod(False, state={"waiting": {"reason": "ErrImagePull", "message": "denied"}}),
        {"stuck": "ErrImagePull: denied"},
    ),
    "waits for what it mounts": (
        router_pod(False, state={"waiting": {"reason": "ContainerCreating"}}),
        {"stuck": "", "making_since_seconds": seconds_of(BEGUN)},
    ),
    "was evicted": (router_pod(False, CHANGED, phase="Failed"), {"leaving": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_that(name: str) -> None:
    live, want = ROUTERS[name]
    router = router_of(live)
    assert {field: getattr(router, field) for field in want} == want


def test_pods_of_the_routers_deployment_are_routers_and_nobody_elses_are() -> None:
    theirs, by_hand, workers = router_pod(True), router_pod(True), router_pod(True)
    theirs["metadata"]["labels"] = OURS | {naming.PAIR: "other", naming.ROLE: naming.ROUTER}
    by_hand["metadata"]["ownerReferences"] = []
    workers["metadata"]["labels"] = OURS | {naming.ROLE: "decode"}
    for name, pod in (("theirs", theirs), ("by-hand", by_hand), ("workers", workers)):
        pod["metadata"]["name"] = name
    seen = observe("tiny", "u", [theirs, by_hand, workers, router_pod(True)])
    assert [router.name for router in seen.routers] == ["tiny-router-5d8-x7k2p"]
    assert isinstance(seen.routers[0], Router)
    assert {name for _, name in seen.others} == {"theirs", "by-hand", "workers"}


def deployment(status: dict[str, Any], name: str = "tiny-router") -> dict[str, Any]:
    return {
        "kind": "Deployment",
        "metadata": {"name": name, "labels": OURS, "ownerReferences": owned_by("u")},
        "status": status,
    }


REFUSED = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota: small"}
DEPLOYMENTS: dict[str, tuple[list[dict[str, Any]], tuple[int, str]]] = {
    "counts the routers that are ready": ([deployment({"replicas": 3, "readyReplicas": 2})], (2, "")),
    "that says nothing yet has none": ([deployment({})], (0, "")),
    "says why it can make no pod": ([deployment({"conditions": [REFUSED]})], (0, "exceeded quota: small")),
    "that could not once is past it": ([deployment({"conditions": [REFUSED | {"status": "False"}]})], (0, "")),
    "of another name is no router's": ([deployment({"readyReplicas": 2}, "tiny-other")], (0, "")),
    "that is not there has none": ([], (0, "")),
}  # fmt: skip


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment(name: str) -> None:
    objects, want = DEPLOYMENTS[name]
    seen = observe("tiny", "u", objects)
    assert (seen.ready_routers, seen.routers_refused) == want


def test_objects_that_controllers_make_with_our_labels_are_not_looked_at() -> None:
    slice_ = {"kind": "EndpointSlice", "metadata": {"name": "tiny-prefill-x", "labels": OURS}}
    endpoints = {"kind": "Endpoints", "metadata": {"name": "tiny-prefill", "labels": OURS}}
    seen = observe("tiny", "u", [slice_, endpoints])
    assert (seen.children, seen.others, seen.pods) == ({}, {}, ())


READY, FENCED, PROBING = (LaneReport(state=state, reason="why") for state in ("READY", "FENCED", "PROBING"))
WORDS = {
    "ready, when one router sends requests to it": ([(True, FENCED), (True, READY), (True, FENCED)], "READY"),
    "ready, when a router that has just started sends requests to it": ([(True, FENCED), (False, READY)], "READY"),
    "fenced, when all fence it": ([(True, FENCED), (True, FENCED)], "FENCED"),
    "fenced, when the only router has just started and its canary failed": ([(False, FENCED)], "FENCED"),
    "as the others say, while one that has just started waits": ([(False, PROBING), (True, READY)], "READY"),
    "waited for, when a settled router does": ([(True, PROBING), (False, PROBING)], "PROBING"),
    "not known, while the only router has just started": ([(False, PROBING)], None),
    "not known, while the only router has not heard of it": ([(False, None)], None),
    "not known to anybody, when a settled router has not heard of it": ([(True, None), (False, PROBING)], ""),
}


@pytest.mark.parametrize(("said", "state"), WORDS.values(), ids=WORDS)
def test_a_lane_is(said: list[tuple[bool, LaneReport | None]], state: str | None) -> None:
    words = [LaneWord(settled=settled, lanes={"lane-0": row} if row else {}) for settled, row in said]
    report = together(words).of("lane-0")
    assert (report.state if report else None) == state


def test_nothing_is_known_without_a_router() -> None:
    assert observe("tiny", "u", []).report("lane-0") is None
