"""What the operator tells Prometheus, and how the numbers are read off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_RECONCILE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class OperatorMetrics:
    """One registry, one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconcile_seconds = Histogram(
            "streamserve_operator_reconcile_seconds",
            "time of one reconcile, its writes included",
            ["result"],
            buckets=_RECONCILE_BUCKETS,
            registry=self.registry,
        )
        self.requests = Counter(
            "streamserve_operator_api_requests_total",
            "requests to the API server but the watches'",
            ["verb", "outcome"],
            registry=self.registry,
        )
        self.writes = Counter(
            "streamserve_operator_writes_total",
            "writes that the API server took, by what was written",
            ["kind", "reason"],
            registry=self.registry,
        )
        self.leads = Gauge("streamserve_operator_leads", "1 while this process may write", registry=self.registry)
        self.queue_depth = Gauge("streamserve_operator_queue_depth", "StreamPairs that are due", registry=self.registry)
        self.queue_age = Gauge(
            "streamserve_operator_queue_oldest_age_seconds",
            "for how long the StreamPair that waits longest has been due",
            registry=self.registry,
        )
        self.watch_silence = Gauge(
            "streamserve_operator_watch_silence_seconds",
            "time since the watch that has been silent longest was last heard",
            registry=self.registry,
        )
        self.objects = Gauge("streamserve_operator_cached_objects", "objects in the cache", registry=self.registry)
        self.pairs = Gauge("streamserve_operator_streampairs", "StreamPairs in the cache", registry=self.registry)
        self.unknown_namespaces = Gauge(
            "streamserve_operator_unknown_namespaces",
            "namespaces of those that it serves in which nothing is done, for they could not be listed",
            registry=self.registry,
        )
        self.missing_lanes = Gauge(
            "streamserve_operator_missing_lanes",
            "lanes that a StreamPair wants and that do not serve, less what a rollout may do without; of those that "
            "miss any, while this process leads",
            ["streampair"],
            registry=self.registry,
        )
        self.redis_connected = Gauge(
            "streamserve_operator_redis_connected",
            "1 while the last exchange with Redis went well",
            registry=self.registry,
        )
        self.certificate_ends = Gauge(
            "streamserve_operator_certificate_expiry_timestamp_seconds",
            "when the certificate in a Secret ends: those that this process renews while it leads, and their authority",
            ["secret"],
            registry=self.registry,
        )
        self.certificate_renewals = Counter(
            "streamserve_operator_certificate_renewals_total",
            "certificates that were due, by how writing the next one ended",
            ["outcome"],
            registry=self.registry,
        )

    def request(self, verb: str, outcome: str) -> None:
        self.requests.labels(verb, outcome).inc()

    def wrote(self, kind: str, reason: str) -> None:
        self.writes.labels(kind, reason).inc()

    def misses_lanes(self, key: tuple[str, str], count: int) -> None:
        """One that misses none has no series: ten thousand that are well cost nothing."""
        if count:
            self.missing_lanes.labels("/".join(key)).set(count)
        else:
            with contextlib.suppress(KeyError):
                self.missing_lanes.remove("/".join(key))

    def follow(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """Read the value when somebody asks for it."""
        gauge.set_function(value)
