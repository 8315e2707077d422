"""What the chart tells the operator is what the operator understands, and what it hands on is what pods look for."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.chart.conftest import VALUES, Manifest, Render, named, of_kind

from streamserve.operator.builders import parts
from streamserve.operator.edge import settings
from streamserve.operator.site import REDIS_KEYS, TLS_KEYS, Site


def operator_of(manifests: list[Manifest]) -> Manifest:
    (found,) = [
        made
        for made in of_kind(manifests, "Deployment")
        if made["metadata"]["labels"]["app.kubernetes.io/component"] == "operator"
    ]
    container: Manifest = found["spec"]["template"]["spec"]["containers"][0]
    return container


@pytest.mark.parametrize("values", VALUES)
def test_the_operator_takes_its_arguments(render: Render, values: str) -> None:
    container = operator_of(render(values))
    read = settings.parse(container["args"])
    assert read.metrics == "0.0.0.0:9090"
    assert read.site.tls is (read.tls is not None) is (values != "plain")
    assert settings.REDIS_VARIABLE in {variable["name"] for variable in container["env"]}


def test_the_default_values_give_the_site_that_the_code_has_by_default(render: Render) -> None:
    """But for TLS, which the chart turns on, and the name in its certificates."""
    images = {"worker_image": "streamserve/worker:0.1.0", "router_image": "streamserve/router:0.1.0"}
    site = settings.parse(operator_of(render("default"))["args"]).site
    assert site == Site(**images, tls=True, tls_peer_name="pod.streamserve")


def test_the_files_of_its_identity_are_mounted_where_it_is_told_they_are(render: Render) -> None:
    container = operator_of(render("default"))
    files = settings.parse(container["args"]).tls
    assert files is not None
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "tls"]
    assert {path.name for path in (files.ca, files.certificate, files.key)} == set(TLS_KEYS)
    assert {path.parent for path in (files.ca, files.certificate, files.key)} == {Path(mount["mountPath"])}


@pytest.mark.parametrize("values", ["default", "external", "plain", "cluster"])
def test_each_namespace_has_the_secret_that_pods_are_given(render: Render, values: str) -> None:
    manifests = render(values)
    name = settings.parse(operator_of(manifests)["args"]).site.secret
    for namespace in ("llm", "chat") if values == "cluster" else ("serving",):
        data = named(manifests, "Secret", name, namespace)["data"]
        assert data.keys() >= set(REDIS_KEYS.values())
        assert (data.keys() >= set(TLS_KEYS)) is (values != "plain")


def test_the_policies_of_workers_name_the_ports_that_their_pods_have(render: Render) -> None:
    spec = named(render("default"), "NetworkPolicy", "streamserve-workers")["spec"]
    ports = {port["port"] for rule in spec["ingress"] for port in rule.get("ports", ())}
    assert ports == {"grpc", "metrics"}
    assert parts.port("grpc", parts.GRPC_PORT)["name"] in ports
