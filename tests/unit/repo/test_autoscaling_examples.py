"""The examples of autoscaling: they scale what exists, on signals that are recorded from metrics that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.unit.docs.test_dashboard import GROUPED, MATCHER, METRIC, labels_by_metric

from streamserve.contract.streampair import StreamPair, load, releases, rules
from streamserve.contract.streampair.resource import MAX_LANES
from streamserve.contract.streampair.workers import MAX_REPLICAS_PER_LANE
from streamserve.operator import naming, scale

CLUSTER = Path(__file__).parents[3] / "examples" / "cluster"
EXAMPLES = CLUSTER / "autoscaling"
RECORDED = re.compile(r"streamserve_autoscaling_\w+")


def documents(name: str) -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load_all(EXAMPLES / name))


def recorded() -> dict[str, str]:
    (rule,) = documents("signals.yaml")
    return {row["record"]: row["expr"] for group in rule["spec"]["groups"] for row in group["rules"]}


def merged(base: Any, patch: Any) -> Any:
    """A JSON merge patch, as `kubectl patch --type=merge` applies it."""
    if not (isinstance(base, dict) and isinstance(patch, dict)):
        return patch
    return {**base, **{key: merged(base.get(key), value) for key, value in patch.items()}}


def pair() -> StreamPair:
    """The cluster example, with its roles handed to scalers."""
    body = YAML(typ="safe").load(CLUSTER / "streampair.yaml")
    (patch,) = documents("external-roles.yaml")
    return StreamPair.model_validate(merged(body, patch), by_alias=True, by_name=False)


def targets() -> dict[str, dict[str, Any]]:
    """Each object that scales: what, from where to where."""
    hpas = [*documents("lanes.yaml"), *documents("roles.yaml")]
    found = {f"HPA {made['metadata']['name']}": made["spec"] for made in hpas}
    for made in documents("keda.yaml"):
        spec = made["spec"]
        bounds = {"minReplicas": spec["minReplicaCount"], "maxReplicas": spec["maxReplicaCount"]}
        found[f"KEDA {made['metadata']['name']}"] = {**spec, **bounds}
    return found


def test_the_cluster_example_is_valid_with_and_without_external_roles() -> None:
    assert isinstance(load((CLUSTER / "streampair.yaml").read_text()), StreamPair)
    assert not [*rules.check(pair()), *releases.check(pair())]
    assert scale.external(pair()) == naming.ROLES


@pytest.mark.parametrize("name", sorted(targets()))
def test_what_is_scaled_exists_and_takes_every_number_in_the_bounds(name: str) -> None:
    spec = targets()[name]
    target, example = spec["scaleTargetRef"], pair()
    children = {("StreamPairScaler", naming.child_name(example.metadata.name, role)) for role in naming.ROLES}
    assert target["apiVersion"] == "streamserve.io/v1alpha1"
    assert (target["kind"], target["name"]) in {("StreamPair", example.metadata.name), *children}
    most = MAX_LANES if target["kind"] == "StreamPair" else MAX_REPLICAS_PER_LANE
    assert 1 <= spec["minReplicas"] < spec["maxReplicas"] <= most


def test_the_most_and_the_fewest_of_both_roles_keep_the_ratio() -> None:
    for both in ("minReplicas", "maxReplicas"):
        asked = {role: targets()[f"HPA llama-{role}"][both] for role in naming.ROLES}
        assert scale.replicas(pair(), asked, {}).notes == ()


@pytest.mark.parametrize("name", ["lanes.yaml", "roles.yaml"])
def test_an_hpa_divides_a_recorded_signal_of_this_pair_and_never_counts_pods(name: str) -> None:
    for made in documents(name):
        assert (made["apiVersion"], made["kind"]) == ("autoscaling/v2", "HorizontalPodAutoscaler")
        for metric in made["spec"]["metrics"]:
            assert metric["type"] == "External"
            assert metric["external"]["metric"]["name"] in recorded()
            assert metric["external"]["metric"]["selector"] == {"matchLabels": {"streamserve_io_pair": "llama"}}
            assert metric["external"]["target"]["type"] == "AverageValue"


def test_keda_asks_for_what_the_hpas_ask_for_with_the_same_targets() -> None:
    for made in documents("keda.yaml"):
        spec = targets()[f"HPA {made['metadata']['name']}"]
        external = [metric["external"] for metric in spec["metrics"]]
        wanted = {each["metric"]["name"]: number(each["target"]["averageValue"]) for each in external}
        asked = [trigger["metadata"] for trigger in made["spec"]["triggers"]]
        assert {RECORDED.match(each["query"])[0]: float(each["threshold"]) for each in asked} == wanted  # type: ignore[index]
        assert made["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == spec["behavior"]


def test_keda_is_given_no_field_but_those_we_know() -> None:
    """A hand-kept list of what these files use, not KEDA's schema. Values of a trigger are text."""
    known = {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "triggers", "advanced"}
    for made in documents("keda.yaml"):
        assert (made["apiVersion"], made["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
        assert made["spec"].keys() <= known
        for trigger in made["spec"]["triggers"]:
            assert trigger.keys() == {"type", "metadata"}
            assert trigger["metadata"].keys() == {"serverAddress", "query", "threshold"}
            assert all(isinstance(value, str) for value in trigger["metadata"].values())


@pytest.mark.parametrize("name", sorted(recorded()))
def test_a_signal_is_recorded_from_metrics_and_labels_that_exist(name: str) -> None:
    expr, known = recorded()[name], labels_by_metric()
    before = list(recorded())[: list(recorded()).index(name)]
    assert set(RECORDED.findall(expr)) <= set(before)
    asked = [found for found in METRIC.findall(expr) if not RECORDED.fullmatch(found[0])]
    assert asked
    for metric, matchers in asked:
        assert set(MATCHER.findall(matchers)) <= known[metric], metric
        for labels in GROUPED.findall(expr):
            assert {label.strip() for label in labels.split(",")} <= known[metric], metric


def test_the_adapter_serves_every_recorded_signal() -> None:
    ((rule,),) = (made["externalRules"] for made in documents("prometheus-adapter.yaml"))
    (pattern,) = re.findall(r'__name__=~"([^"]+)"', rule["seriesQuery"])
    assert all(re.fullmatch(pattern, name) for name in recorded())


def number(quantity: str) -> float:
    return int(quantity[:-1]) / 1_000 if quantity.endswith("m") else float(quantity)
