"""What a decision is: the pair that serves, every candidate with its cost, and who was refused and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from streamserve.contract.errors import NoWorker
from streamserve.contract.signals import PositionAcceptance


class PrefillMode(StrEnum):
    """The values of `Route.prefill_mode` on the wire."""

    REMOTE = "remote"
    LOCAL = "local"
    PREFILL_ONLY = "prefill-only"


class Step(StrEnum):
    """How far down the failure ladder the decision had to go."""

    SAME_LANE = "SameLane"
    CROSS_LANE = "CrossLane"
    LOCAL_PREFILL = "LocalPrefill"


class Reason(StrEnum):
    """Why a lane or a worker takes no part in a decision."""

    LANE_NOT_READY = "LaneNotReady"
    NOT_PROVEN = "NotProven"
    NO_SIGNALS = "NoSignals"
    OTHER_PAIR = "OtherPair"
    DRAINING = "Draining"
    ENGINE_DEAD = "EngineDead"
    SUSPECT = "Suspect"
    CIRCUIT_OPEN = "CircuitOpen"
    EXCLUDED = "Excluded"
    AT_CAPACITY = "AtCapacity"
    KV_FULL = "KvFull"
    TOO_LONG = "TooLong"


# What passes by itself: waiting helps, so the ladder is not descended for it.
PASSING_REASONS: Final = frozenset({Reason.AT_CAPACITY, Reason.KV_FULL, Reason.SUSPECT})


@dataclass(frozen=True, slots=True)
class Refusal:
    """One worker (or a whole lane, worker "") that a filter took out."""

    lane: str
    worker: str
    reason: Reason
    detail: str

    def __str__(self) -> str:
        return f"{self.worker or self.lane}: {self.reason}: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillEstimate:
    """Time until the prompt is computed on this worker, and what that stands on. Seconds and tokens."""

    seconds: float
    queued_tokens: int
    booked_tokens: int
    uncached_tokens: int
    tokens_per_second: float
    signal_age_seconds: float
    trust: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeEstimate:
    """Admission wait, time per output token and memory pressure on this worker, and what they stand on.

    `wait_spread_seconds` is the standard deviation of the wait: who has a deadline must allow for it.
    """

    wait_seconds: float
    wait_spread_seconds: float
    tpot_seconds: float
    pressure_seconds: float
    batch: int
    emitted_tokens_per_step: float
    expected_output_tokens: float
    kv_used_fraction: float
    signal_age_seconds: float
    trust: float
    positions: tuple[PositionAcceptance, ...] = ()

    @property
    def acceptance(self) -> float:
        """The part of recent drafts that held, all positions together: what explains the emitted tokens. 0 while
        nothing was drafted. Worked out for who asks, never in a pick."""
        drafted = sum(position.drafted for position in self.positions)
        return sum(position.accepted for position in self.positions) / drafted if drafted else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to serve, with its cost in seconds: the sum of `weighted`, each term by name."""

    lane: str
    prefill_worker: str | None
    decode_worker: str | None
    mode: PrefillMode
    step: Step
    cost_seconds: float
    ttft_seconds: float
    transfer_seconds: float
    decode_step_seconds: float
    slo_seconds: float
    best_tpot_seconds: float
    weighted: tuple[tuple[str, float], ...]
    prefill: PrefillEstimate | None
    decode: DecodeEstimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Which workers serve. `lane` is the decode worker's (the prefill worker's when it answers alone)."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    refused: tuple[Refusal, ...]
    policy: str

    @property
    def lane(self) -> str:
        return self.chosen.lane

    @property
    def prefill_worker(self) -> str | None:
        return self.chosen.prefill_worker

    @property
    def decode_worker(self) -> str | None:
        return self.chosen.decode_worker

    @property
    def mode(self) -> PrefillMode:
        return self.chosen.mode

    @property
    def step(self) -> Step:
        return self.chosen.step


class NoLane(NoWorker):
    """Every lane was filtered out; `refused` says which filter took which.

    `too_long`: no wait helps, no worker of this fleet can hold the request (answer INVALID_ARGUMENT).
    `busy`: there is a way for it but for load that passes (queue it; when time is up, RESOURCE_EXHAUSTED).
    """

    def __init__(self, refused: tuple[Refusal, ...], *, busy: bool) -> None:
        shown = "; ".join(str(refusal) for refusal in refused[:8]) or "no lane is known"
        self.refused = refused
        self.busy = busy
        advice = "shorten the prompt" if self.too_long else "try again in a second; `streamserve top` shows the lanes"
        super().__init__(f"no lane can take the request: {shown}; {advice}", retry_after_seconds=1.0)

    @property
    def too_long(self) -> bool:
        of_workers = [refusal for refusal in self.refused if refusal.worker]
        return bool(of_workers) and all(refusal.reason is Reason.TOO_LONG for refusal in of_workers)

    @property
    def whatever_its_size(self) -> bool:
        """Neither load nor the length of the request is a reason: one of another length would be refused as well."""
        return not self.busy and all(refusal.reason is not Reason.TOO_LONG for refusal in self.refused)
