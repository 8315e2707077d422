"""docs/metrics.md lists exactly the metrics that the registries hold, each with its type."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from streamserve.cli.up.metrics import UpMetrics
from streamserve.contract.runtime_config import ConfigId
from streamserve.operator.edge.metrics import OperatorMetrics
from streamserve.router import config as router_settings
from streamserve.router.__main__ import Router
from streamserve.runtime.metrics import HealthServer
from streamserve.worker.monitor.metrics import Gauges, Metrics
from streamserve.worker.pipeserve.engine import EngineSnapshot

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
ROW = re.compile(
    r"^\| `(streamserve_(\w+?)_\w+)` \| (counter|gauge|histogram) \| ([^|]+) \| ([^|]*)\| ([^|]+) \|$", re.M
)


def documented(*components: str) -> dict[str, str]:
    """Name -> type."""
    return {row[1]: row[3] for row in ROW.finditer(PAGE.read_text()) if row[2] in components}


def exposed(registry: CollectorRegistry) -> dict[str, str]:
    return {metric.name + ("_total" if metric.type == "counter" else ""): metric.type for metric in registry.collect()}


def worker_registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Metrics(registry).watch(
        lambda: Gauges(
            engine=EngineSnapshot(alive=True, depth_histogram=(1, 2), positions=((4, 2),)),
            applied=ConfigId(uid="u", generation=1),
            config_rejected=False,
            draining=False,
            open_requests=0,
            redis_connected=True,
            signals_published=0,
            labels=(("id", "lane-0-decode-0"),),
        )
    )
    return registry


async def router_registry(tmp_path: Path) -> CollectorRegistry:
    arguments = ["--namespace", "local", "--pair", "tiny", "--pair-uid", "u", "--config", str(tmp_path / "config.json")]
    router = Router(router_settings.parse([*arguments, "--grpc", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]))
    return router._metrics.registry


async def test_every_metric_of_any_process_is_on_the_page_and_no_other() -> None:
    registry = CollectorRegistry()
    HealthServer("127.0.0.1:0", registry=registry, live=lambda: None, ready=lambda: None)
    assert documented("process") == exposed(registry)


def test_every_metric_of_the_worker_is_on_the_page_and_no_other() -> None:
    assert documented("worker") == exposed(worker_registry())


async def test_every_metric_of_the_router_is_on_the_page_and_no_other(tmp_path: Path) -> None:
    assert documented("router", "process") == exposed(await router_registry(tmp_path))


def test_every_metric_of_the_operator_is_on_the_page_and_no_other() -> None:
    assert documented("operator") == exposed(OperatorMetrics().registry)


def test_every_metric_of_up_is_on_the_page_and_no_other() -> None:
    assert documented("up") == exposed(UpMetrics(lambda: ()).registry)


@pytest.mark.parametrize("line", [line for line in PAGE.read_text().splitlines() if line.startswith("| `streamserve_")])
def test_every_row_has_a_type_a_unit_and_a_meaning(line: str) -> None:
    row = ROW.match(line)
    assert row is not None, line
    assert row[4].strip()
    assert row[6].strip()
