"""The operator on a real API server: it makes what is asked for, then rests, and mends what others do to it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest
from tests.support.api_server import ApiServer
from tests.support.operator_bench import MERGE, PAIR, OperatorBench
from tests.support.processes import Process, wait_until

from streamserve.contract import runtime_config
from streamserve.contract.keys import Keyspace
from streamserve.operator.edge.resources import BY_KIND

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
def bench(server: ApiServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[OperatorBench]:
    name = f"life-{crc32(request.node.name.encode()):08x}"
    with OperatorBench(server, tmp_path, name) as bench:
        bench.kubelet.start()
        yield bench


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


def test_children_that_somebody_deletes_or_edits_come_back_as_they_were(
    bench: OperatorBench, operator: Process
) -> None:
    served(bench, operator)
    before = bench.shape()
    pod = next(name for kind, name in sorted(before) if kind == "Pod")
    for kind, name in sorted(WHOLE | {("Pod", pod)}):
        bench.remove(kind, name)
    wait_until(lambda: bench.names() >= WHOLE | {("Pod", pod)}, seconds=30, what="everything is back")
    bench.until("Ready", "True")
    replicas = BY_KIND["Deployment"].path(bench.namespace, "llama-router")
    bench.call("PATCH", replicas, {"spec": {"replicas": 7}}, MERGE)
    unlabelled = BY_KIND["Service"].path(bench.namespace, "llama-decode")
    bench.call("PATCH", unlabelled, {"metadata": {"labels": None}}, MERGE)
    wait_until(lambda: bench.shape() == before, seconds=30, what="everything is as it was")


def test_a_strangers_object_under_our_name_is_left_alone_and_told(bench: OperatorBench, operator: Process) -> None:
    theirs = {"metadata": {"name": "llama-config"}, "data": {"theirs": "yes"}}
    path = BY_KIND["ConfigMap"].path(bench.namespace)
    assert bench.call("POST", path, theirs).ok
    bench.create()
    said = bench.until("Degraded", "True", reason="ForeignObject")
    assert "ConfigMap llama-config" in said["message"]
    bench.until_quiet(operator)
    assert (bench.one("ConfigMap", "llama-config") or {})["data"] == {"theirs": "yes"}
    assert not bench.all("Pod")
    bench.remove("ConfigMap", "llama-config")
    bench.until("Ready", "True")
