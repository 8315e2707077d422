"""The worker's Prometheus metrics, all named streamserve_worker_…, and beside them vLLM's own, named vllm:….

Gauges and engine counters are read when scraped; only what the server itself does is counted as it happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streamserve.contract.errors import StreamServeError
from streamserve.contract.runtime_config import ConfigId
from streamserve.worker.pipeserve.engine import EngineSnapshot, Outcome

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
P = "streamserve_worker_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """What the server knows at the moment of a scrape."""

    engine: EngineSnapshot
    applied: ConfigId
    config_rejected: bool
    draining: bool
    open_requests: int
    redis_connected: bool
    signals_published: int
    labels: tuple[tuple[str, str], ...]


class Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(P + name, text, labels, registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(P + name, text, buckets=_SECONDS, registry=registry)

        self._registry = registry
        self._requests = counter("requests", "Requests that ended with an answer, by finish reason", "reason")
        self._errors = counter("errors", "Calls that ended with an error, by call and reason", "call", "reason")
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens of answered requests")
        self._cached_tokens = counter("cached_prompt_tokens", "Prompt tokens found in the prefix cache")
        self._prefill_tokens = counter("prefill_tokens", "Prompt tokens computed for a hand-off")
        self._generated_tokens = counter("generated_tokens", "Tokens sent to routers")
        self._messages = counter("stream_messages", "Messages written on decode streams")
        self._merged = counter("merged_chunks", "Chunks that shared a message with the one before")
        self._prefill_seconds = seconds("prefill_seconds", "Time of a prefill, waiting included")
        self._first_chunk_seconds = seconds("first_chunk_seconds", "Time from a decode's arrival to its first token")

    def watch(self, gauges: Callable[[], Gauges]) -> None:
        """Show the engine's own numbers too, from now on."""
        self._registry.register(_EngineCollector(gauges))
        self._registry.register(_VllmCollector())

    def refused(self, call: str, error: StreamServeError) -> None:
        self._errors.labels(call, error.reason).inc()

    def prefilled(self, tokens: int, seconds: float) -> None:
        self._prefill_tokens.inc(tokens)
        self._prefill_seconds.observe(seconds)

    def first_chunk(self, seconds: float) -> None:
        self._first_chunk_seconds.observe(seconds)

    def sent(self, tokens: int) -> None:
        self._messages.inc()
        self.generated(tokens)

    def generated(self, tokens: int) -> None:
        self._generated_tokens.inc(tokens)

    def merged(self, chunks: int) -> None:
        if chunks:
            self._merged.inc(chunks)

    def finished(self, outcome: Outcome) -> None:
        self._requests.labels(outcome.reason.value).inc()
        self._prompt_tokens.inc(outcome.prompt_tokens)
        self._cached_tokens.inc(outcome.cached_prompt_tokens)


class _EngineCollector(Collector):
    def __init__(self, gauges: Callable[[], Gauges]) -> None:
        self._gauges = gauges

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        now = self._gauges()
        engine = now.engine
        names = [name for name, _ in now.labels]
        info = GaugeMetricFamily(P + "info", "Who this worker is", labels=names)
        info.add_metric([value for _, value in now.labels], 1)
        yield info
        yield _gauge("engine_up", "1 while the engine is alive", engine.alive)
        yield _gauge("draining", "1 while the worker takes no new requests", now.draining)
        yield _gauge("open_requests", "Calls that the server is working on", now.open_requests)
        yield _gauge("running_requests", "Requests in the engine's batch", engine.running_requests)
        yield _gauge("waiting_requests", "Requests that wait in the engine", engine.waiting_requests)
        yield _gauge("waiting_prompt_tokens", "Prompt tokens still to compute", engine.waiting_prompt_tokens)
        yield _gauge("kv_blocks", "Size of the KV cache in blocks", engine.kv_blocks_total)
        yield _gauge("kv_blocks_used", "KV blocks in use", engine.kv_blocks_used)
        yield _gauge("depth", "Speculation depth of the last step", engine.depth)
        yield _gauge("emitted_tokens_per_step", "Mean tokens of a decode step", engine.mean_emitted_tokens_per_step)
        yield _gauge("prefill_tokens_per_second", "Recent prefill rate", engine.prefill_tokens_per_second)
        yield _gauge("config_generation", "Generation of the configuration in force", now.applied.generation)
        yield _gauge("config_step", "Step of the configuration in force", now.applied.step)
        yield _gauge("config_rejected", "1 while the last configuration offered was refused", now.config_rejected)
        yield _gauge("speculation_fallback", "1 while the law of depth fell back", bool(engine.speculation_fallback))
        yield _gauge("redis_connected", "1 while signals reach Redis", now.redis_connected)
        yield _counter("signals_published", "Signals written to Redis", now.signals_published)
        yield _counter("drafted_tokens", "Draft tokens verified", engine.drafted_tokens)
        yield _counter("accepted_tokens", "Draft tokens accepted", engine.accepted_tokens)
        yield _counter("kv_transfer_bytes", "KV bytes pulled", engine.kv_bytes_received)
        yield _counter("kv_transfer_expected_bytes", "KV bytes that pulls should move", engine.kv_bytes_expected)
        transfers = CounterMetricFamily(P + "kv_transfers", "KV pulls, by result", labels=["result"])
        transfers.add_metric(["ok"], engine.kv_transfers_received)
        transfers.add_metric(["failed"], engine.kv_transfers_failed)
        yield transfers
        steps = CounterMetricFamily(P + "decode_steps", "Decode steps, by depth", labels=["depth"])
        for depth, count in enumerate(engine.depth_histogram):
            steps.add_metric([str(depth)], count)
        yield steps
        drafted = GaugeMetricFamily(P + "position_drafted", "Drafts in the window, by position", labels=["position"])
        accepted = GaugeMetricFamily(P + "position_accepted", "Of those accepted, by position", labels=["position"])
        for position, (tried, held) in enumerate(engine.positions, start=1):
            drafted.add_metric([str(position)], tried)
            accepted.add_metric([str(position)], held)
        yield drafted
        yield accepted


class _VllmCollector(Collector):
    """What vLLM counts itself, in prometheus_client's global registry; nothing with another engine."""

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        return (metric for metric in REGISTRY.collect() if metric.name.startswith("vllm:"))


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(P + name, text, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(P + name, text, value=float(value))
