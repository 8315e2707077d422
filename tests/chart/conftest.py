"""Helm, run for real: `make check` builds it and these tests render, lint and refuse with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CHART = ROOT / "charts" / "streamserve"
VALUES = sorted(path.stem for path in (HERE / "values").glob("*.yaml"))
PROMETHEUS = "monitoring.coreos.com/v1"
CERT_MANAGER = "cert-manager.io/v1"
LIMIT_SECONDS = 120

Manifest = dict[str, Any]
RunHelm = Callable[..., "subprocess.CompletedProcess[str]"]
Render = Callable[..., list[Manifest]]


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> RunHelm:
    """`helm("lint", "…")`: its answer, with nothing of the user's own configuration in it."""
    build = [sys.executable, str(ROOT / "hack" / "helm" / "build.py"), "--path"]
    binary = subprocess.run(build, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    assert Path(binary).exists(), f"{binary} is not there: run `make check ARGS=chart`, which builds it (minutes, once)"
    home = tmp_path_factory.mktemp("helm")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HELM_", "KUBE"))}
    environment |= {f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [binary, *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            env={**environment, **more},
        )

    return run


@pytest.fixture(scope="session")
def render(helm: RunHelm) -> Render:
    """`render("cluster", "--set", "…")`: the manifests of that values file. Prometheus' kinds are served by default."""
    known: dict[tuple[str, ...], list[Manifest]] = {}

    def run(values: str, *arguments: str, prometheus: bool = True) -> list[Manifest]:
        command = ["template", "streamserve", str(CHART), "--namespace", "serving", *arguments]
        command += ["--values", str(HERE / "values" / f"{values}.yaml")]
        command += ["--api-versions", CERT_MANAGER]
        command += ["--api-versions", PROMETHEUS] if prometheus else []
        if tuple(command) not in known:
            done = helm(*command)
            assert done.returncode == 0, done.stderr
            known[tuple(command)] = [made for made in YAML(typ="safe").load_all(done.stdout) if made]
        return known[tuple(command)]

    return run


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [made for made in manifests if made["kind"] in kinds]


def named(manifests: list[Manifest], kind: str, name: str, namespace: str = "serving") -> Manifest:
    found = [
        made
        for made in of_kind(manifests, kind)
        if made["metadata"]["name"] == name and made["metadata"].get("namespace", namespace) == namespace
    ]
    assert len(found) == 1, f"{len(found)} of {kind} {namespace}/{name}"
    return found[0]


def pod_specs(manifests: list[Manifest]) -> dict[str, Manifest]:
    """By kind and name: every pod that the chart makes, itself or by a Deployment."""
    found = {}
    for made in of_kind(manifests, "Deployment", "Pod"):
        spec = made["spec"]["template"]["spec"] if made["kind"] == "Deployment" else made["spec"]
        found[f"{made['kind']}/{made['metadata']['name']}"] = spec
    return found
