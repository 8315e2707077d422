"""The router's metrics, all named streamserve_router_…, in a registry of its own.

Predicted and actual times are histograms with the same buckets, so that the quality of the prediction can be read off
two quantiles; the error itself (actual less predicted) is a third.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from streamserve.contract.errors import StreamServeError

MAX_WORKLOADS: Final = 64
_TTFT_BUCKETS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_TPOT_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
_ERROR_BUCKETS: Final = (-5, -2, -1, -0.5, -0.2, -0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class RequestTiming(Protocol):
    """What one request took; None where it did not come so far."""

    @property
    def ttft_seconds(self) -> float | None: ...
    @property
    def tpot_seconds(self) -> float | None: ...
    @property
    def predicted_ttft_seconds(self) -> float | None: ...
    @property
    def predicted_tpot_seconds(self) -> float | None: ...
    @property
    def queue_seconds(self) -> float | None: ...
    @property
    def tokens(self) -> int: ...
    @property
    def chunks(self) -> int: ...
    @property
    def sent_bytes(self) -> int: ...


class RouterMetrics:
    """What the scheduler and the fronts count."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        prefix = "streamserve_router_"

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(prefix + name, text, buckets=buckets, registry=self.registry)

        self._requests = Counter(
            prefix + "requests",
            "Requests that ended, by outcome (OK, CANCELLED or the error's reason) and workload.",
            ["outcome", "workload"],
            registry=self.registry,
        )
        self._tokens = Counter(prefix + "output_tokens", "Tokens sent to clients.", registry=self.registry)
        self._chunks = Counter(prefix + "chunks", "Messages sent to clients.", registry=self.registry)
        self._bytes = Counter(prefix + "sent_bytes", "Bytes of those messages.", registry=self.registry)
        self._retries = Counter(
            prefix + "retries",
            "Further attempts before the first token, allowed or over budget.",
            ["verdict"],
            registry=self.registry,
        )
        self._worker_failures = Counter(
            prefix + "worker_failures",
            "Calls to workers that failed, by the error's reason.",
            ["reason"],
            registry=self.registry,
        )
        self._turned_away = Counter(
            prefix + "unauthenticated",
            "Calls without a certificate or a known token, by front (grpc or http).",
            ["front"],
            registry=self.registry,
        )
        self._ttft = histogram("ttft_seconds", "From arrival to the first token sent.", _TTFT_BUCKETS)
        self._ttft_predicted = histogram(
            "ttft_predicted_seconds", "The pick's prediction, from the pick on.", _TTFT_BUCKETS
        )
        self._ttft_error = histogram(
            "ttft_error_seconds", "Time to first token less queue and prediction.", _ERROR_BUCKETS
        )
        self._tpot = histogram("tpot_seconds", "Mean time per output token after the first.", _TPOT_BUCKETS)
        self._tpot_predicted = histogram("tpot_predicted_seconds", "The pick's prediction.", _TPOT_BUCKETS)
        self._queue = histogram("queue_seconds", "Wait for workers.", _TTFT_BUCKETS)
        self._workloads: set[str] = {"default"}

    def observe(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is scraped."""
        Gauge("streamserve_router_" + name, text, registry=self.registry).set_function(value)

    def retried(self, verdict: str) -> None:
        self._retries.labels(verdict).inc()

    def turned_away(self, front: str) -> None:
        self._turned_away.labels(front).inc()

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Around what a front does before the scheduler has the request: what is refused there has ended too."""
        try:
            yield
        except StreamServeError as error:
            self.refused(error.reason)
            raise

    def refused(self, outcome: str) -> None:
        """A request that has no times, and no workload of which anybody made sure."""
        self._requests.labels(outcome, "default").inc()

    def worker_failed(self, reason: str) -> None:
        self._worker_failures.labels(reason).inc()

    def finished(self, outcome: str, workload: str, timing: RequestTiming) -> None:
        self._requests.labels(outcome, self._known(workload)).inc()
        self._tokens.inc(timing.tokens)
        self._chunks.inc(timing.chunks)
        self._bytes.inc(timing.sent_bytes)
        if timing.queue_seconds is not None:
            self._queue.observe(timing.queue_seconds)
        if timing.predicted_ttft_seconds is not None:
            self._ttft_predicted.observe(timing.predicted_ttft_seconds)
        if timing.ttft_seconds is not None:
            self._ttft.observe(timing.ttft_seconds)
            if timing.predicted_ttft_seconds is not None:
                waited = timing.queue_seconds or 0.0
                self._ttft_error.observe(timing.ttft_seconds - waited - timing.predicted_ttft_seconds)
        if timing.tpot_seconds is not None:
            self._tpot.observe(timing.tpot_seconds)
            if timing.predicted_tpot_seconds is not None:
                self._tpot_predicted.observe(timing.predicted_tpot_seconds)

    def _known(self, workload: str) -> str:
        """The workload, or "default" for those after the first 64: a client must not make series without end."""
        if workload in self._workloads:
            return workload
        if len(self._workloads) < MAX_WORKLOADS:
            self._workloads.add(workload)
            return workload
        return "default"
