"""A newer operator or a newer CRD than the one under which everything was made: the same end, and no lane too many."""

from __future__ import annotations

import copy

import pytest
from tests.controlplane.faults.conftest import Undisturbed
from tests.controlplane.faults.scenarios import BY_NAME, SETTLE_SECONDS, Stage
from tests.controlplane.faults.test_machine import essence
from tests.support import older_operator
from tests.support.operator_bench import MERGE, PAIR, Body
from tests.support.processes import Process, wait_until

from streamserve.contract.streampair.crd import definitions
from streamserve.operator import naming
from streamserve.operator.edge.resources import BY_KIND

LANES = 2
TAKEN_OVER = {
    "df531ae-simulator": "create-scaled",  # its pods are rendered as they were
    "df531ae-vllm": "create-vllm",  # its pods have one variable fewer
}


@pytest.mark.parametrize(
    "left", [pytest.param(left, marks=pytest.mark.everything if "simulator" in left else ()) for left in TAKEN_OVER]
)
def test_what_an_older_operator_left_is_taken_over(left: str, stage: Stage, undisturbed: Undisturbed) -> None:
    """A pod that is rendered as it was stays; the others are replaced by the normal rollout, lane by lane."""
    wanted, _ = undisturbed.of(TAKEN_OVER[left], stage)
    planted = older_operator.plant(stage.bench, left)
    pods = {body["metadata"]["name"] for body in planted if body["kind"] == "Pod"}
    before = stage.uids(tuple(range(LANES)))
    assert sum(map(len, before.values())) == len(pods) == 2 * LANES
    wait_until(lambda: ready_lanes(stage) == LANES, seconds=10, what="the lanes are served as they were left")
    stays = pods == {name for kind, name in wanted if kind == "Pod"}
    assert stays == (left == "df531ae-simulator")
    operator = stage.operate()
    seen: list[int] = []

    def done() -> bool:
        seen.append(ready_lanes(stage))
        return stage.shape() == wanted

    wait_until(done, seconds=SETTLE_SECONDS, what="all is as the present operator makes it", every_seconds=0.05)
    # What the conditions say may still be the older operator's word.
    stage.bench.until_leads(operator)
    stage.rest()
    assert stage.settle(remains=True) == wanted
    assert min(seen) >= (LANES if stays else LANES - 1)
    assert (stage.uids(tuple(range(LANES))) == before) == stays


def ready_lanes(stage: Stage) -> int:
    """Lanes with a ready pod of each role."""
    ready: dict[str, int] = {}
    for pod in stage.bench.all("Pod"):
        lane, conditions = pod["metadata"]["labels"][naming.LANE], pod.get("status", {}).get("conditions", ())
        ready[lane] = ready.get(lane, 0) + any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return sum(count >= 2 for count in ready.values())


def without_depth(definition: Body) -> Body:
    """The CRD as if it came before `spec.speculation.depth`: the rules and defaults that name it were not there."""
    found = copy.deepcopy(definition)
    _strip(found, "depth")
    for version in found["spec"]["versions"]:
        del version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["speculation"]["properties"][
            "depth"
        ]
    return found


def _strip(schema: object, field: str) -> None:
    if isinstance(schema, list):
        for each in schema:
            _strip(each, field)
    elif isinstance(schema, dict):
        rules = [rule for rule in schema.pop("x-kubernetes-validations", []) if field not in str(rule)]
        schema |= {"x-kubernetes-validations": rules} if rules else {}
        if isinstance(schema.get("default"), dict):
            schema["default"].pop(field, None)
        for each in schema.values():
            _strip(each, field)


def upgraded(
    older: Body, stage: Stage, patch: Body, *, query: str, under_it: str, under_this: str
) -> tuple[Process, dict[int, set[str]]]:
    """An operator and a pair at rest that came under the older CRD, once the present one is in force: when what the
    server says of `patch` has gone from the one to the other. Also the uids of the pods that are to stay."""
    bench = stage.bench
    path = f"{BY_KIND['StreamPair'].path(bench.namespace, PAIR)}?dryRun=All{query}"

    def said() -> str:
        answer = bench.call("PATCH", path, {"spec": patch}, MERGE)
        return "taken" if answer.ok else str(answer.body)

    try:
        bench.install(older)
        operator = stage.operate()
        before = stage.prepare(BY_NAME["hot-edit"])
        assert before[0]
        assert under_it in said()
    finally:
        bench.install(definitions()["streampairs"])
    wait_until(lambda: under_this in said(), seconds=30, what="the present CRD is in force", every_seconds=0.005)
    return operator, before


@pytest.mark.everything
def test_the_first_crd_is_upgraded_under_a_running_operator_and_an_edit_afterwards_is_like_any(
    stage: Stage, undisturbed: Undisturbed
) -> None:
    """What was made under it is served on; a rule that it did not have holds."""
    scenario, bench = BY_NAME["hot-edit"], stage.bench
    wanted, _ = undisturbed.of("hot-edit", stage)
    ours_again = {"router": {"template": {"volumes": [{"name": "a"}, {"name": "tmp"}]}}}
    older = older_operator.crd("df531ae")
    operator, before = upgraded(older, stage, ours_again, query="", under_it="taken", under_this="volumes")
    scenario.change(bench)
    assert stage.settle(remains=True) == wanted
    assert stage.uids(scenario.untouched) == before
    assert bench.get(operator, "/healthz") == (200, "ok\n")


@pytest.mark.everything
def test_a_crd_that_is_upgraded_under_a_running_operator_brings_its_field_and_touches_no_pod(
    stage: Stage, undisturbed: Undisturbed
) -> None:
    scenario, bench = BY_NAME["hot-edit"], stage.bench
    wanted, _ = undisturbed.of("hot-edit", stage)
    older, unknown = without_depth(definitions()["streampairs"]), 'unknown field "spec.speculation.depth"'
    depth = {"speculation": {"depth": {"max": 2}}}
    strict = "&fieldValidation=Strict"
    operator, before = upgraded(older, stage, depth, query=strict, under_it=unknown, under_this="taken")
    scenario.change(bench)
    # A watch that began before leaves the field out: the configuration gets another number when it is there.
    wait_until(lambda: essence(stage.shape()) == essence(wanted), seconds=60, what="the edit is where it belongs")
    found = stage.settle(remains=True)
    assert essence(found) == essence(wanted)
    assert stage.uids(scenario.untouched) == before
    # The watches go on: what a hand does is undone.
    bench.remove("Service", f"{PAIR}-decode")
    stage.until_shape(found)
    assert bench.get(operator, "/healthz") == (200, "ok\n")
    assert stage.uids(scenario.untouched) == before
