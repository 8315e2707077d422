"""The status of a StreamPair, and of the scalers: counts, where to connect, the conditions.

A status is written only when it differs from what is stored; `observedGeneration` says for which spec it speaks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from streamserve.operator import naming, scale
from streamserve.operator.builders import parts, scalers
from streamserve.operator.conditions import Condition, Facts
from streamserve.operator.desired import Desired


def status(facts: Facts, conditions: Iterable[Condition]) -> dict[str, Any]:
    """`lanes` counts those that exist, of any revision: what /scale reports as present."""
    pair, lanes = facts.desired.pair, facts.step.rollout.lanes
    applied, of = facts.applied
    return {
        "observedGeneration": pair.metadata.generation,
        "conditions": [condition.to_status() for condition in conditions],
        "lanes": len(lanes),
        "readyLanes": facts.ready_lanes,
        "selector": naming.worker_selector(pair.metadata.name),
        "revision": facts.desired.wanted.revision,
        "roles": {role: _role(facts, role) for role in naming.ROLES},
        "config": {"generation": facts.desired.config.id.generation, "appliedBy": applied, "of": of},
        "address": naming.address_of(pair, parts.GRPC_PORT),
    }


def refused(stored: dict[str, Any], generation: int, conditions: Iterable[Condition]) -> dict[str, Any]:
    """Of a spec that was refused: what is known of the one before stays."""
    return {**stored, "observedGeneration": generation, "conditions": [each.to_status() for each in conditions]}


def scaler_statuses(desired: Desired) -> dict[tuple[str, str], dict[str, Any]]:
    """For each StreamPairScaler what its /scale reports: pods of the role in each lane, and how to find them all."""
    name = desired.pair.metadata.name
    return {
        (scalers.KIND, naming.child_name(name, role)): {
            "replicas": desired.replicas.of(role),
            "selector": naming.worker_selector(name, role),
            "message": "; ".join(note for note in desired.replicas.notes if note.startswith(role)),
        }
        for role in scale.external(desired.pair)
    }


def _role(facts: Facts, role: str) -> dict[str, Any]:
    ready, total = facts.ready(role), facts.total(role)
    return {"ready": ready, "total": total, "summary": f"{ready}/{total}"}
