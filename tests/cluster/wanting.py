"""StreamPairs that lack what only the cluster can know of, and how soon a condition says what it is."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from ruamel.yaml import YAML
from tests.cluster.support import EXAMPLE, Body, Cluster

SEEN_SECONDS = 180
TOLD_SECONDS = 10.0
ABSENT = "streamserve/worker:absent"


@dataclass(frozen=True, slots=True)
class Want:
    """`edit` is laid over the example; `seen_as` is in what the pod's own status says, `told_as` in the condition."""

    edit: Body
    seen_as: str
    told_as: str


WANTS = {
    "gpus": Want(
        {
            "decode": {
                "engine": {"args": {"tensor-parallel-size": "9"}},
                "resources": {"limits": {"nvidia.com/gpu": 9, "memory": "512Mi"}},
            }
        },
        seen_as="Insufficient nvidia.com/gpu",
        told_as="Insufficient nvidia.com/gpu",
    ),
    "claim": Want(
        {"model": {"source": {"persistentVolumeClaim": {"claimName": "no-such-claim"}}}},
        seen_as='"no-such-claim" not found',
        told_as="no-such-claim",
    ),
    "secret": Want(
        {"model": {"source": {"hub": {"tokenSecret": {"name": "no-such-secret", "key": "token"}}}}},
        seen_as='"no-such-secret" not found',
        told_as="no-such-secret",
    ),
    "image": Want({"engine": {"image": ABSENT}}, seen_as=ABSENT, told_as=ABSENT),
    "crash": Want(
        {"prefill": {"engine": {"args": {"max-num-seqs": "few"}}}},
        seen_as='"terminated"',
        told_as="engine argument max-num-seqs is 'few'",
    ),
}


def manifests() -> str:
    """One pair of a lane for each want, named after it."""
    pairs = []
    for name, want in WANTS.items():
        pair = YAML(typ="safe").load(EXAMPLE)
        pair["metadata"]["name"] = name
        pair["spec"]["lanes"] = 1
        for part, change in want.edit.items():
            pair["spec"][part] |= change
        pairs.append(pair)
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": pairs})


def told_after(cluster: Cluster) -> dict[str, float]:
    """Seconds from when a pod's status first showed the want until a condition of its pair named it, by want.

    Raises AssertionError when one is not shown, or not told, in time.
    """
    seen: dict[str, float] = {}
    told: dict[str, float] = {}

    def look() -> bool:
        now, items = time.monotonic(), cluster.get("pods,streampairs")["items"]
        for name, want in WANTS.items():
            mine = [each for each in items if _pair(each) == name]
            if any(want.seen_as in _said(pod["status"]) for pod in mine if pod["kind"] == "Pod"):
                seen.setdefault(name, now)
            conditions = [each.get("status", {}).get("conditions") for each in mine if each["kind"] == "StreamPair"]
            if want.told_as in _said(conditions):
                told.setdefault(name, now)
        late = {name for name, at in seen.items() if name not in told and now - at > TOLD_SECONDS}
        assert not late, f"no condition names the want of {', '.join(sorted(late))}\n{cluster.state()}"
        return told.keys() == WANTS.keys() == seen.keys()

    cluster.wait(look, SEEN_SECONDS, "each pod's status shows its want", lambda: f"seen {seen}\n{cluster.state()}")
    return {name: max(0.0, told[name] - at) for name, at in seen.items()}


def _pair(item: Body) -> str:
    if item["kind"] == "StreamPair":
        return str(item["metadata"]["name"])
    return str(item["metadata"].get("labels", {}).get("streamserve.io/pair", ""))


def _said(part: object) -> str:
    """Its words, with quotes as they were."""
    return json.dumps(part).replace('\\"', '"')
