"""The operator with the chart's rights and no others: it can do all of its work, and it uses each of them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.support.api_server import ApiServer
from tests.support.fault_proxy import Answered, FaultProxy
from tests.support.leaves import DAY, Signer, secret
from tests.support.operator_bench import PAIR, Body, OperatorBench
from tests.support.processes import wait_until

from streamserve.operator.edge.resources import BY_KIND, EVENT, LEASE, SECRET

Right = tuple[str, str, str]
ROWS: list[dict[str, Any]] = YAML(typ="safe").load(Path(__file__).parents[1] / "chart" / "rbac.yaml")
TABLE: set[Right] = {
    (row["group"], row["resource"], verb) for row in ROWS if "names" not in row for verb in row["verbs"]
}
BY_NAME: set[tuple[Right, str]] = {
    ((row["group"], row["resource"], verb), name)
    for row in ROWS
    for name in row.get("names", ())
    for verb in row["verbs"]
}
AUTHORITY = "streamserve-ca"
LEAVES = sorted({name for _, name in BY_NAME} - {AUTHORITY})
OWN_LEASE: set[Right] = {(LEASE.group, LEASE.plural, verb) for verb in ("create", "get", "update")}
# Asked for inside the API server, by an admission plugin that is off by default.
UNSEEN: set[Right] = {("streamserve.io", "streampairs/finalizers", "update")}
NAME = "operator"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
HELD = f"{PAIR}-decode-1"
MISSING = 'MountVolume.SetUp failed for volume "tls" : secret "own-tls" not found'
EXTERNAL: Body = {"prefill": {"replicas": 1, "scaling": {"mode": "External"}}}
ALONE: Body = {"prefill": {"replicas": 1, "scaling": {"mode": "Fixed"}}}


@pytest.fixture(params=[False, True], ids=["a namespace", "the cluster"])
def everywhere(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def limited(bench: OperatorBench, everywhere: bool) -> OperatorBench:
    """Its operators are a ServiceAccount that has exactly these rights: in its namespace, or in all of them."""
    by_name = [
        {"apiGroups": [g], "resources": [r], "verbs": [v], "resourceNames": [name]}
        for (g, r, v), name in sorted(BY_NAME)
    ]
    own = rules_of(OWN_LEASE) + by_name
    become_account(bench)
    if everywhere:
        grant(bench, rules_of(TABLE), everywhere=True)
        grant(bench, own)
    else:
        grant(bench, rules_of(TABLE) + own)
    return bench


@pytest.fixture
def second(server: ApiServer, bench: OperatorBench, tmp_path: Path) -> Iterator[OperatorBench]:
    """Another namespace with a kubelet of its own, and with the first one's Redis."""
    directory = tmp_path / "second"
    directory.mkdir()
    with OperatorBench(server, directory, f"{bench.namespace}-second") as second:
        second.redis.kill()
        second.redis = bench.redis
        second.kubelet.start()
        yield second


def become_account(bench: OperatorBench) -> None:
    accounts = f"/api/v1/namespaces/{bench.namespace}/serviceaccounts"
    answer = bench.call("POST", accounts, {"metadata": {"name": NAME}})
    assert answer.ok, answer.body
    answer = bench.call("POST", f"{accounts}/{NAME}/token", {"spec": {"expirationSeconds": 3600}})
    assert answer.ok, answer.body
    bench.token = answer.body["status"]["token"]


def rules_of(rights: set[Right]) -> list[Body]:
    return [{"apiGroups": [g], "resources": [r], "verbs": [v]} for g, r, v in sorted(rights)]


def grant(
    bench: OperatorBench, rules: list[Body], *, everywhere: bool = False, within: str = "", name: str = NAME
) -> None:
    """To the account of this bench: a Role in its namespace, or `within` another, or a ClusterRole."""
    place = RBAC if everywhere else f"{RBAC}/namespaces/{within or bench.namespace}"
    kind, name = ("ClusterRole", bench.namespace) if everywhere else ("Role", name)
    subject = {"kind": "ServiceAccount", "name": NAME, "namespace": bench.namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
    metadata = {"name": name}
    for path, body in (
        (f"{place}/{kind.lower()}s", {"metadata": metadata, "rules": rules}),
        (f"{place}/{kind.lower()}bindings", {"metadata": metadata, "subjects": [subject], "roleRef": role}),
    ):
        answer = bench.call("POST", path, body)
        assert answer.ok, answer.body


def test_every_right_is_used_and_every_use_is_a_right(limited: OperatorBench, everywhere: bool) -> None:
    _plant_certificates_that_are_due(limited)
    renewed = [f"--renew={limited.namespace}/{name}" for name in LEAVES]
    with FaultProxy(limited.server) as proxy:
        authority = f"--renew-authority={AUTHORITY}"
        operator = limited.start(NAME, authority, *renewed, everywhere=everywhere, server=proxy.url)
        limited.kubelet.holds = {HELD}
        limited.create(EXTERNAL)
        _say_what_is_missing(limited)
        assert MISSING in limited.until("Degraded", "True", reason="ContainerCannotStart")["message"]
        limited.kubelet.holds = set()
        limited.until("Ready", "True")
        assert limited.condition("Degraded")["status"] == "False"
        limited.edit({"engine": {"kind": "Simulator", "args": {"max-num-seqs": "7"}}})
        limited.until("Ready", "True")
        limited.until_quiet(operator)
        _plant_what_an_older_operator_may_have_made(limited)
        limited.edit(ALONE)
        wait_until(lambda: not _planted(limited), seconds=60, what="what is not wanted any more is deleted")
        limited.until("ConfigApplied", "True")
        limited.until_quiet(operator)
        assert operator.terminate() == 0
    refused = {answered for answered in proxy.answered if answered.status == 403}
    assert refused == set()
    used = {right for answered in proxy.answered for right in rights_of(answered)}
    assert used == (TABLE | OWN_LEASE | {right for right, _ in BY_NAME}) - UNSEEN
    place = SECRET.path(limited.namespace)
    secrets = {each for each in proxy.answered if each.path.startswith(place)}
    assert {(right, each.path.removeprefix(f"{place}/")) for each in secrets for right in rights_of(each)} == BY_NAME


def test_with_a_cluster_role_every_namespace_is_served_and_one_pair_goes_without_the_other(
    bench: OperatorBench, second: OperatorBench
) -> None:
    become_account(bench)
    grant(bench, rules_of(TABLE), everywhere=True)
    grant(bench, rules_of(OWN_LEASE))
    with FaultProxy(bench.server) as proxy:
        operator = bench.start(NAME, everywhere=True, server=proxy.url)
        for each in (bench, second):
            each.create()
        for each in (bench, second):
            each.until("Ready", "True")
            each.until("ConfigApplied", "True")
        bench.until_quiet(operator)
        made = [
            sorted(name.removesuffix(name[-10:]) if kind == "Pod" else name for kind, name in each.names())
            for each in (bench, second)
        ]
        assert made[0] == made[1], "but for the pods' revision, which knows the namespace"
        before = second.versions()
        bench.remove("StreamPair", PAIR)
        wait_until(lambda: not bench.names(), seconds=30, what="nothing is left of the first")
        bench.until_quiet(operator)
        assert second.versions() == before, "nothing of the second was written"
        second.edit({"lanes": 1})
        second.until("Ready", "True")
        assert operator.terminate() == 0
    assert {answered for answered in proxy.answered if answered.status == 403} == set()
    assert {right for answered in proxy.answered for right in rights_of(answered)} <= TABLE | OWN_LEASE
    watched = {answered.path for answered in proxy.answered if answered.watch}
    assert len(watched) == len(BY_KIND)
    assert not any("/namespaces/" in path for path in watched), "one watch of each kind, not one for each namespace"


@pytest.mark.parametrize("plural", ["streampairs", "pods"])
def test_a_namespace_that_cannot_be_listed_holds_no_other_back_and_is_left_alone_until_it_can(
    plural: str, bench: OperatorBench, second: OperatorBench, tmp_path: Path
) -> None:
    become_account(bench)
    grant(bench, rules_of(TABLE | OWN_LEASE))
    grant(bench, rules_of({right for right in TABLE if right[1] != plural}), within=second.namespace)
    for each in (bench, second):
        each.create()
    users = {f"{each.namespace}.{who}" for each in (bench, second) for who in ("router", "worker")}
    file = tmp_path / "users.acl"
    file.write_text("\n".join(f"user {name} on #{'0' * 64} ~ss:none +get" for name in sorted(users)))
    with FaultProxy(bench.server) as proxy, bench.redis.client() as client:
        for name in users:
            client.acl_setuser(name)
        arguments = ("--namespace", second.namespace, "--redis-users", str(file))
        operator = bench.start(NAME, *arguments, server=proxy.url)
        bench.until("Ready", "True")
        bench.until("ConfigApplied", "True")
        bench.until_quiet(operator)
        assert second.names() == set()
        assert second.condition("Ready") == {}, "nothing is said of what is not known"
        assert users <= set(client.acl_users())
        assert bench.metrics(operator)["streamserve_operator_unknown_namespaces"] == 1.0
        status, said = bench.get(operator, "/readyz")
        assert (status, plural in said, second.namespace in said) == (503, True, True)
        grant(bench, rules_of({right for right in TABLE if right[1] == plural}), within=second.namespace, name="rest")
        second.until("Ready", "True")
        assert bench.metrics(operator)["streamserve_operator_unknown_namespaces"] == 0.0
        wait_until(lambda: bench.get(operator, "/readyz") == (200, "ok\n"), seconds=30, what="it is ready")


def _say_what_is_missing(bench: OperatorBench) -> None:
    """The Event of a kubelet that cannot make the container of the pod that is held."""

    def held() -> Body | None:
        found = (pod for pod in bench.all("Pod") if pod["metadata"]["name"].startswith(HELD))
        return next((pod["metadata"] for pod in found if pod.get("status", {}).get("containerStatuses")), None)

    metadata = wait_until(held, seconds=30, what="the kubelet has begun with the pod")
    event = {
        "metadata": {"name": "held.1"},
        "involvedObject": {"kind": "Pod", "namespace": bench.namespace, "name": metadata["name"]}
        | {"uid": metadata["uid"]},
        "type": "Warning",
        "reason": "FailedMount",
        "message": MISSING,
        "lastTimestamp": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
    answer = bench.call("POST", EVENT.path(bench.namespace), event)
    assert answer.ok, answer.body


def _plant_certificates_that_are_due(bench: OperatorBench) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    signer = Signer(begins=now - 100 * DAY, ends=now + 1_000 * DAY)
    made = {AUTHORITY: signer.pem} | {name: signer.leaf(begins=now - 70 * DAY, life=90 * DAY) for name in LEAVES}
    for name, pem in made.items():
        answer = bench.call("POST", SECRET.path(bench.namespace), secret(pem, bench.namespace, name))
        assert answer.ok, answer.body


def _plant_what_an_older_operator_may_have_made(bench: OperatorBench) -> None:
    """Of each kind but pods and scalers, which go in any life, one more of our labels and owner."""
    uid = (bench.one("StreamPair", PAIR) or {})["metadata"]["uid"]
    owner = {"apiVersion": "streamserve.io/v1alpha1", "kind": "StreamPair", "name": PAIR, "uid": uid}
    for kind, resource in BY_KIND.items():
        if kind in ("StreamPair", "StreamPairScaler", "Pod"):
            continue
        (model, *_) = bench.all(kind)
        metadata = {
            "name": f"{PAIR}-old",
            "labels": model["metadata"]["labels"],
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
        }
        spec = {key: value for key, value in model.get("spec", {}).items() if not key.startswith(("clusterIP", "ip"))}
        body = {"apiVersion": resource.api_version, "kind": kind, "metadata": metadata, "spec": spec}
        answer = bench.call("POST", resource.path(bench.namespace), body)
        assert answer.ok, answer.body


def _planted(bench: OperatorBench) -> list[str]:
    names = {kind: [body["metadata"]["name"] for body in bench.all(kind)] for kind in BY_KIND if kind != "StreamPair"}
    return [kind for kind, there in names.items() if f"{PAIR}-old" in there] + names["StreamPairScaler"]


def rights_of(answered: Answered) -> set[Right]:
    """What one request asks of RBAC: nothing for discovery; an apply that makes its object asks for two."""
    parts = answered.path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1] if len(parts) > 1 else "", parts[3:])
    if rest[:1] == ["namespaces"]:
        rest = rest[2:]
    if not rest:
        return set()
    resource = "/".join((rest[0], *rest[2:3]))
    named = len(rest) > 1
    reading = "watch" if answered.watch else "get" if named else "list"
    verbs = {"GET": reading, "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    found = {(group, resource, verbs[answered.method])}
    if answered.method == "PATCH" and answered.status == 201:
        found.add((group, resource, "create"))
    return found
