"""Every query of the dashboard, and every rule of ours, before a real Prometheus that scrapes a real path.

Scraped: a router and the workers of two lanes (simulator engines) under load, and an operator on a real API server.
For a few seconds no KV moves and a StreamPair is edited, so that there is something to see of failures and of
reconciles too. The labels that the chart's monitors add are those of the scrape configuration here.

docs/operate/dashboard.svg is drawn from such answers, after a minute of load:

    STREAMSERVE_PICTURE=write .venv/bin/python -m pytest tests/chart/test_dashboard.py
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.chart.conftest import CHART, ROOT
from tests.chart.picture import Drawn, Point, svg
from tests.support.api_server import ApiServer
from tests.support.leaves import DAY, Signer, secret
from tests.support.operator_bench import OperatorBench
from tests.support.processes import LocalFleet, Process, free_port, wait_until
from tests.support.steady_load import SteadyLoad

from streamserve.contract.streampair.crd import definitions
from streamserve.operator.edge.resources import SECRET

SIGNALS = ROOT / "examples" / "cluster" / "autoscaling" / "signals.yaml"
PICTURE = ROOT / "docs" / "operate" / "dashboard.svg"
DRAWS = os.environ.get("STREAMSERVE_PICTURE") == "write"
NAMESPACE, SCRAPE_SECONDS, LOAD_SECONDS, FAULT_SECONDS = "llm", 1, 60.0 if DRAWS else 12.0, 3.0
ANSWER_SECONDS = 60.0
Queries = dict[str, str]


class Prometheus:
    """A server on a free port. `targets`: the labels of each address that it scrapes."""

    def __init__(self, directory: Path, targets: dict[str, dict[str, str]]) -> None:
        tool = ROOT / "hack" / "promtool.sh"
        found = subprocess.run([str(tool)], check=True, capture_output=True, text=True, timeout=300).stdout.strip()
        binary = Path(found).with_name("prometheus")
        assert binary.exists(), f"{binary} is not there: it comes with promtool in Debian's package prometheus"
        self.url = f"http://127.0.0.1:{free_port()}"
        self._write(directory, targets)
        command = [
            *(str(binary), f"--config.file={directory / 'prometheus.yaml'}"),
            *(f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address={self.url[7:]}"),
        ]
        self.process = Process("prometheus", command, directory)

    def __enter__(self) -> Prometheus:
        self.process.start()
        wait_until(self._is_ready, seconds=30, what="Prometheus answers", every_seconds=0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()

    def values(self, query: str) -> list[float]:
        """One number for each series of the answer now."""
        answer = self.get("/api/v1/query?" + urllib.parse.urlencode({"query": query}))
        return [float(series["value"][1]) for series in answer["data"]["result"]]

    def series(self, query: str, start: float, end: float) -> list[tuple[dict[str, str], list[Point]]]:
        """Labels and points of each series of the answer over that time."""
        asked = {"query": query, "start": start, "end": end, "step": SCRAPE_SECONDS}
        answer = self.get("/api/v1/query_range?" + urllib.parse.urlencode(asked))
        return [
            (found["metric"], [(at, float(value)) for at, value in found["values"] if math.isfinite(float(value))])
            for found in answer["data"]["result"]
        ]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
            return json.load(answer)

    def _is_ready(self) -> bool:
        assert self.process.alive, self.process.log
        try:
            return bool(self.get("/api/v1/status/runtimeinfo"))
        except OSError:
            return False

    def _write(self, directory: Path, targets: dict[str, dict[str, str]]) -> None:
        yaml = YAML(typ="safe")
        yaml.dump(yaml.load(SIGNALS)["spec"], directory / "signals.yaml")
        jobs = [{"targets": [address], "labels": labels} for address, labels in targets.items()]
        seconds = f"{SCRAPE_SECONDS}s"
        config = {
            "global": {"scrape_interval": seconds, "scrape_timeout": seconds, "evaluation_interval": seconds},
            "rule_files": [str(CHART / "alerts.yaml"), str(directory / "signals.yaml")],
            "scrape_configs": [{"job_name": "streamserve", "static_configs": jobs}],
        }
        yaml.dump(config, directory / "prometheus.yaml")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with ExitStack() as stack:
        server = stack.enter_context(ApiServer(tmp_path_factory.mktemp("api-server")))
        for definition in definitions().values():
            server.install(definition)
        bench = stack.enter_context(OperatorBench(server, tmp_path_factory.mktemp("bench"), NAMESPACE))
        bench.kubelet.start()
        operator = bench.start("operator", *renewing(bench))
        bench.create()
        fleet = stack.enter_context(LocalFleet(tmp_path_factory.mktemp("fleet"), simulator_control=True))
        targets = {operator.ready["metrics"]: {"namespace": NAMESPACE, "pod": "operator"}}
        targets |= {process.ready["metrics"]: labels_of(name, fleet.pair) for name, process in fleet.processes.items()}
        found = stack.enter_context(Prometheus(tmp_path_factory.mktemp("prometheus"), targets))
        asyncio.run(load(fleet, bench))
        yield found


def renewing(bench: OperatorBench) -> tuple[str, ...]:
    """Arguments for an operator that renews a certificate, which is planted and is not due."""
    now = datetime.now(UTC).replace(microsecond=0)
    signer = Signer(begins=now - 10 * DAY, ends=now + 3_000 * DAY)
    leaf = signer.leaf(begins=now - 10 * DAY, life=365 * DAY)
    for name, pem in (("streamserve-ca", signer.pem), ("streamserve", leaf)):
        answer = bench.call("POST", SECRET.path(NAMESPACE), secret(pem, NAMESPACE, name))
        assert answer.ok, answer.body
    return "--renew-authority=streamserve-ca", f"--renew={NAMESPACE}/streamserve"


def labels_of(name: str, pair: str) -> dict[str, str]:
    """What the chart's PodMonitor adds to a pod's series: `lane-0-decode-0`, or the router."""
    labels = {"namespace": NAMESPACE, "pod": name, "streamserve_io_pair": pair}
    if name == "router":
        return {**labels, "streamserve_io_role": name}
    _, lane, role, _ = name.split("-")
    return {**labels, "streamserve_io_role": role, "streamserve_io_lane": lane}


async def load(fleet: LocalFleet, bench: OperatorBench) -> None:
    async with SteadyLoad(fleet.grpc, per_second=8):
        await asyncio.sleep(LOAD_SECONDS / 2)
        bench.edit({"speculation": {"depth": {"max": 3}}})
        for lane in fleet.lanes:
            fleet.fault(f"{lane}-decode-0", fail_transfers=True)
        await asyncio.sleep(FAULT_SECONDS)
        for lane in fleet.lanes:
            fleet.fault(f"{lane}-decode-0")
        await asyncio.sleep(LOAD_SECONDS / 2)


def panels() -> list[dict[str, Any]]:
    """Of the dashboard, each with the title of its row."""
    found, row = [], ""
    for panel in json.loads((CHART / "dashboard.json").read_text())["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        else:
            found.append({**panel, "row": row})
    return found


def sent(query: str, interval: str) -> str:
    """As Grafana would send it."""
    for variable, value in {"$namespace": NAMESPACE, "$pair": "tiny", "$__rate_interval": interval}.items():
        query = query.replace(variable, value)
    return query


def queries() -> Queries:
    """By panel and legend."""
    return {
        f"{panel['title']}: {target['legendFormat']}": sent(target["expr"], "2m")
        for panel in panels()
        for target in panel["targets"]
    }


def silent_after(prometheus: Prometheus, asked: Queries) -> set[str]:
    """The queries that have no finite value, once all have one or ANSWER_SECONDS are over."""
    end = time.monotonic() + ANSWER_SECONDS
    left = set(asked)
    while left and time.monotonic() < end:
        left = {name for name in left if not any(map(math.isfinite, prometheus.values(asked[name])))}
        time.sleep(1.0 if left else 0.0)
    return left


def test_every_query_of_the_dashboard_returns_data(prometheus: Prometheus) -> None:
    asked = queries()
    assert len(asked) > 50
    assert silent_after(prometheus, asked) == set()
    if DRAWS:
        PICTURE.write_text(picture(prometheus))


def picture(prometheus: Prometheus) -> str:
    """What the load brought, panel by panel; a legend's names are filled in from the labels."""
    end = time.time()
    start = end - LOAD_SECONDS - 2 * FAULT_SECONDS
    drawn = []
    for panel in panels():
        series = {
            named(target["legendFormat"], labels): points
            for target in panel["targets"]
            for labels, points in prometheus.series(sent(target["expr"], "15s"), start, end)
            if points
        }
        drawn.append(Drawn(panel["row"], panel["title"], panel["fieldConfig"]["defaults"]["unit"], series))
    return svg(f"Drawn from Prometheus' answers over {end - start:.0f} s of a simulated fleet; not Grafana", drawn)


def named(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda name: labels[name[1]], legend)


def test_every_rule_is_evaluated_and_every_signal_recorded(prometheus: Prometheus) -> None:
    recorded = {rule["name"] for rule in rules(prometheus) if rule["type"] == "recording"}
    assert recorded
    assert silent_after(prometheus, {name: name for name in recorded}) == set()
    assert {rule["name"]: rule["lastError"] for rule in rules(prometheus) if rule.get("lastError")} == {}


def rules(prometheus: Prometheus) -> list[dict[str, Any]]:
    return [rule for group in prometheus.get("/api/v1/rules")["data"]["groups"] for rule in group["rules"]]
