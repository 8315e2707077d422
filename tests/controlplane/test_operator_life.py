"""The operator on a real API server: it makes what is asked for, then rests, and mends what others do to it."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from tests.support.operator_bench import MERGE, PAIR, SPEC, OperatorBench
from tests.support.processes import Process, wait_until

from streamserve.contract import runtime_config
from streamserve.contract.keys import Keyspace
from streamserve.contract.streampair.crd import definitions
from streamserve.operator.edge.resources import BY_KIND, EVENT
from streamserve.operator.naming import FIELD_MANAGER

WHOLE = {
    ("ServiceAccount", "llama-worker"),
    ("ServiceAccount", "llama-router"),
    ("ConfigMap", "llama-config"),
    ("Service", "llama-prefill"),
    ("Service", "llama-decode"),
    ("Service", "llama-router"),
    ("Deployment", "llama-router"),
    ("PodDisruptionBudget", "llama-workers"),
    ("PodDisruptionBudget", "llama-router"),
}
REST_SECONDS = 15.0


@pytest.fixture
def operator(bench: OperatorBench) -> Process:
    return bench.start("operator")


def served(bench: OperatorBench, operator: Process) -> None:
    """A StreamPair that is ready, with an operator at rest."""
    bench.create()
    bench.until("Ready", "True")
    bench.until("ConfigApplied", "True")
    bench.until_quiet(operator)


def test_a_pair_is_made_whole_and_becomes_ready(bench: OperatorBench, operator: Process) -> None:
    served(bench, operator)
    names = bench.names()
    pods = {name for kind, name in names if kind == "Pod"}
    assert names - {("Pod", name) for name in pods} == WHOLE
    assert sorted(name.rpartition("-")[0] for name in pods) == [
        "llama-decode-0-0",
        "llama-decode-1-0",
        "llama-prefill-0-0",
        "llama-prefill-1-0",
    ]
    status = (bench.one("StreamPair", PAIR) or {})["status"]
    assert (status["lanes"], status["readyLanes"]) == (2, 2)
    assert status["config"] == {"generation": 1, "appliedBy": 4, "of": 4}
    assert bench.condition("Degraded")["status"] == "False"
    assert bench.get(operator, "/healthz") == (200, "ok\n")
    assert bench.get(operator, "/readyz") == (200, "ok\n")


def test_at_rest_nothing_is_written_but_the_lease(bench: OperatorBench, operator: Process) -> None:
    served(bench, operator)
    before, writes, requests = bench.versions(), bench.writes(operator), bench.metrics(operator)
    time.sleep(REST_SECONDS)
    assert bench.versions() == before
    assert bench.writes(operator) == writes
    after = bench.metrics(operator)
    verbs = {name for name, value in after.items() if "api_requests_total" in name and value != requests.get(name)}
    assert all('verb="GET"' in name or 'verb="PUT"' in name for name in verbs), verbs


def test_a_hot_edit_arrives_in_the_configmap_and_in_redis_and_touches_no_pod(
    bench: OperatorBench, operator: Process
) -> None:
    served(bench, operator)
    pods = {name: version for (kind, name), version in bench.versions().items() if kind == "Pod"}
    began = time.monotonic()
    bench.edit({"speculation": {"depth": {"max": 2}}})
    bench.until("ConfigApplied", "True", seconds=10)
    took = time.monotonic() - began
    stored = json.loads((bench.one("ConfigMap", "llama-config") or {})["data"]["config.json"])
    with bench.redis.client() as client:
        pushed = client.get(Keyspace(bench.namespace, PAIR).config)
    assert isinstance(pushed, bytes)
    assert runtime_config.decode(pushed).id.generation == 2
    assert runtime_config.decode(pushed).speculation.max_depth == 2
    assert json.loads(pushed) == stored
    assert took < 5.0, f"{took:.1f} s"
    assert {name: version for (kind, name), version in bench.versions().items() if kind == "Pod"} == pods


def test_the_only_lane_of_a_pair_that_says_nothing_of_updates_waits_for_a_surge(
    bench: OperatorBench, operator: Process
) -> None:
    """The server stores defaults beside what was written: none of them may read as leave to stop the only lane."""
    bench.create({"lanes": 1})
    bench.until("Ready", "True")
    bench.until("ConfigApplied", "True")
    bench.until_quiet(operator)
    pods = {name: version for (kind, name), version in bench.versions().items() if kind == "Pod"}
    bench.edit({"engine": {"image": "registry.example/b:1"}})
    bench.until("Progressing", "False", reason="NeedsSurge", seconds=10)
    bench.until_quiet(operator)
    assert {name: version for (kind, name), version in bench.versions().items() if kind == "Pod"} == pods
    bench.edit({"update": {"maxUnavailable": 1}})
    bench.until("Ready", "True")
    assert pods.keys().isdisjoint(name for kind, name in bench.names() if kind == "Pod")


def without_rules(schema: Any) -> Any:
    """The CRD as it was before any rule between fields was written."""
    if isinstance(schema, dict):
        return {key: without_rules(value) for key, value in schema.items() if key != "x-kubernetes-validations"}
    return [without_rules(each) for each in schema] if isinstance(schema, list) else schema


def test_a_spec_that_an_older_crd_let_through_is_told_and_what_runs_is_left_alone(
    bench: OperatorBench, operator: Process
) -> None:
    """Also a CRD that is replaced under a running operator, twice."""
    served(bench, operator)
    before = bench.shape()
    now = definitions()["streampairs"]
    try:
        bench.install(without_rules(now))
        # For a moment after it has taken a CRD the server still goes by the one before.
        path = BY_KIND["StreamPair"].path(bench.namespace, PAIR)
        refused = {"spec": {"prefill": {"template": {"env": [{"name": "POD_IP", "value": "x"}]}}}}
        wait_until(lambda: bench.call("PATCH", path, refused, MERGE).ok, seconds=10, what="the rules are gone")
        said = bench.until("Ready", "False", reason="InvalidSpec")
    finally:
        bench.install(now)
    assert "spec.prefill.template.env[0].name: POD_IP is set by StreamServe" in said["message"]
    bench.until_quiet(operator)
    assert bench.shape() == before
    bench.edit({"prefill": {"template": {"env": []}}})
    bench.until("Ready", "True")


def test_what_is_taken_out_of_the_routers_template_leaves_the_deployment(
    bench: OperatorBench, operator: Process
) -> None:
    served(bench, operator)

    def has() -> tuple[object, bool]:
        pod = (bench.one("Deployment", "llama-router") or {})["spec"]["template"]["spec"]
        return pod.get("nodeSelector"), any(each["name"] == "SEEN" for each in pod["containers"][0]["env"])

    bench.edit({"router": {"template": {"nodeSelector": {"pool": "x"}, "env": [{"name": "SEEN", "value": "1"}]}}})
    wait_until(lambda: has() == ({"pool": "x"}, True), seconds=10, what="the Deployment has both")
    bench.edit({"router": {"template": None}})
    wait_until(lambda: has() == (None, False), seconds=10, what="the Deployment has neither")


def test_an_event_is_told_once_for_each_change_of_a_condition(bench: OperatorBench, operator: Process) -> None:
    served(bench, operator)
    time.sleep(2.0)
    # The API server has something to say too now and then, of the addresses that it gave to Services.
    everybody = bench.call("GET", EVENT.path(bench.namespace)).body["items"]
    events = [event for event in everybody if event["reportingComponent"] == FIELD_MANAGER]
    events.sort(key=lambda event: int(event["metadata"]["resourceVersion"]))
    said: dict[str, list[str]] = {}
    for event in events:
        said.setdefault(event["message"].partition(" is ")[0], []).append(f"{event['reason']}: {event['message']}")
    for told in said.values():
        assert all(one != following for one, following in pairwise(told)), told
    assert said["Ready"][-1].startswith("LanesReady: ")
    assert {event["involvedObject"]["name"] for event in events} == {PAIR}


def test_a_pair_that_is_deleted_leaves_nothing(bench: OperatorBench, operator: Process) -> None:
    served(bench, operator)
    body = bench.one("StreamPair", PAIR) or {}
    assert "finalizers" not in body["metadata"]
    bench.remove("StreamPair", PAIR)
    wait_until(lambda: not bench.names(), seconds=30, what="nothing is left")
    bench.create()
    bench.until("Ready", "True")


def test_a_write_that_the_server_refuses_is_told_in_its_words(bench: OperatorBench, operator: Process) -> None:
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"count/services": "1"}}}
    path = f"/api/v1/namespaces/{bench.namespace}/resourcequotas"
    made = bench.call("POST", path, quota)
    assert made.ok, made.body
    status = {"status": {"hard": {"count/services": "1"}, "used": {"count/services": "1"}}}
    bench.call("PATCH", f"{path}/few/status", status, MERGE)
    bench.create()
    said = bench.until("Degraded", "True", reason="WriteRefused")
    assert "exceeded quota" in said["message"]
    assert bench.get(operator, "/healthz")[0] == 200
    bench.call("DELETE", f"{path}/few")
    bench.edit({"update": {**SPEC["update"], "maxSurge": 1}})
    bench.until("Ready", "True")


def test_pods_that_the_namespace_would_not_take_cost_no_lane(bench: OperatorBench, operator: Process) -> None:
    """A folder of the node in a namespace of restricted pods: the CRD cannot know, the server says so in a dry run."""
    served(bench, operator)
    level = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    assert bench.call("PATCH", f"/api/v1/namespaces/{bench.namespace}", level, MERGE).ok
    pods = {name: version for (kind, name), version in bench.versions().items() if kind == "Pod"}
    bench.edit({"model": {"source": {"hostPath": {"path": "/models/llama"}}}})
    said = bench.until("Degraded", "True", reason="WriteRefused", seconds=10)
    assert "violates PodSecurity" in said["message"]
    assert "hostPath" in said["message"]
    bench.until_quiet(operator)
    assert {name: version for (kind, name), version in bench.versions().items() if kind == "Pod"} == pods
    bench.edit({"model": {"source": None}})
    bench.until("Degraded", "False", seconds=10)
    assert {name: version for (kind, name), version in bench.versions().items() if kind == "Pod"} == pods


def test_a_role_that_an_autoscaler_scales_follows_it_within_the_ratio(bench: OperatorBench, operator: Process) -> None:
    bench.create({"prefill": {"replicas": 1, "scaling": {"mode": "External"}}})
    bench.until("Ready", "True")
    scaler = BY_KIND["StreamPairScaler"].path(bench.namespace, "llama-prefill")

    def scaled_to(replicas: int) -> None:
        answer = bench.call("PATCH", f"{scaler}/scale", {"spec": {"replicas": replicas}}, MERGE)
        assert answer.ok, answer.body

    def prefills() -> int:
        return sum("-prefill-" in name for kind, name in bench.names() if kind == "Pod")

    scaled_to(2)
    wait_until(lambda: prefills() == 4, seconds=30, what="two prefill pods in each lane")
    scaled_to(8)
    wait_until(
        lambda: "Clamped" in json.dumps(bench.call("GET", scaler).body.get("status", {})),
        seconds=30,
        what="the scaler says that the ratio bounds it",
    )
    assert bench.call("GET", f"{scaler}/scale").body["status"]["replicas"] == 2
    scaled_to(1)
    wait_until(lambda: prefills() == 2, seconds=60, what="one prefill pod in each lane")
    bench.until("Ready", "True")
    bench.until_quiet(operator)
    assert bench.call("GET", scaler).body["spec"]["replicas"] == 1, "its number stays the autoscaler's"
