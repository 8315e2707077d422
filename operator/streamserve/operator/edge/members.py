"""Which processes a StreamPair has now, and how each is reached: what the fleet asks, and whom it drains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from streamserve.contract import launch
from streamserve.operator import naming
from streamserve.operator.builders import parts
from streamserve.operator.naming import Manifest
from streamserve.operator.observe import Observed


@dataclass(frozen=True, slots=True)
class Worker:
    """`id` is its name in Redis and in messages; `pod` the pod's."""

    pod: str
    uid: str
    id: str
    role: str
    lane: int
    revision: str
    address: str
    serves: bool
    drains: bool


@dataclass(frozen=True, slots=True)
class Members:
    """`routers`: addresses by pod name, of those that are ready."""

    pair_uid: str = ""
    workers: tuple[Worker, ...] = ()
    routers: tuple[tuple[str, str], ...] = ()


def members(pair_uid: str, observed: Observed, pods: Iterable[Manifest]) -> Members:
    """`pods` are the pair's pods as they are in the cache, routers among them."""
    workers = tuple(
        Worker(
            pod=pod.name,
            uid=pod.uid,
            id=launch.worker_name(pod.lane, pod.slot),
            role=pod.slot.role,
            lane=pod.lane,
            revision=pod.reported,
            address=_address(pod.live),
            serves=pod.container_ready and not pod.leaving,
            drains=bool(pod.drain) and pod.deletion_seconds is None and pod.running,
        )
        for pod in observed.pods
    )
    routers = tuple(
        sorted(
            (pod["metadata"]["name"], address)
            for pod in pods
            if pod["metadata"].get("labels", {}).get(naming.ROLE) == naming.ROUTER
            and "deletionTimestamp" not in pod["metadata"]
            and _is_ready(pod)
            and (address := _address(pod))
        )
    )
    return Members(pair_uid, workers, routers)


def _is_ready(pod: Manifest) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _address(pod: Manifest) -> str:
    """Empty for a pod that has no IP yet."""
    ip = str(pod.get("status", {}).get("podIP") or "")
    if not ip:
        return ""
    return f"[{ip}]:{parts.GRPC_PORT}" if ":" in ip else f"{ip}:{parts.GRPC_PORT}"
