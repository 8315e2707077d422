"""How much an eviction (a node that is drained, a cluster that shrinks) may take at a time.

    workers    minAvailable = lanes · (prefill + decode) - max(1, maxUnavailable), unhealthy pods may always go
    router     maxUnavailable = 1

Counted in pods, meant in lanes: with the first pod of a lane the router fences the lane, the readiness gate takes the
lane's other pods out of the count, and they may follow (AlwaysAllow), while no pod of another lane can. An integer
minAvailable is the only form that Kubernetes takes for pods which no workload controller owns.

At least one may go, of the only lane too, whatever maxUnavailable says of rollouts: those make another lane first, an
eviction is refused and tried again for ever, and no node with a worker could be drained.
"""

from __future__ import annotations

from streamserve.contract.streampair import StreamPair
from streamserve.operator import naming
from streamserve.operator.naming import Manifest


def workers(pair: StreamPair, pods_per_lane: int) -> Manifest:
    name = pair.metadata.name
    available = max(0, pair.spec.lanes * pods_per_lane - max(1, pair.spec.update.unavailable_lanes))
    roles = {"key": naming.ROLE, "operator": "In", "values": sorted(naming.ROLES)}
    return naming.manifest(
        pair,
        "policy/v1",
        "PodDisruptionBudget",
        naming.child_name(name, "workers"),
        "",
        {
            "spec": {
                "minAvailable": available,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": {naming.PAIR: name}, "matchExpressions": [roles]},
            }
        },
    )


def router(pair: StreamPair) -> Manifest:
    name = pair.metadata.name
    return naming.manifest(
        pair,
        "policy/v1",
        "PodDisruptionBudget",
        naming.child_name(name, naming.ROUTER),
        naming.ROUTER,
        {
            "spec": {
                "maxUnavailable": 1,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": naming.selector(name, naming.ROUTER)},
            }
        },
    )
