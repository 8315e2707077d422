"""A Kubernetes of two nodes on this machine, for tests: real programs, nothing outside is reached. As root, on Linux.

    python hack/cluster/cluster.py up         start what does not run; builds what is absent (minutes, once)
    python hack/cluster/cluster.py load       build our images anew where code has changed, and give them to the nodes
    python hack/cluster/cluster.py status     what runs
    python hack/cluster/cluster.py kubectl …  kubectl, on this cluster
    python hack/cluster/cluster.py down       end and remove everything of it

Everything is in /var/lib/streamserve-cluster, or $STREAMSERVE_CLUSTER. What a node is made of comes from Debian:
containerd runc buildah containernetworking-plugins debootstrap iproute2 iptables nftables conntrack.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import control_plane
import down as teardown
import images
import metrics_api
import network
import node as nodes
from build import COREDNS, KUBERNETES, PAUSE
from go_programs import Failed as BuildFailed
from layout import FOLDER, KUBECONFIG, NODES
from shell import Failed, attempt, call, is_running, say, start

PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "iptables": "iptables",
    "nft": "nftables",
    "conntrack": "conntrack",
    "nsenter": "util-linux",
}
LONGEST_FOLDER = 60
BRIDGED = "net.bridge.bridge-nf-call-iptables"
HERE = Path(__file__).resolve().parent


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="hack/cluster/cluster.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["up", "load", "status", "kubectl", "down"])
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="what kubectl is given")
    args = parser.parse_args(argv)
    try:
        check_machine()
        if args.action == "up":
            up()
        elif args.action == "load":
            load()
        elif args.action == "down":
            say(teardown.down(KUBERNETES.binary()))
        elif args.action == "status":
            return status()
        else:
            command = control_plane.kubectl(KUBERNETES.binary())
            os.execv(command[0], [*command, *args.rest])
    except (Failed, BuildFailed) as reason:
        print(f"cluster: {reason}", file=sys.stderr)
        return 1
    return 0


def check_machine() -> None:
    """Raises Failed that names everything that is missing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise Failed("a cluster with nodes needs Linux and root")
    if missing := sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None}):
        raise Failed(f"not installed: {' '.join(missing)}; apt-get install --no-install-recommends {' '.join(missing)}")
    if len(str(FOLDER)) > LONGEST_FOLDER:
        raise Failed(f"{FOLDER} is too long: a path of a socket has at most 107 characters")


def up() -> None:
    began = time.monotonic()
    kubernetes, coredns = KUBERNETES.build(), COREDNS.build()
    PAUSE.build()
    archives = images.archives()
    say("starting the control plane")
    network.remember()
    network.connect()
    control_plane.certificates()
    control_plane.run(kubernetes)
    control_plane.names(kubernetes, coredns)
    for node in NODES:
        say(f"starting {node.name}")
        nodes.run(node, kubernetes)
        for archive in archives:
            nodes.load(node, archive)
        nodes.join(node, kubernetes)
        if attempt(*node.inside("sysctl", "-n", BRIDGED)).strip() != "1":
            raise Failed(f"{BRIDGED} is not 1 on {node.name}: no policy would hold between its pods; load br_netfilter")
    start(FOLDER / "policies", [sys.executable, str(HERE / "policies.py")])
    metrics_api.run(kubernetes)
    say(f"up after {time.monotonic() - began:.0f} s; export KUBECONFIG={KUBECONFIG}")


def load() -> None:
    for archive in images.archives():
        for node in NODES:
            nodes.load(node, archive)


def status() -> int:
    """0 when every program runs and both nodes are Ready."""
    kubernetes = KUBERNETES.binary()
    own = (
        "etcd-server",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "dns",
        "policies",
        "metrics-api",
    )
    names = [FOLDER / name for name in own]
    names += [node.folder / name for node in NODES for name in ("containerd", "kubelet-server", "kube-proxy")]
    dead = [str(name.relative_to(FOLDER)) for name in names if not is_running(name)]
    if dead:
        print(f"does not run: {' '.join(dead)}")
        return 1
    print(call(*control_plane.kubectl(kubernetes), "get", "nodes,pods", "--all-namespaces", "-o=wide"))
    return 0 if all(nodes.is_ready(node, kubernetes) for node in NODES) else 1


if __name__ == "__main__":
    sys.exit(main())
