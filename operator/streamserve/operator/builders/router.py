"""The router: a Deployment, for its pods are alike and none of them is missed.

A new pod takes clients before an old one leaves (maxUnavailable 0). Before SIGTERM a pod waits LEAVE_SECONDS, in which
the Service takes it out of its endpoints; then it refuses what is new and lets streams end within DRAIN_SECONDS. That
bound is not update.drainSeconds, which is hot: a change of it must not replace a pod.
"""

from __future__ import annotations

import json
from typing import Any, Final

from streamserve.contract.streampair import StreamPair
from streamserve.operator import naming
from streamserve.operator.builders import overlay, parts
from streamserve.operator.naming import Manifest
from streamserve.operator.site import Site

DRAIN_SECONDS: Final = 300
LEAVE_SECONDS: Final = 5
STOP_SECONDS: Final = 10
CONTAINER: Final = "router"


def deployment(pair: StreamPair, site: Site) -> Manifest:
    name = pair.metadata.name
    selector = naming.selector(name, naming.ROUTER)
    metadata: dict[str, Any] = {"labels": naming.labels(name, naming.ROUTER)}
    spec = _pod(pair, site)
    overlay.lay_over(metadata, spec, pair.spec.router.template)
    made = naming.manifest(
        pair,
        "apps/v1",
        "Deployment",
        naming.child_name(name, naming.ROUTER),
        naming.ROUTER,
        {
            "spec": {
                "replicas": pair.spec.router.replicas,
                "selector": {"matchLabels": selector},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "template": {"metadata": metadata, "spec": spec},
            }
        },
    )
    # What the user takes out of the template is in nothing that we render, so nothing of ours would differ. Not in the
    # pods' own metadata: there it would replace them. Equal for equal specs, so without the pair's uid.
    rendered = json.dumps(made["spec"], sort_keys=True).replace(pair.metadata.uid, "")
    made["metadata"]["annotations"] = {naming.RENDERED: naming.fingerprint(rendered)}
    return made


def _pod(pair: StreamPair, site: Site) -> dict[str, Any]:
    name = pair.metadata.name
    volumes, mounts = parts.volumes(name, site)
    if site.tls:
        # Optional: with certificates alone nobody has to have tokens, and a Secret that comes later is mounted then.
        volumes.append({"name": "tokens", "secret": {"secretName": site.tokens, "optional": True}})
        mounts.append({"name": "tokens", "mountPath": parts.TOKEN_DIRECTORY, "readOnly": True})
    container = {
        "name": CONTAINER,
        "image": site.router_image,
        "imagePullPolicy": site.image_pull_policy,
        "command": ["streamserve-router"],
        "args": [
            *("--namespace", pair.metadata.namespace, "--pair", name, "--pair-uid", pair.metadata.uid),
            *("--grpc", f"0.0.0.0:{parts.GRPC_PORT}", "--http", f"0.0.0.0:{parts.HTTP_PORT}"),
            *("--metrics", f"0.0.0.0:{parts.METRICS_PORT}"),
            *("--config", f"{parts.CONFIG_DIRECTORY}/{parts.CONFIG_FILE}"),
            *("--drain-seconds", str(DRAIN_SECONDS)),
            *parts.tls_arguments(site),
            *(("--tls-peer-name", site.tls_peer_name) if site.tls and site.tls_peer_name else ()),
            *(("--client-tokens", parts.TOKEN_DIRECTORY) if site.tls else ()),
            *(("--token-grpc", f"0.0.0.0:{parts.TOKEN_PORT}") if site.tls else ()),
        ],
        "env": parts.environment("router", site),
        "ports": [
            parts.port("grpc", parts.GRPC_PORT),
            *([parts.port("grpc-token", parts.TOKEN_PORT)] if site.tls else ()),
            parts.port("http", parts.HTTP_PORT),
            parts.port("metrics", parts.METRICS_PORT),
        ],
        "volumeMounts": mounts,
        "readinessProbe": parts.http_probe("/readyz", period_seconds=2, failures=2),
        "livenessProbe": parts.http_probe("/healthz", period_seconds=10, failures=3),
        "lifecycle": {"preStop": {"sleep": {"seconds": LEAVE_SECONDS}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": dict(parts.CONTAINER_SECURITY),
    }
    return {
        "containers": [container],
        "volumes": volumes,
        "terminationGracePeriodSeconds": LEAVE_SECONDS + DRAIN_SECONDS + STOP_SECONDS,
        "serviceAccountName": naming.child_name(name, naming.ROUTER),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": dict(parts.POD_SECURITY),
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": naming.selector(name, naming.ROUTER)},
            }
        ],
    }
