"""A node that stops answering: its lane waits, the others serve on, and once the node is gone the lane is made anew."""

from __future__ import annotations

import time

from tests.controlplane.faults.conftest import Undisturbed
from tests.controlplane.faults.scenarios import Scenario, Stage
from tests.support.operator_bench import STRATEGIC, Body

from streamserve.operator import naming
from streamserve.operator.edge.resources import BY_KIND

REST = Scenario("rest", lambda bench: None, untouched=(0,))
LOST_LANE = "1"
STAYS_SECONDS = 5.0


def test_a_node_that_is_not_ready_and_then_gone(stage: Stage, undisturbed: Undisturbed) -> None:
    wanted, _ = undisturbed.of("create", stage)
    stage.operate()
    before, bench = stage.prepare(REST), stage.bench
    lost = [pod for pod in bench.all("Pod") if pod["metadata"]["labels"].get(naming.LANE) == LOST_LANE]
    assert len(lost) == 2
    for pod in lost:
        _to_node(stage, pod)
    bench.kubelet.lost |= {pod["metadata"]["uid"] for pod in lost}
    for pod in lost:
        _not_ready(stage, pod)
    bench.until("Ready", "False")
    assert bench.condition("Available")["status"] == "True"

    # After its five minutes of patience the cluster asks the pods to go. Nobody hears it.
    for pod in lost:
        bench.call("DELETE", _path(stage, pod), {"gracePeriodSeconds": 30})
    time.sleep(STAYS_SECONDS)
    there = {pod["metadata"]["uid"] for pod in bench.all("Pod")}
    assert {pod["metadata"]["uid"] for pod in lost} <= there, "a worker that may still run is not doubled"
    assert stage.uids(REST.untouched) == before

    # The node is deleted, and with it what was on it.
    for pod in lost:
        bench.remove("Pod", pod["metadata"]["name"])
    assert stage.settle(remains=True) == wanted
    assert stage.uids(REST.untouched) == before


def _path(stage: Stage, pod: Body, subresource: str = "") -> str:
    return BY_KIND["Pod"].path(stage.bench.namespace, pod["metadata"]["name"], subresource)


def _to_node(stage: Stage, pod: Body) -> None:
    """The scheduler's word: only a pod on a node waits for it when it is deleted."""
    target = {"apiVersion": "v1", "kind": "Node", "name": "node-b"}
    body = {"metadata": {"name": pod["metadata"]["name"]}, "target": target}
    answer = stage.bench.call("POST", _path(stage, pod, "binding"), body)
    assert answer.ok, answer.body


def _not_ready(stage: Stage, pod: Body) -> None:
    """What the controller of nodes writes when a kubelet is silent."""
    condition = {"type": "Ready", "status": "False", "reason": "NodeNotReady"}
    answer = stage.bench.call("PATCH", _path(stage, pod, "status"), {"status": {"conditions": [condition]}}, STRATEGIC)
    assert answer.ok, answer.body
