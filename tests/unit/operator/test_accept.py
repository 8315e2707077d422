"""Which specs are acted on, and in which words the others are refused; what a refusal leaves as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamserve.contract.streampair import StreamPair
from streamserve.operator.accept import Refused, accept
from streamserve.operator.builders.worker_pods import revision_of
from streamserve.operator.site import Site

from .cluster import Cluster

MakeBody = Callable[..., dict[str, Any]]

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a wrong type": ({"lanes": "two"}, "spec.lanes: must be a whole number"),
    "a field nobody knows": ({"lane": 2}, "spec.lane: "),
    "a broken rule": (
        {"update": {"maxUnavailable": 0}},
        "spec.update.maxUnavailable: and maxSurge are both 0",
    ),
    "what this release has not": ({"router.shared": "other"}, "spec.router.shared: a shared router is not"),
    "a label of ours": (
        {"prefill.template": {"labels": {"app.kubernetes.io/instance": "x"}}},
        'spec.prefill.template.labels["app.kubernetes.io/instance"]: is set by StreamServe',
    ),
    "a volume of ours": (
        {"decode.template": {"volumes": [{"name": "tmp", "emptyDir": {}}]}},
        "spec.decode.template.volumes[0].name: tmp is a volume of StreamServe",
    ),
    "a mount over ours": (
        {"router.template": {"volumeMounts": [{"name": "v", "mountPath": "/etc/streamserve/config"}]}},
        "spec.router.template.volumeMounts[0].mountPath: /etc/streamserve/config is StreamServe's own",
    ),
    "a variable of ours": (
        {"decode.template": {"env": [{"name": "STREAMSERVE_REDIS_URL", "value": "x"}]}},
        "STREAMSERVE_REDIS_URL is set by StreamServe",
    ),
    "two tokens in one pod": (
        {
            "model.source": {"hub": {"tokenSecret": {"name": "a"}}},
            "speculation": {
                "method": "Eagle3",
                "draft": {"name": "org/d", "source": {"hub": {"tokenSecret": {"name": "b"}}}},
            },
        },
        "spec.speculation.draft.source.hub.tokenSecret: differs",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(make_body: MakeBody, name: str) -> None:
    edits, want = REFUSED[name]
    found = accept(make_body(edits))
    assert isinstance(found, Refused)
    assert want in found.message


def test_what_the_server_adds_to_an_object_is_no_reason_to_refuse_it(make_body: MakeBody) -> None:
    body = make_body()
    body["metadata"] |= {"managedFields": [{"manager": "kubectl"}], "somethingNew": 1, "resourceVersion": "7"}
    assert isinstance(accept(body | {"status": {"conditions": [{"type": "Ready"}]}}), StreamPair)


def test_a_refused_edit_is_told_and_changes_nothing(make_body: MakeBody, site: Site) -> None:
    cluster = Cluster(make_body(), site)
    cluster.settle()
    before, revision = cluster.picture(), cluster.body["status"]["revision"]
    cluster.edit(make_body({"lanes": -1}, generation=2))
    cluster.settle()
    assert cluster.picture() == before
    assert cluster.condition("Ready")["reason"] == "InvalidSpec"
    assert "spec.lanes" in cluster.condition("Degraded")["message"]
    assert cluster.condition("Available")["status"] == "True"
    assert cluster.body["status"]["revision"] == revision
    assert cluster.body["status"]["observedGeneration"] == 2


HOT = {
    "lanes": {"lanes": 5},
    "replicas": {"decode.replicas": 2},
    "drain time": {"update.drainSeconds": 99},
    "routing": {"routing.policy": "RoundRobin"},
    "the router's template": {"router.template": {"labels": {"a": "b"}}},
    "names": {"model.servedNames": ["other"]},
}
COLD = {
    "image": {"engine.image": "other:1"},
    "flags": {"engine.args": {"max-model-len": "1024"}},
    "placement": {"placement": "SameNode"},
    "resources": {"decode.resources": {"limits": {"memory": "1Gi"}}},
    "a template": {"prefill.template": {"nodeSelector": {"a": "b"}}},
    "speculation": {"speculation": {"method": "Ngram", "maxDepth": 4}},
}


@pytest.mark.parametrize("name", [*HOT, *COLD])
def test_the_revision_changes_for_what_needs_new_pods_and_for_nothing_else(
    make_body: MakeBody, site: Site, name: str
) -> None:
    before, after = accept(make_body()), accept(make_body(HOT.get(name) or COLD[name], generation=9, uid="another"))
    assert isinstance(before, StreamPair)
    assert isinstance(after, StreamPair), after
    assert (revision_of(before, site) != revision_of(after, site)) == (name in COLD)


FLAGS = ({"seed": "1", "max-model-len": "64"}, {"max-model-len": "64", "seed": "1"})


def test_the_order_in_which_flags_are_written_is_no_change(make_body: MakeBody, site: Site) -> None:
    one, other = (accept(make_body({"engine.args": args})) for args in FLAGS)
    assert isinstance(one, StreamPair)
    assert isinstance(other, StreamPair)
    assert revision_of(one, site) == revision_of(other, site)
