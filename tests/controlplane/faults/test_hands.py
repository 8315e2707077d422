"""What hands do to children, of every kind: all is as it was afterwards, and no pod of a healthy lane was touched."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest

import pytest
from tests.controlplane.faults.conftest import Undisturbed
from tests.controlplane.faults.scenarios import BY_NAME, Stage
from tests.support.operator_bench import CHILDREN, PAIR, Body
from tests.support.processes import wait_until

from streamserve.operator import naming
from streamserve.operator.edge.resources import BY_KIND

Edit = Callable[[Body], object]
SCENARIO = BY_NAME["create-scaled"]
WHICH = [
    pytest.param(tuple(CHILDREN), id="every-kind"),
    *(pytest.param((kind,), id=kind, marks=pytest.mark.everything) for kind in CHILDREN),
]


def gate_shut(body: Body) -> None:
    """As if no lane served: Services and the PodDisruptionBudget look at it."""
    for condition in body["status"]["conditions"]:
        if condition["type"] == naming.LANE_READY:
            condition["status"] = "False"


OF_ALL: list[Edit] = [
    lambda body: body["metadata"].pop("labels"),
    lambda body: body["metadata"]["labels"].update({naming.PAIR: "another"}),
    lambda body: body["metadata"].pop("ownerReferences"),
]
OF_KIND: dict[str, list[Edit]] = {
    "ConfigMap": [lambda body: body.update(data={}), lambda body: body.update(data={"config.json": "{"})],
    "Service": [
        lambda body: body["spec"].update(selector={"app": "another"}),
        lambda body: body["spec"]["selector"].update(app="another"),
        lambda body: (body["spec"]["ports"][0].update(port=4711), body["spec"]["selector"].update(app="another")),
        lambda body: body["spec"]["ports"].append({"name": "another", "port": 4711}),
    ],
    "Deployment": [
        lambda body: body["spec"].update(replicas=7),
        lambda body: body["spec"]["template"]["spec"]["containers"][0].update(image="another:1"),
        lambda body: body["spec"]["template"]["spec"]["containers"][0]["ports"][0].update(containerPort=4711),
    ],
    "PodDisruptionBudget": [
        lambda body: body["spec"].update(unhealthyPodEvictionPolicy="IfHealthyBudget"),
        lambda body: body["spec"]["selector"].update(matchLabels={"app": "another"}),
    ],
    "ServiceAccount": [lambda body: body.update(automountServiceAccountToken=True)],
    "Pod": [lambda body: body["spec"]["containers"][0].update(image="another:1"), gate_shut],
    "StreamPairScaler": [],
}


@pytest.mark.parametrize("kinds", WHICH)
def test_children_that_somebody_deletes_come_back_as_they_were(
    kinds: tuple[str, ...], stage: Stage, undisturbed: Undisturbed
) -> None:
    wanted = at_rest(stage, undisturbed)
    lanes = (0,) if "Pod" in kinds else (0, 1)
    before = stage.uids(lanes)
    for kind, name in sorted(wanted):
        place = naming.place_of(PAIR, name) if kind == "Pod" else None
        if kind in kinds and (place is None or place[0] not in lanes):
            stage.bench.remove(kind, name)
    stage.until_shape(wanted)
    assert stage.settle(remains=True) == wanted
    assert stage.uids(lanes) == before


@pytest.mark.parametrize("kinds", WHICH)
def test_children_that_somebody_edits_become_as_they_were(
    kinds: tuple[str, ...], stage: Stage, undisturbed: Undisturbed
) -> None:
    """One edit of each kind at a time."""
    wanted = at_rest(stage, undisturbed)
    before = stage.uids((0, 1))
    for edits in zip_longest(*([*OF_ALL, *OF_KIND[kind]] for kind in kinds)):
        edited = [change(stage, kind, edit) for kind, edit in zip(kinds, edits, strict=True) if edit is not None]
        assert edited
        stage.until_shape(wanted)
    assert stage.settle(remains=True) == wanted
    assert stage.uids((0, 1)) == before


def at_rest(stage: Stage, undisturbed: Undisturbed) -> dict[tuple[str, str], Body]:
    wanted, _ = undisturbed.of(SCENARIO.name, stage)
    assert {kind for kind, _ in wanted} == set(CHILDREN)
    stage.operate()
    SCENARIO.change(stage.bench)
    assert stage.settle(remains=True) == wanted
    return wanted


def change(stage: Stage, kind: str, edit: Edit) -> None:
    """Of every object of the kind, the status included."""
    resource, namespace = BY_KIND[kind], stage.bench.namespace
    for one in stage.bench.all(kind):
        name = one["metadata"]["name"]
        subresource = "status" if edit is gate_shut else ""

        def written(name: str = name, subresource: str = subresource) -> bool:
            body = stage.bench.one(kind, name)
            assert body is not None
            edit(body)
            answer = stage.bench.call("PUT", resource.path(namespace, name, subresource), body)
            assert answer.ok or answer.status == 409, answer.body
            return answer.ok

        wait_until(written, seconds=10, what=f"{kind} {name} is edited")
