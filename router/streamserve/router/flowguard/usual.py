"""What to assume of a worker's rates: its own while it works, and what is usual among its like where it has none.

    usual   median of the values of the other workers of its role and revision
                                 else of its role in any revision: the first lane of a rollout must be tried, too
                                 else of any worker
                                 else a constant below
    rate    own · freshness + usual · (1 - freshness)        freshness = exp(-idle / 10 s), 1 while it has work

A lane that has never served must not look worse than an idle one that has, or the first lane to serve would serve for
ever on a quiet fleet; and one bad measurement, as of an engine's cold first steps, must not keep a lane away for good:
a rate says what a worker did when it last worked, and nobody works there to correct it. So old values fade, the lane is
tried again, and learns. A worker that really is slower is found out by the first requests it gets.
An unknown rate is 0 in the signals.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from streamserve.contract.signals import WorkerSignals, workload_name
from streamserve.router.flowguard.request import RouteRequest
from streamserve.router.flowguard.view import FleetView, WorkerView

PRIOR_PREFILL_TOKENS_PER_SECOND: Final = 2_000.0
PRIOR_STEP_BASE_SECONDS: Final = 0.02
PRIOR_STEP_PER_REQUEST_SECONDS: Final = 0.000_5
PRIOR_EMITTED_TOKENS_PER_STEP: Final = 1.0
PRIOR_TRANSFER_BYTES_PER_SECOND: Final = 1e9
PRIOR_OUTPUT_TOKENS: Final = 128.0
FADING_SECONDS: Final = 10.0
# Below this a pause between two requests is no reason to doubt anything.
PAUSE_SECONDS: Final = 1.0

_Rate = Callable[[WorkerSignals], float]


class Usual:
    """Rates over one view for one request, each group looked at once, when first asked for."""

    def __init__(self, request: RouteRequest, view: FleetView) -> None:
        self._workload = workload_name(request.workload)
        self._now = view.now_seconds
        self._workers = [worker for lane in view.lanes for worker in lane.workers if worker.signals is not None]
        self._found: dict[tuple[object, ...], list[float]] = {}
        self._medians: dict[tuple[object, ...], float] = {}
        self.output_tokens = self._output_tokens(request)

    def _output_tokens(self, request: RouteRequest) -> float:
        """The length to expect of this request's answer: as the caller says, else the median of its workload."""
        expected = request.expected_output_tokens
        if expected is None:
            lengths = [
                known.mean_output_tokens
                for worker in self._workers
                if worker.signals is not None
                for known in worker.signals.workloads
                if known.name == self._workload and known.mean_output_tokens > 0
            ]
            expected = median(lengths) if lengths else PRIOR_OUTPUT_TOKENS
        return min(max(1.0, expected), float(max(1, request.max_tokens)))

    def prefill_tokens_per_second(self, worker: WorkerView) -> float:
        known = self._rate(worker, "prefill", lambda signals: signals.prefill_tokens_per_second)
        return known or PRIOR_PREFILL_TOKENS_PER_SECOND

    def transfer_bytes_per_second(self, worker: WorkerView) -> float:
        known = self._rate(worker, "transfer", lambda signals: signals.transfer_bytes_per_second)
        return known or PRIOR_TRANSFER_BYTES_PER_SECOND

    def step_seconds(self, worker: WorkerView, batch: int) -> float:
        """Of a decode step with `batch` requests."""
        known = self._rate(worker, f"step {batch}", lambda signals: signals.step_seconds(batch))
        return known or PRIOR_STEP_BASE_SECONDS + PRIOR_STEP_PER_REQUEST_SECONDS * batch

    def emitted_tokens_per_step(self, worker: WorkerView) -> float:
        """Of this workload, by whoever knows it; else of all work, its own first."""
        return (
            self._rate(worker, "workload", lambda signals: workload_emitted(signals, self._workload))
            or self._rate(worker, "emitted", lambda signals: signals.mean_emitted_tokens_per_step)
            or PRIOR_EMITTED_TOKENS_PER_STEP
        )

    def _rate(self, worker: WorkerView, name: str, rate: _Rate) -> float:
        """Own and usual, by how fresh the own one is; 0 when nobody knows."""
        own = 0.0 if worker.signals is None else max(0.0, rate(worker.signals))
        if not own:
            return self._of_all(worker, name, rate)
        idle = self._now - worker.worked_until_seconds
        if idle <= PAUSE_SECONDS:
            return own
        fresh = freshness(idle)
        others = self._of_others(worker, own, name, rate)
        return fresh * own + (1.0 - fresh) * others if others else own

    def _of_all(self, worker: WorkerView, name: str, rate: _Rate) -> float:
        """What is usual for one that does not know: the same for all of its role and revision, so found once."""
        key = (name, worker.role, worker.revision)
        known = self._medians.get(key)
        if known is None:
            known = self._medians[key] = self._of_others(worker, 0.0, name, rate)
        return known

    def _of_others(self, worker: WorkerView, own: float, name: str, rate: _Rate) -> float:
        """Median over the nearest group in which another worker knows the rate; 0 when none does."""
        for key, group in self._groups(worker):
            values = self._found.get((name, *key))
            if values is None:
                known = (rate(other.signals) for other in group if other.signals is not None)
                values = self._found[name, *key] = sorted(value for value in known if value > 0)
            if own:
                at = bisect_left(values, own)
                values = values[:at] + values[at + 1 :]
            if values:
                return median(values)
        return 0.0

    def _groups(self, worker: WorkerView) -> Iterator[tuple[tuple[object, ...], list[WorkerView]]]:
        """Its like, nearest first."""
        role, revision = worker.role, worker.revision
        yield (role, revision), [w for w in self._workers if w.role is role and w.revision == revision]
        yield (role,), [w for w in self._workers if w.role is role]
        yield (), self._workers


def freshness(idle_seconds: float) -> float:
    """What a rate is worth that was measured before the worker went idle: from 1 to 0."""
    return 1.0 if idle_seconds <= PAUSE_SECONDS else math.exp(-(idle_seconds - PAUSE_SECONDS) / FADING_SECONDS)


def workload_emitted(signals: WorkerSignals | None, workload: str) -> float:
    """Mean tokens that a request of this workload gains per step on this worker; 0 while it does not know."""
    for known in () if signals is None else signals.workloads:
        if known.name == workload:
            return known.mean_emitted_tokens_per_step
    return 0.0


def median(values: Sequence[float]) -> float:
    """statistics.median without its generality: this runs several times in a decision."""
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
