"""Whole lives of a StreamPair on a cluster in memory: every step keeps the promises, every path ends the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.contract.lane_word import LaneReport
from streamserve.contract.streampair import StreamPair
from streamserve.operator import naming
from streamserve.operator.accept import accept
from streamserve.operator.actions import Action, Delete, Drain
from streamserve.operator.decide import decide
from streamserve.operator.observe import Observed
from streamserve.operator.site import Site

from .cluster import BAD_IMAGE, LAST_LINE, Body, Cluster

MakeBody = Callable[..., Body]
IMAGE, BUDGET, SURGE = "engine.image", "update.maxUnavailable", "update.maxSurge"
DEFAULTS: dict[str, Any] = {BUDGET: 1}

EDITS = st.fixed_dictionaries(
    {
        "lanes": st.integers(0, 4),
        IMAGE: st.sampled_from(["registry.example/a:1", "registry.example/b:1"]),
        "prefill.replicas": st.integers(1, 2),
        "decode.replicas": st.integers(1, 3),
        "router.replicas": st.integers(1, 3),
        "routing.policy": st.sampled_from(["FlowGuard", "RoundRobin"]),
        "update.drainSeconds": st.sampled_from([5, 30]),
        BUDGET: st.integers(1, 3),
        SURGE: st.integers(0, 2),
    }
)
NAMES = st.sampled_from(
    ["lanes", "update", "model", "decode", "replicas", "template", "labels", "env", "name", "maxSurge"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)
SEEDS = st.integers(0, 2**32)


def keeps_the_budget(cluster: Cluster, action: Action) -> None:
    """To be called after each drain: the lanes that still serve are enough, or the drained one was not serving."""
    if not isinstance(action, Drain):
        return
    if action.reason == "ReplicasChanged":
        assert cluster.serving == getattr(cluster, "served", set()), f"{action.name} was the last of its role"
        return
    spec = cluster.body["spec"]
    floor = spec["lanes"] - min(spec["update"].get("maxUnavailable", 0), spec["lanes"])
    place = naming.place_of(cluster.body["metadata"]["name"], action.name)
    assert place is not None
    served_before = getattr(cluster, "served", set())
    if place[0] in served_before:
        assert len(cluster.serving) >= floor, f"{action.name} drained with {len(cluster.serving)} of {floor} lanes left"


def drains_first(cluster: Cluster, action: Action) -> None:
    if isinstance(action, Delete) and action.kind == "Pod":
        pod = next((pod for pod in cluster.pods if pod.name == action.name), None)
        assert pod is None or pod.drain or pod.phase == "Failed"


class Watched(Cluster):
    """Checks every single write."""

    served: set[int]

    def __init__(self, body: Body, site: Site, **options: Any) -> None:
        super().__init__(body, site, **options)
        self.checks = [keeps_the_budget, drains_first]

    def carry_out(self, action: Action) -> None:
        self.served = self.serving
        super().carry_out(action)


def settled(body: Body, site: Site, **options: Any) -> Watched:
    cluster = Watched(body, site, **options)
    cluster.settle()
    return cluster


def test_a_new_pair_becomes_ready_and_then_nothing_is_written(make_body: MakeBody, site: Site) -> None:
    cluster = settled(make_body(DEFAULTS), site)
    assert cluster.serving == {0, 1}
    assert [cluster.condition(kind)["status"] for kind in ("Available", "Ready", "ConfigApplied")] == ["True"] * 3
    assert cluster.condition("Progressing")["reason"] == "Complete"
    decision = cluster.decide()
    assert (decision.actions, decision.status, decision.events) == ((), None, ())


def test_a_hot_edit_writes_the_configuration_and_touches_no_pod(make_body: MakeBody, site: Site) -> None:
    cluster = settled(make_body(DEFAULTS), site)
    cluster.edit(make_body(DEFAULTS | {"routing.policy": "RoundRobin", "update.drainSeconds": 60}, generation=2))
    actions = cluster.decide().actions
    assert [(action.kind, action.name) for action in actions] == [("ConfigMap", "tiny-config")]


def test_a_cold_edit_replaces_the_lanes_one_after_another(make_body: MakeBody, site: Site) -> None:
    cluster = settled(make_body(DEFAULTS | {"lanes": 3}), site)
    old = {pod.uid for pod in cluster.pods}
    cluster.edit(make_body(DEFAULTS | {"lanes": 3, IMAGE: "registry.example/b:1"}, generation=2))
    fewest = 3
    for _ in range(100):
        cluster.reconcile()
        cluster.tick()
        fewest = min(fewest, len(cluster.serving))
    assert fewest == 2
    assert not old & {pod.uid for pod in cluster.pods}
    assert cluster.condition("Ready")["status"] == "True"


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_a_bad_revision_halts_after_its_first_lane_and_names_the_pod_with_its_last_line(
    make_body: MakeBody, site: Site, budget: int
) -> None:
    good, bad = {"lanes": 3, BUDGET: budget}, {"lanes": 3, BUDGET: budget, IMAGE: BAD_IMAGE}
    cluster = settled(make_body(good), site)
    untouched = {pod.uid for pod in cluster.pods if pod.lane != 0}
    cluster.edit(make_body(bad, generation=2))
    cluster.settle()
    assert {pod.uid for pod in cluster.pods if pod.lane != 0} == untouched
    for kind in ("Progressing", "Degraded"):
        found = cluster.condition(kind)
        assert (
            f"{cluster.body['metadata']['name']}-decode-0-0-" in found["message"] or "prefill-0-0-" in found["message"]
        )
        assert LAST_LINE in found["message"]
    assert cluster.condition("Progressing")["reason"] == "RolloutHalted"
    assert cluster.condition("Available")["status"] == "True"
    cluster.edit(make_body(good, generation=3))
    cluster.settle()
    assert cluster.condition("Ready")["status"] == "True"
    assert {pod.uid for pod in cluster.pods if pod.lane != 0} == untouched


def test_the_only_lane_waits_for_a_surge_unless_its_gap_is_accepted(make_body: MakeBody, site: Site) -> None:
    cluster = settled(make_body({"lanes": 1}), site)
    cluster.edit(make_body({"lanes": 1, IMAGE: "registry.example/b:1"}, generation=2))
    cluster.settle()
    assert cluster.condition("Progressing")["reason"] == "NeedsSurge"
    assert cluster.serving == {0}
    cluster.edit(make_body({"lanes": 1, IMAGE: "registry.example/b:1", SURGE: 1}, generation=3))
    served = set()
    for _ in range(60):
        cluster.reconcile()
        cluster.tick()
        served.add(len(cluster.serving))
    assert min(served) == 1
    assert cluster.condition("Ready")["status"] == "True"


def test_a_paused_pair_gets_a_status_and_nothing_else(make_body: MakeBody, site: Site) -> None:
    cluster = Cluster(make_body({"paused": True}), site)
    cluster.settle()
    assert cluster.objects == {}
    assert cluster.condition("Progressing")["reason"] == "Paused"


def test_a_pair_that_is_being_deleted_is_left_to_the_garbage_collector(make_body: MakeBody, site: Site) -> None:
    cluster = settled(make_body(DEFAULTS), site)
    cluster.body["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:00Z"
    cluster.objects.popitem()
    assert cluster.decide().actions == ()


def test_silent_routers_fence_nothing(make_body: MakeBody, site: Site) -> None:
    cluster = settled(make_body(DEFAULTS), site)
    cluster.reports = None
    cluster.settle()
    assert cluster.serving == {0, 1}


@pytest.mark.parametrize("said", [{}, {"lane-0": LaneReport(state="PROBING"), "lane-1": LaneReport(state="WAITING")}])
def test_the_only_router_fences_nothing_while_it_has_just_started(
    make_body: MakeBody, site: Site, said: dict[str, LaneReport]
) -> None:
    cluster = settled(make_body(DEFAULTS), site)
    cluster.reports, cluster.routers_settled = said, False
    cluster.reconcile()
    assert cluster.serving == {0, 1}
    cluster.routers_settled = True
    cluster.reconcile()
    assert cluster.serving == set(), "now it has had the time to judge"


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("edits", [{"lanes": 1, BUDGET: None}, {BUDGET: 0, SURGE: 1}, {"lanes": 4}])
def test_amid_a_rollout_a_lane_that_is_fenced_for_a_moment_is_not_lost_at_once(
    make_body: MakeBody, site: Site, edits: Body, silent: bool
) -> None:
    """`silent`: its kubelet had fallen silent long before, while routers went on sending to it."""
    cluster = settled(make_body(DEFAULTS | edits), site)
    cluster.now += 3_600
    if silent:
        cluster.kubelet_says(False, "tiny-")
        cluster.now += 3_600
    cluster.edit(make_body(DEFAULTS | edits | {IMAGE: "registry.example/b:1"}, generation=2))
    assert cluster.reports
    cluster.reports = {lane: LaneReport(state="FENCED", reason="circuit open") for lane in cluster.reports}
    assert drained(cluster) == set()
    cluster.reconcile()
    cluster.now += 5
    assert drained(cluster) == set()
    cluster.now += 10
    assert drained(cluster), "by now it is"


@pytest.mark.parametrize("kind", ["ConfigMap", "Pod", "Service", "Deployment", "PodDisruptionBudget", "ServiceAccount"])
def test_a_child_that_somebody_deletes_comes_back(make_body: MakeBody, site: Site, kind: str) -> None:
    cluster = settled(make_body(DEFAULTS), site)
    before = cluster.picture()
    healthy = {pod.uid for pod in cluster.pods if pod.lane == 1}
    cluster.delete(*next(key for key in sorted(cluster.objects) if key[0] == kind))
    cluster.settle()
    assert cluster.picture() == before
    assert kind != "Pod" or {pod.uid for pod in cluster.pods if pod.lane == 1} == healthy


HAND_EDITS: dict[str, tuple[str, str, Callable[[dict[str, Any]], object]]] = {
    "a port of a Service": ("Service", "tiny-router", lambda o: o["spec"]["ports"][0].update(port=1)),
    "the replicas of the router": ("Deployment", "tiny-router", lambda o: o["spec"].update(replicas=9)),
    "the configuration": ("ConfigMap", "tiny-config", lambda o: o["data"].update({"config.json": "{}"})),
    "a budget": ("PodDisruptionBudget", "tiny-workers", lambda o: o["spec"].update(minAvailable=0)),
    "an owner": ("ConfigMap", "tiny-config", lambda o: o["metadata"].pop("ownerReferences")),
    "a pod's labels": ("Pod", "", lambda o: o["metadata"]["labels"].pop(naming.REVISION)),
    "a pod's image": ("Pod", "", lambda o: o["spec"]["containers"][0].update(image="other")),
    "a pod's owner": ("Pod", "", lambda o: o["metadata"].pop("ownerReferences")),
}


@pytest.mark.parametrize("name", HAND_EDITS)
def test_a_hand_edit_is_undone_in_one_write(make_body: MakeBody, site: Site, name: str) -> None:
    kind, child, change = HAND_EDITS[name]
    cluster = settled(make_body(DEFAULTS), site)
    before = cluster.picture()
    key = next(key for key in sorted(cluster.objects) if key[0] == kind and key[1].startswith(child))
    change(cluster.objects[key])
    assert cluster.reconcile() == 1
    cluster.settle()
    assert cluster.picture() == before


def test_what_others_add_to_our_objects_is_left_alone(make_body: MakeBody, site: Site) -> None:
    cluster = settled(make_body(DEFAULTS), site)
    for key, live in cluster.objects.items():
        live["metadata"].setdefault("annotations", {})["example.com/added"] = "1"
        live["metadata"]["labels"]["example.com/added"] = "1"
        if key[0] == "Service":
            live["spec"] |= {"clusterIPs": ["10.0.0.1"], "sessionAffinity": "None"}
    assert cluster.decide().actions == ()


@pytest.mark.parametrize("kind, name", [("ConfigMap", "tiny-config"), ("Service", "tiny-router"), ("Pod", "")])
def test_a_foreign_object_under_our_name_is_refused_by_name_and_not_touched(
    make_body: MakeBody, site: Site, kind: str, name: str
) -> None:
    body = make_body(DEFAULTS)
    name = name or next(pod.name for pod in settled(body, site).pods)
    theirs = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "uid": "theirs", "labels": {}}, "spec": {}}
    cluster = Cluster(body, site)
    cluster.objects[kind, name] = copy.deepcopy(theirs)
    cluster.settle()
    assert cluster.objects[kind, name] == theirs
    found = cluster.condition("Degraded")
    assert (found["status"], found["reason"]) == ("True", "ForeignObject")
    assert f"{kind} {name}" in found["message"]
    assert (kind == "ConfigMap") == (not cluster.pods)


def test_objects_of_a_deleted_pair_of_this_name_are_waited_for(make_body: MakeBody, site: Site) -> None:
    old = settled(make_body(DEFAULTS), site)
    cluster = Watched(make_body(DEFAULTS, uid="5f0c7a52-0000-4000-8000-000000000002"), site)
    cluster.objects = copy.deepcopy(old.objects)
    assert cluster.reconcile() == 0
    assert cluster.condition("Progressing")["reason"] == "LeftoverObjects"
    cluster.objects = {}
    cluster.settle()
    assert cluster.condition("Ready")["status"] == "True"


def test_pods_that_a_deletion_orphaned_serve_another_pair_and_are_replaced_lane_by_lane(
    make_body: MakeBody, site: Site
) -> None:
    """`kubectl delete --cascade=orphan`, and the same pair once more: routers of its uid send nothing to such pods."""
    old = settled(make_body(DEFAULTS), site)
    cluster = Watched(make_body(DEFAULTS, uid="5f0c7a52-0000-4000-8000-000000000002"), site)
    cluster.objects, cluster.now = copy.deepcopy(old.objects), old.now
    cluster.drained, cluster._uids = old.drained, 1_000
    for live in cluster.objects.values():
        live["metadata"].pop("ownerReferences")
    cluster.tick()
    cluster.settle()
    assert cluster.serving == {0, 1}
    assert cluster.condition("Ready")["status"] == "True"
    assert {
        pod.live["spec"]["containers"][0]["args"].count(cluster.body["metadata"]["uid"]) for pod in cluster.pods
    } == {1}


@pytest.mark.parametrize(
    ("field", "value"),
    [("nodeSelector", {"pool": "x"}), ("priorityClassName", "high"), ("env", [{"name": "A", "value": "1"}])],
)
def test_what_is_taken_out_of_the_routers_template_leaves_the_deployment(
    make_body: MakeBody, site: Site, field: str, value: object
) -> None:
    cluster = settled(make_body(DEFAULTS | {"router.template": {field: value}}), site)
    cluster.edit(make_body(DEFAULTS | {"router.template": {}}, generation=2))
    details = {action.kind: getattr(action, "detail", "") for action in cluster.decide().actions}
    assert details["Deployment"] == f"metadata.annotations.{naming.RENDERED}"
    cluster.settle()
    assert cluster.picture() == settled(make_body(DEFAULTS, generation=2), site).picture()


def test_a_pod_on_a_node_that_is_gone_is_deleted_without_grace_and_comes_back(make_body: MakeBody, site: Site) -> None:
    cluster = settled(make_body(DEFAULTS), site)
    lost = cluster.pods[0]
    cluster.delete("Pod", lost.name)
    cluster.now += 10
    assert cluster.decide().actions == ()
    cluster.now += 120
    assert [(action.kind, action.name) for action in cluster.decide().actions] == [("Pod", lost.name)]
    cluster.settle()
    assert cluster.serving == {0, 1}


def test_a_pod_that_a_finalizer_holds_is_deleted_without_grace_once(make_body: MakeBody, site: Site) -> None:
    cluster = settled(make_body(DEFAULTS), site)
    held = cluster.pods[0]
    cluster.delete("Pod", held.name)
    cluster.now += 200
    (forced,) = cluster.decide().actions
    assert (forced.name, isinstance(forced, Delete)) == (held.name, True)
    # What the API server makes of it.
    cluster.objects["Pod", held.name]["metadata"] |= {"finalizers": ["acme.io/keep"], "deletionGracePeriodSeconds": 0}
    assert cluster.decide().actions == ()
    cluster.now += 200
    cluster.reconcile()
    assert cluster.condition("Degraded")["reason"] == "PodNotGone"


def test_an_evicted_pod_is_replaced(make_body: MakeBody, site: Site) -> None:
    cluster = settled(make_body(DEFAULTS), site)
    before = cluster.picture()
    live = cluster.objects["Pod", cluster.pods[0].name]
    live["status"] |= {"phase": "Failed", "containerStatuses": []}
    cluster.settle()
    assert cluster.picture() == before


def test_a_revision_that_never_gets_ready_halts_when_its_time_is_over(make_body: MakeBody, site: Site) -> None:
    cluster = settled(make_body(DEFAULTS), site)
    cluster.edit(make_body(DEFAULTS | {IMAGE: "registry.example/b:1"}, generation=2))
    while not any(pod.lane == 0 and pod.drain == "" and pod.gate is None for pod in cluster.pods):
        cluster.reconcile()
        cluster.tick()
    cluster.reports = None
    again = cluster.decide().again_seconds
    assert again is not None
    assert again > 100
    cluster.now += again
    cluster.reconcile()
    assert cluster.condition("Progressing")["reason"] == "RolloutHalted"
    assert "is not ready after 240 s" in cluster.condition("Degraded")["message"]
    assert cluster.decide().again_seconds is None


def test_a_replica_too_many_stays_until_its_kubelet_says_that_another_is_ready(make_body: MakeBody, site: Site) -> None:
    """Routers were quicker than the kubelet: requests go to both, and nobody knows yet that the other will stay."""
    cluster = settled(make_body(DEFAULTS | {"lanes": 1, "decode.replicas": 2}), site)
    cluster.kubelet_says(False, "tiny-decode-0-")
    cluster.edit(make_body(DEFAULTS | {"lanes": 1, "decode.replicas": 1}, generation=2))
    assert drained(cluster) == set()
    cluster.kubelet_says(True, "tiny-decode-0-0-")
    assert drained(cluster) == {"tiny-decode-0-1"}


@pytest.mark.parametrize("seconds", [0.5, 60.0])
def test_a_lane_that_takes_requests_is_not_lost_for_its_kubelets_silence(
    make_body: MakeBody, site: Site, seconds: float
) -> None:
    cluster = settled(make_body(DEFAULTS | {BUDGET: 0, SURGE: 1}), site)
    cluster.kubelet_says(False, "tiny-prefill-1-")
    cluster.edit(make_body(DEFAULTS | {BUDGET: 0, SURGE: 1, IMAGE: "registry.example/b:1"}, generation=2))
    cluster.now += seconds
    assert drained(cluster) == set(), "the lane is outdated and Ready is False, but it answers requests"


def test_a_lane_whose_container_is_down_is_lost_although_nobody_could_close_its_gate(
    make_body: MakeBody, site: Site
) -> None:
    """Without Redis gates stay as they are; what is to mend the lanes must not wait for it."""
    cluster = settled(make_body(DEFAULTS), site)
    cluster.reports = None
    cluster.kubelet_says(False, "tiny-", container=True)
    cluster.edit(make_body(DEFAULTS | {IMAGE: "registry.example/b:1"}, generation=2))
    cluster.now += 60.0
    assert drained(cluster), "the budget protects lanes that serve"


def test_a_lane_that_takes_requests_and_may_not_stop_needs_surge_whatever_its_kubelet_says(
    make_body: MakeBody, site: Site
) -> None:
    cluster = settled(make_body({"lanes": 1}), site)
    cluster.kubelet_says(False, "tiny-prefill-0-")
    cluster.edit(make_body({"lanes": 1, IMAGE: "registry.example/b:1"}, generation=2))
    cluster.now += 60.0
    cluster.reconcile()
    assert drained(cluster) == set()
    assert cluster.condition("Progressing")["reason"] == "NeedsSurge"


def test_a_replica_that_drains_and_is_wanted_again_is_no_end_of_the_rollout(make_body: MakeBody, site: Site) -> None:
    cluster = settled(make_body(DEFAULTS | {"lanes": 1, "decode.replicas": 2}), site)
    cluster.edit(make_body(DEFAULTS | {"lanes": 1, "decode.replicas": 1}, generation=2))
    cluster.reconcile()
    cluster.edit(make_body(DEFAULTS | {"lanes": 1, "decode.replicas": 2}, generation=3))
    cluster.reconcile()
    cluster.reconcile()
    assert cluster.condition("Progressing")["reason"] == "LanesStarting"


def drained(cluster: Cluster) -> set[str]:
    """Whom the next decision asks to leave, without their revisions."""
    return {action.name.rpartition("-")[0] for action in cluster.decide().actions if isinstance(action, Drain)}


def test_a_drain_ends_with_its_time_when_the_worker_does_not_answer(make_body: MakeBody, site: Site) -> None:
    cluster = settled(make_body(DEFAULTS | {"lanes": 1}), site)
    cluster.edit(make_body(DEFAULTS | {"lanes": 0}, generation=2))
    cluster.reconcile()
    decision = cluster.decide()
    assert decision.actions == ()
    assert decision.again_seconds == 11.0
    cluster.now += 11.0
    assert [type(action) for action in cluster.decide().actions] == [Delete, Delete]


@settings(max_examples=12, deadline=None)
@given(edits=st.lists(EDITS, min_size=1, max_size=3), seed=SEEDS)
def test_from_any_history_the_end_is_that_of_a_fresh_pair(
    make_body: MakeBody, site: Site, edits: list[dict[str, Any]], seed: int
) -> None:
    """S0 → S1 → S2 with reconciles and a slow world in between equals a fresh S2; no step breaks the budget."""
    cluster = Watched(make_body(edits[0]), site, seed=seed, lazy=True)
    for generation, edit in enumerate(edits, 1):
        cluster.edit(make_body(edit, generation=generation))
        for _ in range(cluster.random.randrange(12)):
            cluster.reconcile()
            cluster.tick()
    cluster.settle()
    fresh = settled(make_body(edits[-1], generation=len(edits)), site)
    assert cluster.picture() == fresh.picture()
    assert cluster.condition("Ready")["status"] == "True"


@settings(max_examples=10, deadline=None)
@given(first=EDITS, second=EDITS, seed=SEEDS)
def test_there_and_back_again_ends_where_it_began(
    make_body: MakeBody, site: Site, first: dict[str, Any], second: dict[str, Any], seed: int
) -> None:
    cluster = settled(make_body(first), site, seed=seed, lazy=True)
    cluster.edit(make_body(second, generation=2))
    for _ in range(cluster.random.randrange(20)):
        cluster.reconcile()
        cluster.tick()
    cluster.edit(make_body(first, generation=3))
    cluster.settle()
    assert cluster.picture() == settled(make_body(first, generation=3), site).picture()


@settings(max_examples=12, deadline=None)
@given(first=EDITS, second=EDITS, writes=st.integers(0, 60), seed=SEEDS)
def test_an_operator_killed_after_any_write_ends_in_the_same_fixpoint(
    make_body: MakeBody, site: Site, first: dict[str, Any], second: dict[str, Any], writes: int, seed: int
) -> None:
    """`writes` counts over the whole life, so that creates, rollouts and scalings are all cut at every place."""
    cluster = Watched(make_body(first), site, seed=seed, lazy=True)
    for generation, edit in enumerate((first, second), 1):
        cluster.edit(make_body(edit, generation=generation))
        left = writes
        for _ in range(60):
            made = cluster.reconcile(crash_after=left)
            left -= made
            if not left:
                break
            cluster.tick()
    cluster.settle()
    assert cluster.picture() == settled(make_body(second, generation=2), site).picture()


@settings(max_examples=12, deadline=None)
@given(edit=EDITS, seed=SEEDS, losses=st.integers(1, 6))
def test_whatever_is_lost_comes_back(
    make_body: MakeBody, site: Site, edit: dict[str, Any], seed: int, losses: int
) -> None:
    cluster = settled(make_body(edit), site, seed=seed, lazy=True)
    before = cluster.picture()
    for _ in range(losses):
        key = cluster.random.choice(sorted(cluster.objects) or [("", "")])
        if key in cluster.objects:
            cluster.delete(*key)
        if cluster.random.random() < 0.5:
            cluster.reconcile()
        cluster.tick()
    cluster.settle()
    assert cluster.picture() == before


@settings(max_examples=10, deadline=None)
@given(first=EDITS, second=EDITS, seed=SEEDS, blows=st.integers(1, 12))
def test_from_any_wreck_the_same_fixpoint_is_reached(
    make_body: MakeBody, site: Site, first: dict[str, Any], second: dict[str, Any], seed: int, blows: int
) -> None:
    """No budget here: a drain mark that somebody else wrote on one pod has taken its lane already."""
    cluster = Cluster(make_body(first), site, seed=seed, lazy=True)
    cluster.checks = [drains_first]
    cluster.settle()
    for _ in range(blows):
        cluster.wreck()
    cluster.edit(make_body(second, generation=2))
    cluster.settle()
    assert cluster.picture() == settled(make_body(second, generation=2), site).picture()


@settings(max_examples=60, deadline=None)
@given(spec=JSON)
def test_no_spec_makes_it_raise(make_body: MakeBody, site: Site, spec: Any) -> None:
    body = make_body()
    fields = spec if isinstance(spec, dict) else {}
    decision = decide({**body, "spec": {**body["spec"], **fields} if fields else spec}, site, Observed(), 0.0)
    assert decision.status is not None


def test_the_edits_of_these_tests_are_accepted(make_body: MakeBody) -> None:
    body = make_body({"lanes": 4, "prefill.replicas": 2, "decode.replicas": 1, BUDGET: 3, SURGE: 2})
    assert isinstance(accept(body), StreamPair)
