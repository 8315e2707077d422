"""What the cluster's enforcer makes of NetworkPolicies: whom its chains let in, told by following them."""

from __future__ import annotations

import ipaddress
import re
from types import ModuleType
from typing import Any

import pytest
from tests.support.hack_modules import cluster_module


@pytest.fixture(scope="module")
def policies() -> ModuleType:
    return cluster_module("policies")


PODS = {
    "router": ("llm", "10.88.0.1", {"role": "router"}, {("grpc", "TCP"): 50051, ("http", "TCP"): 8000}),
    "worker": ("llm", "10.88.0.2", {"role": "decode"}, {("grpc", "TCP"): 50051}),
    "client": ("llm", "10.88.0.3", {"app": "client"}, {}),
    "operator": ("ops", "10.88.1.4", {"role": "operator"}, {("metrics", "TCP"): 9090}),
    "outside": ("elsewhere", "10.88.1.5", {"app": "client"}, {}),
}
NAMESPACES = {"llm": {"name": "llm"}, "ops": {"name": "ops"}, "elsewhere": {}}


def policy(selector: dict[str, Any], *rules: dict[str, Any], namespace: str = "llm", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": namespace}, "spec": {"podSelector": selector, "ingress": list(rules), **spec}}


def labels(**wanted: str) -> dict[str, Any]:
    return {"matchLabels": wanted}


WORKER, ROUTER = labels(role="decode"), labels(role="router")
CASES: dict[str, tuple[list[dict[str, Any]], set[str]]] = {
    "without a policy everybody gets in": ([], {"router", "client", "operator", "outside"}),
    "a policy without rules lets nobody in": ([policy(WORKER)], set()),
    "a policy for other pods is none": ([policy(ROUTER)], {"router", "client", "operator", "outside"}),
    "a policy of another namespace is none": (
        [policy(WORKER, namespace="elsewhere")],
        {"router", "client", "operator", "outside"},
    ),
    "a pod selector means the policy's own namespace": (
        [policy(WORKER, {"from": [{"podSelector": labels(app="client")}]})],
        {"client"},
    ),
    "a namespace selector means all of its pods": (
        [policy(WORKER, {"from": [{"namespaceSelector": labels(name="ops")}]})],
        {"operator"},
    ),
    "both selectors have to match": (
        [policy(WORKER, {"from": [{"podSelector": labels(app="client"), "namespaceSelector": {}}]})],
        {"client", "outside"},
    ),
    "two peers add up, and so do two policies": (
        [
            policy(WORKER, {"from": [{"podSelector": ROUTER}, {"podSelector": labels(app="client")}]}),
            policy({}, {"from": [{"namespaceSelector": labels(name="ops")}]}),
        ],
        {"router", "client", "operator"},
    ),
    "a named port of the pod": (
        [policy(WORKER, {"ports": [{"port": "grpc"}]})],
        {"router", "client", "operator", "outside"},
    ),
    "a named port that the pod does not have": ([policy(WORKER, {"ports": [{"port": "http"}]})], set()),
    "another port": ([policy(WORKER, {"ports": [{"port": 9090}]})], set()),
    "a range of ports": (
        [policy(WORKER, {"ports": [{"port": 50000, "endPort": 50100}], "from": [{"podSelector": ROUTER}]})],
        {"router"},
    ),
    "an expression": (
        [
            policy(
                {"matchExpressions": [{"key": "role", "operator": "In", "values": ["prefill", "decode"]}]},
                {"from": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}}]},
            )
        ],
        {"client"},
    ),
    "a block of addresses with a hole": (
        [policy(WORKER, {"from": [{"ipBlock": {"cidr": "10.88.0.0/15", "except": ["10.88.1.0/24"]}}]})],
        {"router", "client"},
    ),
}


@pytest.mark.parametrize(("given", "wanted"), CASES.values(), ids=CASES)
def test_who_reaches_a_workers_grpc_port(policies: ModuleType, given: Any, wanted: set[str]) -> None:
    found = policies.chains(NAMESPACES, [policies.Pod(*pod) for pod in PODS.values()], given)
    target = PODS["worker"][1]
    reached = {name for name, pod in PODS.items() if name != "worker" and passes(found, pod[1], target, 50051)}
    assert reached == wanted


def test_egress_is_limited_by_its_own_rules(policies: ModuleType) -> None:
    rule = {"to": [{"podSelector": ROUTER}], "ports": [{"port": "grpc"}]}
    only = policy(labels(app="client"), policyTypes=["Egress"], egress=[rule])
    found = policies.chains(NAMESPACES, [policies.Pod(*pod) for pod in PODS.values()], [only])
    client, router, worker = (PODS[name][1] for name in ("client", "router", "worker"))
    assert passes(found, client, router, 50051)
    assert not passes(found, client, router, 8000)
    assert not passes(found, client, worker, 50051)
    assert passes(found, router, client, 1)


def test_a_chain_that_is_not_wanted_any_more_is_emptied_and_removed(policies: ModuleType) -> None:
    text = policies.restored({"TOP": ["-j RETURN"]}, {"TOP": ["-j OLD"], "OLD": ["-j DROP"]})
    assert text.splitlines() == [
        *("*filter", ":TOP - [0:0]", ":OLD - [0:0]", "-A TOP -j RETURN", "-X OLD", "COMMIT"),
    ]


def passes(chains: dict[str, list[str]], source: str, target: str, port: int) -> bool:
    """What iptables would do with the first packet of a connection."""

    def matched(rule: str) -> bool:
        if "--ctstate" in rule:
            return False
        for flag, address in (("-s", source), ("-d", target)):
            net = re.search(rf"{flag} (\S+)", rule)
            if net and ipaddress.ip_address(address) not in ipaddress.ip_network(net[1]):
                return False
        ports = re.search(r"--dport (\d+)(?::(\d+))?", rule)
        return ports is None or int(ports[1]) <= port <= int(ports[2] or ports[1])

    def walk(name: str) -> bool:
        """False when it is dropped there."""
        for rule in chains[name]:
            if matched(rule):
                action = rule.rpartition("-j ")[2]
                if action == "RETURN":
                    return True
                if action == "DROP" or not walk(action):
                    return False
        return True

    return walk("SS-NETPOL")
