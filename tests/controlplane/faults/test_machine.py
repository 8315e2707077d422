"""Any order of edits, crashes, deletions and refusals, drawn by Hypothesis: four things hold after every step.

    reflected   what the spec asks for is what is there
    fresh       it equals what a new pair of that spec would have led to, whatever came before
    back        going back to an earlier spec equals having had it: the same comparison, for specs come again
    refused     a change that the API server refuses changes nothing at all

The comparison leaves out the configuration's number, which counts edits, and what the server and the clock put there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tests.controlplane.faults.conftest import NAMESPACE, on_stage
from tests.controlplane.faults.scenarios import Stage
from tests.support.api_server import ApiServer
from tests.support.operator_bench import MERGE, PAIR, SPEC, Body
from tests.support.processes import wait_until

from streamserve.operator.edge.resources import BY_KIND

STEPS = 32
SEEDS = 11
Shape = dict[tuple[str, str], Any]
Wanted = tuple[int, int, int]
BAD: list[Body] = [
    {"speculation": {"depth": {"min": 5, "max": 2}}},
    {"lanes": -1},
    {"speculation": {"maxDepth": 99}},
    {"engine": {"kind": "Imagined"}},
    {"decode": {"template": {"env": [{"name": "POD_IP", "value": "x"}]}}},
]
WANTED = st.tuples(st.sampled_from([1, 2]), st.sampled_from([2, 4]), st.sampled_from([64, 7]))


def spec_of(wanted: Wanted) -> Body:
    lanes, depth, running = wanted
    return {
        "lanes": lanes,
        "speculation": {**SPEC["speculation"], "depth": {"min": 0, "max": depth}},
        "engine": {**SPEC["engine"], "args": {"max-num-seqs": str(running)}},
        # The only lane may stop for a change: without leave it would wait (NeedsSurge), and nothing come to rest.
        "update": {**SPEC["update"], "maxUnavailable": 1},
    }


class Machine(RuleBasedStateMachine):
    """`fresh` remembers, over all runs, what a new pair of each spec leads to."""

    def __init__(
        self, make: Callable[[], AbstractContextManager[Stage]], fresh: dict[Wanted, Shape], steps: list[str]
    ) -> None:
        super().__init__()
        self._make, self._fresh, self._steps = make, fresh, steps
        self._open = ExitStack()
        self._wanted: Wanted = (2, 4, 64)
        self._look = True

    @initialize(drawn=st.integers(0, 2**16))
    def begin(self, drawn: int) -> None:
        # Hypothesis' first run is its smallest, one rule over and over: it has a 0 here, and is not played.
        assume(drawn)
        self._stage: Stage = self._open.enter_context(self._make())
        self._stage.operate()
        self._stage.bench.create(spec_of(self._wanted))

    def teardown(self) -> None:
        self._open.close()

    @rule(wanted=WANTED)
    def edit(self, wanted: Wanted) -> None:
        self._steps.append(f"edit {wanted}")
        self._wanted = wanted
        self._stage.bench.edit(spec_of(wanted))

    @rule(wanted=WANTED, then=WANTED, writes=st.integers(0, 6))
    def edit_amid_a_change(self, wanted: Wanted, then: Wanted, writes: int) -> None:
        self._steps.append(f"edit {wanted}, {writes} writes later {then}")
        before = len(self._stage.proxy.writes)
        self._stage.bench.edit(spec_of(wanted))
        self._until_writes(before + writes)
        self._stage.bench.edit(spec_of(then))
        self._wanted = then

    @rule(wanted=WANTED, writes=st.integers(0, 6))
    def crash(self, wanted: Wanted, writes: int) -> None:
        self._steps.append(f"crash, {writes} writes after edit {wanted}")
        before, operator = len(self._stage.proxy.writes), self._stage.operators[-1]
        self._wanted = wanted
        self._stage.bench.edit(spec_of(wanted))
        self._until_writes(before + writes)
        operator.kill()
        self._stage.operate()

    @rule(wanted=WANTED)
    def recreate(self, wanted: Wanted) -> None:
        self._steps.append(f"recreate {wanted}")
        self._wanted = wanted
        self._stage.bench.remove("StreamPair", PAIR)
        self._stage.bench.create(spec_of(wanted))

    @rule(bad=st.sampled_from(BAD))
    def refused(self, bad: Body) -> None:
        self._steps.append(f"refused {bad}")
        before = self._stage.bench.versions()
        answer = self._stage.bench.call("PATCH", BY_KIND["StreamPair"].path(NAMESPACE, PAIR), {"spec": bad}, MERGE)
        assert answer.status == 422, answer.body
        assert self._stage.bench.versions() == before
        self._look = False

    @rule(which=st.integers(0, 1_000))
    def a_hand_deletes(self, which: int) -> None:
        names = sorted(self._stage.bench.names())
        kind, name = names[which % len(names)]
        self._steps.append(f"hand deletes {kind} {name}")
        self._stage.bench.remove(kind, name)

    @rule()
    def redis_forgets(self) -> None:
        self._steps.append("redis forgets")
        with self._stage.bench.redis.client() as client:
            client.flushall()

    @invariant()
    def as_a_fresh_one(self) -> None:
        if not self._look:
            self._look = True
            return
        found = essence(self._stage.settle(remains=True))
        if self._wanted not in self._fresh:
            self._stage.bench.remove("StreamPair", PAIR)
            wait_until(lambda: not self._stage.bench.names(), seconds=60, what="nothing is left")
            self._stage.bench.create(spec_of(self._wanted))
            self._fresh[self._wanted] = essence(self._stage.settle(remains=True))
        assert found == self._fresh[self._wanted], self._steps[-5:]
        assert_reflects(found, self._wanted)

    def _until_writes(self, count: int) -> None:
        """So many, or rest: an edit that changes nothing leads to few."""
        try:
            wait_until(lambda: len(self._stage.proxy.writes) >= count, seconds=3.0, what="writes", every_seconds=0.01)
        except AssertionError:
            return


def essence(shape: Shape) -> Shape:
    """Without the configuration's number, which counts edits."""
    found = {name: {**body, "metadata": dict(body["metadata"])} for name, body in shape.items()}
    for (kind, _), body in found.items():
        if kind == "ConfigMap":
            config = json.loads(body["data"]["config.json"])
            del config["config"]["id"]
            body["data"] = config
            body["metadata"]["annotations"] = None
    return found


def assert_reflects(found: Shape, wanted: Wanted) -> None:
    """Read off the objects, without the operator's code: it might be wrong about a fresh pair too."""
    lanes, depth, running = wanted
    pods = [body for (kind, _), body in found.items() if kind == "Pod"]
    assert len(pods) == 2 * lanes
    for pod in pods:
        assert re.search(rf"max-num-seqs\W+{running}\b", pod["spec"]), pod["spec"]
    (config,) = [body["data"] for (kind, _), body in found.items() if kind == "ConfigMap"]
    assert config["config"]["speculation"]["max_depth"] == depth


@pytest.fixture(scope="session")
def fresh() -> dict[Wanted, Shape]:
    return {}


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.everything) for n in range(1, SEEDS))])
@pytest.mark.timeout(1_200)
def test_any_order_of_what_may_happen(
    number: int, server: ApiServer, tmp_path: Path, fresh: dict[Wanted, Shape]
) -> None:
    steps: list[str] = []
    runs = iter(range(1_000))

    def make() -> AbstractContextManager[Stage]:
        directory = tmp_path / str(next(runs))
        directory.mkdir()
        return on_stage(server, directory)

    drawn = settings(
        max_examples=1,
        stateful_step_count=STEPS,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    drawn_machine = seed(number)(partial(Machine, make, fresh, steps))
    run_state_machine_as_test(drawn_machine, settings=drawn)  # type: ignore[arg-type]  # any factory will do
    print(len(steps), "transitions:", *steps, sep="\n")
    assert len(steps) >= STEPS - 2
