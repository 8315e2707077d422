"""The story of an SRE, on real nodes: `make test-cluster`. Every step can be run again; the last line is its times.

A story that was interrupted goes on where it stopped, on the same commit and cluster (`resume.py`).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.cluster.resume import Notes
from tests.cluster.support import CLUSTER, ROOT, Cluster, run
from tests.support.hack_modules import cluster_module

UP_SECONDS = 3_000
TIMES: dict[str, float] = {}
NOTES: pytest.StashKey[Notes] = pytest.StashKey()
BEHIND: pytest.StashKey[int] = pytest.StashKey()


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """The cluster of `make cluster-up`, started where it does not run, with images of this checkout."""
    began = time.monotonic()
    subprocess.run([*CLUSTER, "up"], check=True, timeout=UP_SECONDS)
    TIMES["cluster_up"] = round(time.monotonic() - began, 1)
    if NOTES in request.config.stash:
        request.config.stash[NOTES].of = _same_story()
    build, layout = cluster_module("build"), cluster_module("layout")
    helm = subprocess.run(
        [sys.executable, str(ROOT / "hack" / "helm" / "build.py")], check=True, capture_output=True, text=True
    )
    return Cluster(build.KUBERNETES.binary(), layout.KUBECONFIG, Path(helm.stdout.strip()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the whole story, what is left of it. Who asks for steps by name gets them."""
    named = config.option.keyword or any("::" in argument for argument in config.args)
    config.stash[BEHIND] = 0
    if named:
        return
    notes = config.stash[NOTES] = Notes(ROOT / ".cache" / "cluster-story.json", _same_story())
    behind = notes.behind([item.name for item in items])
    config.stash[BEHIND] = len(behind)
    TIMES.update({_step(name): notes.seconds[name] for name in behind})
    config.hook.pytest_deselected(items=items[: len(behind)])
    del items[: len(behind)]


def _same_story() -> tuple[str, ...]:
    """The commit and the cluster that runs; empty where one of them cannot be told apart from another."""
    layout, build = cluster_module("layout"), cluster_module("build")
    ask = ("get", "namespace", "kube-system", "-o=jsonpath={.metadata.uid}", "--request-timeout=5s")
    if not layout.KUBECONFIG.exists() or (commit := _commit()).endswith("-dirty"):
        return ()
    uid = run(str(build.KUBERNETES.binary()), "kubectl", f"--kubeconfig={layout.KUBECONFIG}", *ask, seconds=30).stdout
    return (commit, uid) if uid else ()


def _commit() -> str:
    described = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    return run(*described, seconds=30).stdout.strip()


def _step(name: str) -> str:
    return name.removeprefix("test_")


@pytest.fixture(autouse=True)
def timed(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[None]:
    began = time.monotonic()
    yield
    TIMES[_step(request.node.name)] = round(time.monotonic() - began, 1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.passed and NOTES in item.config.stash:
        item.config.stash[NOTES].passed(item.name, round(report.duration, 1))
    return report


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None and NOTES in item.config.stash:
        item.config.stash[NOTES].forget()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """The result, as bench/results/cluster-DATE.json holds it: after pytest's own last line."""
    terminal: pytest.TerminalReporter | None = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:
        return
    counted = {kind: len(terminal.stats.get(kind, ())) for kind in ("passed", "failed", "error")}
    if not any(counted.values()):
        return
    counted["passed"] += (behind := config.stash[BEHIND])
    resumed = {"passed_before_it_was_interrupted": behind} if behind else {}
    stamp = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "commit": _commit()}
    machine = {"cores": os.cpu_count(), "kernel": platform.release()}
    terminal.write_line(json.dumps({**stamp, "machine": machine, **counted, **resumed, "step_seconds": TIMES}))
