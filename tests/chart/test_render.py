"""What the chart renders, for each file of values/: golden/*.yaml, and what must hold for all of them.

After a change that is meant, write the golden files anew and read the difference:

    STREAMSERVE_GOLDEN=write make check ARGS=chart
"""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.chart.conftest import CHART, HERE, ROOT, VALUES, Manifest, Render, RunHelm, named, of_kind, pod_specs
from tests.support.hack_modules import image_builder

from streamserve.operator.builders import parts

LONG = re.compile(r"^[A-Za-z0-9+/=]{40,}$")
VALIDATE = ROOT / ".cache" / "chart" / "bin" / "kubernetes-validate"
OF_OTHERS = {"CustomResourceDefinition", "ServiceMonitor", "PodMonitor", "PrometheusRule", "Certificate"}


@pytest.fixture(params=VALUES)
def manifests(request: pytest.FixtureRequest, render: Render) -> list[Manifest]:
    return render(request.param)


@pytest.mark.parametrize("values", VALUES)
def test_helm_lint_finds_nothing(helm: RunHelm, values: str) -> None:
    done = helm("lint", "--strict", str(CHART), "--values", str(HERE / "values" / f"{values}.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("values", VALUES)
def test_the_objects_are_those_of_the_golden_file(render: Render, values: str) -> None:
    golden = HERE / "golden" / f"{values}.yaml"
    text = shown(render(values))
    if os.environ.get("STREAMSERVE_GOLDEN") == "write":
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("values", VALUES)
def test_kubernetes_would_take_every_object(render: Render, values: str, tmp_path: Path) -> None:
    assert VALIDATE.exists(), f"{VALIDATE} is not there: run `make check ARGS=chart`, which installs it"
    written = tmp_path / "objects.yaml"
    objects = [made for made in render(values) if made["kind"] not in OF_OTHERS]
    with written.open("w") as out:
        YAML(typ="safe").dump_all(objects, out)
    done = subprocess.run(
        [str(VALIDATE), "--strict", "-k", "1.35", str(written)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_pod_keeps_to_restricted_pod_security(manifests: list[Manifest]) -> None:
    specs = pod_specs(manifests)
    assert specs
    for spec in specs.values():
        assert spec["securityContext"] == parts.POD_SECURITY
        for container in spec["containers"]:
            assert container["securityContext"] == parts.CONTAINER_SECURITY
            assert container["resources"]["limits"]["memory"]
        assert {volume_kind(volume) for volume in spec["volumes"]} <= {"emptyDir", "secret", "configMap"}
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()


def test_only_pods_that_ask_the_api_have_a_token(manifests: list[Manifest]) -> None:
    for name, spec in pod_specs(manifests).items():
        assert spec["automountServiceAccountToken"] is not name.endswith("-redis")


def test_no_secret_is_in_an_argument_a_literal_or_a_config_map(manifests: list[Manifest]) -> None:
    secrets = secret_values(manifests)
    for name, spec in pod_specs(manifests).items():
        for container in spec["containers"]:
            words = [*container.get("command", ()), *container.get("args", ())]
            words += [variable["value"] for variable in container.get("env", ()) if "value" in variable]
            for word in words:
                assert "://" not in word.replace("http://", "").replace("https://", ""), f"{name}: {word}"
                assert not any(secret in word for secret in secrets), name
    for made in of_kind(manifests, "ConfigMap", "Deployment", "Pod"):
        text = str(made)
        assert not any(secret in text for secret in secrets), made["metadata"]["name"]


def test_a_password_lies_in_its_users_secret_and_nowhere_else(render: Render) -> None:
    """Redis itself is given digests."""
    manifests = render("default")
    acl = [made for made in of_kind(manifests, "Secret") if "users.acl" in made["data"]]
    assert len(acl) == 2
    others = [made for made in of_kind(manifests, "Secret") if made not in acl]
    passwords = {decoded(value) for made in others for key, value in made["data"].items() if key.endswith("password")}
    assert len(passwords) == 3
    assert not any(password in decoded(made["data"]["users.acl"]) for password in passwords for made in acl)


def test_namespaced_mode_makes_nothing_cluster_wide_but_the_crds(render: Render) -> None:
    for values in ("default", "namespaces", "external", "own-secrets", "plain"):
        for made in render(values):
            if made["kind"] != "CustomResourceDefinition":
                assert not made["kind"].startswith("Cluster"), made["kind"]
                assert made["metadata"].get("namespace"), made["metadata"]["name"]


def test_the_crds_are_those_of_the_repository_and_are_kept(render: Render) -> None:
    found = {made["metadata"]["name"]: made for made in of_kind(render("default"), "CustomResourceDefinition")}
    sources = [YAML(typ="safe").load(path) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    assert len(found) == len(sources) == 2
    for source in sources:
        kept = {**source["metadata"], "annotations": {"helm.sh/resource-policy": "keep"}}
        assert found[source["metadata"]["name"]] == {**source, "metadata": kept}


def test_crds_are_not_kept_or_not_installed_where_the_values_say_so(render: Render) -> None:
    assert all("annotations" not in m["metadata"] for m in of_kind(render("external"), "CustomResourceDefinition"))
    assert of_kind(render("plain"), "CustomResourceDefinition") == []


def test_monitors_and_rules_appear_only_where_the_cluster_serves_their_kinds(render: Render) -> None:
    kinds = ("ServiceMonitor", "PodMonitor", "PrometheusRule")
    assert {made["kind"] for made in of_kind(render("everything"), *kinds)} == set(kinds)
    assert of_kind(render("everything", prometheus=False), *kinds) == []
    assert of_kind(render("default"), *kinds) == []


def test_the_dashboard_is_the_charts_file_word_for_word_and_only_on_request(render: Render) -> None:
    (made,) = (each for each in of_kind(render("everything"), "ConfigMap") if "streamserve.json" in each["data"])
    assert made["data"]["streamserve.json"] == (CHART / "dashboard.json").read_text()
    assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert not [each for each in of_kind(render("default"), "ConfigMap") if "streamserve.json" in each["data"]]


def images_of(manifests: list[Manifest]) -> list[str]:
    """Those of the chart's pods, and those that the operator is told to give to StreamPairs."""
    specs = pod_specs(manifests).values()
    found = [container["image"] for spec in specs for container in spec["containers"]]
    return found + [
        argument.partition("=")[2]
        for spec in specs
        for argument in spec["containers"][0].get("args", ())
        if argument.startswith(("--worker-image=", "--router-image="))
    ]


def test_registries_of_ones_own_serve_every_image(render: Render) -> None:
    images = images_of(render("cluster"))
    assert len(images) == 5
    assert all(image.startswith("registry.example.com/mirror/") for image in images), images
    moved = images_of(render("cluster", "--set", "redis.embedded.image.registry=redis.example.com:5000/"))
    assert set(moved) - set(images) == {"redis.example.com:5000/redis:7.4-bookworm"}


def test_the_commands_of_the_install_page_push_what_they_install_and_redis_is_where_everybody_has_it(
    render: Render,
) -> None:
    page = (ROOT / "docs" / "operate" / "install.md").read_text().partition("## In four commands")[2]
    made = re.search(r'make images ARGS="([^"]+)"', page)
    pushed = re.search(r"for image in (.+); do\n.*\n  docker push (\S+)/streamserve/\$image\n", page)
    install = re.search(r"^helm install streamserve charts/streamserve --namespace llm (.+)$", page, re.M)
    assert made is not None and pushed is not None and install is not None
    tags = {image.name: image.tag for image in image_builder().IMAGES}
    built = [tags[name] for name in made[1].split()]
    assert built == [f"streamserve/{image}" for image in pushed[1].split()]
    wanted = images_of(render("default", *install[1].split()))
    assert set(wanted) == {f"{pushed[2]}/{tag}" for tag in built} | {"redis:7.4-bookworm"}


def test_selectors_hold_none_of_what_an_upgrade_changes(manifests: list[Manifest]) -> None:
    for made in of_kind(manifests, "Deployment"):
        selector = made["spec"]["selector"]["matchLabels"]
        assert selector.keys() == {f"app.kubernetes.io/{key}" for key in ("name", "instance", "component")}
        assert selector.items() <= made["spec"]["template"]["metadata"]["labels"].items()


def test_a_chart_of_another_version_replaces_no_pod_whose_image_stays(render: Render) -> None:
    for made in of_kind(render("default"), "Deployment"):
        labels = made["spec"]["template"]["metadata"]["labels"]
        assert not {"app.kubernetes.io/version", "helm.sh/chart"} & labels.keys()


CHANGES = (
    "redis.embedded.maxMemoryMegabytes=300",
    "tls.enabled=false",
    "namespaces={llm}",
    "credentials.operatorSecretName=another",  # which gets a password of its own
)


@pytest.mark.parametrize("change", CHANGES)
def test_redis_starts_anew_with_another_configuration(render: Render, change: str) -> None:
    before, after = (
        named(render("cluster", *more), "Deployment", "streamserve-redis")["spec"]["template"]["metadata"]
        for more in ((), ("--set", change))
    )
    assert before != after


def test_the_test_pod_reaches_what_it_asks_although_others_may_not(render: Render) -> None:
    manifests = render("everything")
    labels = named(manifests, "Pod", "ss-test")["metadata"]["labels"]
    for name in ("ss-operator", "ss-redis"):
        peers = [
            peer["podSelector"]["matchLabels"]
            for rule in named(manifests, "NetworkPolicy", name)["spec"]["ingress"]
            for peer in rule["from"]
            if "podSelector" in peer and "namespaceSelector" not in peer
        ]
        assert any(selector.items() <= labels.items() for selector in peers), name


def test_names_and_label_values_fit_however_long_the_release_is(helm: RunHelm) -> None:
    done = helm("template", "r" * 53, str(CHART), "--namespace", "n" * 40, "--set", "monitoring.monitors=true")
    assert done.returncode == 0, done.stderr
    for made in YAML(typ="safe").load_all(done.stdout):
        if made and made["kind"] != "CustomResourceDefinition":
            assert len(made["metadata"]["name"]) <= 63
            assert all(len(value) <= 63 for value in made["metadata"]["labels"].values())


def shown(manifests: list[Manifest]) -> str:
    """In the order of kind and name. What is random or long is named instead; CRDs are compared elsewhere."""
    ordered = sorted(
        (made for made in manifests if made["kind"] != "CustomResourceDefinition"),
        key=lambda made: (made["kind"], made["metadata"].get("namespace", ""), made["metadata"]["name"]),
    )
    yaml, out = YAML(), io.StringIO()
    yaml.width = 10_000
    yaml.dump_all([masked(made) for made in ordered], out)
    return out.getvalue()


def masked(made: Manifest) -> Manifest:
    if made["metadata"]["name"].endswith("-dashboard"):
        return {**made, "data": dict.fromkeys(made["data"], "<dashboard.json>")}
    if made["kind"] != "Secret":
        return made
    tokens = made["metadata"]["name"].endswith("-tokens")
    data = {
        key: "<random>" if tokens or key.endswith(("password", "crt", "key")) else plain(value)
        for key, value in made["data"].items()
    }
    metadata = dict(made["metadata"])
    if "annotations" in metadata:
        metadata["annotations"] = dict.fromkeys(metadata["annotations"], "<random>")
    return {**made, "metadata": metadata, "data": data}


def plain(value: str) -> str:
    """Decoded, with every password and digest of one masked."""
    text = re.sub(r"#[0-9a-f]{64}", "#<digest>", decoded(value))
    return re.sub(r":[A-Za-z0-9]{32}@", ":<random>@", text)


def decoded(value: str) -> str:
    return base64.b64decode(value).decode()


def secret_values(manifests: list[Manifest]) -> list[str]:
    """Of every Secret, decoded and as it stands in the manifest."""
    values = [
        value
        for made in of_kind(manifests, "Secret")
        for key, value in made["data"].items()
        if not key.endswith(".crt")
    ]
    return [*values, *(decoded(value) for value in values)]


def volume_kind(volume: dict[str, Any]) -> str:
    (kind,) = volume.keys() - {"name"}
    return kind
