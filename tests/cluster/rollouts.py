"""Rollouts as a client of the API sees them: which lanes are ready meanwhile, which lane fails, what took over."""

from __future__ import annotations

import re
import time

from tests.cluster.support import PAIR, Body, Cluster

# A container that ends at once is started anew after 0, 10 and 20 s, and its kubelet looks when it has time.
HALTED_SECONDS = 120
HELD_SECONDS = 20
REPLACED_SECONDS = 240

BAD = {
    "an image that does not exist": (
        {"engine": {"image": "streamserve/worker:absent"}},
        "streamserve/worker:absent",
    ),
    "a flag that the engine refuses": (
        {"decode": {"engine": {"args": {"max-num-seqs": "many"}}}},
        "engine argument max-num-seqs is 'many'; write a whole number",
    ),
}
FAILING = re.compile(rf"\bpod ({PAIR}-(?:prefill|decode)-(\d)-\d-[0-9a-f]{{10}}): ")


def lane_that_fails(cluster: Cluster, said: str, named: str) -> str:
    """Of a message that names a pod, which is there, and the cause: the last line of its log where it had one."""
    pod = FAILING.search(said)
    assert pod is not None, f"it names no pod: {said}"
    assert pod[1] in cluster.makes(), f"there is no such pod: {said}"
    assert named in said
    return pod[2]


def undone(spec: Body, edit: Body) -> Body:
    """The merge patch that takes an edit back; None: what it sets was not there."""
    return {
        part: undone(spec.get(part) or {}, new) if isinstance(new, dict) else spec.get(part)
        for part, new in edit.items()
    }


def workers(makes: dict[str, tuple[str, int]]) -> dict[str, tuple[str, int]]:
    return {name: made for name, made in makes.items() if "-prefill-" in name or "-decode-" in name}


def conditions(cluster: Cluster) -> list[Body]:
    found: list[Body] = cluster.pair().get("status", {}).get("conditions", [])
    return found


def fewest_lanes_until_replaced(cluster: Cluster, before: dict[str, tuple[str, int]]) -> int:
    """How many lanes were ready when the fewest were, until every worker's pod is another one and all is Ready."""
    fewest, end = 2, time.monotonic() + REPLACED_SECONDS
    while not (cluster.condition("Ready").get("status") == "True" and _replaced(cluster, before)):
        assert time.monotonic() < end, cluster.state()
        fewest = min(fewest, cluster.ready_lanes())
        time.sleep(0.2)
    return fewest


def _replaced(cluster: Cluster, before: dict[str, tuple[str, int]]) -> bool:
    """None of the workers' pods is one of before, and as many are there."""
    there = [*cluster.pods("prefill"), *cluster.pods("decode")]
    return len(there) == 4 and not {pod["metadata"]["name"] for pod in there} & before.keys()
