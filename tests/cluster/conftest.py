"""The story of an SRE, on real nodes: `make test-cluster`. Every step can be run again; the last line is its times."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest
from tests.cluster.support import CLUSTER, ROOT, Cluster

UP_SECONDS = 3_000
TIMES: dict[str, float] = {}


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster of `make cluster-up`, started where it does not run, with images of this checkout."""
    began = time.monotonic()
    subprocess.run([*CLUSTER, "up"], check=True, timeout=UP_SECONDS)
    TIMES["cluster_up"] = round(time.monotonic() - began, 1)
    build, layout = module("cluster/build.py"), module("cluster/layout.py")
    helm = subprocess.run(
        [sys.executable, str(ROOT / "hack" / "helm" / "build.py")], check=True, capture_output=True, text=True
    )
    return Cluster(build.KUBERNETES.binary(), layout.KUBECONFIG, Path(helm.stdout.strip()))


def module(path: str) -> ModuleType:
    """A module of hack/, which is no package."""
    file = ROOT / "hack" / path
    spec = importlib.util.spec_from_file_location(f"hack_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


@pytest.fixture(autouse=True)
def timed(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[None]:
    began = time.monotonic()
    yield
    name: str = request.node.name
    TIMES[name.removeprefix("test_")] = round(time.monotonic() - began, 1)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """The result, as bench/results/cluster-DATE.json holds it: after pytest's own last line."""
    terminal: pytest.TerminalReporter | None = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:
        return
    counted = {kind: len(terminal.stats.get(kind, ())) for kind in ("passed", "failed", "error")}
    if not any(counted.values()):
        return
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    stamp = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit.stdout.strip()}
    machine = {"cores": os.cpu_count(), "kernel": platform.release()}
    terminal.write_line(json.dumps({**stamp, "machine": machine, **counted, "step_seconds": TIMES}))
