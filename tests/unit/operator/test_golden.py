"""What the operator makes of whole StreamPairs, object by object: golden/*.yaml.

After a change that is meant, write them anew and read the difference:

    STREAMSERVE_GOLDEN=write .venv/bin/python -m pytest tests/unit/operator/test_golden.py
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
from ruamel.yaml import YAML

from streamserve.contract.streampair import StreamPair
from streamserve.operator import naming
from streamserve.operator.accept import accept
from streamserve.operator.desired import Desired, desired
from streamserve.operator.observe import Observed
from streamserve.operator.site import Site
from streamserve.router import config
from streamserve.worker import options

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[2] / "examples"
PAIRS = {
    **{path.stem: path for path in sorted((HERE / "pairs").glob("*.yaml"))},
    **{name: EXAMPLES / name / "streampair.yaml" for name in ("cluster", "gpu")},
}
WITH_TLS = {"claims", "cluster"}


def manifests(wanted: Desired) -> list[dict[str, Any]]:
    """Every object, and of the pods the first of each role in the first and the last lane."""
    last = max(0, wanted.wanted.lanes - 1)
    slots = [slot for slot in sorted(wanted.wanted.slots, reverse=True) if slot.index == 0]
    return [*wanted.objects, *(wanted.pod(lane, slot) for lane in sorted({0, last}) for slot in slots)]


def rendered(wanted: Desired) -> str:
    yaml, out = YAML(), io.StringIO()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 10_000
    yaml.representer.ignore_aliases = lambda *_: True
    yaml.dump_all(manifests(wanted), out)
    return out.getvalue()


@pytest.fixture(params=PAIRS)
def wanted(request: pytest.FixtureRequest, read_pair: Callable[[Path], dict[str, Any]], site: Site) -> Desired:
    pair = accept(read_pair(PAIRS[request.param]))
    assert isinstance(pair, StreamPair), pair
    named = {"tls": True, "tls_peer_name": "pod.streamserve"}
    secured: dict[str, Any] = named if request.param in WITH_TLS else {}
    return desired(pair, dataclasses.replace(site, **secured), Observed(), 0.0)


def test_the_objects_are_those_of_the_golden_file(wanted: Desired, request: pytest.FixtureRequest) -> None:
    golden = HERE / "golden" / f"{request.node.callspec.params['wanted']}.yaml"
    text = rendered(wanted)
    if os.environ.get("STREAMSERVE_GOLDEN") == "write":
        golden.write_text(text)
    assert text == golden.read_text()


def test_every_object_belongs_to_the_pair_and_is_found_by_its_label(wanted: Desired) -> None:
    for made in manifests(wanted):
        metadata = made["metadata"]
        assert metadata["labels"][naming.PAIR] == wanted.pair.metadata.name
        assert metadata["labels"][naming.MANAGED_BY] == naming.MANAGER
        assert metadata["namespace"] == wanted.pair.metadata.namespace
        assert [ref["uid"] for ref in metadata["ownerReferences"]] == [wanted.pair.metadata.uid]
        assert len(metadata["name"]) <= 63


def test_pods_keep_to_restricted_pod_security(wanted: Desired) -> None:
    for spec in _pod_specs(wanted):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_pods_take_their_identity_from_a_secret_of_its_own_where_there_is_one(
    read_pair: Callable[[Path], dict[str, Any]], site: Site
) -> None:
    pair = accept(read_pair(next(iter(PAIRS.values()))))
    assert isinstance(pair, StreamPair), pair
    wanted = desired(pair, dataclasses.replace(site, tls=True, tls_secret="streamserve-tls"), Observed(), 0.0)
    for spec in _pod_specs(wanted):
        (volume,) = (each for each in spec["volumes"] if each["name"] == "tls")
        assert volume["secret"]["secretName"] == "streamserve-tls"
        assert "streamserve-tls" not in str(spec["containers"]), "passwords stay where they are"


def test_what_a_container_mounts_is_a_volume_of_its_pod(wanted: Desired) -> None:
    for spec in _pod_specs(wanted):
        volumes = {volume["name"] for volume in spec["volumes"]}
        mounts = [mount for container in spec["containers"] for mount in container["volumeMounts"]]
        assert {mount["name"] for mount in mounts} == volumes
        assert len({mount["mountPath"] for mount in mounts}) == len(mounts)


def test_what_is_secret_comes_from_a_secret_and_from_nowhere_else(wanted: Desired) -> None:
    for spec in _pod_specs(wanted):
        for container in spec["containers"]:
            assert not any("://" in argument for argument in container["args"])
            secret = {v["name"]: v for v in container["env"] if v["name"] in ("STREAMSERVE_REDIS_URL", "HF_TOKEN")}
            assert "STREAMSERVE_REDIS_URL" in secret
            assert all("value" not in v and "secretKeyRef" in v["valueFrom"] for v in secret.values())


def test_kubernetes_own_models_know_every_field(wanted: Desired) -> None:
    for made in manifests(wanted):
        if made["kind"] == "StreamPairScaler":
            continue
        model = getattr(kubernetes.client, f"V1{made['kind']}")
        assert model.model_validate(made).model_dump(by_alias=True, exclude_none=True) == made


def test_worker_and_router_take_the_command_lines_they_are_given(wanted: Desired) -> None:
    for spec in _pod_specs(wanted):
        (container,) = spec["containers"]
        arguments = [argument.replace("$(POD_IP)", "10.0.0.1") for argument in container["args"]]
        parser = options.parser() if container["command"] == ["streamserve-worker"] else config.parser()
        given = vars(parser.parse_args(arguments))
        assert (given["namespace"], given["pair"]) == (wanted.pair.metadata.namespace, wanted.pair.metadata.name)
        addresses = [given[name] for name in ("grpc", "token_grpc", "http", "metrics", "nixl") if given.get(name)]
        assert {port["containerPort"] for port in container["ports"]} == {
            int(address.rpartition(":")[2]) for address in addresses
        }


def test_services_and_budgets_select_the_pods_they_are_for(wanted: Desired) -> None:
    made = {naming.key_of(each): each for each in manifests(wanted)}
    pair = wanted.pair.metadata.name
    deployment = made["Deployment", f"{pair}-router"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    assert made["Service", f"{pair}-router"]["spec"]["selector"].items() <= labels.items()
    for role in naming.ROLES:
        pods = [each for key, each in made.items() if key[0] == "Pod" and f"-{role}-" in key[1]]
        selector = made["Service", f"{pair}-{role}"]["spec"]["selector"]
        assert pods
        assert all(selector.items() <= pod["metadata"]["labels"].items() for pod in pods)


def _pod_specs(wanted: Desired) -> list[dict[str, Any]]:
    found = manifests(wanted)
    pods = [made["spec"] for made in found if made["kind"] == "Pod"]
    return [*pods, *(made["spec"]["template"]["spec"] for made in found if made["kind"] == "Deployment")]
