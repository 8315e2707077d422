"""What is known of the fleet at one moment: frozen, so that a decision can be repeated and explained.

How much a worker's signals are worth falls with their age:

    overdue = max(0, age - 0.75 s)        an idle worker speaks every 0.5 s, so until 0.75 s nothing is missing
    trust   = exp(-overdue / signal_trust)

Age is measured on this router's clock, from when it first saw the newest epoch; no clocks are compared. The cost
moves each term that stands on signals toward the fleet's median as trust falls, because a stale "idle" worker is the
classic way to create a herd (Mitzenmacher 2000). Booked work is this router's own and is always known exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from streamserve.contract.keys import SIGNALS_HEARTBEAT_SECONDS
from streamserve.contract.signals import Role, WorkerSignals

DUE_SECONDS: Final = 1.5 * SIGNALS_HEARTBEAT_SECONDS
NEVER: Final = -math.inf


class Health(StrEnum):
    """What this router's own calls to a worker say. Only OK takes new work."""

    OK = "ok"
    SUSPECT = "suspect"
    CIRCUIT_OPEN = "circuit open"


class LaneState(StrEnum):
    """Names are those of `streamserve.v1.LaneState`."""

    WAITING = "WAITING"
    PROBING = "PROBING"
    READY = "READY"
    FENCED = "FENCED"


@dataclass(frozen=True, slots=True)
class KvGeometry:
    """How the worker's engine cuts the KV cache, all layers of target and draft together."""

    block_tokens: int
    bytes_per_block: int

    def blocks(self, tokens: int) -> int:
        """Blocks that hold `tokens`; 0 while the geometry is unknown."""
        return -(-tokens // self.block_tokens) if self.block_tokens > 0 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One worker. `booked_*` is this router's work that the signals do not show yet; `own_requests` is all of it.

    `worked_until_seconds` is when it was last seen with work, ours or not; infinite while it has some."""

    id: str
    role: Role
    lane: str
    revision: str = ""
    address: str = ""
    pair_uid: str = ""
    boot_id: int = 0
    signals: WorkerSignals | None = None
    seen_at_seconds: float = NEVER
    worked_until_seconds: float = math.inf
    booked_requests: int = 0
    booked_tokens: int = 0
    own_requests: int = 0
    health: Health = Health.OK
    health_detail: str = ""
    kv: KvGeometry | None = None
    max_model_tokens: int = 0
    vocabulary_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneView:
    """One lane. `proven` holds the (prefill, decode) pairs whose canary transfer passed since both last started.

    `degraded` is true when the lane had its chance (it was ready once, or a canary failed, or one side never came):
    then, and only then, may a decode worker of it compute prompts itself as the ladder's last step.
    """

    name: str
    revision: str = ""
    state: LaneState = LaneState.WAITING
    reason: str = ""
    prefill: tuple[WorkerView, ...] = ()
    decode: tuple[WorkerView, ...] = ()
    proven: frozenset[tuple[str, str]] = frozenset()
    degraded: bool = False

    @property
    def workers(self) -> tuple[WorkerView, ...]:
        return self.prefill + self.decode


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetView:
    """Everything a decision may stand on. `now_seconds` and all other `_seconds` are of one monotonic clock."""

    now_seconds: float
    pair_uid: str
    lanes: tuple[LaneView, ...] = ()
    redis_connected: bool = True

    def age_seconds(self, worker: WorkerView) -> float:
        """Time since the newest epoch was first seen; infinite when none was."""
        return max(0.0, self.now_seconds - worker.seen_at_seconds)

    def overdue_seconds(self, worker: WorkerView) -> float:
        """Time since the next value was due."""
        return max(0.0, self.age_seconds(worker) - DUE_SECONDS)

    def trust(self, worker: WorkerView, signal_trust_seconds: float) -> float:
        """From 1 (nothing is missing) to 0 (no signals at all)."""
        return trust(self.age_seconds(worker), signal_trust_seconds)


def trust(age_seconds: float, signal_trust_seconds: float) -> float:
    """exp(-(age - 0.75 s) / signal_trust), and 1 before the next value is due."""
    overdue = age_seconds - DUE_SECONDS
    return 1.0 if overdue <= 0.0 else math.exp(-overdue / signal_trust_seconds)
