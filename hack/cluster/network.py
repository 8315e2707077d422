"""Links, routes and rules of the cluster, and what has to be put back when it goes.

A Service address that kube-proxy has not programmed yet would follow the machine's default route, and something out
there may answer: such addresses are routed to the node bridge, and pods' traffic to outside is rejected.
"""

from __future__ import annotations

import json
import re

import remains
from layout import BEFORE, FIRST, FOLDER, GUARD, NODE_BRIDGE, NODES, POD_BRIDGE, PODS, SECOND_LINK, SERVICES, Node
from shell import attempt, call

EVERY_POD = "10.88.0.0/15"
# kubelet and kube-proxy set these.
SYSCTLS = (
    "net.ipv4.ip_forward",
    "net.ipv4.conf.all.route_localnet",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_tcp_timeout_established",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
    "vm.overcommit_memory",
    "kernel.panic",
    "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys",
    "kernel.keys.root_maxbytes",
)
TABLES = ("nat", "filter", "mangle", "raw")
OWN_CHAINS = "(?:KUBE|SS)-"


def remember() -> None:
    """Write down how the machine was, unless that was done."""
    if BEFORE.exists():
        return
    values = {name: value for name in SYSCTLS if (value := attempt("sysctl", "-n", name).strip())}
    tables = attempt("nft", "list", "tables").splitlines()
    there = remains.machine()
    FOLDER.mkdir(parents=True, exist_ok=True)
    BEFORE.write_text(json.dumps({"sysctls": values, "tables": tables, "machine": there}))


def connect() -> None:
    """The node bridge, its routes and the guard, and the second node's namespace."""
    if not _has_link(NODE_BRIDGE):
        call("ip", "link", "add", NODE_BRIDGE, "type", "bridge")
        call("ip", "address", "add", f"{FIRST.address}/24", "dev", NODE_BRIDGE)
        call("ip", "link", "set", NODE_BRIDGE, "up")
        call("ip", "route", "add", SERVICES, "dev", NODE_BRIDGE)
        call("ip", "route", "add", "unreachable", PODS)
        if (device := _default_device()) is not None:
            rule = ("-s", EVERY_POD, "-o", device, "-m", "comment", "--comment", GUARD, "-j", "REJECT")
            call("iptables", "-I", "FORWARD", *rule)
    for node in NODES:
        if node.separate and not _has_link(SECOND_LINK):
            _separate(node)


def _separate(node: Node) -> None:
    # Not `ip netns add`: it binds /run/netns over itself, and no pod from before could be removed any more.
    assert node.namespace is not None
    node.namespace.touch()
    call("unshare", f"--net={node.namespace}", "true")
    call("ip", "link", "add", SECOND_LINK, "type", "veth", "peer", "name", "eth0", "netns", str(node.namespace))
    call("ip", "link", "set", SECOND_LINK, "master", NODE_BRIDGE, "up")
    call(*node.inside("ip", "link", "set", "lo", "up"))
    call(*node.inside("ip", "address", "add", f"{node.address}/24", "dev", "eth0"))
    call(*node.inside("ip", "link", "set", "eth0", "up"))
    call(*node.inside("ip", "route", "add", "default", "via", FIRST.address))
    call(*node.inside("sysctl", "-qw", "net.ipv4.ip_forward=1"))
    call("ip", "route", "add", node.pods, "via", node.address)


def disconnect() -> None:
    """Remove the rules of kube-proxy, of the policies and ours, the links and with them their routes."""
    for family in remains.FAMILIES:
        for table in TABLES:
            _remove_rules(family, table)
    for link in (POD_BRIDGE, SECOND_LINK, NODE_BRIDGE):
        attempt("ip", "link", "delete", link)
    attempt("ip", "route", "delete", "unreachable", PODS)
    for direction in ("-s", "-d"):
        attempt("conntrack", "-D", direction, EVERY_POD)


def restore() -> None:
    """Sysctls as they were; nft tables that were not there and hold no rule now."""
    before = json.loads(BEFORE.read_text())
    for name, value in before["sysctls"].items():
        attempt("sysctl", "-qw", f"{name}={value}")
    for line in attempt("nft", "list", "tables").splitlines():
        if line not in before["tables"]:
            _, family, table = line.split()
            if not _holds_rules(attempt("nft", "list", "table", family, table)):
                attempt("nft", "delete", "table", family, table)


def _remove_rules(family: str, table: str) -> None:
    for line in attempt(f"{family}-save", "-t", table).splitlines():
        if line.startswith("-A") and (GUARD in line or re.search(rf"-j {OWN_CHAINS}|^-A {OWN_CHAINS}", line)):
            words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)]
            attempt(family, "-t", table, "-D", *words[1:])
    chains = re.findall(rf"^:({OWN_CHAINS}\S+)", attempt(f"{family}-save", "-t", table), re.MULTILINE)
    for flag in ("-F", "-X"):
        for chain in chains:
            attempt(family, "-t", table, flag, chain)


def _holds_rules(listing: str) -> bool:
    return any(not re.match(r"^(table\b|\s*chain\b|\s*type\b|\s*}|\s*$)", line) for line in listing.splitlines())


def _has_link(name: str) -> bool:
    return bool(attempt("ip", "-o", "link", "show", name))


def _default_device() -> str | None:
    found = re.search(r"\bdev (\S+)", attempt("ip", "route", "show", "default"))
    return found[1] if found else None
