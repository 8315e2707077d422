"""Objects of somebody else under our names, of every kind: left alone and told. Once they are gone, all is made."""

from __future__ import annotations

from typing import Any

import pytest
from tests.controlplane.faults.conftest import Undisturbed
from tests.controlplane.faults.scenarios import BY_NAME, Stage
from tests.support.operator_bench import CHILDREN, PAIR, Body

from streamserve.operator.edge.resources import BY_KIND
from streamserve.operator.refusals import mounted_by_workers

SCENARIO = BY_NAME["create-scaled"]
STRANGER: Body = {"apiVersion": "v1", "kind": "Stranger", "name": "someone", "uid": "0-0-0-0", "controller": True}
CONTAINERS = [{"name": "theirs", "image": "theirs:1"}]
LABELS = {"app": "theirs"}
TEMPLATE: Body = {"metadata": {"labels": LABELS}, "spec": {"containers": CONTAINERS}}
THEIRS: dict[str, tuple[str, Body]] = {
    "ServiceAccount": ("llama-worker", {}),
    "ConfigMap": ("llama-config", {"data": {"theirs": "yes"}}),
    "Service": ("llama-decode", {"spec": {"ports": [{"port": 80}]}}),
    "Deployment": ("llama-router", {"spec": {"selector": {"matchLabels": LABELS}, "template": TEMPLATE}}),
    "PodDisruptionBudget": ("llama-workers", {"spec": {"selector": {"matchLabels": LABELS}}}),
    "StreamPairScaler": ("llama-prefill", {"spec": {"pairName": PAIR, "role": "Prefill", "replicas": 1}}),
    "Pod": ("llama-decode-1-0-", {"spec": {"containers": CONTAINERS}}),
}
SAMPLE = ("ConfigMap", False)


@pytest.mark.parametrize(
    ("kind", "alike"),
    [
        pytest.param(
            kind,
            alike,
            id=f"{kind}-{'with-our-labels' if alike else 'bare'}",
            marks=() if (kind, alike) == SAMPLE else pytest.mark.everything,
        )
        for kind in CHILDREN
        for alike in (False, True)
    ],
)
def test_a_strangers_object_under_our_name_is_left_alone_and_told(
    kind: str, alike: bool, stage: Stage, undisturbed: Undisturbed
) -> None:
    """`alike`: it has our labels, and is another's by its owner."""
    wanted, _ = undisturbed.of(SCENARIO.name, stage)
    key = key_of(kind, wanted)
    stage.operate()
    theirs = plant(stage, key, wanted[key]["metadata"]["labels"] if alike else None)
    SCENARIO.change(stage.bench)
    told(stage, key)
    assert same(stage.bench.one(*key), theirs)
    if mounted_by_workers(key):
        assert not stage.bench.all("Pod")
    stage.bench.remove(*key)
    assert stage.settle(remains=True) == wanted


@pytest.mark.parametrize("kind", CHILDREN)
@pytest.mark.everything
def test_a_strangers_object_in_the_place_of_ours_touches_no_pod_of_a_healthy_lane(
    kind: str, stage: Stage, undisturbed: Undisturbed
) -> None:
    wanted, _ = undisturbed.of(SCENARIO.name, stage)
    key = key_of(kind, wanted)
    operator = stage.operate()
    SCENARIO.change(stage.bench)
    assert stage.settle(remains=True) == wanted
    lanes = (0,) if kind == "Pod" else (0, 1)
    before = stage.uids(lanes)
    operator.freeze()
    stage.bench.remove(*key)
    theirs = plant(stage, key, None)
    operator.thaw()
    told(stage, key)
    assert same(stage.bench.one(*key), theirs)
    assert stage.uids(lanes) == before
    stage.bench.remove(*key)
    assert stage.settle(remains=True) == wanted
    assert stage.uids(lanes) == before


def key_of(kind: str, wanted: dict[tuple[str, str], Body]) -> tuple[str, str]:
    """Ours that begins with the name above: a pod's ends with its revision."""
    (key,) = [key for key in wanted if key[0] == kind and key[1].startswith(THEIRS[kind][0])]
    return key


def plant(stage: Stage, key: tuple[str, str], labels: dict[str, str] | None) -> Body:
    kind, name = key
    metadata: dict[str, Any] = {"name": name}
    if labels is not None:
        metadata |= {"labels": labels, "ownerReferences": [STRANGER]}
    body = {"apiVersion": BY_KIND[kind].api_version, "kind": kind, "metadata": metadata, **THEIRS[kind][1]}
    answer = stage.bench.call("POST", BY_KIND[kind].path(stage.bench.namespace), body)
    assert answer.ok, answer.body
    return answer.body


def told(stage: Stage, key: tuple[str, str]) -> None:
    said = stage.bench.until("Degraded", "True", reason="ForeignObject")
    assert " ".join(key) in said["message"]
    stage.rest()


def same(now: Body | None, then: Body) -> bool:
    """But for its status, which the kubelet writes."""
    assert now is not None
    of_metadata = ("uid", "labels", "annotations", "ownerReferences")
    left = [{key: body["metadata"].get(key) for key in of_metadata} for body in (now, then)]
    return left[0] == left[1] and all(now.get(key) == then.get(key) for key in ("spec", "data", "secrets"))
