"""One node: containerd, kubelet and kube-proxy, with images from archives and GPUs that are only counted."""

from __future__ import annotations

import json
from pathlib import Path

import pki
from control_plane import kubectl
from layout import DOMAIN, FIRST, GPUS_PER_NODE, PAUSE_IMAGE, POD_BRIDGE, PODS, Node
from shell import Failed, attempt, call, start, until

READY_SECONDS = 60.0
NETWORK_PLUGINS = "/usr/lib/cni"
GPU = "nvidia.com~1gpu"


def run(node: Node, kubernetes: Path) -> None:
    """Start what does not run of it, and wait until the API server calls it Ready."""
    node.folder.mkdir(parents=True, exist_ok=True)
    if not (node.folder / "kubelet.conf").exists():
        _configure(node)
    config = node.folder / "containerd.toml"
    start(node.folder / "containerd", node.inside("containerd", "-c", str(config)))
    until(lambda: _answers(node), f"{node.name}: containerd answers", 20.0, f"see {node.folder}/containerd.log")


def join(node: Node, kubernetes: Path) -> None:
    """After its images are there: the kubelet does not find out later that the pause image came."""
    kubelet = [
        *(str(kubernetes), "kubelet", f"--config={node.folder}/kubelet.yaml"),
        *(f"--kubeconfig={node.folder}/kubelet.conf", f"--root-dir={node.folder}/kubelet"),
        *(f"--cert-dir={node.folder}/certificates", f"--hostname-override={node.name}", f"--node-ip={node.address}"),
    ]
    start(node.folder / "kubelet-server", node.inside(*kubelet))
    proxy = [str(kubernetes), "kube-proxy", f"--config={node.folder}/proxy.yaml"]
    start(node.folder / "kube-proxy", node.inside(*proxy))
    until(lambda: is_ready(node, kubernetes), f"{node.name} is Ready", READY_SECONDS, f"see {node.folder}/*.log")
    patch = [{"op": "add", "path": f"/status/capacity/{GPU}", "value": str(GPUS_PER_NODE)}]
    target = ["patch", "node", node.name, "--subresource=status", "--type=json"]
    call(*kubectl(kubernetes), *target, f"--patch={json.dumps(patch)}")
    # The kubelet makes capacity allocatable when it next reports.
    until(lambda: _has_gpus(node, kubernetes), f"{node.name} offers GPUs", READY_SECONDS, f"see {node.folder}/*.log")
    zone = f"topology.kubernetes.io/zone=zone-{node.name}"
    call(*kubectl(kubernetes), "label", "node", node.name, zone, "--overwrite")


def is_ready(node: Node, kubernetes: Path) -> bool:
    path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    return attempt(*kubectl(kubernetes), "get", "node", node.name, f"-o={path}") == "True"


def _has_gpus(node: Node, kubernetes: Path) -> bool:
    path = r"jsonpath={.status.allocatable.nvidia\.com/gpu}"
    return attempt(*kubectl(kubernetes), "get", "node", node.name, f"-o={path}") == str(GPUS_PER_NODE)


def load(node: Node, archive: Path) -> None:
    """Import an image archive, unless it is the one that was imported last. A tag moves to the new image."""
    known, now = node.folder / f"{archive.stem}.imported", f"{archive.stat().st_mtime_ns}"
    if not known.exists() or known.read_text() != now:
        call(*ctr(node), "images", "import", str(archive), seconds=600)
        known.write_text(now)


def ctr(node: Node) -> list[str]:
    return ["ctr", "--address", str(node.socket), "--namespace", "k8s.io"]


def _answers(node: Node) -> bool:
    return bool(attempt("ctr", "--address", str(node.socket), "version", seconds=5.0))


def _configure(node: Node) -> None:
    if not Path(NETWORK_PLUGINS, "bridge").exists():
        raise Failed(f"{NETWORK_PLUGINS} has no bridge plugin: apt-get install containernetworking-plugins")
    at, names = node.folder, [node.address, node.name]
    pki.leaf("ca", f"kubelet-{node.name}", f"system:node:{node.name}", "system:nodes", names)
    (at / "resolv.conf").write_text(f"nameserver {FIRST.address}\n")
    (at / "cni").mkdir(exist_ok=True)
    (at / "cni" / "10-bridge.conflist").write_text(json.dumps(_network(node)))
    (at / "containerd.toml").write_text(_containerd(at))
    (at / "kubelet.yaml").write_text(_kubelet(node))
    (at / "proxy.yaml").write_text(_proxy(node))
    pki.kubeconfig(at / "proxy.conf", FIRST.address, "kube-proxy")
    pki.kubeconfig(at / "kubelet.conf", FIRST.address, f"kubelet-{node.name}")


def _network(node: Node) -> dict[str, object]:
    addresses = {"type": "host-local", "subnet": node.pods, "dataDir": f"{node.folder}/cni-data"}
    bridge = {
        "type": "bridge",
        "bridge": POD_BRIDGE,
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {**addresses, "routes": [{"dst": "0.0.0.0/0"}]},
    }
    return {"cniVersion": "0.4.0", "name": f"ss-{node.name}", "plugins": [bridge, {"type": "loopback"}]}


def _containerd(at: Path) -> str:
    # Without restrict_oom_score_adj every sandbox dies where the machine lacks CAP_SYS_RESOURCE.
    unused = json.dumps([f"io.containerd.snapshotter.v1.{name}" for name in ("aufs", "btrfs", "zfs", "devmapper")])
    return f"""version = 2
root = "{at}/root"
state = "{at}/state"
disabled_plugins = {unused}
[grpc]
  address = "{at}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{at}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{NETWORK_PLUGINS}"
    conf_dir = "{at}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""


def _kubelet(node: Node) -> str:
    at = node.folder
    return f"""apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failSwapOn: false
localStorageCapacityIsolation: false
makeIPTablesUtilChains: false
evictionHard: {{}}
containerRuntimeEndpoint: unix://{node.socket}
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: "{pki.PKI}/ca.crt"}}
authorization: {{mode: Webhook}}
tlsCertFile: {pki.PKI}/kubelet-{node.name}.crt
tlsPrivateKeyFile: {pki.PKI}/kubelet-{node.name}.key
address: {node.address}
healthzBindAddress: 127.0.0.1
podLogsDir: {at}/logs
clusterDomain: {DOMAIN}
clusterDNS: [{FIRST.address}]
resolvConf: {at}/resolv.conf
"""


def _proxy(node: Node) -> str:
    return f"""apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection: {{kubeconfig: "{node.folder}/proxy.conf"}}
hostnameOverride: {node.name}
conntrack: {{maxPerCore: 0, min: 0}}
clusterCIDR: {PODS}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
"""
