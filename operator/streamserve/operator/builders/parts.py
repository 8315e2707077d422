"""What the pods of every component share: ports, probes, the restricted security settings, volumes, environment.

Restricted Pod Security (the level's own list): not root, seccomp RuntimeDefault, no privilege escalation, all
capabilities dropped. Beyond it the root file system is read-only: /tmp is the only place to write to.
"""

from __future__ import annotations

from typing import Any, Final

from streamserve.operator import naming
from streamserve.operator.site import REDIS_KEYS, TLS_KEYS, Site

GRPC_PORT: Final = 50051
TOKEN_PORT: Final = 50052
HTTP_PORT: Final = 8000
METRICS_PORT: Final = 9090
NIXL_PORT: Final = 5600
CONFIG_DIRECTORY: Final = "/etc/streamserve/config"
TLS_DIRECTORY: Final = "/etc/streamserve/tls"
TOKEN_DIRECTORY: Final = "/etc/streamserve/tokens"
CONFIG_FILE: Final = "config.json"
USER_ID: Final = 65532
_PROBE_TIMEOUT_SECONDS: Final = 5

POD_SECURITY: Final[dict[str, Any]] = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Final[dict[str, Any]] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
VOLUMES: Final = ("config", "tmp", "shm", "tls", "tokens")


def http_probe(path: str, *, period_seconds: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "metrics"},
        "periodSeconds": period_seconds,
        "timeoutSeconds": _PROBE_TIMEOUT_SECONDS,
        "failureThreshold": failures,
    }


def port(name: str, number: int) -> dict[str, Any]:
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def service_port(name: str, number: int) -> dict[str, Any]:
    return {"name": name, "port": number, "targetPort": name, "protocol": "TCP"}


def volumes(pair: str, site: Site) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Configuration, scratch space and, with TLS, the identity: volumes and their mounts.

    The configuration is mounted as a directory: a file mounted by subPath never changes.
    """
    found: list[dict[str, Any]] = [
        {"name": "config", "configMap": {"name": naming.config_name(pair)}},
        {"name": "tmp", "emptyDir": {}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "config", "mountPath": CONFIG_DIRECTORY, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if site.tls:
        items = [{"key": key, "path": key} for key in TLS_KEYS]
        found.append({"name": "tls", "secret": {"secretName": site.tls_secret or site.secret, "items": items}})
        mounts.append({"name": "tls", "mountPath": TLS_DIRECTORY, "readOnly": True})
    return found, mounts


def tls_arguments(site: Site) -> list[str]:
    if not site.tls:
        return []
    flags = ("--tls-ca", "--tls-certificate", "--tls-key")
    return [part for flag, key in zip(flags, TLS_KEYS, strict=True) for part in (flag, f"{TLS_DIRECTORY}/{key}")]


def environment(component: str, site: Site) -> list[dict[str, Any]]:
    """What every process of ours gets. The Redis URL has a password: from the Secret, never in an argument."""
    return [
        from_secret("STREAMSERVE_REDIS_URL", site.secret, REDIS_KEYS[component]),
        {"name": "HOME", "value": "/tmp"},
        {"name": "USER", "value": "streamserve"},
    ]


def from_secret(variable: str, secret: str, key: str) -> dict[str, Any]:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def from_field(variable: str, path: str) -> dict[str, Any]:
    return {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}}
