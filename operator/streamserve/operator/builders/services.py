"""One headless Service for each role, by which the workers are found without Redis, and the one that clients use.

The headless ones list pods that are not ready yet too: a pod becomes ready only after a router has reached it.
"""

from __future__ import annotations

from streamserve.contract.streampair import StreamPair
from streamserve.operator import naming
from streamserve.operator.builders import parts
from streamserve.operator.naming import Manifest
from streamserve.operator.site import Site


def workers(pair: StreamPair, role: str) -> Manifest:
    name = pair.metadata.name
    return naming.manifest(
        pair,
        "v1",
        "Service",
        naming.child_name(name, role),
        role,
        {
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": naming.selector(name, role),
                "ports": [
                    parts.service_port("grpc", parts.GRPC_PORT),
                    parts.service_port("metrics", parts.METRICS_PORT),
                ],
            }
        },
    )


def router(pair: StreamPair, site: Site) -> Manifest:
    name = pair.metadata.name
    return naming.manifest(
        pair,
        "v1",
        "Service",
        naming.child_name(name, naming.ROUTER),
        naming.ROUTER,
        {
            "spec": {
                "type": "ClusterIP",
                "selector": naming.selector(name, naming.ROUTER),
                "ports": [
                    parts.service_port("grpc", parts.GRPC_PORT),
                    *([parts.service_port("grpc-token", parts.TOKEN_PORT)] if site.tls else ()),
                    parts.service_port("http", parts.HTTP_PORT),
                ],
            }
        },
    )
