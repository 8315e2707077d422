"""Every query of the Grafana dashboard asks for metrics and labels that exist, and every legend for labels it gets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.docs.test_metrics import PAGE, ROW

ROOT = Path(__file__).parents[3]
DASHBOARD = ROOT / "charts" / "streamserve" / "dashboard.json"
METRIC = re.compile(r"(streamserve_(?!io_)\w+)(?:\{([^}]*)\})?")
GROUPED = re.compile(r"\b(?:by|on) \(([^)]*)\)")
MATCHER = re.compile(r'(\w+)(?:=|!=|=~|!~)"[^"]*"')
LEGEND = re.compile(r"\{\{(\w+)\}\}")
SCRAPED = {"namespace", "pod"}
OF_THE_PODS = {"streamserve_io_pair", "streamserve_io_role", "streamserve_io_lane"}
"""What ServiceMonitor and PodMonitor of the chart add; the operator's pods belong to no StreamPair."""


def labels_by_metric() -> dict[str, set[str]]:
    """As docs/metrics.md has them, a histogram's series with theirs; test_metrics.py holds its names to the code."""
    found = {}
    for row in ROW.finditer(PAGE.read_text()):
        name, component, kind = row[1], row[2], row[3]
        own = set(re.findall(r"`(\w+)`", row[5])) | SCRAPED | (set() if component == "operator" else OF_THE_PODS)
        series = {f"{name}_bucket": {"le"}, f"{name}_count": set(), f"{name}_sum": set()}
        found |= {each: own | more for each, more in (series if kind == "histogram" else {name: set()}).items()}
    return found


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text())


def targets() -> Iterator[tuple[str, dict[str, str]]]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target


def test_the_dashboard_has_the_rows_that_an_operator_of_a_fleet_looks_for() -> None:
    rows = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert rows == ["Traffic", "Latency", "Speculation", "KV transfer", "Workers", "Operator"]


@pytest.mark.parametrize(("title", "target"), list(targets()), ids=lambda part: part if isinstance(part, str) else "")
def test_a_query_uses_metrics_and_labels_that_exist(title: str, target: dict[str, str]) -> None:
    known = labels_by_metric()
    asked = METRIC.findall(target["expr"])
    assert asked
    for name, matchers in asked:
        assert name in known, f"{title}: {name}"
        assert set(MATCHER.findall(matchers)) <= known[name], f"{title}: {name}{{{matchers}}}"
    grouped = {label.strip() for labels in GROUPED.findall(target["expr"]) for label in labels.split(",")}
    for name, _ in asked:
        assert grouped <= known[name], f"{title}: {name} has no {grouped - known[name]}"
    assert set(LEGEND.findall(target["legendFormat"])) <= grouped, title


def test_no_panel_lies_on_another_and_none_is_out_of_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_ids_are_unique_and_every_alerts_metric_can_be_looked_at() -> None:
    numbers = [panel["id"] for panel in dashboard()["panels"]]
    assert len(numbers) == len(set(numbers))
    shown = {name for _, target in targets() for name, _ in METRIC.findall(target["expr"])}
    alerts = METRIC.findall((ROOT / "charts" / "streamserve" / "alerts.yaml").read_text())
    wanted = {name for name, _ in alerts if name in labels_by_metric()}
    assert wanted <= shown
