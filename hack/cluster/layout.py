"""Where everything of the test cluster is: one folder, fixed addresses and ports, names of links.

One cluster a machine, and none beside another Kubernetes: the addresses are taken as they are here.

    10.89.0.0/24    nodes: n1 is this machine (10.89.0.1, on a bridge), n2 a network namespace (10.89.0.2)
    10.88.0.0/15    pods: 10.88.0.0/24 on n1, 10.88.1.0/24 on n2
    10.0.0.0/24     Services
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER_VARIABLE: Final = "STREAMSERVE_CLUSTER"
FOLDER: Final = Path(os.environ.get(FOLDER_VARIABLE) or "/var/lib/streamserve-cluster")
KUBECONFIG: Final = FOLDER / "kubeconfig"
BEFORE: Final = FOLDER / "before.json"

API_PORT: Final = 16443
ETCD_PORT: Final = 23790
ETCD_PEER_PORT: Final = 23800
DNS_READY_PORT: Final = 18181
METRICS_PORT: Final = 16444
SERVICES: Final = "10.0.0.0/24"
API_SERVICE: Final = "10.0.0.1"
PODS: Final = "10.88.0.0/16"
DOMAIN: Final = "cluster.local"
GPUS_PER_NODE: Final = 8

NODE_BRIDGE: Final = "ssnode"
POD_BRIDGE: Final = "ss0"
SECOND_LINK: Final = "ssn2h"
GUARD: Final = "streamserve-cluster-guard"
PAUSE_IMAGE: Final = "streamserve/pause:1"


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    address: str
    pods: str
    separate: bool = False
    """In a network namespace of its own."""

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def socket(self) -> Path:
        return self.folder / "containerd.sock"

    @property
    def namespace(self) -> Path | None:
        return FOLDER / f"{self.name}.netns" if self.separate else None

    def inside(self, *command: str) -> list[str]:
        """The command as it runs on this node. Not `ip netns exec`: that gives each process mounts of its own."""
        return ["nsenter", f"--net={self.namespace}", *command] if self.separate else list(command)


NODES: Final = (
    Node("n1", "10.89.0.1", "10.88.0.0/24"),
    Node("n2", "10.89.0.2", "10.88.1.0/24", separate=True),
)
FIRST: Final = NODES[0]
