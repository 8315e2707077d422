"""The chart on a real API server: installed, upgraded, rolled back, uninstalled, and what its service account may do.

No controller runs here, so no pod starts: what is shown is what the API server takes, keeps and allows.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.chart.conftest import CHART, HERE, VALUES, Render, RunHelm, pod_specs
from tests.support.api_server import ApiServer

from streamserve.operator import certificates
from streamserve.operator.edge import renewal

Body = dict[str, Any]
Helm = Callable[..., str]
SECRETS = "/api/v1/namespaces/{}/secrets/{}"
ENTRIES = {
    ("serving", "streamserve-ca"): {"tls.crt", "tls.key"},
    ("serving", "streamserve-operator"): {"redis-password", "redis-url", "tls.crt", "tls.key"},
    ("serving", "streamserve-redis"): {"users.acl", "tls.crt"},
    ("serving", "streamserve-redis-users"): {"users.acl"},
    ("llm", "streamserve"): {"worker-redis-url", "router-redis-url", "tls.crt", "tls.key"},
    ("llm", "streamserve-client"): {"tls.crt", "tls.key"},
    ("llm", "streamserve-tokens"): {"default"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """With three namespaces, restricted Pod Security enforced in all of them."""
    with ApiServer(tmp_path_factory.mktemp("api-server")) as server:
        for name in ("serving", "llm", "chat"):
            labels = {"pod-security.kubernetes.io/enforce": "restricted"}
            made = server.call("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
            assert made.ok, made.body
        yield server


@pytest.fixture(scope="module")
def on(server: ApiServer, helm: RunHelm, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """`on("upgrade", …)`: Helm against that server, as an administrator."""
    path = server.write_kubeconfig(tmp_path_factory.mktemp("kube") / "config")

    def run(verb: str, *arguments: str) -> str:
        done = helm(verb, "streamserve", *arguments, "--namespace", "serving", KUBECONFIG=str(path))
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def installed(on: Helm) -> Iterator[Helm]:
    """Namespaced, for `llm`; uninstalled afterwards."""
    on("install", str(CHART), "--set", "namespaces={llm}")
    yield on
    on("uninstall")


def secret(server: ApiServer, namespace: str, name: str) -> Body:
    found = server.call("GET", SECRETS.format(namespace, name))
    assert found.ok, found.body
    return found.body


def entries(server: ApiServer) -> dict[tuple[str, str, str], str]:
    return {
        (*place, entry): secret(server, *place)["data"][entry] for place, names in ENTRIES.items() for entry in names
    }


def test_what_was_made_survives_upgrades_and_a_rollback(installed: Helm, server: ApiServer) -> None:
    before = entries(server)
    installed("upgrade", str(CHART), "--set", "namespaces={llm}", "--set", "operator.logLevel=Debug")
    assert entries(server) == before
    installed("rollback", "1")
    assert entries(server) == before


def test_a_token_that_was_added_by_hand_survives_an_upgrade(installed: Helm, server: ApiServer) -> None:
    path, added = SECRETS.format("llm", "streamserve-tokens"), {"stringData": {"search-team": "x" * 24}}
    assert server.call("PATCH", path, added, "application/merge-patch+json").ok
    before = secret(server, "llm", "streamserve-tokens")["data"]
    assert before.keys() == {"default", "search-team"}
    installed("upgrade", str(CHART), "--set", "namespaces={llm}", "--set", "operator.logLevel=Debug")
    assert secret(server, "llm", "streamserve-tokens")["data"] == before
    installed("upgrade", str(CHART), "--set", "namespaces={llm}", "--set", "credentials.clientToken=false")
    left = secret(server, "llm", "streamserve-tokens")["data"]
    assert left == {"search-team": before["search-team"]}, "`default` alone is the chart's to take back"


def test_an_upgrade_without_a_change_changes_no_pod(installed: Helm, server: ApiServer) -> None:
    path = "/apis/apps/v1/namespaces/serving/deployments"
    before = {item["metadata"]["name"]: item["spec"] for item in server.call("GET", path).body["items"]}
    assert before.keys() == {"streamserve-operator", "streamserve-redis"}
    installed("upgrade", str(CHART), "--set", "namespaces={llm}")
    assert {item["metadata"]["name"]: item["spec"] for item in server.call("GET", path).body["items"]} == before


def test_a_namespace_more_gets_its_secret_and_leaves_the_others_as_they_are(installed: Helm, server: ApiServer) -> None:
    before = entries(server)
    installed("upgrade", str(CHART), "--set", "namespaces={llm,chat}")
    after = entries(server)
    changed = {place for place in before if before[place] != after[place]}
    named = {name: ("serving", name, "users.acl") for name in ("streamserve-redis", "streamserve-redis-users")}
    assert changed == set(named.values())
    pairs = {"llm.router", "llm.worker", "chat.router", "chat.worker"}
    users = {name: base64.b64decode(after[place]).decode().splitlines() for name, place in named.items()}
    assert {name: {line.split()[1] for line in lines} for name, lines in users.items()} == {
        "streamserve-redis": {"default", "operator", *pairs},
        "streamserve-redis-users": pairs,
    }
    secret(server, "chat", "streamserve")


def test_a_certificate_near_its_end_is_made_anew_by_an_upgrade_and_the_authority_stays(
    installed: Helm, server: ApiServer
) -> None:
    before = entries(server)
    mark = {"metadata": {"annotations": {"streamserve.io/certificate-ends": "2026-01-01T00:00:00Z"}}}
    content = "application/merge-patch+json"
    assert server.call("PATCH", SECRETS.format("llm", "streamserve"), mark, content).ok
    installed("upgrade", str(CHART), "--set", "namespaces={llm}")
    changed = {place for place, value in entries(server).items() if before[place] != value}
    assert changed == {("llm", "streamserve", "tls.crt"), ("llm", "streamserve", "tls.key")}


def test_uninstalling_leaves_the_crds_with_their_objects_and_nothing_else(
    on: Helm, server: ApiServer, render: Render
) -> None:
    on("install", str(CHART), "--set", "namespaces={llm}", "--set", "scope=Cluster")
    on("uninstall")
    crds = server.call("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions").body["items"]
    assert {crd["metadata"]["name"] for crd in crds} == {
        "streampairs.streamserve.io",
        "streampairscalers.streamserve.io",
    }
    kinds = {
        *("/api/v1/namespaces/{}/secrets", "/api/v1/namespaces/{}/services", "/api/v1/namespaces/{}/configmaps"),
        *("/api/v1/namespaces/{}/serviceaccounts", "/apis/apps/v1/namespaces/{}/deployments"),
        *(
            "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
            "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
        ),
        *("/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",),
        *("/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",),
    }
    left = [
        item["metadata"]["name"]
        for kind in kinds
        for namespace in ("serving", "llm")
        for item in server.call("GET", kind.format(namespace)).body["items"]
    ]
    assert left == []
    for kind in ("clusterroles", "clusterrolebindings"):
        names = server.call("GET", f"/apis/rbac.authorization.k8s.io/v1/{kind}").body["items"]
        assert not any("streamserve" in item["metadata"]["name"] for item in names)


def test_a_second_release_may_be_installed_once_the_first_has_left_its_crds(on: Helm, server: ApiServer) -> None:
    """Kept CRDs still carry the marks of the release that made them; the same release takes them back."""
    for _ in range(2):
        on("install", str(CHART), "--set", "namespaces={llm}")
        on("uninstall")


@pytest.mark.parametrize("values", sorted({*VALUES} - {"cert-manager"}))
def test_the_notes_name_the_next_command_and_what_to_look_out_for(on: Helm, values: str) -> None:
    given = str(HERE / "values" / f"{values}.yaml")
    notes = on("install", str(CHART), "--dry-run=server", "--values", given).partition("\nNOTES:\n")[2]
    assert "kubectl -n serving rollout status deployment/" in notes
    assert "helm -n serving test streamserve" in notes
    assert ("WARNING: tls.enabled is off" in notes) is (values == "plain")
    assert ("WARNING: monitors and rules were left out" in notes) is (values == "everything")
    assert ("credentials.create is off" in notes) is (values == "own-secrets")


def test_restricted_pod_security_takes_every_pod(server: ApiServer, render: Render) -> None:
    for values in ("default", "everything", "plain", "cert-manager"):
        for name, spec in pod_specs(render(values)).items():
            spec = {key: value for key, value in spec.items() if key != "priorityClassName"}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried"}, "spec": spec}
            done = server.call("POST", "/api/v1/namespaces/serving/pods?dryRun=All", pod)
            assert done.ok, f"{name}: {done.body.get('message')}"


def may(server: ApiServer, namespace: str, group: str, resource: str, verb: str, name: str = "") -> bool:
    """What the API server says of the operator's service account."""
    resource, _, subresource = resource.partition("/")
    attributes = {"namespace": namespace, "group": group, "resource": resource, "verb": verb, "name": name}
    if subresource:
        attributes["subresource"] = subresource
    spec = {
        "user": "system:serviceaccount:serving:streamserve-operator",
        "groups": ["system:serviceaccounts", "system:serviceaccounts:serving", "system:authenticated"],
        "resourceAttributes": attributes,
    }
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
    done = server.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    assert done.ok, done.body
    return bool(done.body["status"]["allowed"])


def test_the_operator_may_do_its_table_there_and_nothing_elsewhere(installed: Helm, server: ApiServer) -> None:
    for row in YAML(typ="safe").load(HERE / "rbac.yaml"):
        allowed = "serving" if row.get("in") == "release" else "llm"
        for verb in row["verbs"]:
            right = (row["group"], row["resource"], verb)
            for name in row.get("names", [""]):
                for namespace in ("llm", "chat", "serving"):
                    assert may(server, namespace, *right, name) is (namespace == allowed), (namespace, *right, name)
    assert may(server, "serving", "coordination.k8s.io", "leases", "update", "streamserve-operator")
    assert not may(server, "serving", "coordination.k8s.io", "leases", "update", "somebody-elses")
    for namespace in ("llm", "serving"):
        for verb in ("get", "list", "watch", "create", "update", "patch", "delete"):
            assert not may(server, namespace, "", "secrets", verb)
            assert not may(server, namespace, "", "secrets", verb, "somebody-elses")
            assert verb in ("get", "patch") or not may(server, namespace, "", "secrets", verb, "streamserve")
    for verb in ("list", "watch", "update", "patch", "delete"):
        assert not may(server, "serving", "", "secrets", verb, "streamserve-ca")


def test_what_the_operator_has_renewed_is_kept_by_the_next_upgrade(installed: Helm, server: ApiServer) -> None:
    """Renewed before its time here, in the operator's own words."""
    ca = secret(server, "serving", "streamserve-ca")
    authority = certificates.read_authority(*(base64.b64decode(ca["data"][name]) for name in ("tls.crt", "tls.key")))
    for place in (("llm", "streamserve"), ("llm", "streamserve-client"), ("serving", "streamserve-operator")):
        found = secret(server, *place)
        now = datetime.now(UTC) + timedelta(days=300)
        old = base64.b64decode(found["data"]["tls.crt"])
        assert isinstance(certificates.decide(old, authority, now), certificates.Renew)
        patch = renewal.patch(found, certificates.successor(old, authority, now))
        assert server.call("PATCH", SECRETS.format(*place), patch, "application/merge-patch+json").ok
    renewed = entries(server)
    installed("upgrade", str(CHART), "--set", "namespaces={llm}", "--set", "operator.logLevel=Debug")
    assert entries(server) == renewed


def test_a_release_is_small_enough_for_helms_own_secret(installed: Helm, server: ApiServer) -> None:
    """Helm keeps a release in a Secret, and a Secret has 1 MiB."""
    (release,) = [
        item
        for item in server.call("GET", "/api/v1/namespaces/serving/secrets").body["items"]
        if item["type"] == "helm.sh/release.v1"
    ]
    assert len(base64.b64decode(release["data"]["release"])) < 512 * 1024


def test_a_stream_pair_can_be_created_once_the_chart_is_there(installed: Helm, server: ApiServer) -> None:
    pair = YAML(typ="safe").load(Path(HERE.parents[1] / "examples" / "gpu" / "streampair.yaml"))
    done = server.call("POST", "/apis/streamserve.io/v1alpha1/namespaces/llm/streampairs?dryRun=All", pair)
    assert done.ok, done.body
