"""etcd, kube-apiserver with the aggregation layer, kube-controller-manager, kube-scheduler, and CoreDNS beside them."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pki
from layout import (
    API_PORT,
    API_SERVICE,
    DNS_READY_PORT,
    DOMAIN,
    ETCD_PEER_PORT,
    ETCD_PORT,
    FIRST,
    FOLDER,
    KUBECONFIG,
    SERVICES,
)
from shell import attempt, call, start, until

READY_SECONDS = 60.0
AUTOSCALING = [f"--horizontal-pod-autoscaler-{each}" for each in ("sync-period=2s", "downscale-stabilization=5s")]
DNS_RIGHTS = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: system:coredns}
rules:
  - {apiGroups: [""], resources: [services, pods, namespaces, endpoints], verbs: [list, watch]}
  - {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: system:coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:coredns}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: system:coredns}]
"""


def certificates() -> None:
    """All of them, unless the folder has them."""
    if KUBECONFIG.exists():
        return
    pki.authority("ca", "kubernetes-ca")
    # Not the same authority: else any client's certificate could claim to be the front proxy.
    pki.authority("front-proxy-ca", "front-proxy-ca")
    service = [f"kubernetes{rest}" for rest in ("", ".default", ".default.svc", f".default.svc.{DOMAIN}")]
    names = ["127.0.0.1", FIRST.address, API_SERVICE, "localhost", *service]
    pki.leaf("ca", "apiserver", "kube-apiserver", names=names)
    pki.leaf("ca", "apiserver-kubelet-client", "apiserver-kubelet-client", "system:masters")
    pki.leaf("front-proxy-ca", "front-proxy-client", "front-proxy-client")
    pki.leaf("ca", "admin", "admin", "system:masters")
    for name in ("kube-controller-manager", "kube-scheduler", "kube-proxy", "coredns"):
        pki.leaf("ca", name, f"system:{name}")
        pki.kubeconfig(FOLDER / f"{name}.conf", "127.0.0.1", name)
    pki.service_accounts()
    pki.kubeconfig(KUBECONFIG, "127.0.0.1", "admin")


def run(kubernetes: Path) -> None:
    """Start what does not run, and wait until the API answers."""
    own = f"http://127.0.0.1:{ETCD_PORT}"
    peer = f"http://127.0.0.1:{ETCD_PEER_PORT}"
    etcd = [
        *(str(kubernetes), "etcd", f"--data-dir={FOLDER}/etcd", "--unsafe-no-fsync", "--logger=zap"),
        *(f"--listen-client-urls={own}", f"--advertise-client-urls={own}", f"--listen-peer-urls={peer}"),
        *(f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}"),
    ]
    start(FOLDER / "etcd-server", etcd)
    start(FOLDER / "kube-apiserver", [str(kubernetes), "kube-apiserver", *_api_flags(own)])
    until(lambda: is_ready(kubernetes), "the API server is ready", READY_SECONDS, f"see {FOLDER}/kube-apiserver.log")
    manager = [
        *(str(kubernetes), "kube-controller-manager", f"--kubeconfig={FOLDER}/kube-controller-manager.conf"),
        *(f"--root-ca-file={pki.PKI}/ca.crt", f"--service-account-private-key-file={pki.PKI}/sa.key"),
        *(f"--cluster-signing-cert-file={pki.PKI}/ca.crt", f"--cluster-signing-key-file={pki.PKI}/ca.key"),
        *("--use-service-account-credentials", "--leader-elect=false", "--secure-port=0", *AUTOSCALING),
    ]
    start(FOLDER / "kube-controller-manager", manager)
    scheduler = ["kube-scheduler", f"--kubeconfig={FOLDER}/kube-scheduler.conf", "--leader-elect=false"]
    start(FOLDER / "kube-scheduler", [str(kubernetes), *scheduler, "--secure-port=0"])


def is_ready(kubernetes: Path) -> bool:
    return bool(attempt(*kubectl(kubernetes), "get", "--raw", "/readyz", seconds=5.0))


def kubectl(kubernetes: Path) -> list[str]:
    return [str(kubernetes), "kubectl", f"--kubeconfig={KUBECONFIG}"]


def names(kubernetes: Path, coredns: Path) -> None:
    """CoreDNS on the first node's address."""
    call(*kubectl(kubernetes), "apply", "-f", "-", given=DNS_RIGHTS)
    corefile = FOLDER / "Corefile"
    corefile.write_text(
        f""".:53 {{
  bind {FIRST.address}
  errors
  ready 127.0.0.1:{DNS_READY_PORT}
  kubernetes {DOMAIN} {{
    kubeconfig {FOLDER}/coredns.conf c
    ttl 2
  }}
}}
"""
    )
    start(FOLDER / "dns", [str(coredns), "-conf", str(corefile)])
    until(_answers, "CoreDNS is ready", 20.0, f"see {FOLDER}/dns.log")


def _answers() -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{DNS_READY_PORT}/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _api_flags(etcd: str) -> list[str]:
    at = pki.PKI
    headers = ("username-headers=X-Remote-User", "group-headers=X-Remote-Group", "extra-headers-prefix=X-Remote-Extra-")
    return [
        *(f"--etcd-servers={etcd}", f"--secure-port={API_PORT}", "--bind-address=0.0.0.0"),
        f"--advertise-address={FIRST.address}",
        *(f"--tls-cert-file={at}/apiserver.crt", f"--tls-private-key-file={at}/apiserver.key"),
        *(f"--client-ca-file={at}/ca.crt", f"--service-cluster-ip-range={SERVICES}"),
        "--service-account-issuer=https://kubernetes.default.svc",
        *(f"--service-account-key-file={at}/sa.pub", f"--service-account-signing-key-file={at}/sa.key"),
        *("--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged"),
        *("--kubelet-preferred-address-types=InternalIP", f"--kubelet-certificate-authority={at}/ca.crt"),
        f"--kubelet-client-certificate={at}/apiserver-kubelet-client.crt",
        f"--kubelet-client-key={at}/apiserver-kubelet-client.key",
        f"--requestheader-client-ca-file={at}/front-proxy-ca.crt",
        *("--requestheader-allowed-names=front-proxy-client", *(f"--requestheader-{each}" for each in headers)),
        f"--proxy-client-cert-file={at}/front-proxy-client.crt",
        f"--proxy-client-key-file={at}/front-proxy-client.key",
    ]
