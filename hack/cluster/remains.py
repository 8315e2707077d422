"""What a cluster that has ended has left on this machine: nothing, or `down` names it.

    iptables rule, link          any that was not there before the cluster was
    mount, route, control group  such a one of the cluster's own paths, addresses and name
    process                      one that was started under a name (NAME.pid); a cluster's program with a file of ours

What was there before is what `up` wrote down before it changed anything. Other programs come and go meanwhile: their
mounts, routes and processes are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from layout import FOLDER, NODES, PODS, SERVICES
from shell import attempt, started

FAMILIES: Final = ("iptables", "ip6tables")
CGROUPS: Final = Path("/sys/fs/cgroup")
PROC: Final = Path("/proc")
POD_NAMESPACES: Final = "/run/netns/cni-"
ADDRESSES: Final = frozenset({SERVICES, PODS, *(node.pods for node in NODES)})
PROGRAMS: Final = frozenset({"kubernetes", "coredns", "containerd", "containerd-shim-runc-v2", "runc", "ctr"})
Machine = Mapping[str, Sequence[str]]


def machine() -> Machine:
    """What can be compared, by kind."""
    mounts = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return {
        "iptables rule": [rule for family in FAMILIES for rule in rules(family, attempt(f"{family}-save"))],
        "link": links(attempt("ip", "-o", "link", "show")),
        "mount": [point for point in mounts if point.startswith((f"{FOLDER}/", POD_NAMESPACES))],
        "route": [line.strip() for line in attempt("ip", "route", "show").splitlines() if ADDRESSES & {*line.split()}],
        "control group": [str(path) for path in control_groups()],
    }


def programs() -> dict[str, tuple[int, str]]:
    """Name → pid and start time, of what the cluster has started and not stopped yet."""
    found = {}
    for folder in (FOLDER, *(node.folder for node in NODES)):
        for file in folder.glob("*.pid"):
            pid, _, began = file.read_text().partition(" ")
            if pid.isdigit() and began:
                found[str(file.relative_to(FOLDER).with_suffix(""))] = (int(pid), began)
    return found


def left(before: Machine, ran: Mapping[str, tuple[int, str]]) -> list[str]:
    """What is there now and should not be, a sentence's part each; `ran`: what `programs` said while it ran."""
    found = [f"process {pid} ({name})" for name, (pid, began) in ran.items() if started(pid) == began]
    found += [f"process {pid} ({command})" for pid, command in others({pid for pid, _ in ran.values()})]
    return found + new(before, machine())


def new(before: Machine, now: Machine) -> list[str]:
    return [f"{kind} {each}" for kind, there in now.items() for each in there if each not in before.get(kind, ())]


def control_groups() -> list[Path]:
    """That of all containers, once for each controller of version 1."""
    return [path for path in (*CGROUPS.glob("*/k8s.io"), CGROUPS / "k8s.io") if path.is_dir()]


def rules(family: str, saved: str) -> Iterator[str]:
    """Of what iptables-save printed: rules, chains that somebody made, and policies other than ACCEPT. No counters."""
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith("-A "):
            yield f"{family} -t {table} {line.strip()}"
        elif found := re.match(r":(\S+) (\S+)", line):
            chain, policy = found.groups()
            if policy != "ACCEPT":
                yield f"{family} -t {table} " + (f"-N {chain}" if policy == "-" else f"-P {chain} {policy}")


def links(shown: str) -> list[str]:
    """Names, of `ip -o link show`: `7: veth0@if2: <…`."""
    return re.findall(r"^\d+: ([^:@\s]+)", shown, re.MULTILINE)


def others(known: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Programs that a cluster is made of with one of its files as an argument; a kubectl is somebody's own."""
    for process in PROC.iterdir():
        if not process.name.isdigit() or int(process.name) in known:
            continue
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if is_of_the_cluster(words):
            yield int(process.name), " ".join(words)[:100]


def is_of_the_cluster(words: Sequence[str]) -> bool:
    program, first = Path(words[0]).name, words[1] if len(words) > 1 else ""
    return program in PROGRAMS and first != "kubectl" and any(f"{FOLDER}/" in word for word in words[1:])
