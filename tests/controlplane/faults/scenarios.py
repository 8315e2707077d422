"""What an operator is disturbed at: a state at rest, one change to it, and what an undisturbed operator makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from tests.support.fault_proxy import FaultProxy
from tests.support.operator_bench import CHILDREN, PAIR, Body, OperatorBench
from tests.support.processes import Process, wait_until

from streamserve.operator import naming

SETTLE_SECONDS: Final = 120.0
HOT: Final[Body] = {"speculation": {"depth": {"max": 2}}}
EXTERNAL: Final[Body] = {"prefill": {"replicas": 1, "scaling": {"mode": "External"}}}
COLD: Final[Body] = {"engine": {"kind": "Simulator", "args": {"max-num-seqs": "7"}}}


@dataclass(frozen=True, slots=True)
class Scenario:
    """`untouched`: the lanes whose pods have to be the same ones afterwards."""

    name: str
    change: Callable[[OperatorBench], object]
    exists: bool = True
    remains: bool = True
    untouched: tuple[int, ...] = ()


SCENARIOS: Final = (
    Scenario("create", lambda bench: bench.create(), exists=False),
    # Every kind of child: one that is scaled from outside has a StreamPairScaler too.
    Scenario("create-scaled", lambda bench: bench.create(EXTERNAL), exists=False),
    Scenario("create-vllm", lambda bench: bench.create({**EXTERNAL, "engine": {"kind": "Vllm"}}), exists=False),
    Scenario("hot-edit", lambda bench: bench.edit(HOT), untouched=(0, 1)),
    Scenario("rollout", lambda bench: bench.edit(COLD)),
    Scenario("scale-up", lambda bench: bench.edit({"lanes": 3}), untouched=(0, 1)),
    Scenario("scale-down", lambda bench: bench.edit({"lanes": 1}), untouched=(0,)),
    Scenario("delete", lambda bench: bench.remove("StreamPair", PAIR), remains=False),
)
BY_NAME: Final = {scenario.name: scenario for scenario in SCENARIOS}


@dataclass(slots=True)
class Stage:
    """One run of one scenario: a namespace, and an operator that sees the API server through a proxy."""

    bench: OperatorBench
    proxy: FaultProxy
    operators: list[Process] = field(default_factory=list)

    def operate(self, *arguments: str) -> Process:
        """One more operator."""
        name = f"operator-{len(self.operators)}"
        self.operators.append(self.bench.start(name, *arguments, server=self.proxy.url))
        return self.operators[-1]

    def prepare(self, scenario: Scenario) -> dict[int, set[str]]:
        """Bring it to where the change begins. Returns the pods' uids of the lanes that are to be left alone."""
        if scenario.exists:
            self.bench.create()
            self.settle(remains=True)
        self.proxy.writes.clear()
        return self.uids(scenario.untouched)

    def settle(self, *, remains: bool) -> dict[tuple[str, str], Body]:
        """Wait for the fixpoint: as asked for, and nothing more is written. Returns its shape."""
        if remains:
            self.bench.until("Ready", "True", seconds=SETTLE_SECONDS)
            self.bench.until("ConfigApplied", "True", seconds=SETTLE_SECONDS)
            # What the server has refused is tried again after half a minute, and the operator says so meanwhile.
            self.bench.until("Degraded", "False", seconds=SETTLE_SECONDS)
            wait_until(self._all_of_one_revision, seconds=SETTLE_SECONDS, what="every pod is of the present revision")
        else:
            wait_until(lambda: not self.bench.names(), seconds=SETTLE_SECONDS, what="nothing is left")
        self.rest()
        return self.shape()

    def rest(self) -> None:
        """Wait until no operator writes: the last one by its own word, all of them by the proxy's."""
        self.bench.until_quiet(self.operators[-1], seconds=60, others=lambda: len(self.proxy.writes))

    def pods_made_and_ended(self) -> int:
        """Writes of pods themselves, drains included; gates are of their status."""
        return sum("/pods/" in write and not write.endswith("/status") for write in self.proxy.writes)

    def shape(self) -> dict[tuple[str, str], Body]:
        """Everything in the namespace but what is leaving: also an object of ours that has lost its labels."""
        shape = self.bench.shape()
        bodies = [body for kind in CHILDREN for body in self.bench.all(kind)]
        stays = {naming.key_of(body) for body in bodies if "deletionTimestamp" not in body["metadata"]}
        return {key: body for key, body in shape.items() if key in stays}

    def until_shape(self, wanted: dict[tuple[str, str], Body], *, seconds: float = 60.0) -> None:
        def differ() -> str:
            found = self.shape()
            pairs = [(key, found.get(key), wanted.get(key)) for key in sorted({*found, *wanted})]
            return "\n".join(f"{key}\n  {one}\n  wanted {other}" for key, one, other in pairs if one != other)

        wait_until(lambda: self.shape() == wanted, seconds=seconds, what="everything is as it was", explain=differ)

    def uids(self, lanes: tuple[int, ...]) -> dict[int, set[str]]:
        """The pods of lanes, by uid, those that are asked to leave left out: they are not untouched."""
        found: dict[int, set[str]] = {lane: set() for lane in lanes}
        for pod in self.bench.all("Pod"):
            place = naming.place_of(PAIR, pod["metadata"]["name"])
            leaves = naming.DRAIN in pod["metadata"].get("annotations", {})
            if place is not None and place[0] in found and not leaves:
                found[place[0]].add(pod["metadata"]["uid"])
        return found

    def _all_of_one_revision(self) -> bool:
        status: Body = (self.bench.one("StreamPair", PAIR) or {}).get("status", {})
        pods = [naming.place_of(PAIR, name) for kind, name in self.bench.names() if kind == "Pod"]
        revisions = {place[2] for place in pods if place is not None}
        wanted: Any = (self.bench.one("StreamPair", PAIR) or {}).get("spec", {}).get("lanes")
        return len(revisions) == 1 and status.get("readyLanes") == status.get("lanes") == wanted
