"""Names that YAML reads as numbers, truths or nothing unless they are quoted: each is rendered as a text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.chart.conftest import CERT_MANAGER, CHART, PROMETHEUS, RunHelm

NAMED = {"name", "namespace", "secretName", "serviceAccountName", "priorityClassName", "commonName", "key", "kind"}
TEXTS = {"labels", "annotations", "matchLabels", "nodeSelector", "data"}
LISTS = {"resourceNames", "matchNames", "values", "args", "command", "dnsNames"}
ODD = {
    "nameOverride": "0x1f",
    "fullnameOverride": "1234",
    "namespaces[0]": "no",
    "namespaces[1]": "123",
    "namespaces[2]": "null",
    "image.pullSecrets[0]": "true",
    "credentials.secretName": "1e3",
    "credentials.operatorSecretName": "off",
    "serviceAccount.name": "123",
    "operator.priorityClassName": "1",
    "operator.podLabels.team": "7",
    "tls.certManager.issuer.name": "77",
}
WORLDS = {
    "of one's own names": {},
    "of the release's name alone": {"fullnameOverride": "", "nameOverride": "12", "namespaces": None},
    "in cluster scope": {"scope": "Cluster"},
    "without cert-manager": {"tls.certManager.issuer.name": ""},
}


def read(text: str) -> Any:
    """One document, as Helm reads it: `no` is false in YAML 1.1."""
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 1)
    return yaml.load(text)


def texts(node: Any, path: str = "", inside: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of each place where Kubernetes takes a text and no other thing."""
    if isinstance(node, dict):
        for key, value in node.items():
            here = f"{path}.{key}"
            if key in NAMED or inside in TEXTS:
                yield here, value
            yield from texts(value, here, key)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            if inside in LISTS:
                yield f"{path}[{index}]", value
            yield from texts(value, f"{path}[{index}]", "")


@pytest.mark.parametrize("more", WORLDS.values(), ids=WORLDS)
def test_every_name_is_a_text_whatever_it_looks_like(helm: RunHelm, more: dict[str, str | None]) -> None:
    given = {**ODD, **more}
    if given.pop("namespaces", "") is None:
        given = {name: value for name, value in given.items() if not name.startswith("namespaces")}
    done = helm(
        *("template", "12", str(CHART), "--namespace", "1"),
        *("--api-versions", CERT_MANAGER, "--api-versions", PROMETHEUS),
        *(
            "--set",
            "crds.install=false,monitoring.monitors=true,monitoring.rules=true,monitoring.dashboard.enabled=true",
        ),
        *(part for name, value in given.items() for part in ("--set-string", f"{name}={value}")),
    )
    assert done.returncode == 0, done.stderr
    made = [each for each in map(read, done.stdout.split("\n---\n")) if each]
    found = [(f"{each['kind']}{path}", value) for each in made for path, value in texts(each)]
    assert len(found) > 300
    assert [(path, value) for path, value in found if not isinstance(value, str)] == []
