"""What is read out of live objects: a pod's place, health and last words; whose an object is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from streamserve.contract.lane_word import LaneReport, LaneWord
from streamserve.contract.lanes import Slot
from streamserve.operator import naming
from streamserve.operator.observe import Owner, observe, owner_of, pod_of, seconds_of, together

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
    "a container that is being made is not stuck": Case(
        container(state={"waiting": {"reason": "ContainerCreating"}}), {"stuck": ""}
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
