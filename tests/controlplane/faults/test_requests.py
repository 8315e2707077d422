"""Requests that fail, watches that lie, an API server that is away: the same fixpoint as if nothing had been."""

from __future__ import annotations

import json
import time
from functools import partial
from random import Random

import pytest
from tests.controlplane.faults.conftest import Undisturbed
from tests.controlplane.faults.scenarios import BY_NAME, Stage
from tests.controlplane.faults.test_machine import essence
from tests.support.fault_proxy import Fault, WatchFaults, is_write
from tests.support.operator_bench import LEASE_SECONDS, MERGE, PAIR
from tests.support.processes import wait_until

from streamserve.operator.edge.resources import BY_KIND

AWAY_SECONDS = 60.0
# Eight watches wait up to 15 s between two tries, the Lease two seconds. A client asks twice where it is cut off.
MOST_REFUSED = 600
TIMES = 6
# What a hung request costs is the client's own limit: one of them is enough for each scenario.
STATUSES = {"conflict": 409, "gone": 410, "throttled": 429, "failed": 500, "hung": 0}
WATCHES = {
    "duplicated": partial(WatchFaults, duplicate=0.5),
    "reordered": partial(WatchFaults, reorder=0.5),
    "stale": partial(WatchFaults, stale=0.5),
    "dropped": partial(WatchFaults, drop=0.3),
    "all of it": partial(WatchFaults, duplicate=0.2, reorder=0.2, stale=0.2, drop=0.2),
}
SAMPLED = {("create", "failed", False), ("rollout", "conflict", True), ("scale-up", "throttled", False)}
ANSWERS = [
    pytest.param(
        name,
        status,
        reaches,
        id=f"{name}-{fault}-{'done-all-the-same' if reaches else 'not-done'}",
        marks=() if (name, fault, reaches) in SAMPLED else pytest.mark.everything,
    )
    for name in ("create", "rollout", "scale-up", "scale-down")
    for fault, status in STATUSES.items()
    for reaches in (False, True)
]


@pytest.mark.parametrize(("name", "status", "reaches"), ANSWERS)
def test_writes_that_fail(name: str, status: int, reaches: bool, stage: Stage, undisturbed: Undisturbed) -> None:
    """`reaches`: the server has done it and only its answer is lost."""
    scenario = BY_NAME[name]
    wanted, _ = undisturbed.of(name, stage)
    stage.operate()
    before = stage.prepare(scenario)
    fault = Fault(status, times=TIMES if status else 1, reaches_server=reaches)
    stage.proxy.faults.append(fault)
    scenario.change(stage.bench)
    assert stage.settle(remains=scenario.remains) == wanted
    assert fault.happened == (TIMES if status else 1)
    assert stage.uids(scenario.untouched) == before


def test_a_webhook_that_hangs_for_longer_than_a_renewal_lasts_is_told(stage: Stage, undisturbed: Undisturbed) -> None:
    wanted, _ = undisturbed.of("scale-up", stage)
    operator = stage.operate()
    stage.prepare(BY_NAME["scale-up"])

    def makes_a_pod(method: str, path: str) -> bool:
        return method == "PATCH" and "/pods/" in path

    fault = Fault(500, times=99, where=makes_a_pod, after_seconds=LEASE_SECONDS)
    stage.proxy.faults.append(fault)
    BY_NAME["scale-up"].change(stage.bench)
    said = stage.bench.until("Degraded", "True", reason="WriteFails")
    assert said["message"].endswith(": planted"), "by its own words, so nothing of ours cut it short"
    assert stage.bench.leads(operator)
    stage.proxy.undisturbed()
    assert stage.settle(remains=True) == wanted


@pytest.mark.parametrize("status", [pytest.param(500, id="failed"), pytest.param(0, id="hung")])
@pytest.mark.everything
def test_reads_that_fail_while_it_starts(status: int, stage: Stage, undisturbed: Undisturbed) -> None:
    wanted, _ = undisturbed.of("create", stage)
    fault = Fault(status, times=4, where=lambda method, path: not is_write(method, path) and "/leases" not in path)
    stage.proxy.faults.append(fault)
    stage.bench.create()
    stage.operate()
    assert stage.settle(remains=True) == wanted
    assert fault.happened == 4


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.everything)])
@pytest.mark.parametrize(
    ("name", "how"),
    [
        pytest.param(
            name,
            how,
            id=f"{name}-{how.replace(' ', '-')}",
            marks=() if (name, how) in {("scale-up", "reordered"), ("create", "dropped")} else pytest.mark.everything,
        )
        for name in ("create", "rollout", "scale-up", "scale-down")
        for how in WATCHES
    ],
)
def test_watches_that_lie(name: str, how: str, seed: int, stage: Stage, undisturbed: Undisturbed) -> None:
    scenario = BY_NAME[name]
    wanted, _ = undisturbed.of(name, stage)
    lies = WATCHES[how](Random(seed))
    # What was dropped is found when everything is listed anew: here every few seconds, else about once an hour. It
    # would also mend what any other lie has done.
    stage.operate(*(("--relist-seconds", "3") if lies.drop else ()))
    before = stage.prepare(scenario)
    stage.proxy.watches = lies
    scenario.change(stage.bench)
    assert stage.settle(remains=scenario.remains) == wanted
    assert lies.happened > 0
    assert lies.swaps > 0 or how != "reordered"
    assert stage.pods_made_and_ended() <= undisturbed.pods[name]
    assert stage.uids(scenario.untouched) == before


def test_what_a_hand_has_changed_and_changed_back_is_left_alone_though_the_change_is_told_later(stage: Stage) -> None:
    bench = stage.bench
    operator = stage.operate()
    stage.prepare(BY_NAME["scale-up"])
    lies = stage.proxy.watches = WatchFaults(Random(0), reorder=1.0)
    services = bench.all("Service")
    for service in services:
        path, selector = (
            BY_KIND["Service"].path(bench.namespace, service["metadata"]["name"]),
            service["spec"]["selector"],
        )
        for changed in (dict.fromkeys(selector, "other"), selector):
            assert bench.call("PATCH", path, {"spec": {"selector": changed}}, MERGE).ok
    bench.until_quiet(operator)
    assert lies.swaps >= len(services)
    assert stage.proxy.writes == []


def test_what_a_hand_has_replaced_is_there_though_the_end_of_its_predecessor_is_told_later(stage: Stage) -> None:
    bench = stage.bench
    operator = stage.operate()
    stage.prepare(BY_NAME["scale-up"])
    known = bench.metrics(operator)["streamserve_operator_cached_objects"]
    lies = stage.proxy.watches = WatchFaults(Random(0), reorder=1.0)
    for service in bench.all("Service"):
        metadata = {key: service["metadata"][key] for key in ("name", "labels", "ownerReferences")}
        bench.remove("Service", metadata["name"])
        spec = {key: value for key, value in service["spec"].items() if key not in ("clusterIP", "clusterIPs")}
        headless = {"clusterIP": "None"} if service["spec"]["clusterIP"] == "None" else {}
        made = {"kind": "Service", "metadata": metadata, "spec": spec | headless}
        assert bench.call("POST", BY_KIND["Service"].path(bench.namespace), made).ok
    bench.until_quiet(operator)
    assert lies.swaps >= 3, "each end came after the beginning"
    assert stage.proxy.writes == []
    assert bench.metrics(operator)["streamserve_operator_cached_objects"] == known, "so that its own end is seen"


def test_an_edit_that_the_server_takes_just_before_a_status_is_obeyed(stage: Stage, undisturbed: Undisturbed) -> None:
    """The answer to the status shows it before the watch does, whose events are no news then: here they never come."""
    scenario, bench = BY_NAME["hot-edit"], stage.bench
    wanted, _ = undisturbed.of(scenario.name, stage)
    stage.operate()
    before = stage.prepare(scenario)
    path = BY_KIND["StreamPair"].path(bench.namespace, PAIR, "status")

    def edit_before_it_is_told_that_all_is_applied(where: str, body: bytes) -> None:
        said = json.loads(body).get("status", {}) if where == path else {}
        applied = (each["status"] for each in said.get("conditions", ()) if each["type"] == "ConfigApplied")
        if "True" in applied and said["observedGeneration"] == 2:
            stage.proxy.before_write, stage.proxy.watches = None, WatchFaults(Random(0), drop=1.0)
            scenario.change(bench)

    stage.proxy.before_write = edit_before_it_is_told_that_all_is_applied
    bench.edit({"speculation": {"depth": {"max": 5}}})
    wait_until(
        lambda: essence(stage.shape()) == essence(wanted), seconds=15, what="the second edit is where it belongs"
    )
    assert stage.proxy.watches is not None, "it came when it should"
    stage.proxy.undisturbed()
    assert stage.uids(scenario.untouched) == before


@pytest.mark.parametrize("name", ["scale-up", pytest.param("rollout", marks=pytest.mark.everything)])
def test_an_api_server_that_is_away_for_a_minute(name: str, stage: Stage, undisturbed: Undisturbed) -> None:
    scenario = BY_NAME[name]
    wanted, _ = undisturbed.of(name, stage)
    operator = stage.operate()
    before = stage.prepare(scenario)
    stage.proxy.go_down()
    scenario.change(stage.bench)
    time.sleep(AWAY_SECONDS)
    assert stage.bench.get(operator, "/readyz")[0] == 503
    assert stage.bench.get(operator, "/healthz")[0] == 200, "a restart would not bring it back"
    assert stage.proxy.refused < MOST_REFUSED
    stage.proxy.undisturbed()
    assert stage.settle(remains=scenario.remains) == wanted
    assert stage.uids(scenario.untouched) == before


@pytest.mark.everything
def test_a_pair_that_is_deleted_amid_a_rollout_and_made_anew(stage: Stage, undisturbed: Undisturbed) -> None:
    wanted, _ = undisturbed.of("scale-up", stage)
    stage.operate()
    stage.prepare(BY_NAME["rollout"])
    BY_NAME["rollout"].change(stage.bench)
    while len(stage.proxy.writes) < 4:
        time.sleep(0.02)
    stage.bench.remove("StreamPair", "llama")
    stage.bench.create({"lanes": 3})
    found = stage.settle(remains=True)
    # The generation is another: the pair is new. Nothing else may be.
    assert found.keys() == wanted.keys()
    assert {name: body["spec"] for name, body in found.items()} == {name: body["spec"] for name, body in wanted.items()}
