"""How many lanes are missing, as the operator's metric says it: what is down for good counts, a rollout does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from streamserve.operator.decide import decide
from streamserve.operator.observe import Observed, Pod
from streamserve.operator.site import Site

from .cluster import BAD_IMAGE, Body, Cluster

MakeBody = Callable[..., Body]
Change = Callable[[Observed], Observed]
IMAGE = "engine.image"


def down(pod: Pod) -> Pod:
    return replace(pod, ready=False, gate=False, container_ready=False)


def without(*lanes: int) -> Change:
    return lambda seen: replace(seen, pods=tuple(pod for pod in seen.pods if pod.lane not in lanes))


def with_one_down(role: str) -> Change:
    def change(seen: Observed) -> Observed:
        first = next(pod for pod in seen.pods if pod.slot.role == role and pod.lane == 0)
        return replace(seen, pods=tuple(down(pod) if pod is first else pod for pod in seen.pods))

    return change


def with_a_silent_node(seen: Observed) -> Observed:
    return replace(seen, pods=tuple(replace(pod, ready=False) for pod in seen.pods))


CASES: dict[str, tuple[dict[str, Any], Change, int]] = {
    "none of a fleet that is as wanted": ({}, lambda seen: seen, 0),
    "a lane whose worker is away": ({}, with_one_down("decode"), 1),
    "a lane of which no pod could be made": ({}, without(1), 1),
    "every lane": ({}, without(0, 1), 2),
    "a lane that serves with one of its two decode pods": ({"decode.replicas": 2}, with_one_down("decode"), 1),
    "none where routers go on although kubelets are silent": ({}, with_a_silent_node, 0),
    "none of a StreamPair that is scaled to 0": ({"lanes": 0}, lambda seen: seen, 0),
    "a lane that is down while the StreamPair is paused": ({"paused": True}, with_one_down("prefill"), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_missing_is(make_body: MakeBody, site: Site, name: str) -> None:
    edits, change, want = CASES[name]
    cluster = Cluster(make_body({**edits, "paused": False}), site)
    cluster.settle()
    cluster.edit(make_body(edits))
    assert decide(cluster.body, site, change(cluster.observe()), cluster.now).missing_lanes == want


def test_a_rollout_that_goes_on_has_its_budget_and_every_step_of_it_keeps_it(make_body: MakeBody, site: Site) -> None:
    cluster = Cluster(make_body({"lanes": 4, "update.maxUnavailable": 1}), site)
    cluster.settle()
    old = {pod.revision for pod in cluster.pods}
    cluster.edit(make_body({"lanes": 4, "update.maxUnavailable": 1, IMAGE: "registry.example/b:1"}, generation=2))
    least = 4
    for _ in range(100):
        outdated = any(pod.revision in old for pod in cluster.pods)
        least = min(least, len(cluster.serving))
        assert cluster.decide().missing_lanes == 0 or not outdated, "the last lane is waited for like any that starts"
        if cluster.reconcile() + cluster.tick() == 0:
            break
    assert least == 3, "a lane was away in between"
    assert cluster.decide().missing_lanes == 0


def test_a_lane_beyond_the_budget_counts_while_a_rollout_goes_on(make_body: MakeBody, site: Site) -> None:
    edits = {"lanes": 4, "update.maxUnavailable": 1}
    cluster = Cluster(make_body(edits), site)
    cluster.settle()
    cluster.edit(make_body({**edits, IMAGE: "registry.example/b:1"}, generation=2))
    assert decide(cluster.body, site, without(2, 3)(cluster.observe()), cluster.now).missing_lanes == 1


def test_a_rollout_that_is_halted_has_no_budget(make_body: MakeBody, site: Site) -> None:
    edits = {"lanes": 2, "update.maxUnavailable": 1}
    cluster = Cluster(make_body(edits), site)
    cluster.settle()
    cluster.edit(make_body({**edits, IMAGE: BAD_IMAGE}, generation=2))
    cluster.settle()
    assert cluster.condition("Progressing")["reason"] == "RolloutHalted"
    assert cluster.decide().missing_lanes == 1


def test_nothing_is_known_of_a_spec_that_is_refused_and_none_is_missed_of_one_that_goes(
    make_body: MakeBody, site: Site
) -> None:
    cluster = Cluster(make_body(), site)
    cluster.settle()
    seen = without(0)(cluster.observe())
    assert decide({**cluster.body, "spec": {"lanes": "many"}}, site, seen, cluster.now).missing_lanes is None
    cluster.body["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z"
    assert decide(cluster.body, site, seen, cluster.now).missing_lanes == 0
