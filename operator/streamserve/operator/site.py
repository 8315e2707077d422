"""What an installation gives to every StreamPair: images, the Secret of each namespace, defaults of the cluster.

The chart fills it in; nothing here is a secret, only the name of one. The Secret lies in the StreamPair's own namespace
and holds these entries: a Redis URL for each component, and with TLS the files of a mutual-TLS identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

REDIS_KEYS: Final = {"worker": "worker-redis-url", "router": "router-redis-url"}
TLS_KEYS: Final = ("ca.crt", "tls.crt", "tls.key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """`topology_key` is the node label that placement SameTopology means. `tls_peer_name` is the name that workers'
    certificates carry; empty where they carry the address at which they are dialled. `tls_secret` holds the identity's
    files where `secret` does not, as when cert-manager fills it; empty where it does."""

    worker_image: str
    router_image: str
    secret: str = "streamserve"
    tls_secret: str = ""
    tls: bool = False
    tls_peer_name: str = ""
    image_pull_policy: str = "IfNotPresent"
    topology_key: str = "topology.kubernetes.io/zone"

    @property
    def tokens(self) -> str:
        """The Secret with the bearer tokens of clients, an entry for each; it may be missing."""
        return f"{self.secret}-tokens"
