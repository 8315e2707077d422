"""Enforces NetworkPolicies on this cluster's nodes, for no enforcer of others can be had as a Go module.

    python hack/cluster/policies.py            until SIGTERM; `cluster.py up` starts it

Once a second the pods, namespaces and policies become one tree of iptables chains, which is replaced on both nodes when
it has changed. Understood: ingress and egress, pod and namespace selectors, ipBlock with except, ports by number, range
and name. It is our reading of the specification: what it shows is that our policies let the right ones in, not how a
certain network plugin behaves. A new pod is open for up to a second, and connections that are open stay open.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import signal
import ssl
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Final

import pki
from layout import API_PORT, NODES, PODS
from shell import Failed, attempt, call

LOOK_SECONDS: Final = 1.0
TOP: Final = "SS-NETPOL"
EVERYBODY: Final = "0.0.0.0/0"
ESTABLISHED: Final = "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN"
HOOKS: Final = (("FORWARD",), ("INPUT", "-s", PODS))
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pod:
    """`ports`: (name, protocol) → number."""

    namespace: str
    address: str
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Direction:
    """The words of one direction: in a policy, and for iptables."""

    kind: str
    rules: str
    peers: str
    own: str
    other: str


DIRECTIONS: Final = (
    Direction("Egress", "egress", "to", "-s", "-d"),
    Direction("Ingress", "ingress", "from", "-d", "-s"),
)


def chains(namespaces: Mapping[str, Mapping[str, str]], pods: Sequence[Pod], policies: Sequence[Body]) -> Body:
    """Chain → its rules, as arguments of iptables. `namespaces`: name → labels. Pods without a policy have no chain."""
    top, found = [ESTABLISHED], {}
    for pod in sorted(pods, key=lambda each: each.address):
        for way in DIRECTIONS:
            mine = [each for each in policies if _is_for(each, pod, way)]
            if not mine:
                continue
            name = f"SS-{way.kind[:2].upper()}-{hashlib.sha256(pod.address.encode()).hexdigest()[:12]}"
            top.append(f"{way.own} {pod.address} -j {name}")
            allowed = (
                f"{way.other} {cidr} {ports} -j RETURN".replace("  ", " ")
                for policy in mine
                for rule in policy["spec"].get(way.rules) or ()
                for cidr, peer in _peers(rule.get(way.peers), pod.namespace, pods, namespaces)
                for ports in _ports(rule.get("ports"), peer if way.kind == "Egress" else pod)
            )
            found[name] = [*dict.fromkeys(allowed), "-j DROP"]
    return {TOP: top, **found}


def restored(now: Mapping[str, Sequence[str]], before: Mapping[str, Sequence[str]]) -> str:
    """What iptables-restore is given to go from one tree to the other, at once."""
    gone = [name for name in before if name not in now]
    declared = [f":{name} - [0:0]" for name in (*now, *gone)]
    appended = [f"-A {name} {rule}" for name, rules in now.items() for rule in rules]
    return "\n".join(["*filter", *declared, *appended, *(f"-X {name}" for name in gone), "COMMIT", ""])


def matches(selector: Body, labels: Mapping[str, str]) -> bool:
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_holds(each, labels) for each in selector.get("matchExpressions") or ())


def _holds(expression: Body, labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or ()
    verdicts = {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }
    return verdicts[expression["operator"]]


def _is_for(policy: Body, pod: Pod, way: Direction) -> bool:
    spec = policy["spec"]
    kinds = spec.get("policyTypes") or ["Ingress"]
    same = policy["metadata"]["namespace"] == pod.namespace
    return same and way.kind in kinds and matches(spec.get("podSelector") or {}, pod.labels)


def _peers(
    listed: Sequence[Body] | None,
    namespace: str,
    pods: Sequence[Pod],
    namespaces: Mapping[str, Mapping[str, str]],
) -> Iterator[tuple[str, Pod | None]]:
    """(addresses, the pod if it is one) of a rule; no list means everybody."""
    if not listed:
        yield EVERYBODY, None
        # The pods as well: a named port is known only of a pod.
        yield from ((pod.address, pod) for pod in pods)
        return
    for peer in listed:
        if "ipBlock" in peer:
            yield from ((str(net), None) for net in _networks(peer["ipBlock"]) if net.version == 4)
            continue
        for pod in pods:
            if "namespaceSelector" in peer:
                inside = matches(peer["namespaceSelector"], namespaces.get(pod.namespace, {}))
            else:
                inside = pod.namespace == namespace
            if inside and matches(peer.get("podSelector") or {}, pod.labels):
                yield pod.address, pod


def _networks(block: Body) -> list[Any]:
    nets: list[Any] = [ipaddress.ip_network(block["cidr"])]
    for text in block.get("except") or ():
        left_out = ipaddress.ip_network(text)
        nets = [part for net in nets for part in (_without(net, left_out))]
    return nets


def _without(net: Any, left_out: Any) -> list[Any]:
    return list(net.address_exclude(left_out)) if left_out.subnet_of(net) else [net]


def _ports(listed: Sequence[Body] | None, listener: Pod | None) -> Iterator[str]:
    """iptables' words for a rule's ports. `listener`: who is connected to, where that is known."""
    if not listed:
        yield ""
        return
    for each in listed:
        protocol, port = each.get("protocol", "TCP"), each.get("port")
        if isinstance(port, str):
            if listener is None or (port, protocol) not in listener.ports:
                continue
            port = listener.ports[port, protocol]
        low = protocol.lower()
        end = f":{each['endPort']}" if each.get("endPort") else ""
        yield f"-p {low}" + (f" -m {low} --dport {port}{end}" if port else "")


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    context = ssl.create_default_context(cafile=str(pki.PKI / "ca.crt"))
    context.load_cert_chain(pki.PKI / "admin.crt", pki.PKI / "admin.key")
    before: Body = {}
    while True:
        try:
            now = _look(context)
            if now != before:
                _write(restored(now, before))
                before = now
                print(f"{time.strftime('%T')} {len(now) - 1} chains", flush=True)
        except (OSError, HTTPException, KeyError, TypeError, ValueError, Failed) as error:
            print(f"{time.strftime('%T')} {error!r}", flush=True)
        time.sleep(LOOK_SECONDS)


def _look(context: ssl.SSLContext) -> Body:
    def items(path: str) -> list[Body]:
        with urllib.request.urlopen(f"https://127.0.0.1:{API_PORT}{path}", context=context, timeout=5) as answer:
            found: list[Body] = json.load(answer)["items"]
        return found

    namespaces = {each["metadata"]["name"]: each["metadata"].get("labels", {}) for each in items("/api/v1/namespaces")}
    pods = [pod for each in items("/api/v1/pods") if (pod := _pod(each)) is not None]
    return chains(namespaces, pods, items("/apis/networking.k8s.io/v1/networkpolicies"))


def _pod(body: Body) -> Pod | None:
    """None for one that has no address of its own, or has ended."""
    metadata, spec, status = body["metadata"], body["spec"], body["status"]
    if not status.get("podIP") or spec.get("hostNetwork") or status.get("phase") in ("Succeeded", "Failed"):
        return None
    ports = {
        (each["name"], each.get("protocol", "TCP")): each["containerPort"]
        for container in spec["containers"]
        for each in container.get("ports", ())
        if each.get("name")
    }
    return Pod(metadata["namespace"], status["podIP"], metadata.get("labels", {}), ports)


def _write(rules: str) -> None:
    for node in NODES:
        call(*node.inside("iptables-restore", "-w", "5", "--noflush"), given=rules)
        for chain, *words in HOOKS:
            jump = [chain, *words, "-j", TOP]
            if TOP not in attempt(*node.inside("iptables", "-w", "5", "-S", chain)):
                call(*node.inside("iptables", "-w", "5", "-I", jump[0], "1", *jump[1:]))


if __name__ == "__main__":
    sys.exit(main())
