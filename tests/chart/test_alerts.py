"""The alerts: each fires when it should and not before, and asks for metrics that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from ruamel.yaml import YAML
from tests.chart.conftest import CHART, HERE, ROOT, Render, of_kind

from streamserve.operator.edge.metrics import OperatorMetrics

METRIC = re.compile(r"streamserve_(?:router|worker|operator)_\w+")
DOCUMENTED = re.compile(r"^\| `(streamserve_\w+)`", re.MULTILINE)
SUFFIX = re.compile(r"_(bucket|sum|count)$")


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def alerts() -> list[dict[str, Any]]:
    return [rule for group in read(CHART / "alerts.yaml")["groups"] for rule in group["rules"]]


def test_every_alert_fires_when_it_should_and_not_when_all_is_well() -> None:
    tool = subprocess.run([str(ROOT / "hack" / "promtool.sh")], check=True, capture_output=True, text=True, timeout=300)
    done = subprocess.run(
        [tool.stdout.strip(), "test", "rules", "alerts_test.yaml"],
        cwd=HERE,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_alert_is_left_out_of_that_test() -> None:
    quiet, loud, _ = (group["alert_rule_test"] for group in read(HERE / "alerts_test.yaml")["tests"])
    names = [rule["alert"] for rule in alerts()]
    assert len(names) == len(set(names))
    assert sorted(case["alertname"] for case in quiet) == sorted(names)
    assert sorted(case["alertname"] for case in loud) == sorted(names)
    assert all("exp_alerts" not in case for case in quiet)
    assert all(case["exp_alerts"] for case in loud)


def test_every_metric_that_an_alert_asks_for_exists() -> None:
    known = set(DOCUMENTED.findall((ROOT / "docs" / "metrics.md").read_text())) | of_the_operator()
    for rule in alerts():
        asked = {SUFFIX.sub("", name) for name in METRIC.findall(rule["expr"])}
        assert asked
        assert asked <= known, rule["alert"]


def test_the_rule_object_holds_the_alerts_word_for_word(render: Render) -> None:
    (made,) = of_kind(render("everything"), "PrometheusRule")
    assert made["spec"] == read(CHART / "alerts.yaml")


def of_the_operator() -> set[str]:
    registry: CollectorRegistry = OperatorMetrics().registry
    return {metric.name + ("_total" if metric.type == "counter" else "") for metric in registry.collect()}
