"""What our objects are called, how they are found again, and to whom they belong.

    pod                        {pair}-{role}-{lane}-{replica}-{revision}     llama-prefill-0-0-5c9d8f7b4a
    everything else            {pair}-{what}                                 llama-router, llama-config

Names are functions of the spec, so a create that is repeated cannot make a second object. The contract bounds the
pair's name such that the longest of them has 63 characters. Selectors use the streamserve.io labels alone; the
app.kubernetes.io ones are for people and for the watch of the operator.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Final

from streamserve.contract.lanes import Slot
from streamserve.contract.streampair import API_VERSION, KIND, StreamPair

Manifest = dict[str, Any]

FIELD_MANAGER: Final = "streamserve-operator"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGER: Final = "streamserve"
PAIR: Final = "streamserve.io/pair"
ROLE: Final = "streamserve.io/role"
LANE: Final = "streamserve.io/lane"
REPLICA: Final = "streamserve.io/replica"
REVISION: Final = "streamserve.io/revision"
DRAIN: Final = "streamserve.io/drain"
DRAIN_SINCE: Final = "streamserve.io/drain-since"
RENDERED: Final = "streamserve.io/rendered"
LANE_READY: Final = "streamserve.io/LaneReady"
ROUTER: Final = "router"
ROLES: Final = ("prefill", "decode")
MAX_NAME_LENGTH: Final = 63
_POD_NAME: Final = re.compile(r"(prefill|decode)-([0-9]{1,3})-([0-9])-([0-9a-f]{10})")


def pod_name(pair: str, lane: int, slot: Slot, revision: str) -> str:
    return f"{pair}-{slot.role}-{lane}-{slot.index}-{revision}"


def place_of(pair: str, name: str) -> tuple[int, Slot, str] | None:
    """(lane, slot, revision) of a worker's pod; None for another name. Labels may be edited, a name cannot."""
    found = _POD_NAME.fullmatch(name.removeprefix(f"{pair}-")) if name.startswith(f"{pair}-") else None
    return (int(found[2]), Slot(found[1], int(found[3])), found[4]) if found else None


def child_name(pair: str, what: str) -> str:
    """Of a Service, the router, a scaler: `llama-prefill`, `llama-router`."""
    return f"{pair}-{what}"


def config_name(pair: str) -> str:
    return child_name(pair, "config")


def address_of(pair: StreamPair, port: int) -> str:
    """Where clients of this pair connect inside the cluster."""
    return f"{child_name(pair.metadata.name, ROUTER)}.{pair.metadata.namespace}.svc:{port}"


def labels(pair: str, role: str) -> dict[str, str]:
    """Of every child; `role` is prefill, decode, router, or empty for what belongs to the pair as a whole."""
    found = {
        "app.kubernetes.io/name": "streamserve",
        "app.kubernetes.io/instance": pair,
        "app.kubernetes.io/part-of": "streamserve",
        MANAGED_BY: MANAGER,
        PAIR: pair,
    }
    if role:
        found |= {"app.kubernetes.io/component": role, ROLE: role}
    return found


def selector(pair: str, role: str) -> dict[str, str]:
    """Which pods are of this role; never changes, for a Deployment's selector cannot."""
    return {PAIR: pair, ROLE: role}


def worker_selector(pair: str, role: str = "") -> str:
    """In the string form that /scale reports: the workers of the pair, or those of one role."""
    return f"{PAIR}={pair},{ROLE}={role}" if role else f"{PAIR}={pair},{ROLE} in (decode,prefill)"


def owner_reference(pair: StreamPair) -> dict[str, Any]:
    """Makes the garbage collector delete the child with its StreamPair: no finalizer, also with the operator gone."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": pair.metadata.name,
        "uid": pair.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def manifest(
    pair: StreamPair, api_version: str, kind: str, name: str, role: str, body: dict[str, Any] | None = None
) -> Manifest:
    """The frame of every child: identity, labels, owner. Raises ValueError for a name that no object can have."""
    if len(name) > MAX_NAME_LENGTH:
        raise ValueError(f"{name} has {len(name)} characters: shorten the StreamPair's name")
    metadata = {
        "name": name,
        "namespace": pair.metadata.namespace,
        "labels": labels(pair.metadata.name, role),
        "ownerReferences": [owner_reference(pair)],
    }
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **(body or {})}


def key_of(made: Manifest) -> tuple[str, str]:
    """(kind, name): unique among the children of one namespace."""
    return (made["kind"], made["metadata"]["name"])


def fingerprint(value: object) -> str:
    """Ten hexadecimal digits of the canonical JSON."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=5).hexdigest()
