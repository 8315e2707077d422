"""The status of a StreamPair, and of the scalers: counts, where to connect, the conditions.

A status is written only when it differs from what is stored; `observedGeneration` says for which spec it speaks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from streamserve.operator import naming, scale
from streamserve.operator.builders import parts, scalers
from streamserve.operator.conditions import Condition, Facts, followed, transitions
from streamserve.operator.desired import Desired
from streamserve.operator.observe import Observed


def status(facts: Facts, conditions: Iterable[Condition]) -> dict[str, Any]:
    """`lanes` counts those that exist, of any revision: what /scale reports as present."""
    pair, lanes = facts.desired.pair, facts.step.rollout.lanes
    applied, of = facts.applied
    config = {"generation": facts.desired.config.id.generation, "appliedBy": applied, "of": of}
    return {
        "observedGeneration": pair.metadata.generation,
        "conditions": [condition.to_status() for condition in conditions],
        "lanes": len(lanes),
        "readyLanes": facts.ready_lanes,
        "selector": naming.worker_selector(pair.metadata.name),
        "revision": facts.desired.wanted.revision,
        "roles": {role: _role(facts, role) for role in naming.ROLES},
        "config": facts.stored["config"] if facts.unheard else config,
        "address": naming.address_of(pair, parts.GRPC_PORT),
    }


def refused(stored: dict[str, Any], generation: int, conditions: Iterable[Condition]) -> dict[str, Any]:
    """Of a spec that was refused: what is known of the one before stays."""
    return {**stored, "observedGeneration": generation, "conditions": [each.to_status() for each in conditions]}


def scalers_changed(desired: Desired, observed: Observed, now: float) -> dict[tuple[str, str], dict[str, Any]]:
    """What /scale of each StreamPairScaler shall report, where it does not: pods of the role in each lane, and how to
    find them all. `Followed` says whether the number that was asked for is the number that is taken."""
    name, found = desired.pair.metadata.name, {}
    for role in scale.external(desired.pair):
        key = (scalers.KIND, naming.child_name(name, role))
        child = observed.children.get(key)
        if child is None:
            continue
        stored = child.live.get("status", {})
        generation = int(child.live["metadata"].get("generation", 0))
        said = followed(desired, role, generation)
        after, _ = transitions(stored.get("conditions", ()), [said], now)
        wanted = {
            "observedGeneration": generation,
            "replicas": desired.replicas.of(role),
            "selector": naming.worker_selector(name, role),
            "conditions": [each.to_status() for each in after],
        }
        if wanted != stored:
            found[key] = wanted
    return found


def _role(facts: Facts, role: str) -> dict[str, Any]:
    ready, total = facts.ready(role), facts.total(role)
    return {"ready": ready, "total": total, "summary": f"{ready}/{total}"}
