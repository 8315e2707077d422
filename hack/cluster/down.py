"""Ends and removes all that the cluster made, whatever of it still lives, and nothing else. May be run again.

At its end it looks for what is left all the same (remains.py), and fails where there is something.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import network
import node as nodes
import remains
from control_plane import is_ready, kubectl
from layout import BEFORE, FOLDER, NODES, Node
from shell import Failed, attempt, say, stop

RUNTIME = "io.containerd.runtime.v2.task"
POD_NAMESPACE = re.compile(r"/run/netns/cni-[0-9a-f-]+")
EMPTY_FOLDERS = (
    *("/run/containerd/runc/k8s.io", "/run/containerd/runc", "/run/containerd/s", "/run/containerd"),
    *("/var/lib/cni/results", "/var/lib/cni", "/run/netns"),
)
SETTLE_SECONDS = 15.0


def down(kubernetes: Path) -> str:
    """All of it; how that ended. The images that were built stay, they are not in the folder. Raises Failed where
    something is left."""
    if not BEFORE.exists():
        shutil.rmtree(FOLDER, ignore_errors=True)
        return "there is none"
    before: remains.Machine | None = json.loads(BEFORE.read_text()).get("machine")
    ran = remains.programs()
    # Nothing makes pods any more; then the kubelets take theirs down the ordinary way.
    stop(*(FOLDER / name for name in ("policies", "metrics-api", "kube-scheduler", "kube-controller-manager")))
    if kubernetes.exists() and is_ready(kubernetes):
        remove = ["delete", "pods", "--all", "--all-namespaces", "--grace-period=1", "--timeout=15s"]
        attempt(*kubectl(kubernetes), *remove, seconds=25)
    for node in NODES:
        stop(node.folder / "kubelet-server", node.folder / "kube-proxy")
        _empty(node)
        stop(node.folder / "containerd")
        # Shims and containers outlive a containerd that died.
        for task in (node.folder / "state" / RUNTIME / "k8s.io").glob("*/"):
            _end(task)
    stop(*(FOLDER / name for name in ("dns", "kube-apiserver", "etcd-server")))
    if kubernetes.exists():
        attempt(str(kubernetes), "kube-proxy", "--cleanup")
    network.disconnect()
    _unmount()
    for node in NODES:
        if node.namespace is not None:
            node.namespace.unlink(missing_ok=True)
    _remove_cgroups()
    network.restore()
    left = [] if before is None else _left(before, ran)
    # What is mounted in there would be removed with the folder.
    if not any(each.startswith(f"mount {FOLDER}/") for each in left):
        shutil.rmtree(FOLDER)
    for folder in EMPTY_FOLDERS:
        with contextlib.suppress(OSError):
            Path(folder).rmdir()
    if left:
        raise Failed(f"this is left of it and is to be removed by hand: {'; '.join(left)}")
    if before is None:
        return "it is removed; what was there before it was not written down, so whether something is left is not known"
    return "nothing of it is left"


def _left(before: remains.Machine, ran: Mapping[str, tuple[int, str]]) -> list[str]:
    """What is left when the kernel has had the time to end processes, and with namespaces their links."""
    end = time.monotonic() + SETTLE_SECONDS
    while (left := remains.left(before, ran)) and time.monotonic() < end:
        time.sleep(0.5)
        _remove_cgroups()
    return left


def _empty(node: Node) -> None:
    """What is left in a containerd that answers: nothing, where the kubelet could do its work."""
    ctr = nodes.ctr(node)
    for task in attempt(*ctr, "tasks", "list", "--quiet", seconds=10).split():
        say(f"{node.name}: ending container {task[:12]}, which was left over")
        attempt(*ctr, "tasks", "kill", "--signal", "SIGKILL", task, seconds=10)
        time.sleep(0.2)
        attempt(*ctr, "tasks", "delete", "--force", task, seconds=10)
    for container in attempt(*ctr, "containers", "list", "--quiet", seconds=10).split():
        _remove_namespaces(attempt(*ctr, "containers", "info", container, seconds=10))
        attempt(*ctr, "containers", "delete", container, seconds=10)
        _forget_addresses(container)


def _end(task: Path) -> None:
    """A container whose containerd is gone: its processes by its cgroup, its shim by its folder."""
    say(f"ending container {task.name[:12]}, whose containerd is gone")
    for group in (*remains.CGROUPS.glob(f"*/k8s.io/{task.name}"), remains.CGROUPS / "k8s.io" / task.name):
        with contextlib.suppress(OSError):
            for pid in (group / "cgroup.procs").read_text().split():
                _kill(int(pid))
    for process in _processes():
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == task:
                _kill(int(process.name))
    with contextlib.suppress(OSError):
        socket = Path((task / "address").read_text().removeprefix("unix://"))
        if socket.is_relative_to("/run/containerd/s"):
            socket.unlink()
    shutil.rmtree(f"/run/containerd/runc/k8s.io/{task.name}", ignore_errors=True)
    with contextlib.suppress(OSError):
        _remove_namespaces((task / "config.json").read_text())
    _forget_addresses(task.name)


def _processes() -> Iterator[Path]:
    return (path for path in Path("/proc").iterdir() if path.name.isdigit())


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _remove_namespaces(told: str) -> None:
    for name in set(POD_NAMESPACE.findall(told)):
        attempt("umount", name)
        with contextlib.suppress(OSError):
            Path(name).unlink()


def _forget_addresses(container: str) -> None:
    for path in Path("/var/lib/cni/results").glob(f"*-{container}-*"):
        path.unlink(missing_ok=True)


def _unmount() -> None:
    """Everything below the folder, deepest first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((each for each in points if each.startswith(f"{FOLDER}/")), reverse=True):
        if not attempt("umount", "--verbose", point):
            attempt("umount", "--lazy", point)


def _remove_cgroups() -> None:
    for top in remains.control_groups():
        found: list[Path] = []
        with contextlib.suppress(OSError):  # what ends meanwhile takes its own along
            found = [each for each in top.rglob("*") if each.is_dir()]
        for path in (*sorted(found, reverse=True), top):
            with contextlib.suppress(OSError):
                path.rmdir()
