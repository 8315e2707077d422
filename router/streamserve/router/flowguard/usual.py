"""What to assume of a rate that a worker has not measured yet: what is usual among its like.

    median of the known values   of workers of its role and revision
                                 else of its role in any revision: the first lane of a rollout must be tried, too
                                 else of any worker
    a constant below             when nobody knows

A lane that has never served must not look worse than an idle one that has, or the first lane to serve would serve for
ever on a quiet fleet. With the median it costs the same, the near tie is broken at random, and it learns its own rates.
Looked up only for workers that miss something; an unknown rate is 0 in the signals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from streamserve.contract.signals import Role, WorkerSignals
from streamserve.router.flowguard.request import RouteRequest
from streamserve.router.flowguard.view import FleetView, WorkerView

PRIOR_PREFILL_TOKENS_PER_SECOND: Final = 2_000.0
PRIOR_STEP_BASE_SECONDS: Final = 0.02
PRIOR_STEP_PER_REQUEST_SECONDS: Final = 0.000_5
PRIOR_EMITTED_TOKENS_PER_STEP: Final = 1.0
PRIOR_TRANSFER_BYTES_PER_SECOND: Final = 1e9
PRIOR_OUTPUT_TOKENS: Final = 128.0

_Rate = Callable[[WorkerSignals], float]


class Usual:
    """Medians over one view for one request, each computed when first asked for."""

    def __init__(self, request: RouteRequest, view: FleetView) -> None:
        self._workload = request.workload
        self._workers = [worker for lane in view.lanes for worker in lane.workers if worker.signals is not None]
        self._found: dict[tuple[str, Role, str], float] = {}
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
                if known.name == request.workload and known.mean_output_tokens > 0
            ]
            expected = median(lengths) if lengths else PRIOR_OUTPUT_TOKENS
        return min(max(1.0, expected), float(max(1, request.max_tokens)))

    def prefill_tokens_per_second(self, worker: WorkerView) -> float:
        known = self._median(worker, "prefill", lambda signals: signals.prefill_tokens_per_second)
        return known or PRIOR_PREFILL_TOKENS_PER_SECOND

    def transfer_bytes_per_second(self, worker: WorkerView) -> float:
        known = self._median(worker, "transfer", lambda signals: signals.transfer_bytes_per_second)
        return known or PRIOR_TRANSFER_BYTES_PER_SECOND

    def step_seconds(self, worker: WorkerView, batch: int) -> float:
        """Of a decode step with `batch` requests."""
        known = self._median(worker, f"step {batch}", lambda signals: signals.step_seconds(batch))
        return known or PRIOR_STEP_BASE_SECONDS + PRIOR_STEP_PER_REQUEST_SECONDS * batch

    def emitted_tokens_per_step(self, worker: WorkerView) -> float:
        """For a worker that does not know this workload: what others know of the workload, else what this one does
        with all of its work, else what others do with theirs."""
        of_workload = self._median(worker, "workload", lambda signals: workload_emitted(signals, self._workload))
        own = 0.0 if worker.signals is None else worker.signals.mean_emitted_tokens_per_step
        return (
            of_workload
            or own
            or self._median(worker, "emitted", lambda signals: signals.mean_emitted_tokens_per_step)
            or PRIOR_EMITTED_TOKENS_PER_STEP
        )

    def _median(self, worker: WorkerView, name: str, rate: _Rate) -> float:
        """Over the nearest group in which anybody knows the rate; 0 when nobody does."""
        key = (worker.revision, worker.role, name)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._over_groups(worker, rate)
        return found

    def _over_groups(self, worker: WorkerView, rate: _Rate) -> float:
        known = [
            (other, value)
            for other in self._workers
            if other.signals is not None and (value := rate(other.signals)) > 0
        ]
        alike = [(other, value) for other, value in known if other.role is worker.role]
        same = [(other, value) for other, value in alike if other.revision == worker.revision]
        nearest = same or alike or known
        return median([value for _, value in nearest]) if nearest else 0.0


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
