"""What the operator may do: the table rbac.yaml, in both scopes, and no more."""

from __future__ import annotations

from typing import Any

from ruamel.yaml import YAML
from tests.chart.conftest import HERE, Manifest, Render, named, of_kind

NAME = "streamserve-operator"
Right = tuple[str, str, str]


def table() -> set[Right]:
    rows: list[dict[str, Any]] = YAML(typ="safe").load(HERE / "rbac.yaml")
    assert all(row["why"] for row in rows)
    return {(row["group"], row["resource"], verb) for row in rows for verb in row["verbs"]}


def rights(role: Manifest) -> set[Right]:
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_cluster_role_is_the_table(render: Render) -> None:
    assert rights(named(render("cluster"), "ClusterRole", NAME)) == table()


def test_the_role_of_each_namespace_is_the_table(render: Render) -> None:
    manifests = render("namespaces")
    for namespace in ("chat", "llm"):
        assert rights(named(manifests, "Role", NAME, namespace)) == table()
        binding = named(manifests, "RoleBinding", NAME, namespace)
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": NAME, "namespace": "serving"}]
        assert binding["roleRef"]["kind"] == "Role"


def test_beside_it_the_operator_may_use_its_own_lease(render: Render) -> None:
    for values in ("cluster", "namespaces"):
        role = named(render(values), "Role", f"{NAME}-lease")
        assert rights(role) == {("coordination.k8s.io", "leases", verb) for verb in ("create", "get", "update")}
        bound = [rule["resourceNames"] for rule in role["rules"] if rule["verbs"] != ["create"]]
        assert bound == [[NAME]]
        deployment = named(render(values), "Deployment", NAME)
        arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
        assert f"--lease-name={NAME}" in arguments
        assert "--lease-namespace=serving" in arguments


def test_nothing_of_ours_may_read_secrets_or_everything(render: Render) -> None:
    for values in ("cluster", "namespaces", "everything"):
        for role in of_kind(render(values), "Role", "ClusterRole"):
            for group, resource, verb in rights(role):
                assert resource.partition("/")[0] != "secrets"
                assert "*" not in (group, resource, verb)


def test_stream_pairs_join_the_roles_of_people_in_cluster_scope_only(render: Render) -> None:
    aggregated = [
        role["metadata"]["name"]
        for role in of_kind(render("cluster"), "ClusterRole")
        if "rbac.authorization.k8s.io/aggregate-to-admin" in role["metadata"]["labels"]
    ]
    assert sorted(aggregated) == ["streamserve-edit", "streamserve-view"]
    assert len(of_kind(render("cluster", "--set", "rbac.aggregate=false"), "ClusterRole")) == 1


def test_the_operator_sees_exactly_the_namespaces_of_its_roles(render: Render) -> None:
    for values, wanted in (("default", ["serving"]), ("namespaces", ["chat", "llm"]), ("cluster", [])):
        arguments = named(render(values), "Deployment", NAME)["spec"]["template"]["spec"]["containers"][0]["args"]
        given = [argument.partition("=")[2] for argument in arguments if argument.startswith("--namespace=")]
        assert given == wanted
