"""One reconcile of one StreamPair, decided: the object and the observed children in, everything to do about them out.

    accept → desired → diff → conditions → status

Pure: the edge gathers, calls `decide`, and carries the decision out. A spec that is refused, a pair that is paused and
one that is being deleted lead to no action at all; the first two are told in the status.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from streamserve.contract.runtime_config import RuntimeConfig
from streamserve.operator import conditions, status
from streamserve.operator.accept import Refused, accept
from streamserve.operator.actions import Action
from streamserve.operator.canary.law import Hold, Promote, RollBack
from streamserve.operator.canary.memory import Memory
from streamserve.operator.conditions import Condition, Facts
from streamserve.operator.desired import desired
from streamserve.operator.diff import diff
from streamserve.operator.missing import missing_lanes
from streamserve.operator.observe import Observed
from streamserve.operator.site import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`status` is None where the stored one is right. `config` is what Redis shall hold, None to leave it alone;
    `memory` the same with where its canary stands, as the ConfigMap shall hold it; `told` a verdict in words.

    `events` are the conditions that changed. `scalers`: the status of each StreamPairScaler that is not as
    it should be, by (kind, name). `again_seconds`: decide again after that long, whatever happens.
    `missing_lanes` is None where nothing is known of them.
    """

    actions: tuple[Action, ...] = ()
    status: dict[str, Any] | None = None
    events: tuple[Condition, ...] = ()
    config: RuntimeConfig | None = None
    memory: Memory | None = None
    told: str = ""
    scalers: Mapping[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    again_seconds: float | None = None
    missing_lanes: int | None = None


def decide(body: Mapping[str, Any], site: Site, observed: Observed, now: float) -> Decision:
    """`body` is the StreamPair as the API server has it; `now` in seconds since the epoch. Never raises."""
    metadata, stored = body["metadata"], dict(body.get("status") or {})
    if metadata.get("deletionTimestamp"):
        return Decision(missing_lanes=0)
    pair = accept(body)
    if isinstance(pair, Refused):
        generation = int(metadata.get("generation", 0))
        found = conditions.refused(pair.message, generation)
        after, events = conditions.transitions(stored.get("conditions", ()), found, now)
        return Decision(status=_if_changed(stored, status.refused(stored, generation, after)), events=events)
    wanted = desired(pair, site, observed, now)
    step = diff(wanted, observed, now)
    facts = Facts(wanted, observed, step, stored, now)
    after, events = conditions.transitions(stored.get("conditions", ()), conditions.conditions(facts), now)
    missing = missing_lanes(wanted, observed, step.rollout)
    if pair.spec.paused:
        return Decision(
            status=_if_changed(stored, status.status(facts, after)),
            events=events,
            scalers=status.scalers_changed(wanted, observed, now),
            again_seconds=_earliest(step.rollout.again_seconds, conditions.overdue_in_seconds(observed, now)),
            missing_lanes=missing,
        )
    verdict = wanted.canary.verdict
    return Decision(
        actions=step.actions,
        status=_if_changed(stored, status.status(facts, after)),
        events=events,
        config=wanted.config,
        memory=wanted.canary.memory,
        told=verdict.detail if isinstance(verdict, Promote | RollBack) else "",
        scalers=status.scalers_changed(wanted, observed, now),
        again_seconds=_earliest(
            step.rollout.again_seconds,
            verdict.again_seconds if isinstance(verdict, Hold) else None,
            conditions.overdue_in_seconds(observed, now),
        ),
        missing_lanes=missing,
    )


def _earliest(*seconds: float | None) -> float | None:
    return min((each for each in seconds if each is not None), default=None)


def _if_changed(stored: dict[str, Any], found: dict[str, Any]) -> dict[str, Any] | None:
    return None if stored == found else found
