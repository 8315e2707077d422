"""What the operator may do: the table rbac.yaml, in both scopes, and no more."""

from __future__ import annotations

from typing import Any

from ruamel.yaml import YAML
from tests.chart.conftest import HERE, VALUES, Manifest, Render, named, of_kind
from tests.chart.test_operator import operator_of

from streamserve.operator.edge import settings

NAME = "streamserve-operator"
Right = tuple[str, str, str]
ROWS: list[dict[str, Any]] = YAML(typ="safe").load(HERE / "rbac.yaml")


def table() -> set[Right]:
    assert all(row["why"] for row in ROWS)
    return {(row["group"], row["resource"], verb) for row in ROWS if "names" not in row for verb in row["verbs"]}


def named_rights(where: str) -> set[tuple[Right, str]]:
    """Those to single objects: in the `release`'s namespace, or in each `served` one."""
    rows = [row for row in ROWS if "names" in row and row.get("in", "served") == where]
    return {
        ((row["group"], row["resource"], verb), name) for row in rows for verb in row["verbs"] for name in row["names"]
    }


def granted_by_name(role: Manifest) -> set[tuple[Right, str]]:
    assert all(rule["resourceNames"] for rule in role["rules"])
    return {
        (right, name) for rule in role["rules"] for right in rights({"rules": [rule]}) for name in rule["resourceNames"]
    }


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


def test_of_secrets_the_operator_may_read_and_write_those_that_it_renews_by_name(render: Render) -> None:
    for values, served in (("default", ("serving",)), ("namespaces", ("chat", "llm")), ("cluster", ("chat", "llm"))):
        manifests = render(values)
        role = named(manifests, "Role", f"{NAME}-authority")
        assert granted_by_name(role) == named_rights("release")
        for namespace in served:
            role = named(manifests, "Role", f"{NAME}-certificates", namespace)
            assert granted_by_name(role) == named_rights("served")
            binding = named(manifests, "RoleBinding", f"{NAME}-certificates", namespace)
            assert binding["subjects"] == [{"kind": "ServiceAccount", "name": NAME, "namespace": "serving"}]


def test_what_it_may_write_is_what_it_is_told_to_renew(render: Render) -> None:
    for values in VALUES:
        manifests = render(values)
        told = settings.parse(operator_of(manifests)["args"]).renewal
        patched = {
            (role["metadata"]["namespace"], name)
            for role in of_kind(manifests, "Role", "ClusterRole")
            for rule in role["rules"]
            if "secrets" in rule["resources"] and "patch" in rule["verbs"]
            for name in rule["resourceNames"]
        }
        assert patched == set(told.leaves if told is not None else ())
        made = {
            (body["metadata"]["namespace"], body["metadata"]["name"]): body["data"]
            for body in of_kind(manifests, "Secret")
        }
        for leaf in patched:
            assert {"tls.crt", "tls.key"} <= made[leaf].keys()
        assert (told is None) is (values in ("plain", "own-secrets", "cert-manager"))
        if told is not None:
            assert "tls.key" in made[told.authority]
            assert not any(name.endswith("-redis") for _, name in told.leaves), "it lives as long as the authority"


def test_who_does_not_want_it_to_renew_gives_it_no_right_to_a_secret(render: Render) -> None:
    for arguments in (("--set", "tls.renew=false"), ("--set", "tls.enabled=false")):
        manifests = render("default", *arguments)
        assert settings.parse(operator_of(manifests)["args"]).renewal is None
        for role in of_kind(manifests, "Role", "ClusterRole"):
            assert not any(resource.partition("/")[0] == "secrets" for _, resource, _ in rights(role))


def test_nothing_of_ours_may_read_everything_or_a_secret_that_is_not_named(render: Render) -> None:
    for values in ("cluster", "namespaces", "everything"):
        for role in of_kind(render(values), "Role", "ClusterRole"):
            for group, resource, verb in rights(role):
                assert "*" not in (group, resource, verb)
            for rule in role["rules"]:
                if any(resource.partition("/")[0] == "secrets" for resource in rule["resources"]):
                    assert role["kind"] == "Role"
                    assert rule["resourceNames"]
                    assert set(rule["verbs"]) <= {"get", "patch"}


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
