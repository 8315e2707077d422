"""The router's view of the fleet as plain values: what `top` and the status line of `up` show.

Tokens per second of a decode worker are predicted from its signals:
running requests x mean emitted tokens per step / step time at that batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamserve.contract import signals as packed

if TYPE_CHECKING:
    from streamserve.v1 import admin_pb2

LANE_STATES = {0: "Unknown", 1: "Waiting", 2: "Probing", 3: "Ready", 4: "Fenced"}
READY = "Ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """One worker; figures are None where no signals were seen."""

    id: str
    role: str
    health: str
    signal_age_ms: int
    signals: packed.WorkerSignals | None

    @property
    def tokens_per_second(self) -> float:
        seen = self.signals
        if seen is None or self.role != "decode" or seen.running_requests == 0:
            return 0.0
        step = seen.step_seconds(seen.running_requests)
        return seen.running_requests * max(1.0, seen.mean_emitted_tokens_per_step) / step if step > 0 else 0.0

    def as_object(self) -> dict[str, Any]:
        line: dict[str, Any] = {
            "id": self.id,
            "role": self.role,
            "health": self.health,
            "signal_age_ms": self.signal_age_ms,
        }
        if (seen := self.signals) is not None:
            line |= {
                "running_requests": seen.running_requests,
                "waiting_requests": seen.waiting_requests,
                "kv_blocks_used": seen.kv_blocks_used,
                "kv_blocks_total": seen.kv_blocks_total,
                "depth": seen.depth,
                "drafted_tokens": seen.drafted_tokens,
                "accepted_tokens": seen.accepted_tokens,
                "mean_emitted_tokens_per_step": seen.mean_emitted_tokens_per_step,
                "config_generation": seen.config_generation,
                "config_step": seen.config_step,
                "draining": seen.draining,
                "positions": [[p.drafted, p.accepted] for p in seen.positions],
            }
        return line


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneRow:
    name: str
    revision: str
    state: str
    reason: str
    workers: tuple[WorkerRow, ...]

    def as_object(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "revision": self.revision,
            "state": self.state,
            "reason": self.reason,
            "workers": [worker.as_object() for worker in self.workers],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    lanes: tuple[LaneRow, ...] = ()
    queued_requests: int = 0
    running_requests: int = 0
    redis_connected: bool = False

    @property
    def states(self) -> dict[str, LaneRow]:
        return {lane.name: lane for lane in self.lanes}

    @property
    def tokens_per_second(self) -> float:
        return sum(worker.tokens_per_second for lane in self.lanes for worker in lane.workers)

    def as_object(self) -> dict[str, Any]:
        return {
            "lanes": [lane.as_object() for lane in self.lanes],
            "queued_requests": self.queued_requests,
            "running_requests": self.running_requests,
            "redis_connected": self.redis_connected,
        }


def read(answer: admin_pb2.GetFleetResponse) -> Fleet:
    return Fleet(
        lanes=tuple(sorted((_lane(lane) for lane in answer.lanes), key=lambda lane: (len(lane.name), lane.name))),
        queued_requests=answer.queued_requests,
        running_requests=answer.running_requests,
        redis_connected=answer.redis_connected,
    )


def _lane(lane: admin_pb2.Lane) -> LaneRow:
    return LaneRow(
        name=lane.name,
        revision=lane.revision,
        state=LANE_STATES.get(lane.state, str(lane.state)),
        reason=lane.reason,
        workers=tuple(
            sorted((_worker(view) for view in lane.workers), key=lambda row: (row.role != "prefill", row.id))
        ),
    )


def _worker(view: admin_pb2.WorkerView) -> WorkerRow:
    try:
        seen = packed.decode(view.signals) if view.signals else None
    except packed.SignalsError:
        seen = None
    return WorkerRow(
        id=view.worker.id,
        role=view.worker.role,
        health=view.health,
        signal_age_ms=view.signal_age_ms,
        signals=seen,
    )
