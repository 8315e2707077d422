"""What a template does to the parts of a pod that are ours."""

from typing import Any

import pytest

from streamserve.contract.lanes import Slot
from streamserve.contract.streampair import StreamPair
from streamserve.operator.builders import router, worker_pods
from streamserve.operator.naming import Manifest
from streamserve.operator.site import Site

SITE = Site(worker_image="worker", router_image="router")
HOSTS = {"maxSkew": 3, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
ZONES = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}


def pair(spec: dict[str, Any]) -> StreamPair:
    return StreamPair.model_validate({"metadata": {"name": "llama"}, "spec": {"model": {"name": "m"}, **spec}})


def spreads(*given: dict[str, Any]) -> list[dict[str, Any]]:
    made: Manifest = router.deployment(pair({"router": {"template": {"topologySpreadConstraints": given}}}), SITE)
    found: list[dict[str, Any]] = made["spec"]["template"]["spec"]["topologySpreadConstraints"]
    return found


def test_a_spread_over_our_topology_replaces_ours() -> None:
    assert spreads(ZONES, HOSTS) == [ZONES, HOSTS]


def test_a_spread_over_another_topology_or_of_another_strictness_comes_after_ours() -> None:
    (ours,) = spreads()
    strict = {**HOSTS, "whenUnsatisfiable": "DoNotSchedule"}
    assert spreads(ZONES, strict) == [ours, ZONES, strict]


NEAR = "requiredDuringSchedulingIgnoredDuringExecution"


@pytest.mark.parametrize(
    "given",
    [{"podAffinity": None}, {"podAffinity": {NEAR: None}}, {"podAffinity": {}}, {"podAffinity": {NEAR: []}}],
    ids=["no affinity", "no terms", "an empty affinity", "an empty list"],
)
def test_an_affinity_that_says_nothing_leaves_the_placement_of_the_lane(given: dict[str, Any]) -> None:
    plain, made = ({}, {"prefill": {"template": {"affinity": {"nodeAffinity": {"a": 1}, **given}}}})
    ours, theirs = (worker_pods.pod(pair(spec), SITE, 0, Slot("prefill", 0), "r")["spec"] for spec in (plain, made))
    assert ours["affinity"]["podAffinity"][NEAR] != []
    assert theirs["affinity"] == {**ours["affinity"], "nodeAffinity": {"a": 1}}
