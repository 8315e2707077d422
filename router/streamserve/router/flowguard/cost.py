"""What a candidate costs, in seconds.

    cost = prefill + transfer + (wait + E[output] · (tpot − best tpot)) + pressure + slo        each times its weight

    prefill   (queued + booked + uncached prompt tokens) / prefill rate
    transfer  KV bytes of the prompt / bandwidth; 0 when no KV crosses
    wait      requests ahead of a free slot · E[output] · tpot / slots                 the decode worker's own queue
              its spread matters to deadlines: the slot is freed by the k-th to end of n answers, which end at any
              moment of their time T, so that sigma = T · sqrt(k (n + 1 − k) / (n + 2)) / (n + 1)
    tpot      step time(batch + 1) / mean emitted tokens per step                      acceptance, per workload if known
    pressure  0.15 s · k / (1 − k), k = KV blocks used and booked over all, at most 0.99
    slo       seconds by which the request would miss: max(0, ttft − S_ttft) + E[output] · max(0, tpot − S_tpot)

Every term is a time, so terms add without weights; weights (percent, neutral 100) only express a preference.
A term that stands on signals moves toward the fleet's median of that term as trust in these signals falls; what this
router has booked is added in full, because that it knows. Rates that a worker has not measured, or not lately, are
assumed as usual (`usual.py`): an idle lane then ties with one that serves well, and ties are broken at random.
Sources: llm-d and SMG's least_load for k/(1−k), measured herding in the design's router notes §3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from streamserve.contract.runtime_config import RoutingWeights, Slo
from streamserve.contract.signals import Role
from streamserve.router.flowguard.decision import Candidate, DecodeEstimate, PrefillEstimate, PrefillMode, Step
from streamserve.router.flowguard.request import RouteRequest
from streamserve.router.flowguard.usual import Usual, median
from streamserve.router.flowguard.view import FleetView, WorkerView

PRIOR_SLOTS: Final = 64
PRESSURE_SECONDS: Final = 0.15
PRESSURE_CAP: Final = 0.99


@dataclass(frozen=True, slots=True)
class Way:
    """One way to serve: which worker computes the prompt, which decodes. Prefill None: the decode worker does both."""

    prefill: WorkerView | None
    decode: WorkerView | None
    mode: PrefillMode
    step: Step


class Estimator:
    """Estimates for one request on one view; each worker is looked at once, however many pairs it is in."""

    def __init__(self, request: RouteRequest, view: FleetView, usual: Usual, trusts: Mapping[str, float]) -> None:
        """`trusts`: by worker id, what its signals are worth."""
        self._request = request
        self._view = view
        self._usual = usual
        self._trusts = trusts
        self._prefill: dict[str, PrefillEstimate] = {}
        self._decode: dict[str, DecodeEstimate] = {}
        self._prefill_median: dict[Role, float] = {}
        self._decode_medians: _Load | None = None

    def prefill(self, worker: WorkerView) -> PrefillEstimate:
        known = self._prefill.get(worker.id)
        if known is None:
            known = self._prefill[worker.id] = self._estimate_prefill(worker)
        return known

    def decode(self, worker: WorkerView) -> DecodeEstimate:
        known = self._decode.get(worker.id)
        if known is None:
            known = self._decode[worker.id] = self._estimate_decode(worker)
        return known

    def transfer_seconds(self, way: Way) -> float:
        """Time for the prompt's KV to cross, by what the decode worker has measured of pulls."""
        if way.prefill is None or way.decode is None or way.prefill.kv is None:
            return 0.0
        kv = way.prefill.kv
        per_second = self._usual.transfer_bytes_per_second(way.decode)
        return kv.blocks(self._request.prompt_tokens) * kv.bytes_per_block / max(1.0, per_second)

    def _estimate_prefill(self, worker: WorkerView) -> PrefillEstimate:
        trust = self._trusts[worker.id]
        rate = self._prefill_rate(worker)
        # What a decode worker has booked is KV, not prompt to compute.
        booked = worker.booked_tokens if worker.role is Role.PREFILL else 0
        queued = 0 if worker.signals is None else worker.signals.waiting_prompt_tokens
        uncached = self._request.uncached_prompt_tokens
        shown = (queued + uncached) / rate
        if trust < 1.0:
            shown = trust * shown + (1.0 - trust) * self._median_prefill(worker.role)
        return PrefillEstimate(
            seconds=shown + booked / rate,
            queued_tokens=queued,
            booked_tokens=booked,
            uncached_tokens=uncached,
            tokens_per_second=rate,
            signal_age_seconds=self._view.age_seconds(worker),
            trust=trust,
        )

    def _prefill_rate(self, worker: WorkerView) -> float:
        return max(1.0, self._usual.prefill_tokens_per_second(worker))

    def _prefill_seconds(self, worker: WorkerView) -> float:
        queued = 0 if worker.signals is None else worker.signals.waiting_prompt_tokens
        return (queued + self._request.uncached_prompt_tokens) / self._prefill_rate(worker)

    def _median_prefill(self, role: Role) -> float:
        known = self._prefill_median.get(role)
        if known is None:
            known = median([self._prefill_seconds(worker) for worker in self._workers(role)])
            self._prefill_median[role] = known
        return known

    def _estimate_decode(self, worker: WorkerView) -> DecodeEstimate:
        trust = self._trusts[worker.id]
        now = self._load(worker, worker.booked_requests, worker.booked_tokens)
        wait, tpot, pressure = now.wait_seconds, now.tpot_seconds, now.pressure_seconds
        if trust < 1.0:
            shown = self._load(worker, 0, 0)
            usual = self._median_decode()
            away = 1.0 - trust
            wait += away * (usual.wait_seconds - shown.wait_seconds)
            tpot += away * (usual.tpot_seconds - shown.tpot_seconds)
            pressure += away * (usual.pressure_seconds - shown.pressure_seconds)
        return DecodeEstimate(
            wait_seconds=wait,
            wait_spread_seconds=now.wait_spread_seconds,
            tpot_seconds=tpot,
            pressure_seconds=pressure,
            batch=now.batch,
            emitted_tokens_per_step=now.emitted,
            expected_output_tokens=self._usual.output_tokens,
            kv_used_fraction=now.kv_fraction,
            signal_age_seconds=self._view.age_seconds(worker),
            trust=trust,
            positions=() if worker.signals is None else worker.signals.positions,
        )

    def _median_decode(self) -> _Load:
        if self._decode_medians is None:
            loads = [self._load(worker, 0, 0) for worker in self._workers(Role.DECODE)]
            self._decode_medians = _Load(
                median([load.wait_seconds for load in loads]),
                median([load.tpot_seconds for load in loads]),
                median([load.pressure_seconds for load in loads]),
            )
        return self._decode_medians

    def _workers(self, role: Role) -> list[WorkerView]:
        return [worker for lane in self._view.lanes for worker in lane.workers if worker.role is role]

    def _load(self, worker: WorkerView, booked_requests: int, booked_tokens: int) -> _Load:
        """The decode worker's terms if this request joined what its signals show and the booked work."""
        signals = worker.signals
        inside = booked_requests
        slots = PRIOR_SLOTS
        if signals is not None:
            inside += signals.running_requests + signals.waiting_requests
            slots = signals.max_running_requests or PRIOR_SLOTS
        batch = min(inside + 1, slots)
        emitted = self._emitted(worker)
        tpot = self._usual.step_seconds(worker, batch) / emitted
        ahead = max(0, inside + 1 - slots)
        answer = self._usual.output_tokens * tpot
        wait = ahead * answer / slots
        spread = wait_spread_seconds(ahead, slots, answer) if ahead else 0.0
        fraction = self._kv_fraction(worker, booked_tokens)
        capped = min(fraction, PRESSURE_CAP)
        return _Load(wait, tpot, PRESSURE_SECONDS * capped / (1.0 - capped), batch, emitted, fraction, spread)

    def _emitted(self, worker: WorkerView) -> float:
        """Mean tokens a request gains per step; at least 1, because every step yields one."""
        return max(1.0, self._usual.emitted_tokens_per_step(worker))

    def _kv_fraction(self, worker: WorkerView, booked_tokens: int) -> float:
        signals, kv = worker.signals, worker.kv
        if signals is None or signals.kv_blocks_total <= 0:
            return 0.0
        wanted = self._request.prompt_tokens + int(self._usual.output_tokens)
        ours = 0 if kv is None else kv.blocks(booked_tokens) + kv.blocks(wanted)
        return min(1.0, (signals.kv_blocks_used + ours) / signals.kv_blocks_total)


@dataclass(frozen=True, slots=True)
class _Load:
    wait_seconds: float
    tpot_seconds: float
    pressure_seconds: float
    batch: int = 0
    emitted: float = 1.0
    kv_fraction: float = 0.0
    wait_spread_seconds: float = 0.0


def wait_spread_seconds(ahead: int, slots: int, answer_seconds: float) -> float:
    """Standard deviation of the time until `ahead` of the answers on `slots` slots have ended; 0 when none is ahead."""
    if ahead <= 0:
        return 0.0
    kth = (ahead - 1) % slots + 1
    return answer_seconds * math.sqrt(kth * (slots + 1 - kth) / (slots + 2)) / (slots + 1)


def costs(ways: Sequence[Way], estimator: Estimator, weights: RoutingWeights, slo: Slo) -> tuple[Candidate, ...]:
    """Every way with its cost, in the order given."""
    decodes = [estimator.decode(way.decode) for way in ways if way.decode is not None]
    best = min((estimate.tpot_seconds for estimate in decodes), default=0.0)
    return tuple(_cost(way, estimator, best, weights, slo) for way in ways)


def _cost(way: Way, estimator: Estimator, best_tpot_seconds: float, weights: RoutingWeights, slo: Slo) -> Candidate:
    computes = way.prefill or way.decode
    prefill = None if computes is None else estimator.prefill(computes)
    decode = None if way.decode is None else estimator.decode(way.decode)
    transfer = estimator.transfer_seconds(way)
    ttft = transfer + (prefill.seconds if prefill else 0.0) + (decode.wait_seconds if decode else 0.0)
    slower = pressure = 0.0
    late = max(0.0, ttft - slo.ttft_ms / 1e3)
    if decode is not None:
        slower = decode.expected_output_tokens * (decode.tpot_seconds - best_tpot_seconds)
        pressure = decode.pressure_seconds
        late += decode.expected_output_tokens * max(0.0, decode.tpot_seconds - slo.tpot_ms / 1e3)
    weighted = (
        ("prefill", weights.prefill_queue * (prefill.seconds if prefill else 0.0) / 100.0),
        ("transfer", weights.transfer * transfer / 100.0),
        ("decode_wait", weights.decode_step * (decode.wait_seconds if decode else 0.0) / 100.0),
        ("decode_step", weights.decode_step * slower / 100.0),
        ("kv_pressure", weights.kv_pressure * pressure / 100.0),
        ("slo", weights.slo * late / 100.0),
    )
    lane = way.decode.lane if way.decode is not None else (way.prefill.lane if way.prefill is not None else "")
    return Candidate(
        lane=lane,
        prefill_worker=way.prefill.id if way.prefill is not None else None,
        decode_worker=way.decode.id if way.decode is not None else None,
        mode=way.mode,
        step=way.step,
        cost_seconds=sum(seconds for _, seconds in weighted),
        ttft_seconds=ttft,
        transfer_seconds=transfer,
        decode_step_seconds=slower,
        slo_seconds=late,
        best_tpot_seconds=best_tpot_seconds,
        weighted=weighted,
        prefill=prefill,
        decode=decode,
    )
