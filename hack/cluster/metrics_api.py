"""An external.metrics.k8s.io for the cluster, with the numbers that a test wrote down, reached through aggregation.

    python hack/cluster/metrics_api.py         until SIGTERM; `cluster.py up` starts it and registers it

FOLDER/metrics.json holds {"name of a metric": "its value, a quantity"}; a metric that is not in it has no value. Only
the API server's front proxy is answered: it alone may say who asks.
"""

from __future__ import annotations

import base64
import http.server
import json
import ssl
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pki
from control_plane import kubectl
from layout import FIRST, FOLDER, METRICS_PORT
from shell import attempt, call, start, until

VALUES: Final = FOLDER / "metrics.json"
GROUP: Final = "external.metrics.k8s.io"
VERSION: Final = "v1beta1"
ROOT: Final = f"/apis/{GROUP}/{VERSION}"
NAME: Final = "external-metrics"
PROXY: Final = "front-proxy-client"
READY_SECONDS: Final = 60.0


def run(kubernetes: Path) -> None:
    """Start it, and have the API server pass its group on to it."""
    if not (pki.PKI / f"{NAME}.crt").exists():
        pki.leaf("ca", NAME, NAME, names=[f"{NAME}.kube-system.svc"])
    start(FOLDER / "metrics-api", [sys.executable, str(Path(__file__).resolve())])
    call(*kubectl(kubernetes), "apply", "-f", "-", given=_registration())
    is_there = [*kubectl(kubernetes), "get", "--raw", ROOT]
    until(lambda: attempt(*is_there, seconds=5.0), f"{GROUP} answers", READY_SECONDS, f"see {FOLDER}/metrics-api.log")


def _registration() -> str:
    """A Service without a selector, and where it leads to."""
    authority = base64.b64encode((pki.PKI / "ca.crt").read_bytes()).decode()
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {NAME}, namespace: kube-system}}
spec: {{ports: [{{port: 443, targetPort: {METRICS_PORT}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {NAME}-1, namespace: kube-system, labels: {{kubernetes.io/service-name: {NAME}}}}}
addressType: IPv4
ports: [{{name: "", port: {METRICS_PORT}, protocol: TCP}}]
endpoints: [{{addresses: ["{FIRST.address}"], conditions: {{ready: true}}}}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {{name: {VERSION}.{GROUP}}}
spec:
  group: {GROUP}
  version: {VERSION}
  groupPriorityMinimum: 100
  versionPriority: 100
  caBundle: {authority}
  service: {{name: {NAME}, namespace: kube-system, port: 443}}
"""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        if self._caller() != PROXY:
            self._answer(403, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403})
            return
        path = self.path.partition("?")[0].rstrip("/")
        parts = path.removeprefix(ROOT).split("/")
        if path == ROOT:
            self._answer(200, _resources())
        elif path.startswith(f"{ROOT}/namespaces/") and len(parts) == 4:
            self._answer(200, _value(parts[3]))
        else:
            self._answer(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404})

    def _caller(self) -> str:
        shown = self.connection.getpeercert() or {}  # type: ignore[attr-defined]  # it is an SSLSocket
        return str(dict(part[0] for part in shown.get("subject", ())).get("commonName", ""))

    def _answer(self, code: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """One line for each request would fill the disk of a cluster that is left up."""


def _resources() -> dict[str, Any]:
    one = {"name": "externalmetrics", "singularName": "", "namespaced": True, "kind": "ExternalMetricValueList"}
    resources = [{**one, "verbs": ["get"]}]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{GROUP}/{VERSION}", "resources": resources}


def _value(metric: str) -> dict[str, Any]:
    try:
        known = json.loads(VALUES.read_text())
    except (OSError, ValueError):
        known = {}
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    row = {"metricName": metric, "metricLabels": {}, "timestamp": now, "value": str(known.get(metric))}
    items = [row] if metric in known else []
    return {"kind": "ExternalMetricValueList", "apiVersion": f"{GROUP}/{VERSION}", "metadata": {}, "items": items}


def main() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.PKI / f"{NAME}.crt", pki.PKI / f"{NAME}.key")
    context.load_verify_locations(pki.PKI / "front-proxy-ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    server = http.server.ThreadingHTTPServer((FIRST.address, METRICS_PORT), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    main()
