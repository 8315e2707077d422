"""The kinds that the operator reads and writes, and where the API server has them.

StreamPairs are watched whole. Of everything else only what carries our label: the API server filters, so an object of
somebody else costs nothing. That an object under one of our names is not ours is found out when it is to be made
(`apply.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from streamserve.contract.streampair import API_VERSION, KIND
from streamserve.operator import naming
from streamserve.operator.builders import scalers


@dataclass(frozen=True, slots=True)
class Resource:
    """`group` is empty for the core API."""

    kind: str
    api_version: str
    plural: str
    labelled: bool = True

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        return self.api_version.rpartition("/")[2]

    @property
    def is_custom(self) -> bool:
        """Defined by a CRD of ours, which an upgrade may change while it is watched."""
        return self.api_version == API_VERSION

    @property
    def selector(self) -> str:
        """What the watch asks for; empty for everything."""
        return f"{naming.MANAGED_BY}={naming.MANAGER}" if self.labelled else ""

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.api_version}"
        parts = (root, "namespaces", quote(namespace, safe=""), self.plural, quote(name, safe=""), subresource)
        return "/".join(part for part in parts if part)


PAIR: Final = Resource(KIND, API_VERSION, "streampairs", labelled=False)
WATCHED: Final = (
    PAIR,
    Resource(scalers.KIND, API_VERSION, "streampairscalers"),
    Resource("Pod", "v1", "pods"),
    Resource("Service", "v1", "services"),
    Resource("ConfigMap", "v1", "configmaps"),
    Resource("ServiceAccount", "v1", "serviceaccounts"),
    Resource("Deployment", "apps/v1", "deployments"),
    Resource("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets"),
)
BY_KIND: Final = {resource.kind: resource for resource in WATCHED}
LEASE: Final = Resource("Lease", "coordination.k8s.io/v1", "leases")
EVENT: Final = Resource("Event", "v1", "events")
SECRET: Final = Resource("Secret", "v1", "secrets")
