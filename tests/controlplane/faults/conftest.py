"""Scenarios, and what an undisturbed operator makes of each: measured once, compared with for ever.

What is marked `everything` runs only with `--everything`, an option of tests/support/slices.py: `make test-faults`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.controlplane.faults.scenarios import BY_NAME, Stage
from tests.support.api_server import ApiServer
from tests.support.fault_proxy import FaultProxy
from tests.support.operator_bench import PAIR, Body, OperatorBench
from tests.support.processes import wait_until

NAMESPACE = "faults"


@pytest.fixture
def stage(server: ApiServer, tmp_path: Path) -> Iterator[Stage]:
    """Always the same namespace: fixpoints are compared, and names and hashes may depend on it."""
    with on_stage(server, tmp_path) as made:
        yield made


@contextmanager
def on_stage(server: ApiServer, directory: Path) -> Iterator[Stage]:
    with FaultProxy(server) as proxy, OperatorBench(server, directory, NAMESPACE) as bench:
        bench.kubelet.start()
        yield Stage(bench, proxy)


@dataclass(slots=True)
class Undisturbed:
    """`of(name, stage)`: the fixpoint, and how many writes led there. Leaves the stage as it was. `pods`: how many of
    those made, drained or deleted a pod."""

    known: dict[str, tuple[dict[tuple[str, str], Body], int]] = field(default_factory=dict)
    pods: dict[str, int] = field(default_factory=dict)

    def of(self, name: str, stage: Stage) -> tuple[dict[tuple[str, str], Body], int]:
        if name not in self.known:
            scenario = BY_NAME[name]
            operator = stage.operate()
            stage.prepare(scenario)
            scenario.change(stage.bench)
            shape = stage.settle(remains=scenario.remains)
            self.known[name] = shape, len(stage.proxy.writes)
            self.pods[name] = stage.pods_made_and_ended()
            stage.bench.remove("StreamPair", PAIR)
            wait_until(lambda: not stage.bench.names(), seconds=60, what="nothing is left")
            assert operator.terminate() == 0
        return self.known[name]


@pytest.fixture(scope="session")
def undisturbed() -> Undisturbed:
    return Undisturbed()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "everything: left out of the sample; see tests/support/slices.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("everything", False):
        return
    left_out = [item for item in items if item.get_closest_marker("everything") is not None]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
