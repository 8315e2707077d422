"""What `up` counts about itself, named streamserve_up_…: processes, lanes, and how long edits take to arrive."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from streamserve.cli.up.supervisor import State

P: Final = "streamserve_up_"


class UpMetrics:
    """`states` gives the state of every child there is now; the rest is set by whoever knows it."""

    def __init__(self, states: Callable[[], Iterable[State]]) -> None:
        self.registry = CollectorRegistry()

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(P + name, text, registry=self.registry)

        self._restarts = Counter(
            P + "restarts", "Processes that died and were started again, by kind.", ["kind"], registry=self.registry
        )
        for kind in ("redis", "router", "worker"):
            self._restarts.labels(kind)
        self._wanted = gauge("wanted_lanes", "Lanes that the file asks for.")
        self._ready = gauge("ready_lanes", "Lanes that take traffic.")
        self._halted = gauge("rollout_halted", "1 while a rollout does not go on.")
        self._generation = gauge("config_generation", "Generation of the configuration in force.")
        self._echo = gauge("config_echo_seconds", "From the last saved edit to its last echo.")
        self.registry.register(_Children(states))

    def restarted(self, name: str) -> None:
        """By a process's name: lane-0-decode-0 is a worker."""
        self._restarts.labels(name if name in ("redis", "router") else "worker").inc()

    def stands(self, *, wanted: int, ready: int, halted: bool, generation: int) -> None:
        self._wanted.set(wanted)
        self._ready.set(ready)
        self._halted.set(halted)
        self._generation.set(generation)

    def echoed(self, seconds: float) -> None:
        self._echo.set(seconds)


class _Children(Collector):
    def __init__(self, states: Callable[[], Iterable[State]]) -> None:
        self._states = states

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        count = Tally(self._states())
        family = GaugeMetricFamily(P + "children", "Processes of ours, by state.", labels=["state"])
        for state in State:
            if state is not State.STOPPED:
                family.add_metric([state.value], count[state])
        yield family
