"""When a lane takes traffic: only after a canary moved KV from its prefill to its decode worker, since both started.

    state \\ pairs   none            due or running   all failed, waiting   at least one passed
    WAITING         WAITING, FENCED  PROBING          FENCED                READY
                    after 10 s
    PROBING         FENCED          PROBING          FENCED                READY
    READY           FENCED          FENCED           FENCED                READY
    FENCED          FENCED          PROBING          FENCED                READY

A pair is one prefill and one decode worker of one revision that both report, answer, do not drain and have a live
engine. A pass belongs to the two boots that made it: a worker that restarted has new pairs, all of them due, so a
restarted prefill can never meet a decode worker that holds its stale NIXL metadata. A worker added to a READY lane
does not fence it: its pairs wait for their own canaries, and only pairs that passed are ever picked.

`degraded` is set once the lane had its chance (FENCED for any reason) and cleared by READY: it permits the failure
ladder's last step, the decode worker computing prompts itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from streamserve.contract.signals import Flags, Role
from streamserve.router.flowguard.view import FleetView, Health, LaneState, LaneView, WorkerView

PATIENCE_SECONDS: Final = 10.0
FRESH_SECONDS: Final = 2.0
# Longer than the first canaries of many lanes take, a few at a time, each up to 30 s.
FIRST_CANARIES_SECONDS: Final = 60.0


class Outcome(StrEnum):
    """Where the canary of one pair stands."""

    DUE = "due"
    RUNNING = "running"
    FAILED = "failed"
    PASSED = "passed"


@dataclass(frozen=True, slots=True)
class PairKey:
    """A pair of two particular starts."""

    prefill: str
    prefill_boot: int
    decode: str
    decode_boot: int

    @property
    def ids(self) -> tuple[str, str]:
        return (self.prefill, self.decode)


@dataclass(frozen=True, slots=True)
class Trial:
    """What is known of a pair's canary. After a failure it is due again at `retry_at_seconds`."""

    outcome: Outcome = Outcome.DUE
    failures: int = 0
    retry_at_seconds: float = 0.0
    detail: str = ""

    def at(self, now_seconds: float) -> Outcome:
        if self.outcome is Outcome.FAILED and now_seconds >= self.retry_at_seconds:
            return Outcome.DUE
        return self.outcome


@dataclass(frozen=True, slots=True)
class Gate:
    """A lane's state, why, and since when."""

    state: LaneState
    reason: str
    since_seconds: float
    degraded: bool = False


def have_judged(lanes: Iterable[LaneView], heard_seconds: float) -> bool:
    """Whether this router has had the time to judge every lane that there is: as long as a lane may take to show
    itself, and no lane's first canary still runs, which may take its time where workers are busy."""
    if heard_seconds < PATIENCE_SECONDS:
        return False
    waits = any(lane.state is LaneState.PROBING and not lane.degraded for lane in lanes)
    return not waits or heard_seconds >= FIRST_CANARIES_SECONDS


def opened(now_seconds: float) -> Gate:
    """The gate of a lane that was just heard of."""
    return Gate(LaneState.WAITING, "no worker has reported yet", now_seconds)


def step(gate: Gate, facts: LaneFacts, now_seconds: float) -> Gate:
    """The gate after these facts; the same object when nothing changed."""
    state, reason = _next(gate, facts, now_seconds)
    degraded = state is LaneState.FENCED or (gate.degraded and state is not LaneState.READY)
    since = gate.since_seconds if state is gate.state else now_seconds
    after = Gate(state, reason, since, degraded)
    return gate if after == gate else after


def _next(gate: Gate, facts: LaneFacts, now_seconds: float) -> tuple[LaneState, str]:
    outcomes = facts.outcomes
    if Outcome.PASSED in outcomes:
        return LaneState.READY, ""
    if Outcome.DUE in outcomes or Outcome.RUNNING in outcomes:
        if gate.state is LaneState.READY:
            return LaneState.FENCED, "a worker restarted: its canary transfer has not passed yet"
        return LaneState.PROBING, "the canary transfer from prefill to decode runs"
    if outcomes:
        return LaneState.FENCED, facts.detail
    if gate.state is LaneState.WAITING and now_seconds - gate.since_seconds < PATIENCE_SECONDS:
        return LaneState.WAITING, facts.detail
    return LaneState.FENCED, facts.detail


@dataclass(frozen=True, slots=True)
class LaneFacts:
    """What the gate is decided on: the possible pairs with their outcomes, and what to say when none serves."""

    pairs: Mapping[PairKey, Outcome]
    detail: str

    @property
    def outcomes(self) -> set[Outcome]:
        return set(self.pairs.values())

    @property
    def passed(self) -> frozenset[tuple[str, str]]:
        return frozenset(key.ids for key, outcome in self.pairs.items() if outcome is Outcome.PASSED)

    @property
    def due(self) -> list[PairKey]:
        return [key for key, outcome in self.pairs.items() if outcome is Outcome.DUE]


def facts_of(workers: tuple[WorkerView, ...], trials: Mapping[PairKey, Trial], view: FleetView) -> LaneFacts:
    """Which pairs a lane could serve with now. Freshness is asked of a pair until it passes, and not after: silence
    in Redis is not death."""
    whys: list[str] = []
    present: list[WorkerView] = []
    for worker in workers:
        why = _absent(worker, view.pair_uid)
        if why is None:
            present.append(worker)
        else:
            whys.append(why)
    pairs: dict[PairKey, Outcome] = {}
    for p in present:
        for d in present:
            if p.role is not Role.PREFILL or d.role is not Role.DECODE or p.revision != d.revision:
                continue
            key = PairKey(p.id, p.boot_id, d.id, d.boot_id)
            trial = trials.get(key, Trial())
            fresh = max(view.age_seconds(p), view.age_seconds(d)) <= FRESH_SECONDS
            if fresh or trial.outcome in (Outcome.PASSED, Outcome.RUNNING):
                pairs[key] = trial.at(view.now_seconds)
            else:
                whys.append(f"{p.id} and {d.id} have not both reported within {FRESH_SECONDS:g} s")
    failed = [trials[key].detail for key, outcome in pairs.items() if outcome is Outcome.FAILED]
    for role in Role:
        if not any(worker.role is role for worker in workers):
            whys.append(f"no {role.name.lower()} worker is known")
    return LaneFacts(pairs, "; ".join(failed or whys) or "no prefill and decode worker of one revision")


def _absent(worker: WorkerView, pair_uid: str) -> str | None:
    """Why a worker cannot be half of a pair now."""
    if worker.signals is None:
        return f"{worker.id} has not reported since it started"
    if not worker.signals.serves_pair(pair_uid):
        return f"{worker.id} serves another StreamPair"
    if worker.signals.flags & Flags.ENGINE_DEAD:
        return f"the engine of {worker.id} has died"
    if worker.signals.draining:
        return f"{worker.id} drains"
    if worker.health is Health.CIRCUIT_OPEN:
        return f"{worker.id}: {worker.health_detail or 'circuit open'}"
    return None


def failed(trial: Trial, detail: str, retry_at_seconds: float) -> Trial:
    """The trial after one more failure."""
    return replace(
        trial,
        outcome=Outcome.FAILED,
        failures=trial.failures + 1,
        retry_at_seconds=retry_at_seconds,
        detail=f"the canary transfer failed: {detail}",
    )
