"""Identities of our pods. Nothing is bound to them and no token is mounted: neither component talks to the API."""

from __future__ import annotations

from streamserve.contract.streampair import StreamPair
from streamserve.operator import naming
from streamserve.operator.naming import Manifest


def account(pair: StreamPair, component: str) -> Manifest:
    """`component` is worker or router."""
    name = naming.child_name(pair.metadata.name, component)
    role = naming.ROUTER if component == naming.ROUTER else ""
    return naming.manifest(pair, "v1", "ServiceAccount", name, role, {"automountServiceAccountToken": False})
